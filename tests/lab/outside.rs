//! Clients that are none of the cluster's: what they are let through to, and that they keep it.

use std::{collections::BTreeSet, net::IpAddr, thread, time::Duration};

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::{DualStack, ExchangeError, Namespace, Side, TcpSession, UdpSession, add_address, eventually};

use crate::cluster::{BALANCER, Cluster, NODE_PORT, PORT, SOON, TARGET, VIP, answers, exposed, wait_until_answers};

fn wait_for_node_port(client: &Namespace, node: DualStack, role: &str) {
    eventually("waiting for the NodePort", SOON, || answers(client, node, NODE_PORT, role))
        .expect("the NodePort is served");
}

#[test]
fn source_ranges_are_for_the_load_balancer_alone() {
    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let client = outside.namespace();
    let node = cluster.lab.node(Side::A).addresses();
    let service = exposed(&cluster, &["local"]);
    cluster.write(&service.clone().source_ranges(&["203.0.113.0/24", "2001:db8:113::/64"]));
    let _daemon = cluster.start_daemon_on(Side::A, &[]);
    wait_for_node_port(client, node, "local");
    answers(client, VIP, PORT, "local").expect("ClusterIPs have no ranges");
    for family in IpFamily::ALL {
        let target = BALANCER.socket(family, PORT);
        let error = TcpSession::open_within(client, target, SOON / 10).expect_err("not in the ranges");
        assert!(error.is_silence(), "{error}");
        let error = UdpSession::open(client, target, true)
            .and_then(|socket| socket.with_patience(SOON / 10))
            .and_then(|mut socket| socket.ask())
            .expect_err("not in the ranges");
        assert!(error.is_silence(), "{error}");
    }

    cluster.write(&service.source_ranges(&["192.0.2.0/24", "2001:db8::/64"]));
    eventually("waiting for the ranges", SOON, || answers(client, BALANCER, PORT, "local"))
        .expect("the client is in the ranges");
}

#[test]
fn a_client_stays_with_its_endpoint_until_it_has_been_away() {
    const TIMEOUT: Duration = Duration::from_secs(5);

    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let node = cluster.lab.node(Side::A).addresses();
    let roles = ["local", "bridged", "remote"];
    let service = |roles: &[&str]| exposed(&cluster, roles).affinity(5);
    let ask = |family, address: DualStack, port| -> Result<String, ExchangeError> {
        Ok(TcpSession::open(client, address.socket(family, port))?.backend().to_owned())
    };
    let _daemon = cluster.start_daemon_on(Side::A, &[]);
    let mut after = BTreeSet::new();
    for role in roles {
        cluster.write(&service(&[role]));
        for family in IpFamily::ALL {
            eventually("waiting for the only endpoint", SOON, || match ask(family, VIP, PORT) {
                Ok(answered) if answered == role => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .expect("the Service is served");
        }
        // The new port tells when the others are served: frontends are written last.
        cluster.write(&service(&roles).port(Protocol::Tcp, PORT + 1, TARGET));
        for family in IpFamily::ALL {
            eventually("waiting for all endpoints", SOON, || ask(family, VIP, PORT + 1)).expect("the port is served");
            for (address, port) in [(VIP, PORT), (node, NODE_PORT), (BALANCER, PORT)].repeat(5) {
                let answered = ask(family, address, port).expect("the Service is served");
                assert_eq!(answered, role, "{address} port {port}, {family}: one service port, one endpoint");
            }
        }
        thread::sleep(TIMEOUT + Duration::from_millis(1500));
        after.extend(IpFamily::ALL.map(|family| (family, ask(family, VIP, PORT).expect("the Service is served"))));
    }
    // Who has been away is a new client, which always gets the same one of the same three.
    assert_eq!(after.len(), 2, "{after:?}: one of each family");
}

#[test]
fn a_node_address_that_comes_later_serves_node_ports() {
    const LATE: DualStack = DualStack::external(77);

    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let node = cluster.lab.node(Side::A);
    cluster.write(&exposed(&cluster, &["local"]));
    let _daemon = cluster.start_daemon_on(Side::A, &[]);
    wait_for_node_port(outside.namespace(), node.addresses(), "local");
    answers(outside.namespace(), LATE, NODE_PORT, "local").expect_err("it is nobody's address yet");

    add_address(node.namespace(), node.interface(), LATE).expect("the address is added");
    wait_for_node_port(outside.namespace(), LATE, "local");
}

#[test]
fn connections_through_a_node_port_outlive_the_daemon() {
    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let client = outside.namespace();
    for role in ["local", "remote"] {
        let node = cluster.lab.node(Side::A).addresses();
        cluster.write(&exposed(&cluster, &[role]));
        let mut daemon = cluster.start_daemon_on(Side::A, &[]);
        wait_for_node_port(client, node, role);
        let mut connections = IpFamily::ALL
            .map(|family| TcpSession::open(client, node.socket(family, NODE_PORT)).expect("the NodePort is served"));
        let mut exchange = |when: &str| {
            for connection in &mut connections {
                connection.exchange(b"still there?").unwrap_or_else(|error| panic!("{role}, {when}: {error}"));
            }
        };
        exchange("with the daemon");
        daemon.kill().expect("the daemon runs");
        exchange("without it");
        answers(client, node, NODE_PORT, role).expect("new connections are served without the daemon");
        daemon.start_again().expect("the daemon starts");
        exchange("with it again");
    }
}

#[test]
fn udp_leaves_an_endpoint_that_has_gone_by_both_nodes() {
    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let client = outside.namespace();
    cluster.write(&exposed(&cluster, &["remote"]));
    let _daemons = [Side::A, Side::B].map(|side| cluster.start_daemon_on(side, &[]));
    let targets = [Side::A, Side::B].map(|side| cluster.lab.node(side).addresses());
    targets.iter().for_each(|node| wait_for_node_port(client, *node, "remote"));
    let mut sockets: Vec<UdpSession> = targets
        .iter()
        .flat_map(|node| IpFamily::ALL.map(|family| node.socket(family, NODE_PORT)))
        .map(|target| UdpSession::open(client, target, true).expect("the socket opens"))
        .collect();
    for socket in &mut sockets {
        assert_eq!(socket.ask().expect("the NodePort is served"), "remote");
    }

    for role in ["local", "bridged", "remote"] {
        cluster.write(&exposed(&cluster, &[role]));
        targets.iter().for_each(|node| wait_for_node_port(client, *node, role));
        for socket in &mut sockets {
            assert_eq!(socket.ask().expect("the NodePort is served"), role, "an open socket moves with the Service");
        }
    }
}

#[test]
fn masqueraded_ports_are_of_the_range() {
    const CLIENTS: usize = 8;

    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let node = cluster.lab.node(Side::A).addresses();
    cluster.write(&exposed(&cluster, &["remote"]));
    let _daemon = cluster.start_daemon_on(Side::A, &["--snat-ports", "61000-61063"]);
    wait_for_node_port(outside.namespace(), node, "remote");
    let server = &cluster.find("remote").server;
    drop(server.take_peers());
    for family in IpFamily::ALL {
        let target = node.socket(family, NODE_PORT);
        let mut connections: Vec<TcpSession> = (0..CLIENTS)
            .map(|_| TcpSession::open(outside.namespace(), target).expect("the NodePort is served"))
            .collect();
        for connection in &mut connections {
            connection.exchange(b"hello").expect("no connection takes another's answers");
        }
        let seen = server.take_peers();
        assert_eq!(seen.len(), CLIENTS, "each has a port of its own: {seen:?}");
        assert!(seen.iter().all(|peer| (61_000..=61_063).contains(&peer.port())), "{seen:?}");
        let addresses: BTreeSet<IpAddr> = seen.iter().map(std::net::SocketAddr::ip).collect();
        assert_eq!(addresses, [node.of(family)].into());
    }
}

#[test]
fn a_cluster_ip_is_served_to_a_client_outside() {
    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    for role in ["local", "bridged", "remote"] {
        cluster.write(&exposed(&cluster, &[role]));
        let _daemon = cluster.start_daemon_on(Side::A, &[]);
        wait_until_answers(outside.namespace(), VIP, role);
    }
}
