//! What a Service says of its clients counts for the node's sockets as it does for packets.

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, TcpStream, UdpSocket},
};

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{DualStack, ExchangeError, Side, TcpSession, UdpSession, eventually};

use crate::host::{Host, PORT, SOON, refused_calls};

/// The backends that twenty new sockets are answered by.
pub(crate) fn answering(target: SocketAddr) -> Result<BTreeSet<String>, ExchangeError> {
    let mut found = BTreeSet::new();
    for _ in 0..10 {
        found.insert(TcpSession::open_here(target)?.backend().to_owned());
        found.insert(UdpSession::open_here(target, true)?.ask()?);
    }
    Ok(found)
}

fn is_refused(target: SocketAddr) -> Result<(), String> {
    match TcpStream::connect(target) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        outcome => Err(format!("{target}: {outcome:?}")),
    }
}

#[test]
fn with_affinity_all_sockets_of_the_host_go_to_one_backend_of_a_port() {
    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.manifests.write(&host.service(vip, &["local", "remote"]).affinity(3600)).expect("the manifest is written");
    let _daemon = host.start("host");
    host.await_service(vip);
    for family in IpFamily::ALL {
        let target = vip.socket(family, PORT);
        let of_connections = |_| host.run(|| TcpSession::open_here(target).expect("connected").backend().to_owned());
        assert_eq!((0..20).map(of_connections).collect::<BTreeSet<_>>().len(), 1, "{family}: TCP");
        let of_datagrams =
            |_| host.run(|| UdpSession::open_here(target, false).and_then(|mut s| s.ask()).expect("answered"));
        assert_eq!((0..20).map(of_datagrams).collect::<BTreeSet<_>>().len(), 1, "{family}: UDP");
    }
}

#[test]
fn an_internal_policy_of_local_keeps_to_the_node_and_refuses_without() {
    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    let write = |roles: &[&str]| {
        host.manifests.write(&host.service(vip, roles).internal_local()).expect("the manifest is written");
    };
    write(&["local", "remote"]);
    let daemon = host.start("host");
    host.await_service(vip);
    for family in IpFamily::ALL {
        let found = host.run(|| answering(vip.socket(family, PORT))).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(found, BTreeSet::from(["local".to_owned()]), "{family}");
    }
    write(&["remote"]);
    for family in IpFamily::ALL {
        let target = vip.socket(family, PORT);
        eventually("waiting for the endpoint to go", SOON, || host.run(|| is_refused(target)))
            .unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(refused_calls(&daemon, "TCP", "no-local-endpoint") >= 2, "one of each family");
    assert_eq!(refused_calls(&daemon, "UDP", "no-local-endpoint"), 0, "nobody has called it");
}

#[test]
fn the_hosts_own_node_ports_work_at_its_own_addresses() {
    const NODE_PORT: u16 = 30080;

    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    let node = host.lab.node(Side::A);
    let service = host.service(vip, &["local", "remote"]).node_port(NODE_PORT);
    host.manifests.write(&service).expect("the manifest is written");
    let _daemon = host.start("host");
    host.await_service(vip);
    for family in IpFamily::ALL {
        // The last port of the Service is the UDP one: that has the NodePort.
        let target = node.addresses().socket(family, NODE_PORT);
        let ask = |connected| UdpSession::open_here(target, connected).and_then(|mut session| session.ask());
        eventually("waiting for the NodePort", SOON, || host.run(|| ask(true)))
            .unwrap_or_else(|error| panic!("{error}"));
        host.run(|| ask(false)).unwrap_or_else(|error| panic!("{target}: {error}"));
    }
}

#[test]
fn source_ranges_count_for_the_nodes_own_address() {
    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    let balancer = DualStack::cluster_ip(200);
    let own = host.lab.node(Side::A).addresses();
    let write = |ranges: &[&str]| {
        let service = host.service(vip, &["local"]).load_balancer(balancer).source_ranges(ranges);
        host.manifests.write(&service).expect("the manifest is written");
    };
    let ask = |family, target: SocketAddr| {
        host.run(|| -> io::Result<()> {
            let socket = UdpSocket::bind(own.socket(family, 0))?;
            socket.set_read_timeout(Some(SOON))?;
            socket.connect(target)?;
            socket.send(b"who")?;
            socket.recv(&mut [0; 64]).map(drop)
        })
    };
    write(&[&format!("{}/32", own.v4), &format!("{}/128", own.v6)]);
    let daemon = host.start("host");
    host.await_service(vip);
    for family in IpFamily::ALL {
        let target = balancer.socket(family, PORT);
        eventually("waiting for the load balancer's address", SOON, || ask(family, target))
            .unwrap_or_else(|error| panic!("{error}"));
        // Without an address of its own a socket counts as the node's.
        host.run(|| TcpSession::open_here(target)).unwrap_or_else(|error| panic!("{error}"));
    }
    write(&["192.0.2.0/24", "2001:db8:ffff::/48"]);
    for family in IpFamily::ALL {
        let target = balancer.socket(family, PORT);
        eventually("waiting for the ranges", SOON, || match ask(family, target) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
            outcome => Err(format!("{target}: {outcome:?}")),
        })
        .unwrap_or_else(|error| panic!("{error}"));
        host.run(|| is_refused(target)).unwrap_or_else(|error| panic!("{error}"));
        // The ClusterIP does not check them.
        ask(family, vip.socket(family, PORT)).expect("an answer");
    }
    for protocol in ["TCP", "UDP"] {
        assert!(refused_calls(&daemon, protocol, "source-range") >= 2, "one of each family");
    }
}
