//! What a packet is, by RFC 791, RFC 8200 and their transport protocols, as far as a translation has to know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dsproxy_common::{IpFamily, count::Reason};

use crate::packet::{Link, number};

/// Headers in front of the transport header that are longer than this are left to the stack.
const LONGEST_HEADERS: usize = 8191;

/// More IPv6 extension headers are left to the stack.
const MOST_EXTENSIONS: usize = 6;

/// What of a packet is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// All of it.
    Whole,
    /// The first fragment, which shows the ports, and its identification.
    First(u32),
    /// A later fragment.
    Later(u32),
}

impl Piece {
    pub(super) fn is_later(self) -> bool {
        matches!(self, Self::Later(_))
    }
}

/// An IP header, and where it leads to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Network {
    pub(super) family: IpFamily,
    /// Where the header stands.
    pub(super) l3: usize,
    /// Where what follows it stands, options and extension headers behind.
    pub(super) l4: usize,
    /// Where the packet ends by its header; none if that says nothing (BIG TCP).
    pub(super) end: Option<usize>,
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    pub(super) piece: Piece,
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// With these flags; none are known of a later fragment.
    Tcp(u8),
    Udp,
    Sctp,
    /// ICMP's request or reply for an echo. Its identifier is the port of the side that asks.
    Echo,
    /// An ICMP error that may be about a translated packet.
    Error,
    /// Another protocol.
    Other,
}

/// A packet that the data path can say something about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parsed {
    pub(super) network: Network,
    pub(super) content: Content,
    pub(super) ports: (u16, u16),
}

impl Parsed {
    /// Whether anything stands between the IP header and what it carries.
    pub(super) fn has_options(&self) -> bool {
        self.network.l4 - self.network.l3 != header(self.network.family)
    }
}

/// How long an IP header is without options or extensions.
pub(super) fn header(family: IpFamily) -> usize {
    match family {
        IpFamily::V4 => 20,
        IpFamily::V6 => 40,
    }
}

/// Where the IP header stands, and of which family it is.
pub(super) fn link(bytes: &[u8], link: Link) -> Option<(IpFamily, usize)> {
    if link == Link::None {
        return match (bytes.len() >= 20, bytes.first()? >> 4) {
            (true, 4) => Some((IpFamily::V4, 0)),
            (true, 6) => Some((IpFamily::V6, 0)),
            _ => None,
        };
    }
    let mut ethertype = be16(bytes, 12)?;
    let mut at = 14;
    for _ in 0..2 {
        if matches!(ethertype, number::ETHERTYPE_VLAN | number::ETHERTYPE_SERVICE_VLAN) {
            ethertype = be16(bytes, at + 2)?;
            at += 4;
        }
    }
    match ethertype {
        number::ETHERTYPE_IPV4 => Some((IpFamily::V4, at)),
        number::ETHERTYPE_IPV6 => Some((IpFamily::V6, at)),
        _ => None,
    }
}

/// The IP header at `l3`.
///
/// # Errors
///
/// What becomes of a packet with such a header.
pub(super) fn network(bytes: &[u8], l3: usize, family: IpFamily) -> Result<Network, Reason> {
    match family {
        IpFamily::V4 => ipv4(bytes, l3),
        IpFamily::V6 => ipv6(bytes, l3),
    }
}

fn ipv4(bytes: &[u8], l3: usize) -> Result<Network, Reason> {
    let header = slice(bytes, l3, 20)?;
    let (version, length, total) = (header[0] >> 4, usize::from(header[0] & 0xf) * 4, usize::from(be(header, 2)));
    if version != 4 || length < 20 || (total < length && total != 0) {
        return Err(Reason::Malformed);
    }
    let (fragment, identification) = (be(header, 6), be(header, 4).into());
    let (more, offset) = (fragment & 0x2000 != 0, fragment & 0x1fff);
    Ok(Network {
        family: IpFamily::V4,
        l3,
        l4: l3 + length,
        end: (total != 0).then_some(l3 + total),
        source: address(bytes, l3 + 12, IpFamily::V4)?,
        destination: address(bytes, l3 + 16, IpFamily::V4)?,
        protocol: header[9],
        piece: piece(offset != 0, more, identification),
    })
}

fn ipv6(bytes: &[u8], l3: usize) -> Result<Network, Reason> {
    let header = slice(bytes, l3, 40)?;
    if header[0] >> 4 != 6 {
        return Err(Reason::Malformed);
    }
    let mut network = Network {
        family: IpFamily::V6,
        l3,
        l4: l3 + 40,
        end: Some(be(header, 4)).filter(|length| *length != 0).map(|length| l3 + 40 + usize::from(length)),
        source: address(bytes, l3 + 8, IpFamily::V6)?,
        destination: address(bytes, l3 + 24, IpFamily::V6)?,
        protocol: header[6],
        piece: Piece::Whole,
    };
    let mut skipped = 0;
    // Hop-by-hop options, routing, fragment, authentication, destination options.
    while matches!(network.protocol, 0 | 43 | 44 | 51 | 60) {
        if skipped == MOST_EXTENSIONS {
            return Err(Reason::OtherProtocol);
        }
        let extension = slice(bytes, network.l4, 2)?;
        let (next, length) = (extension[0], usize::from(extension[1]));
        let size = match network.protocol {
            44 => {
                let fragment = slice(bytes, network.l4, 8)?;
                let (offset, more) = (be(fragment, 2) & 0xfff8, fragment[3] & 1 != 0);
                let identification = u32::from_be_bytes([fragment[4], fragment[5], fragment[6], fragment[7]]);
                if offset != 0 {
                    network.piece = Piece::Later(identification);
                    network.protocol = next;
                    return Ok(network);
                }
                if more {
                    network.piece = piece(false, more, identification);
                }
                8
            }
            51 => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        network.protocol = next;
        network.l4 += size;
        if network.l4 > LONGEST_HEADERS {
            return Err(Reason::OtherProtocol);
        }
        skipped += 1;
    }
    Ok(network)
}

fn piece(has_offset: bool, more: bool, identification: u32) -> Piece {
    match (has_offset, more) {
        (true, _) => Piece::Later(identification),
        (false, true) => Piece::First(identification),
        (false, false) => Piece::Whole,
    }
}

/// What follows the IP header. `recall` gives the ports of a packet by one of its later fragments, if the first has come.
///
/// # Errors
///
/// What becomes of a packet with such a header.
pub(super) fn transport(
    bytes: &[u8],
    network: Network,
    recall: impl FnOnce(&Network) -> Option<(u16, u16)>,
) -> Result<Parsed, Reason> {
    let icmp = icmp_protocol(network.family);
    let (content, least) = match network.protocol {
        number::TCP => (Content::Tcp(0), 20),
        number::UDP => (Content::Udp, 8),
        number::SCTP => (Content::Sctp, 12),
        protocol if protocol == icmp => (Content::Echo, 8),
        _ => return Ok(Parsed { network, content: Content::Other, ports: (0, 0) }),
    };
    if network.piece.is_later() {
        let ports = recall(&network).ok_or(Reason::EarlyFragment)?;
        return Ok(Parsed { network, content, ports });
    }
    if network.end.is_some_and(|end| end < network.l4 + least) {
        return Err(Reason::Malformed);
    }
    // Of SCTP's header the ports are looked at, and what stands with them in UDP's.
    let header = slice(bytes, network.l4, least.min(if content == Content::Sctp { 8 } else { 20 }))?;
    let (content, ports) = match content {
        Content::Tcp(_) if header[12] >> 4 < 5 => return Err(Reason::Malformed),
        Content::Tcp(_) => (Content::Tcp(header[13]), (be(header, 0), be(header, 2))),
        Content::Echo if is_error(network.family, header[0]) => (Content::Error, (0, 0)),
        Content::Echo => (content, echo(network.family, header).ok_or(Reason::OtherProtocol)?),
        _ => (content, (be(header, 0), be(header, 2))),
    };
    Ok(Parsed { network, content, ports })
}

/// The protocol number of the family's ICMP.
pub(super) fn icmp_protocol(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => number::ICMP,
        IpFamily::V6 => number::ICMPV6,
    }
}

/// Destination unreachable, packet too big, time exceeded, parameter problem.
fn is_error(family: IpFamily, kind: u8) -> bool {
    match family {
        IpFamily::V4 => matches!(kind, 3 | 11 | 12),
        IpFamily::V6 => matches!(kind, 1..=4),
    }
}

/// The identifier of an echo message at `header`, as a request's source port or a reply's destination port.
pub(super) fn echo(family: IpFamily, header: &[u8]) -> Option<(u16, u16)> {
    let identifier = be(header, 4);
    match (family, header[0]) {
        (IpFamily::V4, 8) | (IpFamily::V6, 128) => Some((identifier, 0)),
        (IpFamily::V4, 0) | (IpFamily::V6, 129) => Some((0, identifier)),
        _ => None,
    }
}

/// The address at `at`.
pub(super) fn address(bytes: &[u8], at: usize, family: IpFamily) -> Result<IpAddr, Reason> {
    Ok(match family {
        IpFamily::V4 => {
            Ipv4Addr::from(<[u8; 4]>::try_from(slice(bytes, at, 4)?).map_err(|_| Reason::Malformed)?).into()
        }
        IpFamily::V6 => {
            Ipv6Addr::from(<[u8; 16]>::try_from(slice(bytes, at, 16)?).map_err(|_| Reason::Malformed)?).into()
        }
    })
}

fn slice(bytes: &[u8], at: usize, length: usize) -> Result<&[u8], Reason> {
    bytes.get(at..at + length).ok_or(Reason::Malformed)
}

/// The number at `at` of what is known to be long enough.
pub(super) fn be(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}
