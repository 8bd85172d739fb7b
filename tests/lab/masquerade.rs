//! Whose address a server sees, where it is not the client's.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{DualStack, EchoServer, Namespace, Side, TcpSession, UdpSession, eventually};

use crate::cluster::{Cluster, PORT, SOON, TARGET, service, wait_until_answers};

const VIP: DualStack = DualStack::cluster_ip(1);

/// The addresses that `server` sees when `client` asks `target` over TCP and UDP.
fn seen(client: &Namespace, target: SocketAddr, server: &EchoServer) -> BTreeSet<IpAddr> {
    drop(server.take_peers());
    let mut session = TcpSession::open(client, target).unwrap_or_else(|error| panic!("{error}"));
    session.exchange(b"hello").unwrap_or_else(|error| panic!("{error}"));
    let asked = UdpSession::open(client, target, true).and_then(|mut socket| socket.ask());
    asked.unwrap_or_else(|error| panic!("{error}"));
    server.take_peers().iter().map(SocketAddr::ip).collect()
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let cluster = Cluster::build();
    let _daemon = cluster.start_daemon_on(Side::A, &[]);
    for role in ["local", "bridged"] {
        let backend = cluster.find(role);
        cluster.write(&service("echo", VIP, &[backend.pod.addresses()]));
        wait_until_answers(cluster.client.namespace(), VIP, role);
        for family in IpFamily::ALL {
            let seen = seen(backend.pod.namespace(), VIP.socket(family, PORT), &backend.server);
            let own = backend.pod.addresses().of(family);
            assert!(!seen.contains(&own), "{role}: a packet from its own address is no answerable one: {seen:?}");
        }
    }
}

#[test]
fn with_masquerade_all_cluster_ips_hide_the_client() {
    let cluster = Cluster::build();
    for (arguments, hidden) in [(&[][..], false), (&["--masquerade-all"][..], true)] {
        let _daemon = cluster.start_daemon_on(Side::A, arguments);
        for role in ["local", "bridged", "remote"] {
            let backend = cluster.find(role);
            cluster.write(&service("echo", VIP, &[backend.pod.addresses()]));
            for client in [&cluster.client, &cluster.bridged_client] {
                wait_until_answers(client.namespace(), VIP, role);
                for family in IpFamily::ALL {
                    let seen = seen(client.namespace(), VIP.socket(family, PORT), &backend.server);
                    let own = client.addresses().of(family);
                    assert_eq!(seen.len(), 1, "{arguments:?} {role}: {seen:?}");
                    assert_eq!(!seen.contains(&own), hidden, "{arguments:?} {role}: {seen:?}");
                }
            }
        }
    }
}

#[test]
fn with_masquerade_egress_the_world_sees_the_node() {
    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let server = EchoServer::start_in(outside.namespace(), outside.addresses(), TARGET, "outside").expect("it listens");
    let cases: [(&[&str], bool); 3] = [
        (&[], false),
        (&["--masquerade-egress"], true),
        (&["--masquerade-egress", "--non-masquerade-cidrs", "192.0.2.0/24,2001:db8::/64"], false),
    ];
    for (arguments, hidden) in cases {
        let _daemon = cluster.start_daemon_on(Side::A, arguments);
        for client in [&cluster.client, &cluster.bridged_client] {
            for family in IpFamily::ALL {
                let own = client.addresses().of(family);
                let wanted = if hidden { outside.gateway().of(family) } else { own };
                let target = outside.addresses().socket(family, TARGET);
                eventually("waiting for the flag to be heeded", SOON, || {
                    match seen(client.namespace(), target, &server) {
                        seen if seen == [wanted].into() => Ok(()),
                        seen => Err(format!("{arguments:?}: {seen:?}, not {wanted}")),
                    }
                })
                .unwrap_or_else(|error| panic!("{error}"));
                let remote = cluster.find("remote");
                let seen = seen(client.namespace(), remote.pod.addresses().socket(family, TARGET), &remote.server);
                assert_eq!(seen, [own].into(), "{arguments:?}: pods see each other's addresses");
            }
        }
    }
}
