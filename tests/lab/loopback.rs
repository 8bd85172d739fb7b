//! A node's loopback is the node's own: NodePorts are not served there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use dsproxy_common::Protocol;
use dsproxy_tests::lab::{DualStack, EchoServer, Side, eventually};

use crate::cluster::{Cluster, NODE_PORT, SOON, TRAFFIC, answers, ask_here, exposed};

const LOOPBACK: DualStack = DualStack { v4: Ipv4Addr::LOCALHOST, v6: Ipv6Addr::LOCALHOST };

/// Everything that leads to the node itself whatever its addresses are.
const ADDRESSES: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9)),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
    // ::ffff:127.0.0.1
    IpAddr::V6(Ipv4Addr::LOCALHOST.to_ipv6_mapped()),
];

#[test]
fn a_node_port_is_not_served_on_loopback() {
    // Not even where the flag names it.
    let named = "127.0.0.0/8,::1/128,172.30.0.0/24,fd00:172:30::/64";
    for arguments in [&[][..], &["--nodeport-addresses", named]] {
        let cluster = Cluster::build();
        let outside = cluster.lab.add_outside().expect("the host is added");
        let namespace = cluster.lab.node(Side::A).namespace();
        let node = cluster.node(Side::A);
        cluster.write(&exposed(&cluster, &["local"]));
        let _daemon = cluster.start_daemon_on(Side::A, arguments);
        let is_served = || {
            eventually("waiting for the NodePort", SOON, || answers(outside.namespace(), node, NODE_PORT, "local"))
                .unwrap_or_else(|error| panic!("{arguments:?}: {error}"));
            for (family, protocol) in TRAFFIC {
                let asked = cluster.as_host(Side::A, || ask_here(node.socket(family, NODE_PORT), protocol, SOON));
                assert_eq!(asked.expect("the node's own address serves its own sockets"), "local");
            }
        };
        is_served();
        for address in ADDRESSES {
            let target = SocketAddr::new(address, NODE_PORT);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let ask = || ask_here(target, protocol, SOON);
                // Sockets that the programs look at, and others.
                for asked in [cluster.as_host(Side::A, ask), namespace.run(ask).expect("node A is there")] {
                    let error = asked.expect_err("nobody listens");
                    assert!(error.is_refused(), "{arguments:?}, {target} over {protocol}: {error}");
                }
            }
        }

        // A server of the host's own has the port there, and the Service has it everywhere else.
        let _server = EchoServer::start_in(namespace, LOOPBACK, NODE_PORT, "own").expect("the port is free");
        for (family, protocol) in TRAFFIC {
            let ask = || ask_here(LOOPBACK.socket(family, NODE_PORT), protocol, SOON);
            for asked in [cluster.as_host(Side::A, ask), namespace.run(ask).expect("node A is there")] {
                assert_eq!(asked.expect("its own server is reached"), "own", "{arguments:?}, {family} {protocol}");
            }
        }
        is_served();
    }
}
