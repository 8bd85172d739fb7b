//! Packets that are translated, in either direction, and those that are for nobody or have nowhere to go.

use dsproxy_common::{Protocol, count::Reason, settings::SettingFlags};
use dsproxy_tests::{
    packet::{Dissection, Link, Packet, flags},
    prog::Hook,
};

use crate::world::{Case, Expected, Flow, PORT, Served, everywhere};

#[test]
fn a_tcp_connection_from_its_first_packet_to_its_last() {
    everywhere(|world| {
        let flow = world.flow(&Served::new(1, Protocol::Tcp).active([1]), 40_000);
        let backend = world.endpoint(1);
        flow.opens(world, flags::SYN, backend);
        flow.replies(world, flags::SYN | flags::ACK, backend);
        flow.goes_on(world, flags::ACK, backend);
        flow.goes_on(world, flags::ACK | flags::PSH, backend);
        flow.replies(world, flags::ACK | flags::PSH, backend);
        flow.goes_on(world, flags::FIN | flags::ACK, backend);
        flow.replies(world, flags::FIN | flags::ACK, backend);
        flow.goes_on(world, flags::ACK, backend);
    });
}

#[test]
fn a_udp_exchange() {
    everywhere(|world| {
        let flow = world.flow(&Served::new(1, Protocol::Udp).active([1]), 40_000);
        flow.opens(world, 0, world.endpoint(1));
        flow.replies(world, 0, world.endpoint(1));
        flow.goes_on(world, 0, world.endpoint(1));
        flow.replies(world, 0, world.endpoint(1));
    });
}

#[test]
fn a_connection_met_in_the_middle_is_opened() {
    everywhere(|world| {
        let flow = world.flow(&Served::new(1, Protocol::Tcp).active([1]), 40_000);
        flow.opens(world, flags::ACK, world.endpoint(1));
        flow.goes_on(world, flags::ACK, world.endpoint(1));
        flow.replies(world, flags::ACK, world.endpoint(1));
    });
}

#[test]
fn beside_programs_of_another_layout_tcp_that_goes_on_unknown_is_left_to_them() {
    everywhere(|world| {
        world.configure(|settings| settings.flags |= SettingFlags::BESIDE_OTHERS);
        let flow = world.flow(&Served::new(1, Protocol::Tcp).active([1]), 40_000);
        for flags in [flags::ACK, flags::SYN | flags::ACK, flags::FIN | flags::ACK, flags::RST] {
            flow.meets(world, flags, &Expected::Passed(Reason::NotService));
        }
        flow.opens(world, flags::SYN, world.endpoint(1));
        flow.goes_on(world, flags::ACK, world.endpoint(1));
        let udp = world.flow(&Served::new(2, Protocol::Udp).active([2]), 40_000);
        udp.opens(world, 0, world.endpoint(2));
        world.configure(|settings| settings.flags &= !SettingFlags::BESIDE_OTHERS);
        let late = world.flow(&Served::new(1, Protocol::Tcp).active([1]), 40_001);
        late.opens(world, flags::ACK, world.endpoint(1));
    });
}

#[test]
fn a_target_port_equal_to_the_service_port_stays() {
    everywhere(|world| {
        for (number, protocol) in [(1, Protocol::Tcp), (2, Protocol::Udp)] {
            let flow = world.flow(&Served::new(number, protocol).active([1]).target_port(PORT), 40_000);
            let mut backend = world.endpoint(1);
            backend.set_port(PORT);
            flow.opens(world, flags::SYN, backend);
            flow.goes_on(world, flags::ACK, backend);
            flow.replies(world, flags::ACK, backend);
        }
    });
}

#[test]
fn one_vip_serves_both_protocols_apart() {
    everywhere(|world| {
        let tcp = world.serve(&Served::new(1, Protocol::Tcp).active([1]));
        let udp = world.serve(&Served::new(1, Protocol::Udp).active([2]));
        let (client, vip) = (world.client(40_000), world.vip(1));
        Flow { protocol: Protocol::Tcp, client, vip, service: tcp }.opens(world, flags::SYN, world.endpoint(1));
        Flow { protocol: Protocol::Udp, client, vip, service: udp }.opens(world, 0, world.endpoint(2));
    });
}

#[test]
fn what_is_for_nobody_passes_untouched() {
    everywhere(|world| {
        let served = Served::new(1, Protocol::Tcp).active([1]);
        world.serve(&served);
        let (client, vip, backend) = (world.client(40_000), world.vip(1), world.endpoint(1));
        let mut other_port = vip;
        other_port.set_port(PORT + 1);
        let case = |name, hook, input, reason| Case { name, hook, input, expected: Expected::Passed(reason) };
        world.check(&[
            case("another VIP", Hook::Ingress, Packet::tcp(client, world.vip(9)).flags(flags::SYN), Reason::NotService),
            case("another port", Hook::Ingress, Packet::tcp(client, other_port).flags(flags::SYN), Reason::NotService),
            case("another protocol", Hook::Ingress, Packet::udp(client, vip), Reason::NotService),
            case("straight to a backend", Hook::Ingress, Packet::tcp(client, backend), Reason::NotService),
            case("from a VIP", Hook::Ingress, Packet::tcp(vip, client), Reason::NotService),
            case("from a backend that was not asked", Hook::Egress, Packet::tcp(backend, client), Reason::NotReply),
            case("to a VIP on its way out", Hook::Egress, Packet::tcp(client, vip), Reason::NotReply),
            case("UDP on its way out", Hook::Egress, Packet::udp(backend, client), Reason::NotReply),
        ]);
    });
}

#[test]
fn udp_without_a_checksum_stays_without() {
    everywhere(|world| {
        let service = world.serve(&Served::new(1, Protocol::Udp).active([1]));
        let (client, vip, backend) = (world.client(40_000), world.vip(1), world.endpoint(1));
        // Not allowed over IPv6, where it is not for a proxy to mend either; what is compared are the bytes.
        let input = Packet::udp(client, vip).without_checksum().on(world.link);
        let output = input.clone().to(backend).to_bytes();
        let found = world.datapath.run(Hook::Ingress, world.link, &input.to_bytes()).expect("a program that runs");
        assert_eq!(found.packet, output, "{}", world.family);

        let answer = Packet::udp(backend, client).without_checksum().on(world.link);
        let output = answer.clone().from(vip).to_bytes();
        let found = world.datapath.run(Hook::Egress, world.link, &answer.to_bytes()).expect("a program that runs");
        assert_eq!(found.packet, output, "{}", world.family);
        let counters = world.datapath.maps().service_counters(service).expect("counters");
        assert_eq!((counters.packets, counters.reply_packets), (1, 1));
    });
}

#[test]
fn a_udp_checksum_that_comes_out_as_zero_is_written_as_all_ones() {
    everywhere(|world| {
        let service = world.serve(&Served::new(1, Protocol::Udp).active([1]));
        let (client, vip, backend) = (world.client(40_000), world.vip(1), world.endpoint(1));
        // The word that makes the sum of the packet at its destination 0xffff is that packet's checksum without it.
        let adjusted = |translated: &Packet| {
            let bytes = translated.clone().payload(&[0, 0]).on(Link::None).to_bytes();
            let checksum = Dissection::of(Link::None, &bytes).transport.and_then(|header| header.checksum);
            (checksum.expect("a checksum").found as u16).to_be_bytes()
        };
        let all_ones = |packet: &Packet| {
            let bytes = packet.clone().on(Link::None).to_bytes();
            let transport = Dissection::of(Link::None, &bytes).transport.expect("UDP");
            transport.checksum.expect("a checksum").found == 0xffff
        };
        let payload = adjusted(&Packet::udp(client, backend));
        let (input, output) =
            (Packet::udp(client, vip).payload(&payload), Packet::udp(client, backend).payload(&payload));
        assert!(all_ones(&output) && !all_ones(&input));
        world.send("forward", Hook::Ingress, &input, &Expected::Opened(service, output));

        let payload = adjusted(&Packet::udp(vip, client));
        let (input, output) =
            (Packet::udp(backend, client).payload(&payload), Packet::udp(vip, client).payload(&payload));
        assert!(all_ones(&output) && !all_ones(&input));
        world.send("reply", Hook::Egress, &input, &Expected::Replied(service, output));
    });
}
