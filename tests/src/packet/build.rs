//! The builder: says what a packet is. What it becomes on the wire stands in `encode`.

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut as _, Bytes, BytesMut};

use super::{Extension, Link, Message, number};

/// Flags of TCP segments.
pub mod flags {
    /// The sender has finished.
    pub const FIN: u8 = 0x01;
    /// Opens a connection.
    pub const SYN: u8 = 0x02;
    /// Breaks a connection off.
    pub const RST: u8 = 0x04;
    /// Data that should not wait.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement number counts.
    pub const ACK: u8 = 0x10;
}

/// A VLAN tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// A customer's tag (802.1Q) with this VLAN id.
    Customer(u16),
    /// A service provider's tag (802.1ad) with this VLAN id.
    Service(u16),
}

/// A part of a packet, to be overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The IP header.
    Network,
    /// What follows the IP header and its extension headers.
    Transport,
}

/// What a packet has above the link layer.
#[derive(Clone, Debug)]
pub(super) enum NetworkLayer {
    Ip(Ip),
    Other { ethertype: u16 },
}

/// An IP header.
#[derive(Clone, Debug)]
pub(super) struct Ip {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) traffic_class: u8,
    pub(super) hop_limit: u8,
    /// IPv4: its lower half; IPv6: of a fragment header.
    pub(super) identification: u32,
    /// IPv4.
    pub(super) dont_fragment: bool,
    /// IPv4: the offset in bytes, and whether more fragments follow.
    pub(super) fragment: (u16, bool),
    /// IPv4.
    pub(super) options: Bytes,
    /// IPv6.
    pub(super) extensions: Vec<Extension>,
}

/// What a packet has above the network layer.
#[derive(Clone, Debug)]
pub(super) enum TransportLayer {
    Tcp { source: u16, destination: u16, sequence: u32, acknowledgement: u32, flags: u8, window: u16, options: Bytes },
    Udp { source: u16, destination: u16, checksum: bool },
    Sctp { source: u16, destination: u16 },
    Icmp { message: Message },
    Other { protocol: u8 },
}

/// A packet to be.
#[derive(Clone, Debug)]
pub struct Packet {
    pub(super) link: Link,
    pub(super) is_turned_round: bool,
    pub(super) tags: Vec<Tag>,
    pub(super) network: NetworkLayer,
    pub(super) transport: TransportLayer,
    pub(super) payload: Bytes,
    pub(super) overwrites: Vec<(Part, usize, Bytes)>,
}

impl Packet {
    /// A TCP segment with ACK alone.
    pub fn tcp(source: SocketAddr, destination: SocketAddr) -> Self {
        let transport = TransportLayer::Tcp {
            source: source.port(),
            destination: destination.port(),
            sequence: 1_000_000,
            acknowledgement: 2_000_000,
            flags: flags::ACK,
            window: 64_240,
            options: Bytes::new(),
        };
        Self::ip(source.ip(), destination.ip(), transport)
    }

    /// A UDP datagram.
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        let transport = TransportLayer::Udp { source: source.port(), destination: destination.port(), checksum: true };
        Self::ip(source.ip(), destination.ip(), transport)
    }

    /// An SCTP packet whose payload is one message.
    pub fn sctp(source: SocketAddr, destination: SocketAddr) -> Self {
        let transport = TransportLayer::Sctp { source: source.port(), destination: destination.port() };
        Self::ip(source.ip(), destination.ip(), transport)
    }

    /// An ICMP message of the addresses' family.
    pub fn icmp(source: IpAddr, destination: IpAddr, message: Message) -> Self {
        Self::ip(source, destination, TransportLayer::Icmp { message })
    }

    /// A packet of another protocol: the payload follows the IP header as it is.
    pub fn other(protocol: u8, source: IpAddr, destination: IpAddr) -> Self {
        Self::ip(source, destination, TransportLayer::Other { protocol })
    }

    /// A frame that is not IP.
    pub fn frame(ethertype: u16, payload: &[u8]) -> Self {
        Self::of(NetworkLayer::Other { ethertype }, TransportLayer::Other { protocol: 0 })
            .payload(payload)
            .on(Link::Ethernet)
    }

    fn ip(source: IpAddr, destination: IpAddr, transport: TransportLayer) -> Self {
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "{source} and {destination} are of two families");
        let ip = Ip {
            source,
            destination,
            traffic_class: 0,
            hop_limit: 64,
            identification: 0xdead_1234,
            dont_fragment: false,
            fragment: (0, false),
            options: Bytes::new(),
            extensions: Vec::new(),
        };
        Self::of(NetworkLayer::Ip(ip), transport)
    }

    fn of(network: NetworkLayer, transport: TransportLayer) -> Self {
        Self {
            link: Link::Ethernet,
            is_turned_round: false,
            tags: Vec::new(),
            network,
            transport,
            payload: Bytes::from_static(b"dsproxy"),
            overwrites: Vec::new(),
        }
    }

    /// With what `link` puts in front.
    pub fn on(mut self, link: Link) -> Self {
        self.link = link;
        self
    }

    /// With one more VLAN tag, inside those it has.
    pub fn tag(mut self, tag: Tag) -> Self {
        self.tags.push(tag);
        self
    }

    /// From where other packets go, to where they come from, as far as the link layer knows.
    pub fn turned_round(mut self) -> Self {
        self.is_turned_round = true;
        self
    }

    /// With these flags, if it is TCP.
    pub fn flags(mut self, wanted: u8) -> Self {
        if let TransportLayer::Tcp { flags, .. } = &mut self.transport {
            *flags = wanted;
        }
        self
    }

    /// With these numbers for its own bytes and the other side's, if it is TCP.
    pub fn numbers(mut self, own: u32, others: u32) -> Self {
        if let TransportLayer::Tcp { sequence, acknowledgement, .. } = &mut self.transport {
            (*sequence, *acknowledgement) = (own, others);
        }
        self
    }

    /// With this window, if it is TCP.
    pub fn window(mut self, wanted: u16) -> Self {
        if let TransportLayer::Tcp { window, .. } = &mut self.transport {
            *window = wanted;
        }
        self
    }

    /// With these TCP options, padded to whole words.
    pub fn tcp_options(mut self, wanted: &[u8]) -> Self {
        if let TransportLayer::Tcp { options, .. } = &mut self.transport {
            *options = padded(wanted);
        }
        self
    }

    /// With these IPv4 options, padded to whole words.
    pub fn ipv4_options(self, wanted: &[u8]) -> Self {
        self.with_ip(|ip| ip.options = padded(wanted))
    }

    /// With one more IPv6 extension header, behind those it has.
    pub fn extension(self, extension: Extension) -> Self {
        self.with_ip(|ip| ip.extensions.push(extension))
    }

    /// With the option that says the VIP at which its backend is reached, behind the IP header.
    pub fn saying(self, vip: SocketAddr) -> Self {
        match vip.ip() {
            IpAddr::V4(address) => {
                let mut option = BytesMut::from(&[158, 8][..]);
                option.put_u16(vip.port());
                option.put_slice(&address.octets());
                self.ipv4_options(&option)
            }
            IpAddr::V6(address) => self.extension(Extension::Vip(address, vip.port())),
        }
    }

    /// With this type of service or traffic class.
    pub fn traffic_class(self, wanted: u8) -> Self {
        self.with_ip(|ip| ip.traffic_class = wanted)
    }

    /// With this time to live or hop limit.
    pub fn hop_limit(self, wanted: u8) -> Self {
        self.with_ip(|ip| ip.hop_limit = wanted)
    }

    /// With this identification, of which IPv4 has the lower half, and IPv6 all in fragments alone.
    pub fn identification(self, wanted: u32) -> Self {
        self.with_ip(|ip| ip.identification = wanted)
    }

    /// Not to be cut into fragments, which IPv6 has no field for.
    pub fn dont_fragment(self) -> Self {
        self.with_ip(|ip| ip.dont_fragment = true)
    }

    /// As the fragment at `offset` bytes, a multiple of eight, of either family.
    pub fn fragment(self, offset: u16, more: bool) -> Self {
        self.with_ip(|ip| {
            if ip.source.is_ipv4() {
                ip.fragment = (offset, more);
            } else {
                ip.extensions.push(Extension::Fragment { offset, more });
            }
        })
    }

    /// Cut into fragments of at most `size` bytes behind the IP headers, a multiple of eight. The checksum in the first is
    /// that of the whole packet.
    pub fn fragments(&self, size: usize) -> Vec<Self> {
        assert!(size > 0 && size.is_multiple_of(8), "fragments of {size} bytes");
        let whole = self.transport();
        let count = whole.len().div_ceil(size);
        whole
            .chunks(size)
            .enumerate()
            .map(|(index, piece)| {
                let mut packet = self.clone();
                packet.transport = TransportLayer::Other { protocol: self.protocol() };
                packet.payload(piece).fragment((index * size) as u16, index + 1 < count)
            })
            .collect()
    }

    /// With this payload.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = Bytes::copy_from_slice(payload);
        self
    }

    /// With at most `length` bytes of `packet` as payload, from its IP header on: what an ICMP error quotes.
    pub fn quoting(self, packet: &Self, length: usize) -> Self {
        let bytes = packet.clone().on(Link::None).to_bytes();
        self.payload(&bytes[..bytes.len().min(length)])
    }

    /// With zero in place of the UDP checksum.
    pub fn without_checksum(mut self) -> Self {
        if let TransportLayer::Udp { checksum, .. } = &mut self.transport {
            *checksum = false;
        }
        self
    }

    /// From `end` instead.
    pub fn from(self, end: SocketAddr) -> Self {
        let mut packet = self.with_ip(|ip| ip.source = end.ip());
        match &mut packet.transport {
            TransportLayer::Tcp { source, .. }
            | TransportLayer::Udp { source, .. }
            | TransportLayer::Sctp { source, .. } => *source = end.port(),
            TransportLayer::Icmp { message } => *message = message.from(end),
            TransportLayer::Other { .. } => {}
        }
        packet
    }

    /// To `end` instead.
    pub fn to(self, end: SocketAddr) -> Self {
        let mut packet = self.with_ip(|ip| ip.destination = end.ip());
        match &mut packet.transport {
            TransportLayer::Tcp { destination, .. }
            | TransportLayer::Udp { destination, .. }
            | TransportLayer::Sctp { destination, .. } => *destination = end.port(),
            TransportLayer::Icmp { message } => *message = message.to(end),
            TransportLayer::Other { .. } => {}
        }
        packet
    }

    /// With `bytes` at `offset` of `part`, once all else is in place: checksums are not made right for it.
    pub fn overwrite(mut self, part: Part, offset: usize, bytes: &[u8]) -> Self {
        self.overwrites.push((part, offset, Bytes::copy_from_slice(bytes)));
        self
    }

    fn with_ip(mut self, change: impl FnOnce(&mut Ip)) -> Self {
        if let NetworkLayer::Ip(ip) = &mut self.network {
            change(ip);
        }
        self
    }

    pub(super) fn protocol(&self) -> u8 {
        match (&self.transport, &self.network) {
            (TransportLayer::Tcp { .. }, _) => number::TCP,
            (TransportLayer::Udp { .. }, _) => number::UDP,
            (TransportLayer::Sctp { .. }, _) => number::SCTP,
            (TransportLayer::Icmp { .. }, NetworkLayer::Ip(Ip { source: IpAddr::V6(_), .. })) => number::ICMPV6,
            (TransportLayer::Icmp { .. }, _) => number::ICMP,
            (TransportLayer::Other { protocol }, _) => *protocol,
        }
    }
}

fn padded(options: &[u8]) -> Bytes {
    let mut bytes = BytesMut::from(options);
    bytes.put_bytes(0, options.len().next_multiple_of(4) - options.len());
    bytes.freeze()
}
