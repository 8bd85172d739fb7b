//! The parser and the printer: what a packet is, told from its bytes alone, for assertions and for whoever reads a
//! failure.

use std::{
    fmt::{self, Write as _},
    net::IpAddr,
};

use super::{
    Link, Message,
    checksum::{checksum, pseudo_header},
    number, sctp,
};

/// A checksum and what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// What stands in the packet. Sixteen bits, in SCTP all of them.
    pub found: u32,
    /// What should stand there.
    pub right: u32,
}

/// An IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// The source address.
    pub source: IpAddr,
    /// The destination address.
    pub destination: IpAddr,
    /// What follows, behind any extension headers.
    pub protocol: u8,
    /// The header's own checksum, in IPv4.
    pub checksum: Option<Checksum>,
    /// Whether this is a fragment of a packet.
    pub is_fragment: bool,
    /// Where what follows starts, and where the packet ends by what the header says, or is cut off.
    pub body: (usize, usize),
    /// Whether it is cut off.
    pub is_cut: bool,
}

/// Which transport protocol, with what is particular to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransportKind {
    /// TCP with its flags.
    Tcp {
        /// The flags.
        flags: u8,
    },
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// ICMP or ICMPv6.
    Icmp {
        /// The type.
        kind: u8,
        /// The code.
        code: u8,
    },
}

impl TransportKind {
    /// Whether it is an ICMP error, which quotes a packet.
    pub fn is_error(self, is_v4: bool) -> bool {
        match self {
            Self::Icmp { kind, .. } if is_v4 => matches!(kind, 3 | 4 | 5 | 11 | 12),
            Self::Icmp { kind, .. } => kind < 128,
            Self::Tcp { .. } | Self::Udp | Self::Sctp => false,
        }
    }
}

/// A transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// The source port; of ICMP the identifier, should it have one.
    pub source: u16,
    /// The destination port; of ICMP as the source.
    pub destination: u16,
    /// The protocol.
    pub kind: TransportKind,
    /// The checksum; none where UDP over IPv4 goes without, nor where not all is there that it covers.
    pub checksum: Option<Checksum>,
}

/// A packet taken apart as far as it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dissection {
    /// The ids of the VLAN tags, outermost first.
    pub vlans: Vec<u16>,
    /// The `EtherType` behind them.
    pub ethertype: Option<u16>,
    /// The IP header.
    pub network: Option<Network>,
    /// The transport header.
    pub transport: Option<Transport>,
    /// The packet that an ICMP error quotes, which may be cut off.
    pub quoted: Option<Box<Self>>,
}

impl Dissection {
    /// Takes `packet` apart.
    pub fn of(link: Link, packet: &[u8]) -> Self {
        let mut dissection = Self::default();
        let at = match link {
            Link::None => Some(0),
            Link::Ethernet => dissection.link(packet),
        };
        dissection.network(packet, at);
        if let (Some(network), Some(transport)) = (dissection.network, dissection.transport)
            && transport.kind.is_error(network.source.is_ipv4())
            && let Some(quote) = packet.get(network.body.0 + Message::HEADER..network.body.1)
        {
            dissection.quoted = Some(Box::new(Self::of(Link::None, quote)));
        }
        dissection
    }

    /// The IP header at `at`, and what follows it.
    fn network(&mut self, packet: &[u8], at: Option<usize>) {
        self.network = at.and_then(|at| match packet.get(at)? >> 4 {
            4 => ipv4(packet, at),
            6 => ipv6(packet, at),
            _ => None,
        });
        self.transport = self.network.and_then(|network| transport(packet, &network));
    }

    /// Where the IP header starts.
    fn link(&mut self, packet: &[u8]) -> Option<usize> {
        let mut at = 12;
        loop {
            let ethertype = read_u16(packet, at)?;
            at += 2;
            match ethertype {
                number::ETHERTYPE_VLAN | number::ETHERTYPE_SERVICE_VLAN => {
                    self.vlans.push(read_u16(packet, at)? & 0x0fff);
                    at += 2;
                }
                other => {
                    self.ethertype = Some(other);
                    return matches!(other, number::ETHERTYPE_IPV4 | number::ETHERTYPE_IPV6).then_some(at);
                }
            }
        }
    }
}

fn ipv4(packet: &[u8], at: usize) -> Option<Network> {
    let length = usize::from(packet.get(at)? & 0x0f) * 4;
    let header = packet.get(at..at + length)?;
    let address = |offset| Some(IpAddr::from(<[u8; 4]>::try_from(header.get(offset..offset + 4)?).ok()?));
    let (source, destination) = (address(12)?, address(16)?);
    let end = at + usize::from(read_u16(header, 2)?);
    Some(Network {
        source,
        destination,
        protocol: *header.get(9)?,
        checksum: Some(Checksum {
            found: read_u16(header, 10)?.into(),
            right: checksum(&[&header[..10], &[0, 0], &header[12..]]).into(),
        }),
        is_fragment: read_u16(header, 6)? & 0x3fff != 0,
        body: (at + length, end.min(packet.len())),
        is_cut: end > packet.len(),
    })
}

fn ipv6(packet: &[u8], at: usize) -> Option<Network> {
    let header = packet.get(at..at + 40)?;
    let address = |offset| Some(IpAddr::from(<[u8; 16]>::try_from(header.get(offset..offset + 16)?).ok()?));
    let (source, destination) = (address(8)?, address(24)?);
    let (mut protocol, mut body, mut is_fragment) = (header[6], at + 40, false);
    while matches!(protocol, 0 | 43 | 44 | 51 | 60) && !is_fragment {
        let (next, length) = (*packet.get(body)?, usize::from(*packet.get(body + 1)?));
        let size = match protocol {
            44 => {
                is_fragment = read_u16(packet, body + 2)? & 0xfff9 != 0;
                8
            }
            51 => (length + 2) * 4,
            _ => (length + 1) * 8,
        };
        (protocol, body) = (next, body + size);
    }
    let end = at + 40 + usize::from(read_u16(header, 4)?);
    Some(Network {
        source,
        destination,
        protocol,
        checksum: None,
        is_fragment,
        body: (body, end.min(packet.len())),
        is_cut: end > packet.len(),
    })
}

fn transport(packet: &[u8], network: &Network) -> Option<Transport> {
    let Network { source, destination, protocol, is_fragment, is_cut, body: (start, end), .. } = *network;
    let body = packet.get(start..end)?;
    // A piece that is not the first has no header: what stands there is anything.
    let pseudo = pseudo_header(source, destination, protocol, body.len());
    let (kind, checksum) = match protocol {
        // An error quotes as little as eight bytes, in which there are no flags.
        number::TCP => (
            TransportKind::Tcp { flags: body.get(13).copied().unwrap_or_default() },
            internet_checksum(&pseudo, body, 16),
        ),
        number::UDP => (
            TransportKind::Udp,
            internet_checksum(&pseudo, body, 6)
                .filter(|sum| sum.found != 0 || source.is_ipv6())
                .map(|sum| Checksum { right: if sum.right == 0 { 0xffff } else { sum.right }, ..sum }),
        ),
        number::SCTP => (TransportKind::Sctp, sctp_checksum(body)),
        number::ICMP if source.is_ipv4() => (icmp(body)?, internet_checksum(&[], body, 2)),
        number::ICMPV6 if source.is_ipv6() => (icmp(body)?, internet_checksum(&pseudo, body, 2)),
        _ => return None,
    };
    let ports = match kind {
        TransportKind::Icmp { .. } => (read_u16(body, 4)?, read_u16(body, 4)?),
        TransportKind::Tcp { .. } | TransportKind::Udp | TransportKind::Sctp => {
            (read_u16(body, 0)?, read_u16(body, 2)?)
        }
    };
    Some(Transport {
        source: ports.0,
        destination: ports.1,
        kind,
        checksum: checksum.filter(|_| !is_fragment && !is_cut),
    })
}

fn icmp(body: &[u8]) -> Option<TransportKind> {
    Some(TransportKind::Icmp { kind: *body.first()?, code: *body.get(1)? })
}

/// The checksum at `at` of `body`.
fn internet_checksum(pseudo_header: &[u8], body: &[u8], at: usize) -> Option<Checksum> {
    let found = read_u16(body, at)?;
    let right = checksum(&[pseudo_header, &body[..at], &[0, 0], &body[at + 2..]]);
    Some(Checksum { found: found.into(), right: right.into() })
}

fn sctp_checksum(body: &[u8]) -> Option<Checksum> {
    let right = sctp::checksum(body)?;
    let found = body.get(sctp::CHECKSUM..sctp::CHECKSUM + 4)?.try_into().ok()?;
    Some(Checksum { found: u32::from_be_bytes(found), right: u32::from_be_bytes(right) })
}

fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { found, right } = self;
        if found == right {
            write!(f, "{found:#06x}, right")
        } else {
            write!(f, "{found:#06x}, WRONG for {right:#06x}")
        }
    }
}

impl fmt::Display for Dissection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { vlans, ethertype, network, transport, quoted } = self;
        if let Some(ethertype) = ethertype {
            writeln!(f, "Ethernet type {ethertype:#06x} vlans {vlans:?}")?;
        }
        if let Some(network) = network {
            let Network { source, destination, protocol, checksum, is_fragment, body: (start, end), is_cut } = network;
            write!(f, "IP {source} -> {destination} protocol {protocol} body {start}..{end}")?;
            if let Some(checksum) = checksum {
                write!(f, " checksum {checksum}")?;
            }
            let (fragment, cut) = (if *is_fragment { " fragment" } else { "" }, if *is_cut { " cut off" } else { "" });
            writeln!(f, "{fragment}{cut}")?;
        }
        if let Some(Transport { source, destination, kind, checksum }) = transport {
            write!(f, "{kind:?} {source} -> {destination}")?;
            match checksum {
                Some(checksum) => writeln!(f, " checksum {checksum}")?,
                None => writeln!(f, " no checksum")?,
            }
        }
        if let Some(quoted) = quoted {
            write!(f, "about {quoted}")?;
        }
        Ok(())
    }
}

/// The packet in words and bytes.
pub fn show(link: Link, packet: &[u8]) -> String {
    let mut text = Dissection::of(link, packet).to_string();
    for (row, bytes) in packet.chunks(16).enumerate() {
        let _ = write!(text, "{:04x}:", row * 16);
        for byte in bytes {
            let _ = write!(text, " {byte:02x}");
        }
        text.push('\n');
    }
    text
}

/// Both packets and the bytes that differ, unless they are equal.
pub fn difference(link: Link, expected: &[u8], actual: &[u8]) -> Option<String> {
    if expected == actual {
        return None;
    }
    let mut text = format!("expected\n{}found\n{}", show(link, expected), show(link, actual));
    if expected.len() != actual.len() {
        let _ = writeln!(text, "expected {} bytes, found {}", expected.len(), actual.len());
    }
    for (at, (wanted, found)) in expected.iter().zip(actual).enumerate().filter(|(_, (wanted, found))| wanted != found)
    {
        let _ = writeln!(text, "byte {at:#06x}: expected {wanted:02x}, found {found:02x}");
    }
    Some(text)
}
