//! Direct server return: what the node does that a client comes to, and what the node of its backend.
//!
//! Room in a packet is made by the kernel, which has to know that it is IP. In a test run it takes that from an Ethernet header, so
//! without one nothing says a VIP here.

use std::net::SocketAddr;

use dsproxy::maps::Write;
use dsproxy_common::{
    IpFamily, Protocol,
    count::Reason,
    service::FrontendKind,
    settings::{NetworkFlags, SettingFlags},
};
use dsproxy_tests::{
    packet::{Extension, Message, Packet, flags},
    prog::{Entry, Hook},
};
use ipnet::IpNet;

use crate::world::{
    Expected, Flow, PORT, Served, TARGET_PORT, World, endpoint, everywhere, node, on_ethernet, outsider, packet,
};

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

const CLIENT: u16 = 50_000;

/// A Service that is reached from outside, its endpoint 1 elsewhere and its endpoint 2 on this node.
fn node_port(protocol: Protocol) -> Served {
    Served::new(1, protocol).kind(FrontendKind::NodePort).local([2])
}

/// How many entries are in the main tables.
fn confirmed(world: &mut World) -> [usize; 2] {
    let family = world.family;
    world.datapath.connections().confirmed(family).expect("tables that can be read")
}

fn allow(world: &mut World, flags: u32) {
    world.configure(|settings| settings.flags |= flags);
}

/// Backends answer directly, TCP and UDP, and those here may.
fn allow_all(world: &mut World) {
    allow(world, SettingFlags::DIRECT_TCP | SettingFlags::DIRECT_UDP | SettingFlags::ACCEPT_DIRECT);
}

/// A connection from outside to `served`.
fn from_outside(world: &mut World, served: &Served) -> Flow {
    let client = outsider(world.family, CLIENT);
    Flow { client, ..world.flow(served, CLIENT) }
}

/// Where the client's packet enters: it is sent to `backend`.
#[track_caller]
fn enters(world: &World, flow: &Flow, wanted: u8, is_first: bool, backend: SocketAddr) -> Packet {
    let input = packet(flow.protocol, flow.client, flow.vip, wanted);
    let inside = input.clone().to(backend);
    let entered = if is_first { Expected::Opened } else { Expected::Forwarded };
    world.send("the client sends", Hook::NodeIngress, &input, &entered(flow.service, inside.clone()));
    inside
}

/// It leaves as it is.
fn as_it_is(packet: &Packet) -> Expected {
    Expected::Rewritten(Reason::SentDirect, packet.clone())
}

/// It leaves with the VIP.
fn saying(packet: &Packet, vip: SocketAddr) -> Expected {
    Expected::Lengthened(Reason::SentDirect, packet.clone().saying(vip))
}

#[test]
fn tcp_leaves_with_the_clients_address_and_what_opens_says_the_vip() {
    on_ethernet(|world| {
        allow_all(world);
        let served = node_port(Protocol::Tcp).active([1]);
        let (flow, backend) = (from_outside(world, &served), world.endpoint(1));
        let opening = enters(world, &flow, flags::SYN, true, backend);
        world.send("it leaves", Hook::NodeEgress, &opening, &saying(&opening, flow.vip));
        let again = enters(world, &flow, flags::SYN, false, backend);
        world.send("it leaves again", Hook::NodeEgress, &again, &saying(&again, flow.vip));
        let more = [flags::ACK, flags::ACK | flags::PSH, flags::ACK, flags::FIN | flags::ACK, flags::ACK];
        for wanted in more {
            let inside = enters(world, &flow, wanted, false, backend);
            world.send("more of it", Hook::NodeEgress, &inside, &as_it_is(&inside));
        }
        // The port serves again.
        let anew = enters(world, &flow, flags::SYN, true, backend);
        world.send("another leaves", Hook::NodeEgress, &anew, &saying(&anew, flow.vip));
        let inside = enters(world, &flow, flags::ACK, false, backend);
        world.send("more of that", Hook::NodeEgress, &inside, &as_it_is(&inside));
        world.withdraw(&served);
    });
}

#[test]
fn what_is_confirmed_outlives_a_flood() {
    on_ethernet(|world| {
        allow_all(world);
        let served = node_port(Protocol::Tcp).active([1]);
        let (flow, backend) = (from_outside(world, &served), world.endpoint(1));
        for (wanted, is_first) in [(flags::SYN, true), (flags::ACK, false)] {
            let inside = enters(world, &flow, wanted, is_first, backend);
            let output = if is_first { saying(&inside, flow.vip) } else { as_it_is(&inside) };
            world.send("it leaves", Hook::NodeEgress, &inside, &output);
        }
        // The client's, the backend's, should it send back this way, and what leaves.
        assert_eq!(confirmed(world), [1, 2], "{world}");
    });
}

#[test]
fn each_datagram_says_the_vip_unless_only_tcp_goes_directly() {
    on_ethernet(|world| {
        allow_all(world);
        let served = node_port(Protocol::Udp).active([1]);
        let (flow, backend) = (from_outside(world, &served), world.endpoint(1));
        for is_first in [true, false, false] {
            let inside = enters(world, &flow, 0, is_first, backend);
            world.send("it leaves", Hook::NodeEgress, &inside, &saying(&inside, flow.vip));
        }
        world.withdraw(&served);
        world.datapath.connections().clear().expect("a table that can be cleared");

        world.configure(|settings| settings.flags &= !SettingFlags::DIRECT_UDP);
        let flow = from_outside(world, &served);
        let inside = enters(world, &flow, 0, true, backend);
        let outside = inside.clone().from(SocketAddr::new(node(world.family), CLIENT));
        world.send("it leaves", Hook::NodeEgress, &inside, &Expected::Rewritten(Reason::Masqueraded, outside));
    });
}

/// A fragment has no room, nor has what has options already.
#[test]
fn a_first_packet_without_room_is_masqueraded_and_a_later_one_goes_as_it_is() {
    on_ethernet(|world| {
        allow_all(world);
        let served = node_port(Protocol::Udp).active([1]);
        let (flow, backend) = (from_outside(world, &served), world.endpoint(1));
        let crowded = |packet: Packet| match world.family {
            IpFamily::V4 => packet.ipv4_options(&[1, 1, 1, 1]),
            IpFamily::V6 => packet.extension(Extension::DestinationOptions(0)),
        };
        let whole = packet(Protocol::Udp, flow.client, flow.vip, 0);
        let cases: [&dyn Fn(Packet) -> Packet; 2] = [&crowded, &|packet| packet.fragment(0, true)];
        for change in cases {
            world.datapath.connections().clear().expect("a table that can be cleared");
            let (input, inside) = (change(whole.clone()), change(whole.clone().to(backend)));
            world.send("it enters", Hook::NodeIngress, &input, &Expected::Opened(flow.service, inside.clone()));
            let outside = inside.clone().from(SocketAddr::new(node(world.family), CLIENT));
            let masqueraded = Expected::Rewritten(Reason::Masqueraded, outside);
            world.send("it leaves", Hook::NodeEgress, &inside, &masqueraded);

            world.datapath.connections().clear().expect("a table that can be cleared");
            let first = enters(world, &flow, 0, true, backend);
            world.send("one with room", Hook::NodeEgress, &first, &saying(&first, flow.vip));
            world.send("one without", Hook::NodeIngress, &input, &Expected::Forwarded(flow.service, inside.clone()));
            world.send("it leaves", Hook::NodeEgress, &inside, &as_it_is(&inside));
        }
        world.withdraw(&served);
    });
}

#[test]
fn answers_come_by_this_node_where_they_have_to() {
    everywhere(|world| {
        allow_all(world);
        let masqueraded = |world: &World, inside: &Packet| {
            let outside = inside.clone().from(SocketAddr::new(node(world.family), CLIENT));
            world.send("it leaves", Hook::NodeEgress, inside, &Expected::Rewritten(Reason::Masqueraded, outside));
        };
        for protocol in BOTH {
            let served = Served::new(1, protocol).active([1]);
            let (flow, backend) = (from_outside(world, &served), world.endpoint(1));
            let inside = enters(world, &flow, flags::SYN, true, backend);
            masqueraded(world, &inside);
            world.withdraw(&served);

            let served = node_port(protocol).active([2]);
            let (flow, backend) = (from_outside(world, &served), world.endpoint(2));
            let inside = enters(world, &flow, flags::SYN, true, backend);
            world.send("to a backend here", Hook::Egress, &inside, &Expected::Passed(Reason::NotReply));
            let answer = packet(protocol, backend, flow.client, flags::SYN | flags::ACK);
            let left = Expected::Replied(flow.service, answer.clone().from(flow.vip));
            world.send("which answers", Hook::NodeEgress, &answer, &left);
            world.withdraw(&served);
        }
        let served = Served::new(1, Protocol::Sctp).kind(FrontendKind::NodePort).target_port(PORT).active([1]);
        let (flow, backend) = (from_outside(world, &served), SocketAddr::new(world.endpoint(1).ip(), PORT));
        let inside = enters(world, &flow, 0, true, backend);
        masqueraded(world, &inside);
    });
}

/// What is on no node does not know of VIPs, and what pods send may have to come back to their own node.
#[test]
fn endpoints_on_no_node_and_clients_inside_are_masqueraded() {
    on_ethernet(|world| {
        allow_all(world);
        let served = node_port(Protocol::Tcp).active([1]);
        let nowhere = served.clone().nowhere();
        let (flow, backend) = (from_outside(world, &nowhere), world.endpoint(1));
        let masqueraded = |inside: &Packet, family| {
            let outside = inside.clone().from(SocketAddr::new(node(family), CLIENT));
            Expected::Rewritten(Reason::Masqueraded, outside)
        };
        let inside = enters(world, &flow, flags::SYN, true, backend);
        world.send("to no node", Hook::NodeEgress, &inside, &masqueraded(&inside, world.family));
        world.withdraw(&nowhere);
        world.datapath.connections().clear().expect("a table that can be cleared");

        let network = IpNet::from(outsider(world.family, 0).ip());
        world.datapath.write(&[Write::Network { network, flags: NetworkFlags::POD }]).expect("a network");
        let flow = from_outside(world, &served);
        let inside = enters(world, &flow, flags::SYN, true, backend);
        world.send("from a pod elsewhere", Hook::NodeEgress, &inside, &masqueraded(&inside, world.family));
        world.datapath.write(&[Write::RemoveNetwork { network }]).expect("a network that can be removed");
    });
}

/// Met in the middle, a segment says nothing and needs no room for it.
#[test]
fn a_long_segment_of_a_connection_that_came_by_another_node_goes_on() {
    on_ethernet(|world| {
        allow_all(world);
        let served = node_port(Protocol::Tcp).active([1]);
        let (flow, backend) = (from_outside(world, &served), world.endpoint(1));
        for is_first in [true, false] {
            let input = packet(flow.protocol, flow.client, flow.vip, flags::ACK).payload(&[0xa5; 1400]);
            let inside = input.clone().to(backend);
            let entered = if is_first { Expected::Opened } else { Expected::Forwarded };
            world.send("it enters", Hook::NodeIngress, &input, &entered(flow.service, inside.clone()));
            world.send("it leaves", Hook::NodeEgress, &inside, &as_it_is(&inside));
        }
    });
}

/// A client's own option would go on to the backend's node, which takes it for this node's.
#[test]
fn clients_do_not_say_vips() {
    everywhere(|world| {
        for protocol in BOTH {
            let served = node_port(protocol).active([1, 2]);
            let flow = from_outside(world, &served);
            let other = SocketAddr::new(flow.vip.ip(), 81);
            let input = packet(protocol, flow.client, flow.vip, flags::SYN).saying(other);
            for hook in [Hook::NodeIngress, Hook::Ingress] {
                let dropped = Expected::Dropped(Some(flow.service), Reason::Pretended);
                world.send("it says one", hook, &input, &dropped);
            }
            world.withdraw(&served);
        }
    });
}

/// What another node has sent arrives at its backend's node.
#[track_caller]
fn arrives(world: &World, flow: &Flow, wanted: u8, backend: SocketAddr, expected: Reason) {
    let input = packet(flow.protocol, flow.client, backend, wanted).saying(flow.vip);
    let expected =
        if expected.is_drop() { Expected::Dropped(Some(flow.service), expected) } else { Expected::Passed(expected) };
    world.send("it arrives", Hook::NodeIngress, &input, &expected);
}

/// The backend answers the client by the VIP.
#[track_caller]
fn answers(world: &World, flow: &Flow, wanted: u8, backend: SocketAddr) {
    let answer = packet(flow.protocol, backend, flow.client, wanted);
    let left = Expected::Replied(flow.service, answer.clone().from(flow.vip));
    world.send("the backend answers", Hook::NodeEgress, &answer, &left);
}

/// The backend's packet is none of a connection's.
#[track_caller]
fn answers_by_itself(world: &World, flow: &Flow, wanted: u8, backend: SocketAddr) {
    let answer = packet(flow.protocol, backend, flow.client, wanted);
    world.send("the backend sends", Hook::NodeEgress, &answer, &Expected::Passed(Reason::NotReply));
}

#[test]
fn a_backend_answers_by_the_vip_that_the_packet_says() {
    everywhere(|world| {
        allow_all(world);
        for protocol in BOTH {
            let served = node_port(protocol).active([2]);
            let (flow, backend) = (from_outside(world, &served), world.endpoint(2));
            answers_by_itself(world, &flow, flags::SYN | flags::ACK, backend);
            for _ in 0..2 {
                arrives(world, &flow, flags::SYN, backend, Reason::DirectArrived);
                answers(world, &flow, flags::SYN | flags::ACK, backend);
            }
            if protocol == Protocol::Udp {
                world.withdraw(&served);
                continue;
            }
            assert_eq!(confirmed(world), [0, 0], "{world}");
            let plain = packet(protocol, flow.client, backend, flags::ACK);
            world.send("the client goes on", Hook::NodeIngress, &plain, &Expected::Passed(Reason::NotService));
            answers(world, &flow, flags::ACK, backend);
            assert_eq!(confirmed(world), [0, 1], "{world}");
            answers(world, &flow, flags::FIN | flags::ACK, backend);
            answers(world, &flow, flags::ACK, backend);
            // The client's port serves again, past the VIP as through it.
            answers_by_itself(world, &flow, flags::SYN | flags::ACK, backend);
            arrives(world, &flow, flags::SYN, backend, Reason::DirectArrived);
            answers(world, &flow, flags::SYN | flags::ACK, backend);
            answers(world, &flow, flags::RST, backend);
            world.withdraw(&served);
        }
    });
}

/// A NodePort is at each node's own addresses.
#[test]
fn a_node_port_of_the_other_nodes_is_known_by_its_port() {
    everywhere(|world| {
        allow_all(world);
        let served = node_port(Protocol::Tcp).active([2]).at_node();
        let (flow, backend) = (from_outside(world, &served), world.endpoint(2));
        let other_node = outsider(world.family, PORT).ip();
        let flow = Flow { vip: SocketAddr::new(other_node, PORT), ..flow };
        arrives(world, &flow, flags::SYN, backend, Reason::DirectArrived);
        answers(world, &flow, flags::SYN | flags::ACK, backend);
        let elsewhere =
            Flow { client: outsider(world.family, CLIENT + 1), vip: SocketAddr::new(other_node, 81), ..flow };
        arrives(world, &elsewhere, flags::SYN, backend, Reason::NotService);
        world.withdraw(&served);

        // At a port of another kind it would be anybody's address.
        let served = served.kind(FrontendKind::ExternalIp);
        let flow = Flow { client: outsider(world.family, CLIENT + 2), vip: flow.vip, ..world.flow(&served, CLIENT) };
        arrives(world, &flow, flags::SYN, backend, Reason::NotService);
        answers_by_itself(world, &flow, flags::SYN | flags::ACK, backend);
    });
}

#[test]
fn nobody_gives_a_backend_a_name_that_is_none() {
    everywhere(|world| {
        let served = node_port(Protocol::Tcp).active([2]);
        let (flow, backend) = (from_outside(world, &served), world.endpoint(2));
        arrives(world, &flow, flags::SYN, backend, Reason::NotService);
        allow_all(world);
        let nowhere = Flow { vip: SocketAddr::new(flow.vip.ip(), 81), ..flow };
        arrives(world, &nowhere, flags::SYN, backend, Reason::NotService);
        arrives(world, &flow, flags::ACK, backend, Reason::NotService);
        arrives(world, &flow, flags::SYN, world.endpoint(59_999), Reason::NotService);
        let by_pod = packet(Protocol::Tcp, flow.client, backend, flags::SYN).saying(flow.vip);
        world.send("a pod says a VIP", Hook::Ingress, &by_pod, &Expected::Passed(Reason::NotService));
        answers_by_itself(world, &flow, flags::SYN | flags::ACK, backend);
    });
}

/// The filter of frontends keeps a bit for a day after its frontend has gone, and one bit stands for many: what looks as if it were for a
/// frontend may be for a backend.
#[test]
fn a_backend_that_the_filter_takes_for_a_frontend_is_reached() {
    everywhere(|world| {
        allow_all(world);
        for protocol in BOTH {
            let mut gone = Served::new(2, protocol).resolved();
            for family in &mut gone.families {
                let held = &mut family.frontends[0].address;
                (held.address, held.port) = (endpoint(family.family, 2).ip(), TARGET_PORT);
            }
            world.datapath.serve(&gone).expect("a frontend where the backend will be");
            world.datapath.withdraw(&gone).expect("a frontend that can be removed");

            let served = node_port(protocol).active([2]);
            let (flow, backend) = (from_outside(world, &served), world.endpoint(2));
            arrives(world, &flow, flags::SYN, backend, Reason::DirectArrived);
            answers(world, &flow, flags::SYN | flags::ACK, backend);
            world.withdraw(&served);
            world.datapath.connections().clear().expect("a table that can be cleared");
        }
    });
}

#[test]
fn two_vips_of_one_client_port_and_backend_do_not_mix() {
    everywhere(|world| {
        allow_all(world);
        for protocol in BOTH {
            let (served, other) =
                (node_port(protocol).active([2]), Served::new(2, protocol).kind(FrontendKind::LoadBalancer));
            let other = other.active([2]).local([2]);
            let (flow, backend) = (from_outside(world, &served), world.endpoint(2));
            let clash = from_outside(world, &other);
            arrives(world, &flow, flags::SYN, backend, Reason::DirectArrived);
            answers(world, &flow, flags::SYN | flags::ACK, backend);
            arrives(world, &clash, flags::SYN, backend, Reason::ReplyClash);
            answers(world, &flow, flags::ACK, backend);
            if protocol == Protocol::Tcp {
                answers(world, &flow, flags::FIN | flags::ACK, backend);
                arrives(world, &clash, flags::SYN, backend, Reason::DirectArrived);
                answers(world, &clash, flags::SYN | flags::ACK, backend);
            }
            world.withdraw(&served);
            world.withdraw(&other);
        }
    });
}

/// A connection may come by one node and then by another, of which one is the backend's.
#[test]
fn one_connection_by_two_nodes_is_one() {
    on_ethernet(|world| {
        allow_all(world);
        for protocol in BOTH {
            let served = node_port(protocol).active([2]);
            let (flow, backend) = (from_outside(world, &served), world.endpoint(2));
            enters(world, &flow, flags::SYN, true, backend);
            answers(world, &flow, flags::SYN | flags::ACK, backend);
            arrives(world, &flow, flags::SYN, backend, Reason::DirectArrived);
            enters(world, &flow, flags::ACK, false, backend);
            answers(world, &flow, flags::ACK, backend);
            world.datapath.connections().clear().expect("a table that can be cleared");

            arrives(world, &flow, flags::SYN, backend, Reason::DirectArrived);
            answers(world, &flow, flags::SYN | flags::ACK, backend);
            enters(world, &flow, flags::ACK, true, backend);
            answers(world, &flow, flags::ACK, backend);
            enters(world, &flow, flags::ACK, false, backend);
            world.withdraw(&served);
            world.datapath.connections().clear().expect("a table that can be cleared");
        }
    });
}

/// The client's packets are not followed at the backend's node, but that they end a connection is seen.
#[test]
fn a_client_that_has_ended_one_may_open_another_through_another_vip() {
    on_ethernet(|world| {
        allow_all(world);
        let served = node_port(Protocol::Tcp).active([2]);
        let other = Served::new(2, Protocol::Tcp).kind(FrontendKind::LoadBalancer).active([2]).local([2]);
        let (flow, backend) = (from_outside(world, &served), world.endpoint(2));
        let second = from_outside(world, &other);
        for end in [flags::RST, flags::RST | flags::ACK, flags::FIN | flags::ACK] {
            arrives(world, &flow, flags::SYN, backend, Reason::DirectArrived);
            answers(world, &flow, flags::SYN | flags::ACK, backend);
            answers(world, &flow, flags::ACK, backend);
            arrives(world, &second, flags::SYN, backend, Reason::ReplyClash);
            let last = packet(Protocol::Tcp, flow.client, backend, end);
            world.send("the client ends it", Hook::NodeIngress, &last, &Expected::Passed(Reason::NotService));
            arrives(world, &second, flags::SYN, backend, Reason::DirectArrived);
            answers(world, &second, flags::SYN | flags::ACK, backend);
            world.datapath.connections().clear().expect("a table that can be cleared");
        }
    });
}

/// What has expired counts no more, also where a client ends a connection past the VIP that it has opened from the same port since.
#[test]
fn an_end_does_not_bring_back_what_is_over() {
    everywhere(|world| {
        allow_all(world);
        let served = node_port(Protocol::Tcp).active([2]);
        let (flow, backend) = (from_outside(world, &served), world.endpoint(2));
        for end in [flags::FIN | flags::ACK, flags::RST] {
            arrives(world, &flow, flags::SYN, backend, Reason::DirectArrived);
            world.let_pass(3600);
            let last = packet(Protocol::Tcp, flow.client, backend, end);
            world.send("the client ends another", Hook::NodeIngress, &last, &Expected::Passed(Reason::NotService));
            answers_by_itself(world, &flow, flags::ACK, backend);
            world.datapath.connections().clear().expect("a table that can be cleared");
        }
        world.withdraw(&served);
    });
}

/// A backend may be a client as well, from the port that it listens at.
#[test]
fn a_masqueraded_connection_of_the_backends_own_is_not_taken_over() {
    everywhere(|world| {
        allow(world, SettingFlags::ACCEPT_DIRECT | SettingFlags::MASQUERADE_ALL);
        let served = node_port(Protocol::Udp).active([2]);
        let (flow, backend) = (from_outside(world, &served), world.endpoint(2));
        let other = Served::new(2, Protocol::Udp).active([3]);
        let own = Flow { client: backend, ..world.flow(&other, CLIENT) };
        own.opens(world, 0, world.endpoint(3));
        let clash = Flow { client: world.endpoint(3), ..flow };
        arrives(world, &clash, 0, backend, Reason::ReplyClash);
        arrives(world, &flow, 0, backend, Reason::DirectArrived);
        world.withdraw(&served);
        world.withdraw(&other);
    });
}

/// Errors about what the backend has answered come to the VIP, and so to the node that the client came to.
#[test]
fn errors_find_the_backend_and_the_client() {
    on_ethernet(|world| {
        allow_all(world);
        for protocol in BOTH {
            let served = node_port(protocol).active([1]);
            let (flow, backend) = (from_outside(world, &served), world.endpoint(1));
            let inside = enters(world, &flow, flags::SYN, true, backend);
            world.send("it leaves", Hook::NodeEgress, &inside, &saying(&inside, flow.vip));
            let router = outsider(world.family, 1).ip();
            let too_big =
                |quoted: &Packet, to| Packet::icmp(router, to, Message::TooBig { mtu: 1_280 }).quoting(quoted, 500);
            let answer = packet(protocol, flow.vip, flow.client, flags::ACK);
            let translated = too_big(&answer.clone().from(backend), backend.ip());
            let expected = Expected::Rewritten(Reason::IcmpError, translated.clone());
            world.send("an error", Hook::NodeIngress, &too_big(&answer, flow.vip.ip()), &expected);
            world.send("it leaves", Hook::NodeEgress, &translated, &Expected::Passed(Reason::OtherProtocol));

            // What the client has sent was too big on its way on.
            let error = too_big(&inside, flow.client.ip());
            let named = too_big(&inside.clone().to(flow.vip), flow.client.ip());
            world.send("to the client", Hook::NodeEgress, &error, &Expected::Rewritten(Reason::IcmpError, named));
            world.withdraw(&served);
            world.datapath.connections().clear().expect("a table that can be cleared");

            // The backend's node: nobody listens.
            let served = node_port(protocol).active([2]);
            let (flow, backend) = (from_outside(world, &served), world.endpoint(2));
            arrives(world, &flow, flags::SYN, backend, Reason::DirectArrived);
            let quoted = packet(protocol, flow.client, backend, flags::SYN).saying(flow.vip);
            let unreachable = |quoted: &Packet, from| {
                Packet::icmp(from, flow.client.ip(), Message::PortUnreachable).quoting(quoted, 500)
            };
            let error = unreachable(&quoted, backend.ip());
            let named = unreachable(&quoted.clone().to(flow.vip), flow.vip.ip());
            world.send("the backend", Hook::NodeEgress, &error, &Expected::Rewritten(Reason::IcmpError, named));
            world.withdraw(&served);
            world.datapath.connections().clear().expect("a table that can be cleared");
        }
    });
}

/// What was settled once goes on so, whatever the mode is now.
#[test]
fn a_change_of_mode_is_for_new_connections() {
    on_ethernet(|world| {
        let served = node_port(Protocol::Udp).active([1]);
        let (flow, backend) = (from_outside(world, &served), world.endpoint(1));
        let first = enters(world, &flow, 0, true, backend);
        let outside = first.clone().from(SocketAddr::new(node(world.family), CLIENT));
        let masqueraded = Expected::Rewritten(Reason::Masqueraded, outside);
        world.send("it leaves", Hook::NodeEgress, &first, &masqueraded);
        allow_all(world);
        let more = enters(world, &flow, 0, false, backend);
        world.send("more of it", Hook::NodeEgress, &more, &masqueraded);
        // Also where the client's entry was evicted.
        let removed = world.datapath.connections().remove(Entry::Forward, flow.protocol, flow.client, flow.vip);
        assert!(removed.expect("a table that can be written"), "{world}");
        let more = enters(world, &flow, 0, true, backend);
        world.send("picked anew", Hook::NodeEgress, &more, &masqueraded);

        world.datapath.connections().clear().expect("a table that can be cleared");
        let first = enters(world, &flow, 0, true, backend);
        world.send("it leaves", Hook::NodeEgress, &first, &saying(&first, flow.vip));
        world.configure(|settings| settings.flags = 0);
        let more = enters(world, &flow, 0, false, backend);
        world.send("more of it", Hook::NodeEgress, &more, &saying(&more, flow.vip));
    });
}
