//! Packets in fragments: the first is translated like a whole packet, the others in their addresses alone.

use std::net::SocketAddr;

use dsproxy_common::{IpFamily, Protocol, count::Reason, service::FrontendKind};
use dsproxy_tests::{
    packet::{Extension, Packet, Tag, flags, number},
    prog::Hook,
};

use crate::world::{Expected, Flow, PORT, Served, World, everywhere, node, outsider};

/// The client's port, within the range of masqueraded packets, where it is kept.
const CLIENT: u16 = 50_000;

fn packet(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Packet {
    let packet = match protocol {
        Protocol::Tcp => Packet::tcp(source, destination),
        Protocol::Udp => Packet::udp(source, destination),
        Protocol::Sctp => Packet::sctp(source, destination),
    };
    packet.payload(&(0..600).map(|index: u32| index as u8).collect::<Vec<u8>>())
}

/// Sends the fragments of `input`, which become those of `output`; `expected` says what that is called, the first time and later.
#[track_caller]
fn pieces(
    world: &World,
    what: &str,
    hook: Hook,
    [input, output]: [&Packet; 2],
    expected: [&dyn Fn(Packet) -> Expected; 2],
) {
    for (index, (input, output)) in input.fragments(256).iter().zip(output.fragments(256)).enumerate() {
        world.send(&format!("{what}, piece {index}"), hook, input, &expected[usize::from(index > 0)](output));
    }
}

fn served(world: &World, protocol: Protocol) -> (Served, SocketAddr) {
    let served = Served::new(1, protocol).active([1]);
    let mut backend = world.endpoint(1);
    if protocol == Protocol::Sctp {
        backend.set_port(PORT);
        return (served.target_port(PORT), backend);
    }
    (served, backend)
}

#[test]
fn a_request_and_its_answer() {
    everywhere(|world| {
        for (identification, protocol) in (1..).zip(Protocol::ALL) {
            let (served, backend) = served(world, protocol);
            let flow = world.flow(&served, CLIENT);
            let number = |packet: Packet| packet.identification(identification);
            let request = number(packet(protocol, flow.client, flow.vip));
            let opened = |packet| Expected::Opened(flow.service, packet);
            let forwarded = |packet| Expected::Forwarded(flow.service, packet);
            let translated = request.clone().to(backend);
            pieces(world, "a request", Hook::Ingress, [&request, &translated], [&opened, &forwarded]);
            let answer = number(packet(protocol, backend, flow.client));
            let replied = |packet| Expected::Replied(flow.service, packet);
            let translated = answer.clone().from(flow.vip);
            pieces(world, "an answer", Hook::Egress, [&answer, &translated], [&replied, &replied]);
        }
    });
}

#[test]
fn a_masqueraded_request_and_its_answer() {
    everywhere(|world| {
        for (identification, protocol) in (11..).zip(Protocol::ALL) {
            let (served, backend) = served(world, protocol);
            let flow = world.flow(&served.kind(FrontendKind::NodePort), CLIENT);
            let flow = Flow { client: outsider(world.family, CLIENT), ..flow };
            let node = SocketAddr::new(node(world.family), CLIENT);
            let number = |packet: Packet| packet.identification(identification);
            let opened = |packet| Expected::Opened(flow.service, packet);
            let forwarded = |packet| Expected::Forwarded(flow.service, packet);
            let masqueraded = |packet| Expected::Rewritten(Reason::Masqueraded, packet);
            let unmasqueraded = |packet| Expected::Rewritten(Reason::Unmasqueraded, packet);
            let replied = |packet| Expected::Replied(flow.service, packet);

            let request = number(packet(protocol, flow.client, flow.vip));
            let inside = request.clone().to(backend);
            let outside = inside.clone().from(node);
            pieces(world, "it enters", Hook::NodeIngress, [&request, &inside], [&opened, &forwarded]);
            pieces(world, "it leaves", Hook::NodeEgress, [&inside, &outside], [&masqueraded, &masqueraded]);
            let answer = number(packet(protocol, backend, node));
            let inside = answer.clone().to(flow.client);
            let outside = inside.clone().from(flow.vip);
            pieces(world, "it comes back", Hook::NodeIngress, [&answer, &inside], [&unmasqueraded, &unmasqueraded]);
            pieces(world, "and leaves", Hook::NodeEgress, [&inside, &outside], [&replied, &replied]);
        }
    });
}

#[test]
fn one_that_comes_too_early_passes() {
    everywhere(|world| {
        for (identification, protocol) in (21..).zip(Protocol::ALL) {
            let (served, backend) = served(world, protocol);
            let flow = world.flow(&served, CLIENT);
            let request = packet(protocol, flow.client, flow.vip).identification(identification);
            let early = Expected::Passed(Reason::EarlyFragment);
            let fragments = request.fragments(256);
            for hook in Hook::ALL {
                world.send("before the first", hook, &fragments[1], &early);
            }
            let translated = request.clone().to(backend).fragments(256);
            let opened = Expected::Opened(flow.service, translated[0].clone());
            world.send("the first", Hook::Ingress, &fragments[0], &opened);
            let forwarded = Expected::Forwarded(flow.service, translated[2].clone());
            world.send("the last in front of the second", Hook::Ingress, &fragments[2], &forwarded);
            let other = request.identification(identification + 100).fragments(256);
            world.send("another packet's", Hook::Ingress, &other[1], &early);
        }
    });
}

#[test]
fn two_packets_under_way_are_told_apart() {
    everywhere(|world| {
        let (served, backend) = served(world, Protocol::Udp);
        let flows = [CLIENT, CLIENT + 1].map(|port| world.flow(&served, port));
        let requests: Vec<Vec<Packet>> = (31..)
            .zip(&flows)
            .map(|(number, flow)| packet(Protocol::Udp, flow.client, flow.vip).identification(number).fragments(256))
            .collect();
        for (flow, request) in flows.iter().zip(&requests) {
            let output = packet(Protocol::Udp, flow.client, flow.vip).to(backend);
            let output =
                if flow.client.port() == CLIENT { output.identification(31) } else { output.identification(32) };
            world.send(
                "the first",
                Hook::Ingress,
                &request[0],
                &Expected::Opened(flow.service, output.fragments(256).swap_remove(0)),
            );
        }
        for (flow, request) in flows.iter().zip(&requests).rev() {
            let output = request[1].clone().to(backend);
            world.send("the second", Hook::Ingress, &request[1], &Expected::Forwarded(flow.service, output));
        }
    });
}

#[test]
fn what_is_nobodys_concern_is_not_remembered() {
    everywhere(|world| {
        let (served, backend) = served(world, Protocol::Udp);
        world.serve(&served);
        let packet = packet(Protocol::Udp, world.client(CLIENT), backend).identification(41);
        let fragments = packet.fragments(256);
        world.send("the first", Hook::Ingress, &fragments[0], &Expected::Passed(Reason::NotService));
        world.send("the second", Hook::Ingress, &fragments[1], &Expected::Passed(Reason::EarlyFragment));
    });
}

#[test]
fn of_every_shape() {
    everywhere(|world| {
        let (served, backend) = served(world, Protocol::Udp);
        let flow = world.flow(&served, CLIENT);
        let dress = |packet: Packet| {
            let packet = if world.family == IpFamily::V4 {
                packet.ipv4_options(&[1; 8])
            } else {
                packet.extension(Extension::HopByHop(0)).extension(Extension::Routing(1))
            };
            if world.link == dsproxy_tests::packet::Link::Ethernet { packet.tag(Tag::Customer(3)) } else { packet }
        };
        let request = dress(packet(Protocol::Udp, flow.client, flow.vip)).identification(51);
        let opened = |packet| Expected::Opened(flow.service, packet);
        let forwarded = |packet| Expected::Forwarded(flow.service, packet);
        pieces(world, "options", Hook::Ingress, [&request, &request.clone().to(backend)], [&opened, &forwarded]);
        if world.family == IpFamily::V6 {
            return;
        }
        // Without a checksum there is none to be made right.
        let request = request.without_checksum().identification(52);
        pieces(world, "no checksum", Hook::Ingress, [&request, &request.clone().to(backend)], [&forwarded, &forwarded]);
    });
}

/// RFC 6946: a fragment header around a whole packet.
#[test]
fn an_atomic_fragment_is_a_whole_packet() {
    everywhere(|world| {
        if world.family == IpFamily::V4 {
            return;
        }
        let (served, backend) = served(world, Protocol::Udp);
        let flow = world.flow(&served, CLIENT);
        let input = packet(Protocol::Udp, flow.client, flow.vip).fragment(0, false);
        world.send("atomic", Hook::Ingress, &input, &Expected::Opened(flow.service, input.clone().to(backend)));
    });
}

#[test]
fn others_protocols_and_tiny_ones_pass() {
    everywhere(|world| {
        world.serve(&Served::new(1, Protocol::Tcp).active([1]));
        let (client, vip) = (world.client(CLIENT), world.vip(1));
        let esp = Packet::other(number::ESP, client.ip(), vip.ip()).payload(&[7; 600]).identification(61);
        for fragment in esp.fragments(256) {
            world.send("ESP", Hook::Ingress, &fragment, &Expected::Passed(Reason::OtherProtocol));
        }
        // RFC 1858: the flags of the segment are in the second.
        let tiny = Packet::tcp(client, vip).flags(flags::SYN).payload(&[7; 64]).identification(62).fragments(8);
        world.send("the first of eight bytes", Hook::Ingress, &tiny[0], &Expected::Passed(Reason::Malformed));
        world.send("the second", Hook::Ingress, &tiny[1], &Expected::Passed(Reason::EarlyFragment));
        let last = Packet::other(number::UDP, client.ip(), vip.ip()).payload(&[7; 64]).fragment(65_528, false);
        world.send("the last there can be", Hook::Ingress, &last, &Expected::Passed(Reason::EarlyFragment));
    });
}
