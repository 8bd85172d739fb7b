//! The builder: says what a packet is, and computes every length and checksum that is not overwritten on purpose.

use std::net::{IpAddr, SocketAddr};

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    Extension, Link,
    checksum::{checksum, pseudo_header},
    number,
};

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

#[derive(Clone, Debug)]
enum NetworkLayer {
    Ip { source: IpAddr, destination: IpAddr, options: Bytes, extensions: Vec<Extension>, fragment: (u16, bool) },
    Other { ethertype: u16 },
}

#[derive(Clone, Debug)]
enum TransportLayer {
    Tcp { source: u16, destination: u16, flags: u8, options: Bytes },
    Udp { source: u16, destination: u16, checksum: bool },
    Other { protocol: u8 },
}

/// A packet to be.
#[derive(Clone, Debug)]
pub struct Packet {
    link: Link,
    tags: Vec<Tag>,
    network: NetworkLayer,
    transport: TransportLayer,
    payload: Bytes,
    overwrites: Vec<(Part, usize, Bytes)>,
}

impl Packet {
    /// A TCP segment with ACK alone.
    pub fn tcp(source: SocketAddr, destination: SocketAddr) -> Self {
        let transport = TransportLayer::Tcp {
            source: source.port(),
            destination: destination.port(),
            flags: flags::ACK,
            options: Bytes::new(),
        };
        Self::ip(source.ip(), destination.ip(), transport)
    }

    /// A UDP datagram.
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        let transport = TransportLayer::Udp { source: source.port(), destination: destination.port(), checksum: true };
        Self::ip(source.ip(), destination.ip(), transport)
    }

    /// A packet of another protocol: the payload follows the IP header as it is.
    pub fn other(protocol: u8, source: IpAddr, destination: IpAddr) -> Self {
        Self::ip(source, destination, TransportLayer::Other { protocol })
    }

    /// A frame that is not IP.
    pub fn frame(ethertype: u16, payload: &[u8]) -> Self {
        Self {
            link: Link::Ethernet,
            tags: Vec::new(),
            network: NetworkLayer::Other { ethertype },
            transport: TransportLayer::Other { protocol: 0 },
            payload: Bytes::copy_from_slice(payload),
            overwrites: Vec::new(),
        }
    }

    fn ip(source: IpAddr, destination: IpAddr, transport: TransportLayer) -> Self {
        assert_eq!(source.is_ipv4(), destination.is_ipv4(), "{source} and {destination} are of two families");
        Self {
            link: Link::Ethernet,
            tags: Vec::new(),
            network: NetworkLayer::Ip {
                source,
                destination,
                options: Bytes::new(),
                extensions: Vec::new(),
                fragment: (0, false),
            },
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

    /// With these flags, if it is TCP.
    pub fn flags(mut self, wanted: u8) -> Self {
        if let TransportLayer::Tcp { flags, .. } = &mut self.transport {
            *flags = wanted;
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
    pub fn ipv4_options(mut self, wanted: &[u8]) -> Self {
        if let NetworkLayer::Ip { options, .. } = &mut self.network {
            *options = padded(wanted);
        }
        self
    }

    /// With one more IPv6 extension header, behind those it has.
    pub fn extension(mut self, extension: Extension) -> Self {
        if let NetworkLayer::Ip { extensions, .. } = &mut self.network {
            extensions.push(extension);
        }
        self
    }

    /// As the fragment at `offset` bytes, a multiple of eight, of either family.
    pub fn fragment(mut self, offset: u16, more: bool) -> Self {
        if let NetworkLayer::Ip { source, extensions, fragment, .. } = &mut self.network {
            if source.is_ipv4() {
                *fragment = (offset, more);
            } else {
                extensions.push(Extension::Fragment { offset, more });
            }
        }
        self
    }

    /// With this payload.
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.payload = Bytes::copy_from_slice(payload);
        self
    }

    /// With zero in place of the UDP checksum.
    pub fn without_checksum(mut self) -> Self {
        if let TransportLayer::Udp { checksum, .. } = &mut self.transport {
            *checksum = false;
        }
        self
    }

    /// From `end` instead.
    pub fn from(mut self, end: SocketAddr) -> Self {
        if let NetworkLayer::Ip { source, .. } = &mut self.network {
            *source = end.ip();
        }
        match &mut self.transport {
            TransportLayer::Tcp { source, .. } | TransportLayer::Udp { source, .. } => *source = end.port(),
            TransportLayer::Other { .. } => {}
        }
        self
    }

    /// To `end` instead.
    pub fn to(mut self, end: SocketAddr) -> Self {
        if let NetworkLayer::Ip { destination, .. } = &mut self.network {
            *destination = end.ip();
        }
        match &mut self.transport {
            TransportLayer::Tcp { destination, .. } | TransportLayer::Udp { destination, .. } => {
                *destination = end.port();
            }
            TransportLayer::Other { .. } => {}
        }
        self
    }

    /// With `bytes` at `offset` of `part`, once all else is in place: checksums are not made right for it.
    pub fn overwrite(mut self, part: Part, offset: usize, bytes: &[u8]) -> Self {
        self.overwrites.push((part, offset, Bytes::copy_from_slice(bytes)));
        self
    }

    /// Where `part` starts.
    pub fn offset(&self, part: Part) -> usize {
        match part {
            Part::Network => match self.link {
                Link::Ethernet => 14 + self.tags.len() * 4,
                Link::None => 0,
            },
            Part::Transport => self.offset(Part::Network) + self.network_header(0).len(),
        }
    }

    /// How long the headers are together, without those transport options that a translation does not read.
    pub fn headers(&self) -> usize {
        self.offset(Part::Transport)
            + match self.transport {
                TransportLayer::Tcp { .. } => 20,
                TransportLayer::Udp { .. } => 8,
                TransportLayer::Other { .. } => 0,
            }
    }

    /// The bytes.
    pub fn to_bytes(&self) -> Bytes {
        let transport = self.transport();
        let mut packet = BytesMut::new();
        self.put_link(&mut packet);
        packet.put(self.network_header(transport.len()));
        packet.put(transport);
        for (part, offset, bytes) in &self.overwrites {
            let at = self.offset(*part) + offset;
            packet[at..at + bytes.len()].copy_from_slice(bytes);
        }
        packet.freeze()
    }

    fn put_link(&self, packet: &mut BytesMut) {
        if self.link == Link::None {
            return;
        }
        packet.put_slice(&[0x02, 0, 0, 0, 0, 0x02]);
        packet.put_slice(&[0x02, 0, 0, 0, 0, 0x01]);
        for tag in &self.tags {
            let (ethertype, id) = match tag {
                Tag::Customer(id) => (number::ETHERTYPE_VLAN, id),
                Tag::Service(id) => (number::ETHERTYPE_SERVICE_VLAN, id),
            };
            packet.put_u16(ethertype);
            packet.put_u16(*id);
        }
        packet.put_u16(match &self.network {
            NetworkLayer::Ip { source: IpAddr::V4(_), .. } => number::ETHERTYPE_IPV4,
            NetworkLayer::Ip { source: IpAddr::V6(_), .. } => number::ETHERTYPE_IPV6,
            NetworkLayer::Other { ethertype } => *ethertype,
        });
    }

    fn protocol(&self) -> u8 {
        match self.transport {
            TransportLayer::Tcp { .. } => number::TCP,
            TransportLayer::Udp { .. } => number::UDP,
            TransportLayer::Other { protocol } => protocol,
        }
    }

    /// The IP header with all that belongs to it, in front of `length` bytes.
    fn network_header(&self, length: usize) -> Bytes {
        let NetworkLayer::Ip { source, destination, options, extensions, fragment: (offset, more) } = &self.network
        else {
            return Bytes::new();
        };
        let mut header = BytesMut::new();
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header_length = 20 + options.len();
                header.put_u8(0x40 | (header_length / 4) as u8);
                header.put_u8(0);
                header.put_u16((header_length + length) as u16);
                header.put_u16(0x1234);
                header.put_u16((offset / 8) | (u16::from(*more) << 13));
                header.put_u8(64);
                header.put_u8(self.protocol());
                header.put_u16(0);
                header.put_slice(&source.octets());
                header.put_slice(&destination.octets());
                header.put_slice(options);
                let sum = checksum(&[&header]);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut chain = BytesMut::new();
                let nexts = extensions.iter().skip(1).map(|extension| extension.number()).chain([self.protocol()]);
                for (extension, next) in extensions.iter().zip(nexts) {
                    extension.put(&mut chain, next);
                }
                header.put_u32(0x6000_0000);
                header.put_u16((chain.len() + length) as u16);
                header.put_u8(extensions.first().map_or(self.protocol(), |extension| extension.number()));
                header.put_u8(64);
                header.put_slice(&source.octets());
                header.put_slice(&destination.octets());
                header.put(chain);
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                panic!("{source} and {destination} are of two families")
            }
        }
        header.freeze()
    }

    /// The transport header and the payload.
    fn transport(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        let checksum_at = match &self.transport {
            TransportLayer::Tcp { source, destination, flags, options } => {
                bytes.put_u16(*source);
                bytes.put_u16(*destination);
                bytes.put_u32(1_000_000);
                bytes.put_u32(2_000_000);
                bytes.put_u8((((20 + options.len()) / 4) << 4) as u8);
                bytes.put_u8(*flags);
                bytes.put_u16(64_240);
                bytes.put_u32(0);
                bytes.put_slice(options);
                Some(16)
            }
            TransportLayer::Udp { source, destination, checksum } => {
                bytes.put_u16(*source);
                bytes.put_u16(*destination);
                bytes.put_u16((8 + self.payload.len()) as u16);
                bytes.put_u16(0);
                checksum.then_some(6)
            }
            TransportLayer::Other { .. } => None,
        };
        bytes.put_slice(&self.payload);
        if let (Some(at), NetworkLayer::Ip { source, destination, .. }) = (checksum_at, &self.network) {
            let pseudo = pseudo_header(*source, *destination, self.protocol(), bytes.len());
            let sum = match (checksum(&[&pseudo, &bytes]), &self.transport) {
                // Zero would say that there is no checksum (RFC 768).
                (0, TransportLayer::Udp { .. }) => 0xffff,
                (sum, _) => sum,
            };
            bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes.freeze()
    }
}

fn padded(options: &[u8]) -> Bytes {
    let mut bytes = BytesMut::from(options);
    bytes.put_bytes(0, options.len().next_multiple_of(4) - options.len());
    bytes.freeze()
}
