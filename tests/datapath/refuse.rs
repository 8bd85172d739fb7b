//! Packets that are refused: what they become, what is never answered, and how many answers there are.

use std::{
    net::IpAddr,
    thread::sleep,
    time::{Duration, Instant},
};

use dsproxy_common::{IpFamily, Protocol, count::Reason};
use dsproxy_tests::{
    packet::{Extension, Link, Packet, Tag, flags},
    prog::{Hook, SkBuff, Verdict},
};

use crate::world::{Case, Expected, Served, World, everywhere, stay_on};

/// A world with Services that have no endpoints, for each protocol.
fn without_endpoints(body: impl Fn(&mut World)) {
    everywhere(|world| {
        for protocol in Protocol::ALL {
            world.serve(&Served::new(1, protocol));
        }
        world.configure(|settings| settings.refusals_per_second = 1_000_000);
        body(world);
    });
}

/// The service port of a protocol in that world.
fn whose(world: &World, protocol: Protocol) -> Option<u32> {
    Some(world.service(&Served::new(1, protocol)))
}

fn refused(world: &World, protocol: Protocol, name: &'static str, input: Packet) -> Case {
    let expected = Expected::Answered(whose(world, protocol), Reason::NoEndpoint, input.refusal());
    Case { name, hook: Hook::Ingress, input, expected }
}

#[test]
fn whatever_would_open_a_connection_to_no_endpoint() {
    without_endpoints(|world| {
        let (client, vip) = (world.client(40_000), world.vip(1));
        let cases = [
            refused(
                world,
                Protocol::Tcp,
                "SYN",
                Packet::tcp(client, vip).flags(flags::SYN).tcp_options(&[2, 4, 5, 0xb4]).payload(&[]),
            ),
            refused(world, Protocol::Tcp, "SYN with data", Packet::tcp(client, vip).flags(flags::SYN).payload(b"fast")),
            refused(world, Protocol::Tcp, "ACK", Packet::tcp(client, vip)),
            refused(world, Protocol::Udp, "UDP", Packet::udp(client, vip)),
            refused(world, Protocol::Sctp, "SCTP", Packet::sctp(client, vip)),
        ];
        world.check(&cases);
        if world.family == IpFamily::V4 {
            world.check(&[refused(
                world,
                Protocol::Udp,
                "UDP without a checksum",
                Packet::udp(client, vip).without_checksum(),
            )]);
        }
        let from_node = cases.map(|case| Case { hook: Hook::NodeIngress, ..case });
        world.check(&from_node);
    });
}

#[test]
fn as_much_is_quoted_as_may_be() {
    without_endpoints(|world| {
        let (client, vip) = (world.client(40_000), world.vip(1));
        // Around what goes into an error of either family, and into what is summed up at once.
        let around = [0, 4, 484, 508, 520, 1_024, 1_184].into_iter().flat_map(|size| size..size + 9).chain([1_472]);
        for size in around {
            let payload: Vec<u8> = (0..size).map(|index: u32| (index * 7) as u8).collect();
            world.check(&[
                refused(world, Protocol::Udp, "UDP", Packet::udp(client, vip).payload(&payload)),
                refused(world, Protocol::Tcp, "TCP", Packet::tcp(client, vip).payload(&payload)),
            ]);
        }
    });
}

#[test]
fn headers_of_all_kinds_are_quoted_and_not_repeated() {
    without_endpoints(|world| {
        let (client, vip) = (world.client(40_000), world.vip(1));
        let packet = Packet::udp(client, vip).traffic_class(0x2e).hop_limit(3);
        world.check(&[refused(world, Protocol::Udp, "another class", packet.clone())]);
        let dressed = if world.family == IpFamily::V4 {
            packet.ipv4_options(&[1; 40])
        } else {
            packet.extension(Extension::HopByHop(3)).extension(Extension::Routing(2))
        };
        world.check(&[refused(world, Protocol::Udp, "options", dressed)]);
        if world.link == Link::Ethernet {
            let tagged = Packet::udp(client, vip).tag(Tag::Customer(5));
            world.check(&[
                refused(world, Protocol::Udp, "a VLAN", tagged.clone()),
                refused(world, Protocol::Udp, "two VLANs", tagged.clone().tag(Tag::Customer(6))),
                refused(
                    world,
                    Protocol::Tcp,
                    "a SYN in a VLAN",
                    Packet::tcp(client, vip).flags(flags::SYN).tag(Tag::Customer(5)),
                ),
            ]);
        }
    });
}

#[test]
fn what_stands_behind_the_end_is_not_quoted() {
    without_endpoints(|world| {
        let packet = Packet::udp(world.client(40_000), world.vip(1)).payload(&[]);
        let expected = Expected::Answered(whose(world, Protocol::Udp), Reason::NoEndpoint, packet.refusal());
        let mut padded = packet.on(world.link).to_bytes().to_vec();
        padded.resize(padded.len() + 18, 0x55);
        world.send_bytes("padding", Hook::Ingress, &padded, &expected, &SkBuff::default());
    });
}

#[test]
fn an_aggregate_is_one_packet_afterwards() {
    without_endpoints(|world| {
        let packet = Packet::tcp(world.client(40_000), world.vip(1)).payload(&[7; 3_000]);
        let expected = Expected::Answered(whose(world, Protocol::Tcp), Reason::NoEndpoint, packet.refusal());
        let buffer = SkBuff { segments: Some((1_000, 3)), ..SkBuff::default() };
        world.send_bytes("an aggregate", Hook::Ingress, &packet.on(world.link).to_bytes(), &expected, &buffer);
    });
}

#[test]
fn who_is_no_single_host_is_not_answered() {
    without_endpoints(|world| {
        let vip = world.vip(1);
        let sources: &[&str] = match world.family {
            IpFamily::V4 => &["0.0.0.0", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"],
            IpFamily::V6 => &["::", "::1", "ff02::1"],
        };
        for source in sources {
            let source: IpAddr = source.parse().expect("an address");
            let packet = Packet::udp((source, 40_000).into(), vip);
            let dropped = Expected::Dropped(whose(world, Protocol::Udp), Reason::Unanswerable);
            world.send("from nobody", Hook::Ingress, &packet, &dropped);
        }
        if world.link == Link::Ethernet {
            for destination in [[0xff; 6], [0x01, 0, 0x5e, 0, 0, 1]] {
                let mut bytes = Packet::udp(world.client(40_000), vip).to_bytes().to_vec();
                bytes[..6].copy_from_slice(&destination);
                let dropped = Expected::Dropped(whose(world, Protocol::Udp), Reason::Unanswerable);
                world.send_bytes("to many", Hook::Ingress, &bytes, &dropped, &SkBuff::default());
            }
        }
    });
}

#[test]
fn a_reset_is_never_answered_with_a_reset() {
    without_endpoints(|world| {
        let (client, vip) = (world.client(40_000), world.vip(1));
        let packet = Packet::tcp(client, vip).flags(flags::RST);
        // An error says nothing that could be answered in turn.
        world.check(&[refused(world, Protocol::Tcp, "RST", packet)]);
        let odd = Packet::tcp(client, vip).flags(flags::SYN | flags::RST);
        let whose = whose(world, Protocol::Tcp);
        let expected = match world.family {
            IpFamily::V4 => Expected::Answered(whose, Reason::NoEndpoint, odd.clone().refusal()),
            IpFamily::V6 => Expected::Dropped(whose, Reason::Unanswerable),
        };
        world.send("SYN and RST", Hook::Ingress, &odd, &expected);
    });
}

#[test]
fn an_answer_leaves_as_it_is() {
    without_endpoints(|world| {
        let packet = Packet::udp(world.client(40_000), world.vip(1));
        let answer = packet.refusal();
        world.check(&[refused(world, Protocol::Udp, "UDP", packet)]);
        world.send("out of the same device", Hook::Egress, &answer, &Expected::Passed(Reason::OtherProtocol));
        let syn = Packet::tcp(world.client(40_000), world.vip(1)).flags(flags::SYN);
        world.send("a reset", Hook::Egress, &syn.reset(), &Expected::Passed(Reason::NotReply));
    });
}

#[test]
fn a_cpu_answers_so_many_times_a_second() {
    stay_on(0);
    without_endpoints(|world| {
        world.configure(|settings| settings.refusals_per_second = 3);
        let bytes = Packet::udp(world.client(40_000), world.vip(1)).on(world.link).to_bytes();
        let answered = |world: &World| {
            let mut answered = 0;
            for _ in 0..20 {
                let outcome = world.datapath.run(Hook::Ingress, world.link, &bytes).expect("a program that runs");
                let (reason, verdict) = if outcome.verdict == Verdict::Redirect {
                    answered += 1;
                    (Reason::NoEndpoint, Verdict::Redirect)
                } else {
                    (Reason::RefusalLimit, Verdict::Drop)
                };
                assert_eq!(outcome.verdict, verdict, "{world}");
                assert_eq!(outcome.counted.of(reason, Some(world.family)), 1, "{world}: {:?}", outcome.counted);
            }
            answered
        };
        // What is left from before is cut down to a second's worth. Some may be earned while packets are sent.
        for _ in 0..2 {
            sleep(Duration::from_millis(1_100));
            let started = Instant::now();
            let count = answered(world);
            let earned = (3.0 * started.elapsed().as_secs_f64()).ceil() as u32;
            assert!((3..=3 + earned).contains(&count), "{world}: {count} answers, {earned} of them earned meanwhile");
        }
        world.configure(|settings| settings.refusals_per_second = 0);
        assert_eq!(answered(world), 0, "{world}");
        // Who uses this world next is to find what some ticks have earned.
        sleep(Duration::from_millis(100));
    });
}

#[test]
fn neither_fragments_without_ports_nor_errors_are_refused() {
    without_endpoints(|world| {
        let (client, vip) = (world.client(40_000), world.vip(1));
        let fragments = Packet::udp(client, vip).payload(&[3; 600]).fragments(256);
        let [first, later @ ..] = &fragments[..] else { panic!("fragments") };
        world.check(&[refused(world, Protocol::Udp, "the first", first.clone())]);
        for fragment in later {
            let dropped = Expected::Dropped(whose(world, Protocol::Udp), Reason::Unanswerable);
            world.send("a later one", Hook::Ingress, fragment, &dropped);
        }
        let error = fragments[0].clone().refusal().turned_round();
        world.send("an error", Hook::Ingress, &error, &Expected::Passed(Reason::OtherProtocol));
    });
}
