//! A packet's bytes: every length and checksum is computed that is not overwritten on purpose.

use std::net::IpAddr;

use bytes::{BufMut, Bytes, BytesMut};

use super::{
    Link, Message, Packet, Part, Tag,
    build::{Ip, NetworkLayer, TransportLayer},
    checksum::{checksum, pseudo_header},
    number, sctp,
};

/// Where packets go on a link, and where they come from.
const DESTINATION: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];
const SOURCE: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];

impl Packet {
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
                TransportLayer::Sctp { .. } => 12,
                TransportLayer::Icmp { .. } => Message::HEADER,
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
        let (to, from) = if self.is_turned_round { (SOURCE, DESTINATION) } else { (DESTINATION, SOURCE) };
        packet.put_slice(&to);
        packet.put_slice(&from);
        for tag in &self.tags {
            let (ethertype, id) = match tag {
                Tag::Customer(id) => (number::ETHERTYPE_VLAN, id),
                Tag::Service(id) => (number::ETHERTYPE_SERVICE_VLAN, id),
            };
            packet.put_u16(ethertype);
            packet.put_u16(*id);
        }
        packet.put_u16(match &self.network {
            NetworkLayer::Ip(Ip { source: IpAddr::V4(_), .. }) => number::ETHERTYPE_IPV4,
            NetworkLayer::Ip(Ip { source: IpAddr::V6(_), .. }) => number::ETHERTYPE_IPV6,
            NetworkLayer::Other { ethertype } => *ethertype,
        });
    }

    /// The IP header with all that belongs to it, in front of `length` bytes.
    fn network_header(&self, length: usize) -> Bytes {
        let NetworkLayer::Ip(ip) = &self.network else {
            return Bytes::new();
        };
        let mut header = BytesMut::new();
        match (ip.source, ip.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let (header_length, (offset, more)) = (20 + ip.options.len(), ip.fragment);
                header.put_u8(0x40 | (header_length / 4) as u8);
                header.put_u8(ip.traffic_class);
                header.put_u16((header_length + length) as u16);
                header.put_u16(ip.identification as u16);
                header.put_u16((offset / 8) | u16::from(more) << 13 | u16::from(ip.dont_fragment) << 14);
                header.put_u8(ip.hop_limit);
                header.put_u8(self.protocol());
                header.put_u16(0);
                header.put_slice(&source.octets());
                header.put_slice(&destination.octets());
                header.put_slice(&ip.options);
                let sum = checksum(&[&header]);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut chain = BytesMut::new();
                let nexts = ip.extensions.iter().skip(1).map(|extension| extension.number()).chain([self.protocol()]);
                for (extension, next) in ip.extensions.iter().zip(nexts) {
                    extension.put(&mut chain, next, ip.identification);
                }
                header.put_u32(0x6000_0000 | u32::from(ip.traffic_class) << 20);
                header.put_u16((chain.len() + length) as u16);
                header.put_u8(ip.extensions.first().map_or(self.protocol(), |extension| extension.number()));
                header.put_u8(ip.hop_limit);
                header.put_slice(&source.octets());
                header.put_slice(&destination.octets());
                header.put(chain);
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
                panic!("{} and {} are of two families", ip.source, ip.destination)
            }
        }
        header.freeze()
    }

    /// The transport header and the payload.
    pub(super) fn transport(&self) -> Bytes {
        let mut bytes = BytesMut::new();
        let NetworkLayer::Ip(Ip { source: from, destination: to, .. }) = &self.network else {
            return self.payload.clone();
        };
        let summed = |bytes: &[u8]| checksum(&[&pseudo_header(*from, *to, self.protocol(), bytes.len()), bytes]);
        match &self.transport {
            TransportLayer::Tcp { source, destination, sequence, acknowledgement, flags, window, options } => {
                bytes.put_u16(*source);
                bytes.put_u16(*destination);
                bytes.put_u32(*sequence);
                bytes.put_u32(*acknowledgement);
                bytes.put_u8((((20 + options.len()) / 4) << 4) as u8);
                bytes.put_u8(*flags);
                bytes.put_u16(*window);
                bytes.put_u32(0);
                bytes.put_slice(options);
                bytes.put_slice(&self.payload);
                let sum = summed(&bytes);
                bytes[16..18].copy_from_slice(&sum.to_be_bytes());
            }
            TransportLayer::Udp { source, destination, checksum } => {
                bytes.put_u16(*source);
                bytes.put_u16(*destination);
                bytes.put_u16((8 + self.payload.len()) as u16);
                bytes.put_u16(0);
                bytes.put_slice(&self.payload);
                if *checksum {
                    let sum = match summed(&bytes) {
                        // Zero would say that there is no checksum (RFC 768).
                        0 => 0xffff,
                        sum => sum,
                    };
                    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
                }
            }
            TransportLayer::Sctp { source, destination } => {
                sctp::put(&mut bytes, *source, *destination, &self.payload);
                if let Some(sum) = sctp::checksum(&bytes) {
                    bytes[sctp::CHECKSUM..sctp::CHECKSUM + 4].copy_from_slice(&sum);
                }
            }
            TransportLayer::Icmp { message } => {
                message.put(&mut bytes, from.is_ipv4());
                bytes.put_slice(&self.payload);
                // ICMP has no pseudo-header, ICMPv6 has (RFC 4443, section 2.3).
                let sum = if from.is_ipv4() { checksum(&[&bytes]) } else { summed(&bytes) };
                bytes[2..4].copy_from_slice(&sum.to_be_bytes());
            }
            TransportLayer::Other { .. } => bytes.put_slice(&self.payload),
        }
        bytes.freeze()
    }
}
