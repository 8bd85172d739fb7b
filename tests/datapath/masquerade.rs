//! Connections whose backend would answer past this node: they leave with an address of the node, and what comes back goes on to
//! the client.

use std::net::SocketAddr;

use dsproxy::maps::Write;
use dsproxy_common::{
    Protocol,
    count::Reason,
    service::FrontendKind,
    settings::{NetworkFlags, SettingFlags},
};
use dsproxy_tests::{
    packet::{Dissection, Message, Packet, flags, verify},
    prog::{Hook, Verdict},
};

use crate::world::{Expected, Flow, Served, World, everywhere, node, outsider, packet};

/// A client's port within the range of masqueraded packets, where it is kept.
const KEPT: u16 = 50_000;

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A Service that is reached from outside, its endpoint 1 elsewhere and its endpoint 2 on this node.
fn node_port(protocol: Protocol) -> Served {
    Served::new(1, protocol).kind(FrontendKind::NodePort).local([2])
}

/// A connection from outside to `served`.
fn from_outside(world: &mut World, served: &Served, port: u16) -> Flow {
    let client = outsider(world.family, port);
    Flow { client, ..world.flow(served, port) }
}

/// The client sends a packet, which leaves for `backend` from the node's port `port`.
#[track_caller]
fn sends(world: &World, flow: &Flow, wanted: u8, is_first: bool, backend: SocketAddr, port: u16) {
    let input = packet(flow.protocol, flow.client, flow.vip, wanted);
    let inside = input.clone().to(backend);
    let entered = if is_first {
        Expected::Opened(flow.service, inside.clone())
    } else {
        Expected::Forwarded(flow.service, inside.clone())
    };
    world.send("the client sends", Hook::NodeIngress, &input, &entered);
    let outside = inside.clone().from(SocketAddr::new(node(world.family), port));
    world.send("it leaves", Hook::NodeEgress, &inside, &Expected::Rewritten(Reason::Masqueraded, outside));
}

/// `backend` answers to the node's port `port`, and the client gets it from the VIP.
#[track_caller]
fn answers(world: &World, flow: &Flow, wanted: u8, backend: SocketAddr, port: u16) {
    let input = packet(flow.protocol, backend, SocketAddr::new(node(world.family), port), wanted);
    let inside = input.clone().to(flow.client);
    let entered = Expected::Rewritten(Reason::Unmasqueraded, inside.clone());
    world.send("the backend answers", Hook::NodeIngress, &input, &entered);
    let left = Expected::Replied(flow.service, inside.clone().from(flow.vip));
    world.send("the answer leaves", Hook::NodeEgress, &inside, &left);
}

#[test]
fn a_connection_from_outside_to_a_backend_elsewhere() {
    everywhere(|world| {
        for protocol in BOTH {
            let served = node_port(protocol).active([1]);
            let flow = from_outside(world, &served, KEPT);
            let backend = world.endpoint(1);
            sends(world, &flow, flags::SYN, true, backend, KEPT);
            answers(world, &flow, flags::SYN | flags::ACK, backend, KEPT);
            for _ in 0..2 {
                sends(world, &flow, flags::ACK, false, backend, KEPT);
                answers(world, &flow, flags::ACK, backend, KEPT);
            }
            sends(world, &flow, flags::FIN | flags::ACK, false, backend, KEPT);
            answers(world, &flow, flags::FIN | flags::ACK, backend, KEPT);
            sends(world, &flow, flags::ACK, false, backend, KEPT);
            world.withdraw(&served);
        }
    });
}

#[test]
fn a_backend_on_this_node_sees_the_client() {
    everywhere(|world| {
        for protocol in BOTH {
            let served = node_port(protocol).active([2]);
            let flow = from_outside(world, &served, KEPT);
            let (backend, input) = (world.endpoint(2), packet(flow.protocol, flow.client, flow.vip, flags::SYN));
            let inside = input.clone().to(backend);
            world.send("it enters", Hook::NodeIngress, &input, &Expected::Opened(flow.service, inside.clone()));
            world.send("it reaches the pod", Hook::Egress, &inside, &Expected::Passed(Reason::NotReply));
            let answer = packet(flow.protocol, backend, flow.client, flags::SYN | flags::ACK);
            let left = Expected::Replied(flow.service, answer.clone().from(flow.vip));
            world.send("the answer leaves", Hook::NodeEgress, &answer, &left);
            world.withdraw(&served);
        }
    });
}

#[test]
fn a_pod_is_not_masqueraded_unless_it_is_wanted_for_all() {
    everywhere(|world| {
        let served = Served::new(1, Protocol::Tcp).active([1]);
        let (flow, backend) = (world.flow(&served, KEPT), world.endpoint(1));
        flow.opens(world, flags::SYN, backend);
        let inside = packet(flow.protocol, flow.client, backend, flags::SYN);
        world.send("it leaves", Hook::NodeEgress, &inside, &Expected::Passed(Reason::NotReply));

        world.configure(|settings| settings.flags |= SettingFlags::MASQUERADE_ALL);
        let flow = world.flow(&served, KEPT + 1);
        flow.opens(world, flags::SYN, backend);
        let inside = packet(flow.protocol, flow.client, backend, flags::SYN);
        let outside = inside.clone().from(SocketAddr::new(node(world.family), KEPT + 1));
        world.send("it leaves", Hook::NodeEgress, &inside, &Expected::Rewritten(Reason::Masqueraded, outside));
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    everywhere(|world| {
        for protocol in BOTH {
            let served = Served::new(1, protocol).active([1]).local([1]);
            let backend = world.endpoint(1);
            let flow = Flow { client: SocketAddr::new(backend.ip(), KEPT), ..world.flow(&served, KEPT) };
            flow.opens(world, flags::SYN, backend);
            let inside = packet(flow.protocol, flow.client, backend, flags::SYN);
            let node = SocketAddr::new(node(world.family), KEPT);
            let back = Expected::Rewritten(Reason::Masqueraded, inside.clone().from(node));
            world.send("it comes back to the pod", Hook::Egress, &inside, &back);
            let answer = packet(flow.protocol, backend, node, flags::SYN | flags::ACK);
            let turned = answer.clone().to(flow.client);
            let entered = Expected::Rewritten(Reason::Unmasqueraded, turned.clone());
            world.send("the pod answers", Hook::Ingress, &answer, &entered);
            let left = Expected::Replied(flow.service, turned.clone().from(flow.vip));
            world.send("the answer comes back", Hook::Egress, &turned, &left);
            world.withdraw(&served);
        }
    });
}

/// The port of the node that the first packet from `client` leaves with.
fn port_of(world: &World, flow: &Flow, backend: SocketAddr) -> Option<u16> {
    let input = packet(flow.protocol, flow.client, flow.vip, flags::SYN);
    let inside = input.clone().to(backend);
    world.send("it enters", Hook::NodeIngress, &input, &Expected::Opened(flow.service, inside.clone()));
    let bytes = inside.on(world.link).to_bytes();
    let outcome = world.datapath.run(Hook::NodeEgress, world.link, &bytes).expect("a program that runs");
    match outcome.verdict {
        Verdict::Pass => {
            verify(world.link, &outcome.packet).expect("checksums that are right");
            assert_eq!(outcome.counted.of(Reason::Masqueraded, Some(world.family)), 1, "{world}");
            let transport = Dissection::of(world.link, &outcome.packet).transport.expect("a transport header");
            Some(transport.source)
        }
        Verdict::Drop => {
            assert_eq!(outcome.counted.of(Reason::SnatExhausted, Some(world.family)), 1, "{world}");
            None
        }
        other @ (Verdict::Redirect | Verdict::Transmit | Verdict::Other(_)) => panic!("{world}: {other:?}"),
    }
}

#[test]
fn other_ports_become_one_of_the_range_and_clients_with_one_port_get_two() {
    everywhere(|world| {
        world.configure(|settings| *settings = settings.with_snat_ports([49_152, 65_535]));
        let served = node_port(Protocol::Tcp).active([1]);
        let backend = world.endpoint(1);
        let mut taken = std::collections::BTreeSet::new();
        for client in 40_000..40_040 {
            let flow = from_outside(world, &served, client);
            let port = port_of(world, &flow, backend).expect("a port");
            assert!((49_152..=65_535).contains(&port), "{port}");
            assert!(taken.insert(port), "{port} twice");
        }
    });
}

#[test]
fn a_range_that_is_used_up_drops_and_counts_and_a_closed_connection_gives_its_port_back() {
    everywhere(|world| {
        world.configure(|settings| *settings = settings.with_snat_ports([KEPT, KEPT]));
        // Without XDP, which would remember it for a second.
        world.configure(|settings| *settings = settings.with_port_waits(false));
        let served = node_port(Protocol::Tcp).active([1]);
        let backend = world.endpoint(1);
        let first = from_outside(world, &served, 40_001);
        sends(world, &first, flags::SYN, true, backend, KEPT);
        answers(world, &first, flags::SYN | flags::ACK, backend, KEPT);
        sends(world, &first, flags::ACK, false, backend, KEPT);
        let second = from_outside(world, &served, 40_002);
        assert_eq!(port_of(world, &second, backend), None, "{world}");
        answers(world, &first, flags::ACK, backend, KEPT);
        sends(world, &first, flags::FIN | flags::ACK, false, backend, KEPT);
        answers(world, &first, flags::FIN | flags::ACK, backend, KEPT);
        let third = from_outside(world, &served, 40_003);
        assert_eq!(port_of(world, &third, backend), Some(KEPT), "{world}");
    });
}

/// How long UDP keeps its port from others that find none, in seconds.
const SILENT: u32 = 50;

#[test]
fn silent_datagrams_give_their_port_to_who_finds_none_and_go_on_with_another() {
    everywhere(|world| {
        world.configure(|settings| *settings = settings.with_snat_ports([KEPT, KEPT]));
        let served = node_port(Protocol::Udp).active([1]);
        let backend = world.endpoint(1);
        let first = from_outside(world, &served, 40_001);
        sends(world, &first, 0, true, backend, KEPT);
        answers(world, &first, 0, backend, KEPT);
        world.let_pass(SILENT - 1);
        let second = from_outside(world, &served, 40_002);
        assert_eq!(port_of(world, &second, backend), None, "{world}");
        world.let_pass(1);
        let third = from_outside(world, &served, 40_003);
        assert_eq!(port_of(world, &third, backend), Some(KEPT), "{world}");
        answers(world, &third, 0, backend, KEPT);

        // There are others now: what the first sends is not to be answered to the third.
        world.configure(|settings| *settings = settings.with_snat_ports([KEPT + 1, KEPT + 1]));
        sends(world, &first, 0, false, backend, KEPT + 1);
        answers(world, &first, 0, backend, KEPT + 1);
        world.configure(|settings| *settings = settings.with_snat_ports([KEPT, KEPT]));
        answers(world, &third, 0, backend, KEPT);
    });
}

#[test]
fn most_of_the_range_may_be_in_use() {
    everywhere(|world| {
        let ports = 64;
        world.configure(|settings| *settings = settings.with_snat_ports([KEPT, KEPT + ports - 1]));
        let served = node_port(Protocol::Udp).active([1]);
        let backend = world.endpoint(1);
        for client in 0..ports * 3 / 4 {
            let flow = from_outside(world, &served, 40_000 + client);
            assert!(port_of(world, &flow, backend).is_some(), "{world}: after {client}");
        }
    });
}

#[test]
fn ports_that_are_no_longer_offered_stay_those_of_the_connections_that_have_them() {
    everywhere(|world| {
        world.configure(|settings| *settings = settings.with_snat_ports([KEPT, KEPT + 1]));
        let served = node_port(Protocol::Tcp).active([1]);
        let backend = world.endpoint(1);
        let first = from_outside(world, &served, KEPT);
        sends(world, &first, flags::SYN, true, backend, KEPT);
        world.configure(|settings| settings.offered_ports = [KEPT + 1, KEPT + 1]);
        answers(world, &first, flags::SYN | flags::ACK, backend, KEPT);
        sends(world, &first, flags::ACK, false, backend, KEPT);
        // Its own port would be free towards this endpoint.
        let other = Served::new(3, Protocol::Tcp).kind(FrontendKind::NodePort).active([3]);
        let second = from_outside(world, &other, KEPT);
        sends(world, &second, flags::SYN, true, world.endpoint(3), KEPT + 1);
        answers(world, &second, flags::SYN | flags::ACK, world.endpoint(3), KEPT + 1);
    });
}

#[test]
fn two_backends_may_see_the_same_port() {
    everywhere(|world| {
        world.configure(|settings| *settings = settings.with_snat_ports([KEPT, KEPT]));
        for number in [1, 3] {
            let served = Served::new(number, Protocol::Tcp).kind(FrontendKind::NodePort).active([number.into()]);
            let flow = from_outside(world, &served, 40_001);
            sends(world, &flow, flags::SYN, true, world.endpoint(number.into()), KEPT);
        }
    });
}

#[test]
fn sctp_keeps_its_ports() {
    everywhere(|world| {
        let served = node_port(Protocol::Sctp).active([1]).target_port(crate::world::PORT);
        let flow = from_outside(world, &served, 40_000);
        let mut backend = world.endpoint(1);
        backend.set_port(crate::world::PORT);
        sends(world, &flow, 0, true, backend, 40_000);
        answers(world, &flow, 0, backend, 40_000);
    });
}

#[test]
fn pods_that_leave_the_cluster_are_masqueraded_when_it_is_wanted() {
    everywhere(|world| {
        let (pod, family) = (world.client(KEPT), world.family);
        let prefix = if pod.is_ipv4() { 16 } else { 64 };
        let pods = ipnet::IpNet::new(pod.ip(), prefix).expect("a prefix").trunc();
        let world_address = outsider(family, 443);
        let networks = [Write::Network { network: pods, flags: NetworkFlags::POD }];
        world.datapath.write(&networks).expect("a network that can be written");
        let node_port = SocketAddr::new(node(family), KEPT);
        let syn = Packet::tcp(pod, world_address).flags(flags::SYN);
        world.send("not wanted", Hook::NodeEgress, &syn, &Expected::Passed(Reason::NotReply));

        world.configure(|settings| settings.flags |= SettingFlags::MASQUERADE_EGRESS);
        let masqueraded = |packet: &Packet| Expected::Rewritten(Reason::Masqueraded, packet.clone().from(node_port));
        for packet in [syn, Packet::udp(pod, world_address)] {
            world.send("it leaves", Hook::NodeEgress, &packet, &masqueraded(&packet));
            world.send("and once more", Hook::NodeEgress, &packet, &masqueraded(&packet));
        }
        let answer = Packet::tcp(world_address, node_port).flags(flags::SYN | flags::ACK);
        let back = Expected::Rewritten(Reason::Unmasqueraded, answer.clone().to(pod));
        world.send("it is answered", Hook::NodeIngress, &answer, &back);
        for (what, packet) in [
            ("to another pod", Packet::tcp(pod, world.client(80)).flags(flags::SYN)),
            ("not a pod's", Packet::tcp(outsider(family, 1), world_address).flags(flags::SYN)),
            ("in the middle", Packet::tcp(world.client(KEPT + 1), world_address).flags(flags::ACK)),
        ] {
            world.send(what, Hook::NodeEgress, &packet, &Expected::Passed(Reason::NotReply));
        }
        let toward_pod = Packet::tcp(world.client(KEPT + 2), world_address).flags(flags::SYN);
        world.send("to a pod's interface", Hook::Egress, &toward_pod, &Expected::Passed(Reason::NotReply));
        world.datapath.write(&[Write::RemoveNetwork { network: pods }]).expect("a network that can be removed");
    });
}

#[test]
fn a_ping_that_leaves_the_cluster_is_masqueraded_and_answered() {
    everywhere(|world| {
        let (pod, family) = (world.client(0).ip(), world.family);
        let far = outsider(family, 0).ip();
        let pods = ipnet::IpNet::new(pod, if pod.is_ipv4() { 16 } else { 64 }).expect("a prefix").trunc();
        world.datapath.write(&[Write::Network { network: pods, flags: NetworkFlags::POD }]).expect("a network");
        world.configure(|settings| settings.flags |= SettingFlags::MASQUERADE_EGRESS);
        let request = |source| Packet::icmp(source, far, Message::EchoRequest { identifier: KEPT, sequence: 1 });
        let reply = |destination| Packet::icmp(far, destination, Message::EchoReply { identifier: KEPT, sequence: 1 });
        let node = node(family);
        let leaves = Expected::Rewritten(Reason::Masqueraded, request(node));
        world.send("it leaves", Hook::NodeEgress, &request(pod), &leaves);
        let enters = Expected::Rewritten(Reason::Unmasqueraded, reply(pod));
        world.send("it is answered", Hook::NodeIngress, &reply(node), &enters);
        world.datapath.write(&[Write::RemoveNetwork { network: pods }]).expect("a network that can be removed");
    });
}

/// Nobody has sent for longer than connections count.
fn let_it_grow_old(world: &mut World) {
    let settings = world.datapath.maps().settings().expect("settings");
    let longest = settings.lifetimes.into_iter().max().expect("lifetimes");
    world.datapath.connections().grow_older(longest + settings.jiffies_per_second).expect("tables");
}

#[test]
fn a_client_that_was_silent_for_long_is_masqueraded_again() {
    everywhere(|world| {
        for protocol in BOTH {
            let served = node_port(protocol).active([1]);
            let flow = from_outside(world, &served, KEPT);
            let backend = world.endpoint(1);
            for _ in 0..2 {
                sends(world, &flow, flags::SYN, true, backend, KEPT);
                answers(world, &flow, flags::SYN | flags::ACK, backend, KEPT);
                sends(world, &flow, flags::ACK, false, backend, KEPT);
                let_it_grow_old(world);
            }
            world.withdraw(&served);
        }
    });
}

#[test]
fn a_pod_that_was_silent_for_long_leaves_the_cluster_masqueraded_again() {
    everywhere(|world| {
        let (pod, family) = (world.client(KEPT), world.family);
        let far = SocketAddr::new(outsider(family, 0).ip(), 443);
        let pods = ipnet::IpNet::new(pod.ip(), if pod.is_ipv4() { 16 } else { 64 }).expect("a prefix").trunc();
        world.datapath.write(&[Write::Network { network: pods, flags: NetworkFlags::POD }]).expect("a network");
        world.configure(|settings| settings.flags |= SettingFlags::MASQUERADE_EGRESS);
        let node = SocketAddr::new(node(family), KEPT);
        for protocol in BOTH {
            for _ in 0..2 {
                for flags in [flags::SYN, flags::ACK] {
                    let sent = packet(protocol, pod, far, flags);
                    let leaves = Expected::Rewritten(Reason::Masqueraded, sent.clone().from(node));
                    world.send("it leaves", Hook::NodeEgress, &sent, &leaves);
                    let answer = packet(protocol, far, node, flags::SYN | flags::ACK);
                    let enters = Expected::Rewritten(Reason::Unmasqueraded, answer.clone().to(pod));
                    world.send("it is answered", Hook::NodeIngress, &answer, &enters);
                }
                let_it_grow_old(world);
            }
        }
        world.datapath.write(&[Write::RemoveNetwork { network: pods }]).expect("a network that can be removed");
    });
}

#[test]
fn without_an_address_nothing_is_masqueraded_wrongly() {
    everywhere(|world| {
        let served = node_port(Protocol::Udp).active([1]);
        let flow = from_outside(world, &served, KEPT);
        let (backend, family) = (world.endpoint(1), world.family);
        world.datapath.write(&[Write::RemoveMasquerade { family, device: 0 }]).expect("an address that can be removed");
        let input = packet(flow.protocol, flow.client, flow.vip, 0);
        let inside = input.clone().to(backend);
        world.send("it enters", Hook::NodeIngress, &input, &Expected::Opened(flow.service, inside.clone()));
        let dropped = Expected::Dropped(Some(flow.service), Reason::NoNodeAddress);
        world.send("it may not leave", Hook::NodeEgress, &inside, &dropped);
        world.datapath.write(&[Write::Masquerade { device: 0, address: node(family) }]).expect("an address");
    });
}
