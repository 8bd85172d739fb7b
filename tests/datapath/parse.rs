//! What stands around and between the headers: VLAN tags, options, extension headers, fragments, and protocols that are
//! not for us.

use dsproxy_common::{IpFamily, Protocol, count::Reason};
use dsproxy_tests::{
    packet::{Extension, Link, Packet, Part, Tag, flags, number},
    prog::{Hook, SkBuff},
};

use crate::world::{Case, Expected, Served, World, everywhere};

/// Makes a case of the same packet in both directions: the first of a connection and its answer.
fn translated(world: &World, service: u32, name: &'static str, dress: impl Fn(Packet) -> Packet) -> [Case; 2] {
    let (client, vip, backend) = (world.client(40_000), world.vip(1), world.endpoint(1));
    let forward = dress(Packet::tcp(client, vip).flags(flags::SYN));
    let reply = dress(Packet::tcp(backend, client).flags(flags::SYN | flags::ACK));
    [
        Case {
            name,
            hook: Hook::Ingress,
            expected: Expected::Opened(service, forward.clone().to(backend)),
            input: forward,
        },
        Case { name, hook: Hook::Egress, expected: Expected::Replied(service, reply.clone().from(vip)), input: reply },
    ]
}

#[track_caller]
fn check_in_order(world: &mut World, cases: &[Case]) {
    world.datapath.connections().clear().expect("a table that can be cleared");
    for Case { name, hook, input, expected } in cases {
        world.send(name, *hook, input, expected);
    }
}

#[test]
fn up_to_two_vlan_tags_are_stepped_over() {
    everywhere(|world| {
        let service = world.serve(&Served::new(1, Protocol::Tcp).active([1]));
        for (name, tags) in [
            ("one tag", vec![Tag::Customer(100)]),
            ("one service tag", vec![Tag::Service(100)]),
            ("two tags", vec![Tag::Customer(100), Tag::Customer(200)]),
            ("two tags, the outer one a service tag", vec![Tag::Service(100), Tag::Customer(200)]),
        ] {
            let dress = |packet: Packet| tags.iter().fold(packet, |packet, tag| packet.tag(*tag));
            let cases = translated(world, service, name, dress);
            check_in_order(world, &cases);
        }
        if world.link == Link::Ethernet {
            let packet = Packet::tcp(world.client(40_000), world.vip(1)).flags(flags::SYN);
            let tagged = [1, 2, 3].into_iter().fold(packet, |packet, id| packet.tag(Tag::Customer(id)));
            for hook in [Hook::Ingress, Hook::Egress] {
                world.send("three tags", hook, &tagged, &Expected::Passed(Reason::NotIp));
            }
        }
    });
}

#[test]
fn ipv4_options_and_tcp_options_are_stepped_over() {
    everywhere(|world| {
        let service = world.serve(&Served::new(1, Protocol::Tcp).active([1]));
        for length in [0, 4, 20, 40] {
            // Maximum segment size, and then whatever fills up.
            let tcp = |packet: Packet| packet.tcp_options(&[&[2, 4, 5, 0xb4], [1; 36].as_slice()].concat()[..length]);
            let cases = translated(world, service, "TCP options", tcp);
            check_in_order(world, &cases);
            if world.family == IpFamily::V4 {
                // Router alert, and then no-operations.
                let ip =
                    |packet: Packet| packet.ipv4_options(&[&[0x94, 4, 0, 0], [1; 36].as_slice()].concat()[..length]);
                let cases = translated(world, service, "IPv4 options", ip);
                check_in_order(world, &cases);
            }
        }
    });
}

#[test]
fn ipv6_extension_headers_are_stepped_over() {
    use Extension::{Authentication, DestinationOptions, Fragment, HopByHop, Routing};
    const ATOMIC: Extension = Fragment { offset: 0, more: false };
    /// As many as there may be, in the order of RFC 8200, section 4.1.
    const ALL: [Extension; 6] =
        [HopByHop(0), DestinationOptions(0), Routing(1), ATOMIC, Authentication(3), DestinationOptions(0)];
    everywhere(|world| {
        if world.family == IpFamily::V4 {
            return;
        }
        let service = world.serve(&Served::new(1, Protocol::Tcp).active([1]));
        for (name, chain) in [
            ("hop-by-hop options", vec![HopByHop(0)]),
            ("longer hop-by-hop options", vec![HopByHop(3)]),
            ("the longest hop-by-hop options", vec![HopByHop(255)]),
            ("destination options", vec![DestinationOptions(2)]),
            ("a routing header", vec![Routing(1)]),
            ("an authentication header", vec![Authentication(3)]),
            ("an atomic fragment", vec![ATOMIC]),
            ("hop-by-hop and destination options", vec![HopByHop(1), DestinationOptions(1)]),
            ("all that there are", ALL.to_vec()),
        ] {
            let dress = |packet: Packet| chain.iter().fold(packet, |packet, extension| packet.extension(*extension));
            let cases = translated(world, service, name, dress);
            check_in_order(world, &cases);
        }

        let packet = Packet::tcp(world.client(40_000), world.vip(1)).flags(flags::SYN);
        let too_many =
            ALL.iter().fold(packet, |packet, extension| packet.extension(*extension)).extension(DestinationOptions(0));
        for hook in [Hook::Ingress, Hook::Egress] {
            world.send("one too many", hook, &too_many, &Expected::Passed(Reason::OtherProtocol));
        }
    });
}

#[test]
fn a_chain_that_stops_at_a_header_without_ports_passes() {
    everywhere(|world| {
        if world.family == IpFamily::V4 {
            return;
        }
        world.serve(&Served::new(1, Protocol::Tcp).active([1]));
        let (client, vip) = (world.client(40_000).ip(), world.vip(1).ip());
        for (name, protocol) in [("no next header", 59), ("ESP", number::ESP), ("mobility", 135), ("HIP", 139)] {
            let input = Packet::other(protocol, client, vip).extension(Extension::HopByHop(0)).payload(&[0; 40]);
            for hook in [Hook::Ingress, Hook::Egress] {
                world.send(name, hook, &input, &Expected::Passed(Reason::OtherProtocol));
            }
        }
    });
}

#[test]
fn dont_fragment_and_the_reserved_bit_do_not_make_a_fragment() {
    everywhere(|world| {
        if world.family == IpFamily::V6 {
            return;
        }
        let service = world.serve(&Served::new(1, Protocol::Tcp).active([1]));
        let (client, vip, backend) = (world.client(40_000), world.vip(1), world.endpoint(1));
        for (flag, taken_off) in [(0x40, 0x4000_u16), (0x80, 0x8000)] {
            let dress = |packet: Packet| {
                let bytes = packet.clone().on(world.link).to_bytes();
                let at = packet.clone().on(world.link).offset(Part::Network) + 10;
                // The header's sum goes up by the flag, its checksum down, end-around.
                let checksum = u16::from_be_bytes([bytes[at], bytes[at + 1]]);
                let (lower, borrow) = checksum.overflowing_sub(taken_off);
                let lower = lower - u16::from(borrow);
                packet.overwrite(Part::Network, 6, &[flag, 0]).overwrite(Part::Network, 10, &lower.to_be_bytes())
            };
            let input = dress(Packet::tcp(client, vip).flags(flags::SYN));
            let output = dress(Packet::tcp(client, backend).flags(flags::SYN));
            world.datapath.connections().clear().expect("a table that can be cleared");
            world.send("a flag that is no fragment's", Hook::Ingress, &input, &Expected::Opened(service, output));
        }
    });
}

#[test]
fn other_protocols_pass() {
    everywhere(|world| {
        world.serve(&Served::new(1, Protocol::Tcp).active([1]));
        let (client, vip) = (world.client(40_000).ip(), world.vip(1).ip());
        let mut protocols = vec![number::ICMP, 2, 4, 41, 47, number::ESP, 136, 255];
        if world.family == IpFamily::V4 {
            // What is an extension header to IPv6 is a protocol like any other to IPv4.
            protocols.extend([0, 43, 44, 51, 60]);
        }
        for protocol in protocols {
            let input = Packet::other(protocol, client, vip).payload(&[13, 0, 0xf2, 0xff, 0, 0, 0, 0, 1, 2, 3, 4]);
            for hook in [Hook::Ingress, Hook::Egress] {
                world.send("another protocol", hook, &input, &Expected::Passed(Reason::OtherProtocol));
            }
        }
    });
}

#[test]
fn neighbour_discovery_and_arp_pass() {
    everywhere(|world| {
        world.serve(&Served::new(1, Protocol::Tcp).active([1]));
        let (client, vip) = (world.client(40_000).ip(), world.vip(1).ip());
        for hook in [Hook::Ingress, Hook::Egress] {
            if world.family == IpFamily::V6 {
                // Router and neighbour solicitation and advertisement, and redirect (RFC 4861).
                for kind in 133..=137 {
                    let input = Packet::other(number::ICMPV6, client, vip).payload(&[kind, 0, 0, 0, 0, 0, 0, 0]);
                    world.send("neighbour discovery", hook, &input, &Expected::Passed(Reason::OtherProtocol));
                }
            }
            if world.link == Link::Ethernet {
                let request =
                    [0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 244, 200, 7, 0, 0, 0, 0, 0, 0, 10, 96, 0, 1];
                let arp = Packet::frame(number::ETHERTYPE_ARP, &request);
                world.send("ARP", hook, &arp, &Expected::Passed(Reason::NotIp));
                world.send("ARP in a VLAN", hook, &arp.tag(Tag::Customer(5)), &Expected::Passed(Reason::NotIp));
                let other = Packet::frame(0x88cc, &[0; 50]);
                world.send("LLDP", hook, &other, &Expected::Passed(Reason::NotIp));
            } else {
                let bytes = [0x15; 60];
                world.send_bytes("version 1", hook, &bytes, &Expected::Passed(Reason::NotIp), &SkBuff::default());
            }
        }
    });
}
