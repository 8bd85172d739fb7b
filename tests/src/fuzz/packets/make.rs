//! What packets are made of: addresses and flags, what they may have beside, and the buffers they come in.

use std::net::{IpAddr, SocketAddr};

use dsproxy_common::{IpFamily, Protocol};

use super::{Ends, Packets};
use crate::{
    fuzz::{ground::PODS, mutate::mutate, scene::CLIENT_PORTS, step::Place},
    packet::{Extension, Link, Packet, Part, Tag, flags},
    prog::Hook,
};

impl Packets<'_> {
    /// How long the segments of an aggregate are, and how many: what the kernel says of it, whatever the packet is.
    pub(super) fn segments(&mut self, place: Place) -> Option<(u32, u32)> {
        let is_aggregate = place != Place::Xdp && self.random.u8(..16) == 0;
        is_aggregate.then(|| (self.random.u32(1..1400), self.random.u32(2..5)))
    }

    /// The device that a packet comes by, where that counts.
    pub(super) fn device(&mut self, place: Place) -> u32 {
        let is_pods = matches!(place, Place::Tc(Hook::Ingress, _)) && self.scene.has_shortcut;
        // Most addresses are behind the second.
        if is_pods && self.random.u8(..8) != 0 { PODS[usize::from(self.random.u8(..4) == 0)] } else { 0 }
    }

    pub(super) fn place(&mut self) -> Place {
        let link = if self.random.u8(..4) == 0 { Link::None } else { Link::Ethernet };
        match self.random.u8(..10) {
            0 => Place::Xdp,
            number => Place::Tc(Hook::ALL[usize::from(number) % 4], link),
        }
    }

    pub(super) fn client(&mut self, family: IpFamily) -> SocketAddr {
        let places = &self.scene.places[&family];
        // Pods' packets never go directly.
        let is_outsider = !self.scene.rules.direct.is_empty() && self.random.u8(..4) != 0;
        let is_pod = self.scene.has_shortcut && self.random.bool();
        let all = match (is_outsider, is_pod) {
            (true, _) => places.outsiders.clone(),
            (false, true) => places.pods.clone(),
            (false, false) => [&places.pods[..], &places.outsiders].concat(),
        };
        SocketAddr::new(all[self.random.usize(..all.len())], CLIENT_PORTS[self.random.usize(..CLIENT_PORTS.len())])
    }

    pub(super) fn address(&mut self, family: IpFamily) -> IpAddr {
        let all = self.scene.places[&family].all();
        all[self.random.usize(..all.len())]
    }

    pub(super) fn flags(&mut self) -> u8 {
        use flags::{ACK, FIN, PSH, RST, SYN};
        [SYN, SYN, ACK, ACK, ACK, ACK | PSH, SYN | ACK, FIN | ACK, FIN | ACK, RST, RST | ACK, FIN, 0, SYN | FIN, 0xff]
            [self.random.usize(..15)]
    }

    pub(super) fn packet(&mut self, protocol: Protocol, (source, destination): Ends, flags: u8) -> Packet {
        let packet = match protocol {
            Protocol::Tcp => {
                Packet::tcp(source, destination).flags(flags).numbers(self.random.u32(..), self.random.u32(..))
            }
            Protocol::Udp => Packet::udp(source, destination),
            Protocol::Sctp => Packet::sctp(source, destination),
        };
        let length = match self.random.u8(..16) {
            0 => self.random.usize(..1400),
            1 => 0,
            _ => self.random.usize(..48),
        };
        let payload: Vec<u8> = (0..length).map(|_| self.random.u8(..)).collect();
        packet.payload(&payload)
    }

    /// With what packets may have beside, one time in `rarity`.
    pub(super) fn dress(&mut self, packet: Packet, rarity: u8) -> Packet {
        let mut packet = packet;
        for _ in 0..2 {
            if self.random.u8(..rarity) != 0 {
                continue;
            }
            let id = self.random.u16(..4096);
            packet = match self.random.u8(..10) {
                0 => packet.tag(Tag::Customer(id)),
                1 => packet.tag(Tag::Service(id)).tag(Tag::Customer(id)),
                2 => packet.ipv4_options(&[1; 8]).tcp_options(&[1; 12]),
                3 => packet.extension(self.extension()).extension(self.extension()),
                4 => packet.hop_limit([0, 1, 2, 255][self.random.usize(..4)]),
                5 => packet.without_checksum(),
                6 => {
                    // Of few packets, so that they meet.
                    let identification = self.random.u32(..3);
                    packet.identification(identification).fragment(0, true)
                }
                7 => {
                    packet.identification(self.random.u32(..3)).fragment(8 * self.random.u16(1..3), self.random.bool())
                }
                8 => match self.random.choice(self.frontends.clone()) {
                    Some((_, vip)) => packet.saying(vip),
                    None => packet,
                },
                _ => packet.traffic_class(self.random.u8(..)),
            };
        }
        packet
    }

    fn extension(&mut self) -> Extension {
        match self.random.u8(..6) {
            0 => Extension::HopByHop(self.random.u8(..3)),
            1 => Extension::DestinationOptions(self.random.u8(..3)),
            2 => Extension::Routing(self.random.u8(..3)),
            3 => Extension::Authentication(self.random.u8(..4)),
            4 => Extension::Fragment { offset: 0, more: false },
            _ => Extension::HopByHop(0),
        }
    }

    /// The bytes of `packet` for `place`, made wrong one time in `rarity`.
    pub(super) fn finished(&mut self, place: Place, packet: Packet, rarity: u8) -> (Place, Vec<u8>) {
        let leaves = matches!(place, Place::Tc(Hook::Egress | Hook::NodeEgress, _));
        let packet = packet.on(place.link());
        let packet = if leaves { packet.turned_round() } else { packet };
        let l3 = packet.offset(Part::Network);
        let mut bytes = packet.to_bytes().to_vec();
        if place.link() == Link::Ethernet && self.random.u8(..64) == 0 {
            // For many.
            bytes[0] = 0x01;
        }
        if self.random.u8(..rarity) == 0 {
            mutate(&mut bytes, l3, &mut self.random);
        }
        (place, bytes)
    }
}
