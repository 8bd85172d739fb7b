//! What does not fit into one packet: datagrams in fragments, and paths that carry less than their ends think.

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{Bulk, DualStack, Namespace, Side, UdpSession, eventually, set_mtu};

use crate::cluster::{Cluster, NODE_PORT, PORT, SOON, VIP, answers, exposed};

/// A few fragments of an Ethernet's size.
const DATAGRAM: usize = 5000;

/// Enough for many full segments.
const BULK: Bulk = Bulk { bytes: 4 << 20 };

/// Who asks for which address: two pods for the ClusterIP, and a host outside for both.
fn ways<'a>(cluster: &'a Cluster, outside: &'a Namespace) -> [(&'a Namespace, DualStack, u16); 4] {
    [
        (cluster.client.namespace(), VIP, PORT),
        (cluster.bridged_client.namespace(), VIP, PORT),
        (outside, VIP, PORT),
        (outside, cluster.lab.node(Side::A).addresses(), NODE_PORT),
    ]
}

#[test]
fn fragments_follow_their_first() {
    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let _daemon = cluster.start_daemon_on(Side::A, &[]);
    for role in ["local", "bridged", "remote"] {
        cluster.write(&exposed(&cluster, &[role]));
        for (client, address, port) in ways(&cluster, outside.namespace()) {
            eventually("waiting for the Service", SOON, || answers(client, address, port, role))
                .expect("the Service is served");
            for family in IpFamily::ALL {
                let target = address.socket(family, port);
                let mut socket = UdpSession::open(client, target, true).expect("the socket opens");
                for _ in 0..10 {
                    let answered = socket
                        .ask_at_length(DATAGRAM)
                        .unwrap_or_else(|error| panic!("{role} from {}: {error}", client.name()));
                    assert_eq!(answered, role);
                }
            }
        }
    }
}

/// Less than 1280 bytes is no IPv6 link (RFC 8200, section 5).
const NARROW: u16 = 1300;

#[test]
fn a_narrow_path_to_the_backend_is_found() {
    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    for side in [Side::A, Side::B] {
        let node = cluster.lab.node(side);
        set_mtu(node.namespace(), node.interface(), NARROW).expect("the MTU is set");
    }
    let _daemon = cluster.start_daemon_on(Side::A, &[]);
    cluster.write(&exposed(&cluster, &["remote"]));
    for (client, address, port) in ways(&cluster, outside.namespace()) {
        eventually("waiting for the Service", SOON, || answers(client, address, port, "remote"))
            .expect("the Service is served");
        for family in IpFamily::ALL {
            let report = BULK
                .run(client, address.socket(family, port))
                .unwrap_or_else(|error| panic!("{family} from {}: {error}", client.name()));
            assert_eq!(report.intact, BULK.bytes);
        }
    }
}

/// A datagram that fits into an Ethernet's packet, and not into a narrow one.
const WIDE: usize = 1400;

/// TCP would learn the narrow link's segment size as it connects, so it takes datagrams to make node A tell the backend, which
/// may know the client by another address.
#[test]
fn a_narrow_path_to_the_client_is_found() {
    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let node = cluster.lab.node(Side::A).namespace();
    let links = [
        (cluster.client.namespace(), cluster.client.host_interface()),
        (cluster.bridged_client.namespace(), cluster.bridged_client.host_interface()),
        (outside.namespace(), "eth1"),
    ];
    for (client, at_node) in links {
        set_mtu(node, at_node, NARROW).expect("the MTU is set");
        set_mtu(client, "eth0", NARROW).expect("the MTU is set");
    }
    let _daemon = cluster.start_daemon_on(Side::A, &[]);
    cluster.write(&exposed(&cluster, &["remote"]));
    for (client, address, port) in ways(&cluster, outside.namespace()) {
        eventually("waiting for the Service", SOON, || answers(client, address, port, "remote"))
            .expect("the Service is served");
        for family in IpFamily::ALL {
            let mut socket = UdpSession::open(client, address.socket(family, port), true)
                .and_then(|socket| socket.with_patience(SOON / 10))
                .expect("the socket opens");
            // The first answer is lost; it is what the backend learns from.
            eventually("waiting for the backend to learn the path's MTU", SOON, || socket.ask_at_length(WIDE))
                .unwrap_or_else(|error| panic!("{family} from {}: {error}", client.name()));
        }
    }
}
