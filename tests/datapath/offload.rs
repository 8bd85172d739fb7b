//! Buffers as devices make them: aggregates of segments, and packets that the device has summed up.
//!
//! Checksums that a device is still to finish (`CHECKSUM_PARTIAL`) cannot be made here; real traffic in the lab has them.

use dsproxy_common::Protocol;
use dsproxy_tests::{
    packet::{Link, Packet, flags},
    prog::{Hook, SkBuff},
};

use crate::world::{Expected, Served, everywhere};

#[test]
fn an_aggregate_of_segments_is_translated_and_counted_as_one() {
    everywhere(|world| {
        for (number, protocol) in [(1, Protocol::Tcp), (2, Protocol::Udp)] {
            let service = world.serve(&Served::new(number, protocol).active([1]));
            let (client, vip, backend) = (world.client(40_000), world.vip(number), world.endpoint(1));
            let payload: Vec<u8> = (0..3_000_u32).map(|index| index as u8).collect();
            let packet = |source, destination| match protocol {
                Protocol::Tcp => Packet::tcp(source, destination).flags(flags::ACK).payload(&payload),
                Protocol::Udp | Protocol::Sctp => Packet::udp(source, destination).payload(&payload),
            };
            let buffer = SkBuff { segments: Some((1_000, 3)), ..SkBuff::default() };
            let input = packet(client, vip).on(world.link).to_bytes();
            let expected = Expected::Opened(service, packet(client, backend));
            world.send_bytes("an aggregate", Hook::Ingress, &input, &expected, &buffer);
            let input = packet(backend, client).on(world.link).to_bytes();
            let expected = Expected::Replied(service, packet(vip, client));
            world.send_bytes("an aggregate back", Hook::Egress, &input, &expected, &buffer);
        }
    });
}

/// The kernel compares the device's sum with the packet after the program and fails the run if they differ.
#[test]
fn a_devices_sum_over_the_packet_stays_right() {
    everywhere(|world| {
        // In a test the kernel always takes 14 bytes for the link-layer header, and sums up what is behind them.
        if world.link == Link::None {
            return;
        }
        for (number, protocol) in [(1, Protocol::Tcp), (2, Protocol::Udp)] {
            let service = world.serve(&Served::new(number, protocol).active([1]));
            let (client, vip, backend) = (world.client(40_000), world.vip(number), world.endpoint(1));
            let packet = |source, destination| match protocol {
                Protocol::Tcp => Packet::tcp(source, destination),
                Protocol::Udp | Protocol::Sctp => Packet::udp(source, destination),
            };
            let buffer = SkBuff { summed: true, ..SkBuff::default() };
            let input = packet(client, vip).on(world.link).to_bytes();
            let expected = Expected::Opened(service, packet(client, backend));
            world.send_bytes("a packet summed up", Hook::Ingress, &input, &expected, &buffer);
            let input = packet(backend, client).on(world.link).to_bytes();
            let expected = Expected::Replied(service, packet(vip, client));
            world.send_bytes("a packet summed up, back", Hook::Egress, &input, &expected, &buffer);
        }
    });
}
