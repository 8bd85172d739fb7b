//! Headers that contradict themselves or are cut off: passed as they are, never translated wrongly.

use dsproxy_common::{IpFamily, Protocol, count::Reason};
use dsproxy_tests::{
    packet::{Extension, Link, Packet, Part, Tag, flags},
    prog::{Hook, SkBuff},
};

use crate::world::{Case, Expected, Served, everywhere};

/// The kernel takes no shorter packet in a test, nor, where it sees an `EtherType` of IP in the usual place, one with less than an
/// IP header behind it (`bpf_prog_test_run_skb` in net/bpf/test_run.c). Tagged frames stand in for those.
fn shortest(link: Link, family: IpFamily, network: usize) -> usize {
    match (link, family) {
        (Link::Ethernet, IpFamily::V4) if network == 14 => 34,
        (Link::Ethernet, IpFamily::V6) if network == 14 => 54,
        (Link::Ethernet | Link::None, _) => 14,
    }
}

/// The shortest IP header, which a device without a link-layer header must bring for the family to be known.
const SHORTEST_IP: usize = 20;

/// Gives a packet another form.
type Shape = fn(Packet) -> Packet;

#[test]
fn a_packet_cut_off_anywhere_is_never_translated_wrongly() {
    everywhere(|world| {
        let tcp = world.serve(&Served::new(1, Protocol::Tcp).active([1]));
        let udp = world.serve(&Served::new(1, Protocol::Udp).active([1]));
        let (client, vip, backend) = (world.client(40_000), world.vip(1), world.endpoint(1));
        let mut shapes: Vec<(&str, Shape)> =
            vec![("plain", |packet| packet), ("TCP options", |packet| packet.tcp_options(&[1; 12]))];
        if world.link == Link::Ethernet {
            shapes.push(("two tags", |packet| packet.tag(Tag::Service(1)).tag(Tag::Customer(2))));
        }
        match world.family {
            IpFamily::V4 => shapes.push(("options", |packet| packet.ipv4_options(&[1; 24]))),
            IpFamily::V6 => shapes.push(("extension headers", |packet| {
                packet
                    .extension(Extension::HopByHop(1))
                    .extension(Extension::Fragment { offset: 0, more: false })
                    .extension(Extension::Authentication(3))
            })),
        }
        for (name, dress) in shapes {
            for (service, forward, reply) in [
                (tcp, Packet::tcp(client, vip).flags(flags::SYN), Packet::tcp(backend, client)),
                (udp, Packet::udp(client, vip), Packet::udp(backend, client)),
            ] {
                let (forward, reply) = (dress(forward).on(world.link), dress(reply).on(world.link));
                // Egress is asked while there is a connection, ingress while there is none.
                let whole = Expected::Opened(service, forward.clone().to(backend));
                world.datapath.connections().clear().expect("a table that can be cleared");
                world.send(name, Hook::Ingress, &forward, &whole);
                for (hook, packet, translated) in [
                    (Hook::Egress, &reply, Expected::Replied(service, reply.clone().from(vip))),
                    (Hook::Ingress, &forward, whole),
                ] {
                    let bytes = packet.to_bytes();
                    let network = packet.offset(Part::Network);
                    for length in shortest(world.link, world.family, network)..=bytes.len() {
                        let expected = match world.link {
                            Link::Ethernet if length < network => Expected::Passed(Reason::NotIp),
                            Link::None if length < SHORTEST_IP => Expected::Passed(Reason::NotIp),
                            _ if length < packet.headers() => Expected::Passed(Reason::Malformed),
                            // The headers are whole: what they say is translated, and the stack judges the rest.
                            _ => translated.clone(),
                        };
                        if hook == Hook::Ingress {
                            world.datapath.connections().clear().expect("a table that can be cleared");
                        }
                        let what = format!("{name}, {length} bytes of {}", bytes.len());
                        world.send_bytes(&what, hook, &bytes[..length], &expected, &SkBuff::default());
                    }
                }
            }
        }
    });
}

#[test]
fn headers_that_contradict_themselves_pass() {
    everywhere(|world| {
        world.serve(&Served::new(1, Protocol::Tcp).active([1]));
        let packet = Packet::tcp(world.client(40_000), world.vip(1)).flags(flags::SYN);
        let mut wrong = vec![
            ("a TCP header of 16 bytes", Part::Transport, 12, vec![0x40]),
            ("a TCP header of no bytes", Part::Transport, 12, vec![0x00]),
        ];
        match world.family {
            IpFamily::V4 => wrong.extend([
                ("a header of 16 bytes", Part::Network, 0, vec![0x44]),
                ("a header of no bytes", Part::Network, 0, vec![0x40]),
                ("a header longer than the packet", Part::Network, 0, vec![0x4f]),
                ("a total length shorter than the header", Part::Network, 2, vec![0, 19]),
                ("a total length shorter than the header with options", Part::Network, 0, vec![0x46, 0, 0, 20]),
                ("a total length that ends before the ports", Part::Network, 2, vec![0, 20]),
                ("a total length that ends within the ports", Part::Network, 2, vec![0, 23]),
                ("a total length that ends within the TCP header", Part::Network, 2, vec![0, 39]),
            ]),
            IpFamily::V6 => wrong.extend([
                ("a payload that ends within the ports", Part::Network, 4, vec![0, 3]),
                ("a payload that ends within the TCP header", Part::Network, 4, vec![0, 19]),
            ]),
        }
        if world.link == Link::Ethernet {
            wrong.extend([
                ("version 5", Part::Network, 0, vec![0x55]),
                ("the version of no packet", Part::Network, 0, vec![0x05]),
            ]);
        }
        let cases: Vec<Case> = wrong
            .into_iter()
            .flat_map(|(name, part, offset, bytes)| {
                [Hook::Ingress, Hook::Egress].map(|hook| Case {
                    name,
                    hook,
                    input: packet.clone().overwrite(part, offset, &bytes),
                    expected: Expected::Passed(Reason::Malformed),
                })
            })
            .collect();
        world.check(&cases);
    });
}

#[test]
fn the_other_familys_version_under_an_ethertype_passes() {
    everywhere(|world| {
        if world.link == Link::None {
            return;
        }
        world.serve(&Served::new(1, Protocol::Tcp).active([1]));
        let version = match world.family {
            IpFamily::V4 => 0x65,
            IpFamily::V6 => 0x40,
        };
        let input = Packet::tcp(world.client(40_000), world.vip(1)).overwrite(Part::Network, 0, &[version]);
        for hook in [Hook::Ingress, Hook::Egress] {
            world.send("another version", hook, &input, &Expected::Passed(Reason::Malformed));
        }
    });
}

/// In segments beyond 64 KiB the length field is zero (BIG TCP): they are as good as any.
#[test]
fn a_length_of_zero_stands_for_the_length_of_the_packet() {
    everywhere(|world| {
        let service = world.serve(&Served::new(1, Protocol::Tcp).active([1]));
        let at = match world.family {
            IpFamily::V4 => 2,
            IpFamily::V6 => 4,
        };
        let dress = |packet: Packet| packet.overwrite(Part::Network, at, &[0, 0]).on(world.link);
        let input = dress(Packet::tcp(world.client(40_000), world.vip(1)).flags(flags::SYN)).to_bytes();
        let output = dress(Packet::tcp(world.client(40_000), world.endpoint(1)).flags(flags::SYN)).to_bytes();
        let found = world.datapath.run(Hook::Ingress, world.link, &input).expect("a program that runs");
        // Compared as bytes: a checksum over a packet of no length has no meaning.
        assert_eq!(found.packet, output, "{world}");
        assert_eq!(world.datapath.maps().service_counters(service).expect("counters").connections, 1);
    });
}
