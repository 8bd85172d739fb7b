//! The transport header: ports, and the flags of a TCP segment.

use core::hint::cold_path;

use dsproxy_common::{
    Port, Protocol,
    cached_flow::Ports,
    checksum,
    count::Reason,
    flow::{FlowKey, Segment},
};

use super::{Content, Headers, Transport, fragment};
use crate::{
    family::Family,
    icmp,
    packet::{Linear, Short, View},
    rewrite::End,
    verifier,
};

/// Where the ports stand, in TCP as in UDP and SCTP, and how much they take together.
const SOURCE_PORT: usize = 0;
const DESTINATION_PORT: usize = 2;
const PORTS: usize = 4;

/// TCP without options, in bytes, and where its other fields stand (RFC 9293, section 3.1).
pub(crate) const TCP_HEADER: usize = 20;
pub(crate) const TCP_SEQUENCE: usize = 4;
pub(crate) const TCP_ACKNOWLEDGEMENT: usize = 8;
pub(crate) const TCP_DATA_OFFSET: usize = 12;
pub(crate) const TCP_FLAGS: usize = 13;
pub(crate) const TCP_WINDOW: usize = 14;
pub(crate) const TCP_CHECKSUM: usize = 16;
pub(crate) const TCP_URGENT: usize = 18;

/// The UDP header, in bytes, and where its checksum stands (RFC 768).
pub(crate) const UDP_HEADER: usize = 8;
const UDP_CHECKSUM: usize = 6;

/// The common header of SCTP, in bytes (RFC 9260, section 3.1).
const SCTP_HEADER: usize = 12;

/// Where the identifier of an echo message stands (RFC 792; RFC 4443, section 4.1).
const ECHO_IDENTIFIER: usize = icmp::REST;

/// Where the checksum of a transport header stands in it that covers a pseudo-header; SCTP has none, nor has IPv4's ICMP.
#[inline(always)]
pub(crate) const fn checksum_offset(content: Content) -> Option<usize> {
    match content {
        Content::Tcp => Some(TCP_CHECKSUM),
        Content::Udp => Some(UDP_CHECKSUM),
        Content::Sctp | Content::Echo | Content::Error | Content::Other => None,
    }
}

#[inline(always)]
pub(super) fn parse<F: Family>(
    linear: Linear,
    transport: &Transport,
    key: &mut FlowKey<F::Address>,
) -> Result<Result<Headers, Reason>, Short> {
    let Transport { protocol, offset, end, piece } = *transport;
    key.protocol = verifier::blurred(protocol.into(), offset as u32);
    let (content, length) = match Protocol::from_number(protocol) {
        Some(Protocol::Tcp) => (Content::Tcp, TCP_HEADER),
        Some(Protocol::Udp) => (Content::Udp, UDP_HEADER),
        Some(Protocol::Sctp) => (Content::Sctp, SCTP_HEADER),
        None if protocol == F::ICMP.protocol => (Content::Echo, icmp::HEADER),
        None => return Ok(Ok(Headers { l4: offset, piece, content: Content::Other, segment: Segment::NOT_TCP })),
    };
    if piece.is_later() {
        cold_path();
        if !fragment::recall::<F>(key, piece) {
            return Ok(Err(Reason::EarlyFragment));
        }
        // It says as little of its connection as a segment in the middle.
        let segment = if content == Content::Tcp { Segment::tcp(0) } else { Segment::NOT_TCP };
        return Ok(Ok(Headers { l4: offset, piece, content, segment }));
    }
    // What stands behind the end is the padding of a short frame.
    if end < offset + length {
        cold_path();
        return Ok(Err(Reason::Malformed));
    }
    let (content, segment) = match content {
        Content::Tcp => {
            let header = View::<TCP_HEADER>::at(linear, offset)?;
            if usize::from(header.read::<u8, TCP_DATA_OFFSET>() >> 4) * 4 < TCP_HEADER {
                return Ok(Err(Reason::Malformed));
            }
            (key.source_port, key.destination_port) = ports(&header);
            (content, Segment::tcp(header.read::<u8, TCP_FLAGS>()))
        }
        Content::Udp | Content::Sctp => {
            (key.source_port, key.destination_port) = ports(&View::<UDP_HEADER>::at(linear, offset)?);
            (content, Segment::NOT_TCP)
        }
        Content::Echo | Content::Error | Content::Other => {
            cold_path();
            let header = View::<{ icmp::HEADER }>::at(linear, offset)?;
            if F::ICMP.is_error(header.read::<u8, { icmp::TYPE }>()) {
                (Content::Error, Segment::NOT_TCP)
            } else {
                let Some(ports) = echo_ports::<F, _>(&header) else { return Ok(Err(Reason::OtherProtocol)) };
                (key.source_port, key.destination_port) = ports;
                (Content::Echo, Segment::NOT_TCP)
            }
        }
    };
    Ok(Ok(Headers { l4: offset, piece, content, segment }))
}

/// What stands in the transport header of a plain packet, behind whose IP header are `length` bytes. None if that is neither TCP
/// nor UDP, or too short.
#[inline(always)]
pub(super) fn plain<F: Family>(
    linear: Linear,
    offset: usize,
    length: usize,
    key: &mut FlowKey<F::Address>,
) -> Option<(Content, Segment)> {
    if key.protocol == Protocol::Tcp as u32 {
        let header = View::<TCP_HEADER>::at(linear, offset).ok()?;
        if length < TCP_HEADER || usize::from(header.read::<u8, TCP_DATA_OFFSET>() >> 4) * 4 < TCP_HEADER {
            return None;
        }
        (key.source_port, key.destination_port) = ports(&header);
        Some((Content::Tcp, Segment::tcp(header.read::<u8, TCP_FLAGS>())))
    } else if key.protocol == Protocol::Udp as u32 {
        let header = View::<UDP_HEADER>::at(linear, offset).ok()?;
        if length < UDP_HEADER {
            return None;
        }
        (key.source_port, key.destination_port) = ports(&header);
        Some((Content::Udp, Segment::NOT_TCP))
    } else {
        None
    }
}

/// Source and destination port of TCP, UDP or SCTP.
///
/// They are read, and then stored in the key, as one word: a processor that has just stored two halves waits with reading the
/// whole, as hashing does, until both have left for the cache.
#[inline(always)]
pub(crate) fn ports<const N: usize>(header: &View<N>) -> (Port, Port) {
    let [source_high, source_low, destination_high, destination_low] = header.read::<u32, SOURCE_PORT>().to_ne_bytes();
    let port = |high, low| Port::from_wire(u16::from_ne_bytes([high, low]));
    (port(source_high, source_low), port(destination_high, destination_low))
}

/// The identifier of an echo message as the port of the side that asks: a request's source, a reply's destination. None if it is
/// another message.
#[inline(always)]
pub(crate) fn echo_ports<F: Family, const N: usize>(header: &View<N>) -> Option<(Port, Port)> {
    let identifier = Port::from_wire(header.read::<u16, ECHO_IDENTIFIER>());
    match header.read::<u8, { icmp::TYPE }>() {
        kind if kind == F::ICMP.echo_request => Some((identifier, Port::default())),
        kind if kind == F::ICMP.echo_reply => Some((Port::default(), identifier)),
        _ => None,
    }
}

/// Puts `port` at one end of the transport header at `offset`.
#[inline(always)]
pub(crate) fn write_port(linear: Linear, offset: usize, end: End, port: Port) -> Result<(), Short> {
    let ports = View::<PORTS>::at(linear, offset)?;
    match end {
        End::Source => ports.write::<u16, SOURCE_PORT>(port.wire()),
        End::Destination => ports.write::<u16, DESTINATION_PORT>(port.wire()),
    }
    Ok(())
}

/// Puts `identifier` into the echo message at `offset`, whose checksum is to change by `difference` beside.
#[inline(always)]
pub(crate) fn write_identifier(linear: Linear, offset: usize, identifier: Port, difference: u16) -> Result<(), Short> {
    let header = View::<{ icmp::HEADER }>::at(linear, offset)?;
    let difference = checksum::add(difference, replace_identifier(&header, identifier));
    update_checksum::<{ icmp::CHECKSUM }, _>(&header, difference);
    Ok(())
}

/// Puts `identifier` into an echo message, and gives the difference it makes.
#[inline(always)]
pub(crate) fn replace_identifier<const N: usize>(header: &View<N>, identifier: Port) -> u16 {
    let old = header.read::<u16, ECHO_IDENTIFIER>();
    header.write::<u16, ECHO_IDENTIFIER>(identifier.wire());
    checksum::word_difference(old, identifier.wire())
}

/// Puts `port` at one end and, unless it is zero, `other_port` at the other, and gives the difference they make.
#[inline(always)]
pub(crate) fn replace_ports<const N: usize>(header: &View<N>, end: End, port: Port, other_port: Port) -> u16 {
    let (old_source, old_destination) = ports(header);
    let or = |port: Port, old: Port| if port == Port::default() { old } else { port };
    let (source, destination) = match end {
        End::Source => (port, or(other_port, old_destination)),
        End::Destination => (or(other_port, old_source), port),
    };
    header.write::<u16, SOURCE_PORT>(source.wire());
    header.write::<u16, DESTINATION_PORT>(destination.wire());
    checksum::add(
        checksum::word_difference(old_source.wire(), source.wire()),
        checksum::word_difference(old_destination.wire(), destination.wire()),
    )
}

/// Puts `ports` in place, as one word.
#[inline(always)]
pub(crate) fn write_ports<const N: usize>(header: &View<N>, ports: Ports) {
    let ([a, b], [c, d]) = (ports.source.wire().to_ne_bytes(), ports.destination.wire().to_ne_bytes());
    header.write::<u32, SOURCE_PORT>(u32::from_ne_bytes([a, b, c, d]));
}

/// Updates the checksum at `OFFSET` for `difference`, and gives the difference that this makes in turn.
#[inline(always)]
pub(crate) fn update_checksum<const OFFSET: usize, const N: usize>(header: &View<N>, difference: u16) -> u16 {
    let old = header.read::<u16, OFFSET>();
    let new = checksum::update(old, difference);
    header.write::<u16, OFFSET>(new);
    checksum::word_difference(old, new)
}

/// As `update_checksum`, for UDP: zero says that there is no checksum, and stays (RFC 768).
#[inline(always)]
pub(crate) fn update_udp_checksum<const N: usize>(header: &View<N>, difference: u16) -> u16 {
    let old = header.read::<u16, UDP_CHECKSUM>();
    if old == 0 {
        return 0;
    }
    let new = match checksum::update(old, difference) {
        0 => u16::MAX,
        new => new,
    };
    header.write::<u16, UDP_CHECKSUM>(new);
    checksum::word_difference(old, new)
}
