//! A way through the programs: which packets take it, and what they are counted as when they do.

use std::net::{IpAddr, SocketAddr};

use bytes::Bytes;
use dsproxy_bench_ebpf::{End, Plan};
use dsproxy_common::{IpFamily, Protocol, count::Reason};

use crate::{
    packet::{Link, Packet, flags},
    prog::Hook,
};

/// Many ends in one: how far the port and the address count up.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Range {
    /// The logarithm of the number of ports.
    pub(super) ports: u32,
    /// The logarithm of the number of addresses.
    pub(super) addresses: u32,
}

impl Range {
    /// One end only.
    pub(super) const ONE: Self = Self { ports: 0, addresses: 0 };
    /// 64 k ports and addresses.
    pub(super) const MANY: Self = Self { ports: 15, addresses: 1 };
    /// So many that none is met twice.
    pub(super) const ENDLESS: Self = Self { ports: 15, addresses: 16 };
    /// 64 k addresses.
    pub(super) const ADDRESSES: Self = Self { ports: 0, addresses: 16 };

    /// How many there are.
    pub(super) fn len(self) -> u32 {
        1 << (self.ports + self.addresses)
    }
}

/// Where a program takes packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At a hook of tc.
    Tc(Hook),
    /// In the driver.
    Xdp,
}

/// The way.
#[derive(Clone, Debug)]
pub(super) struct Path {
    pub(super) name: String,
    pub(super) family: IpFamily,
    pub(super) protocol: Protocol,
    pub(super) place: Place,
    pub(super) reason: Reason,
    pub(super) packet: Bytes,
    pub(super) plan: Plan,
    /// Whether the same flows come by again and again.
    pub(super) is_rotation: bool,
    /// What a packet should cost at most, in nanoseconds.
    pub(super) aim: Option<f64>,
}

impl Path {
    /// Packets from `source` to `destination`, each with the range of its ends, that are counted as `reason`.
    pub(super) fn new(
        name: &str,
        protocol: Protocol,
        (source, sources): (SocketAddr, Range),
        (destination, destinations): (SocketAddr, Range),
        reason: Reason,
    ) -> Self {
        let hook = if reason == Reason::Replied || reason == Reason::NotReply { Hook::Egress } else { Hook::Ingress };
        Self::at(name, protocol, (source, sources), (destination, destinations), (Place::Tc(hook), reason))
    }

    /// As `new`, at `place`.
    pub(super) fn at(
        name: &str,
        protocol: Protocol,
        (source, sources): (SocketAddr, Range),
        (destination, destinations): (SocketAddr, Range),
        (place, reason): (Place, Reason),
    ) -> Self {
        let family = IpFamily::of(source.ip());
        let flag = if reason == Reason::Opened { flags::SYN } else { flags::ACK };
        let packet = match protocol {
            Protocol::Tcp => Packet::tcp(source, destination).flags(flag),
            Protocol::Udp | Protocol::Sctp => Packet::udp(source, destination),
        }
        .payload(&[0x64; 26])
        .on(Link::Ethernet)
        .to_bytes();
        let network = 14;
        let field = |at: usize| u32::from(u16::from_ne_bytes([packet[at], packet[at + 1]]));
        let (header_checksum, transport) = match family {
            IpFamily::V4 => (field(network + 10), network + 20),
            IpFamily::V6 => (0, network + 40),
        };
        let transport_checksum = field(match protocol {
            Protocol::Tcp => transport + 16,
            Protocol::Udp | Protocol::Sctp => transport + 6,
        });
        Self {
            name: format!("{name}, {protocol}, {family}"),
            family,
            protocol,
            place,
            reason,
            plan: Plan {
                source: end(source, sources),
                destination: end(destination, destinations),
                header_checksum,
                transport_checksum,
            },
            packet,
            is_rotation: sources.len() > 1 || destinations.len() > 1,
            aim: None,
        }
    }

    /// The packet of the run `number`, with the checksums of the first.
    pub(super) fn numbered(&self, number: u32) -> Bytes {
        let (mut packet, network) = (self.packet.to_vec(), 14);
        let (source, size) = match self.family {
            IpFamily::V4 => (network + 12, 4),
            IpFamily::V6 => (network + 8, 16),
        };
        let ports = match self.family {
            IpFamily::V4 => network + 20,
            IpFamily::V6 => network + 40,
        };
        for (place, end) in [&self.plan.source, &self.plan.destination].into_iter().enumerate() {
            let last = source + (place + 1) * size - 4;
            packet[last..last + 4].copy_from_slice(&end.address_in(number).to_be_bytes());
            let port = ports + place * 2;
            packet[port..port + 2].copy_from_slice(&end.port_in(number).to_be_bytes());
        }
        packet.into()
    }

    /// The same packets, TCP segments with these `flags`.
    pub(super) fn segments(mut self, flags: u8) -> Self {
        let header = 14
            + match self.family {
                IpFamily::V4 => 20,
                IpFamily::V6 => 40,
            };
        let at = header + 13;
        self.packet =
            self.packet.iter().enumerate().map(|(place, byte)| if place == at { flags } else { *byte }).collect();
        self
    }

    /// The same packets, as they are sent to the device with this link-layer address.
    pub(super) fn towards(mut self, address: [u8; 6]) -> Self {
        self.packet = address.into_iter().chain(self.packet.iter().skip(address.len()).copied()).collect();
        self
    }

    /// With what a packet should cost at most, in nanoseconds.
    pub(super) fn at_most(self, nanoseconds: f64) -> Self {
        Self { aim: Some(nanoseconds), ..self }
    }
}

fn end(end: SocketAddr, Range { ports, addresses }: Range) -> End {
    let (prefix, address) = match end.ip() {
        IpAddr::V4(address) => ([0; 3], address.to_bits()),
        IpAddr::V6(address) => {
            let octets = address.octets();
            let word = |at: usize| [octets[at], octets[at + 1], octets[at + 2], octets[at + 3]];
            ([0, 4, 8].map(|at| u32::from_ne_bytes(word(at))), u32::from_be_bytes(word(12)))
        }
    };
    End {
        prefix,
        address,
        address_mask: (1 << addresses) - 1,
        address_shift: ports,
        port: end.port().into(),
        port_mask: (1 << ports) - 1,
    }
}
