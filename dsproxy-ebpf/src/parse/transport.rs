//! The transport header: ports, and the flags of a TCP segment.

use dsproxy_common::{
    Port, Protocol, checksum,
    count::Reason,
    flow::{FlowKey, Segment},
};

use super::{Content, Headers, Transport};
use crate::{
    family::Family,
    packet::{Linear, Short, View},
    rewrite::End,
};

/// Where the ports stand, in TCP as in UDP and SCTP, and how much they take together.
const SOURCE_PORT: usize = 0;
const DESTINATION_PORT: usize = 2;
const PORTS: usize = 4;

/// TCP without options, in bytes, and where its other fields stand (RFC 9293, section 3.1).
const TCP_HEADER: usize = 20;
const TCP_DATA_OFFSET: usize = 12;
const TCP_FLAGS: usize = 13;
const TCP_CHECKSUM: usize = 16;

/// The UDP header, in bytes, and where its checksum stands (RFC 768).
const UDP_HEADER: usize = 8;
const UDP_CHECKSUM: usize = 6;

/// The common header of SCTP, in bytes (RFC 9260, section 3.1).
const SCTP_HEADER: usize = 12;

/// The header of an echo message, in bytes, and where its fields stand (RFC 792; RFC 4443, section 4.1).
const ECHO_HEADER: usize = 8;
const ICMP_TYPE: usize = 0;
pub(crate) const ICMP_CHECKSUM: usize = 2;
const ECHO_IDENTIFIER: usize = 4;

/// Where the checksum of a transport header stands in it that covers a pseudo-header; SCTP has none, nor has IPv4's ICMP.
#[inline(always)]
pub(crate) const fn checksum_offset(content: Content) -> Option<usize> {
    match content {
        Content::Tcp => Some(TCP_CHECKSUM),
        Content::Udp => Some(UDP_CHECKSUM),
        Content::Sctp | Content::Echo | Content::Other => None,
    }
}

#[inline(always)]
pub(super) fn parse<F: Family>(
    linear: Linear,
    transport: &Transport,
    key: &mut FlowKey<F::Address>,
) -> Result<Result<Headers, Reason>, Short> {
    let Transport { protocol, offset, end } = *transport;
    key.protocol = protocol.into();
    let (content, length) = match Protocol::from_number(protocol) {
        Some(Protocol::Tcp) => (Content::Tcp, TCP_HEADER),
        Some(Protocol::Udp) => (Content::Udp, UDP_HEADER),
        Some(Protocol::Sctp) => (Content::Sctp, SCTP_HEADER),
        None if protocol == F::ICMP => (Content::Echo, ECHO_HEADER),
        None => return Ok(Ok(Headers { l4: offset, content: Content::Other, segment: Segment::NOT_TCP })),
    };
    // What stands behind the end is the padding of a short frame.
    if end.is_some_and(|end| end < offset + length) {
        return Ok(Err(Reason::Malformed));
    }
    let (content, segment) = match content {
        Content::Tcp => {
            let header = View::<TCP_HEADER>::at(linear, offset)?;
            if usize::from(header.read::<u8, TCP_DATA_OFFSET>() >> 4) * 4 < TCP_HEADER {
                return Ok(Err(Reason::Malformed));
            }
            read_ports(&header, key);
            (content, Segment::tcp(header.read::<u8, TCP_FLAGS>()))
        }
        Content::Udp | Content::Sctp => {
            read_ports(&View::<UDP_HEADER>::at(linear, offset)?, key);
            (content, Segment::NOT_TCP)
        }
        Content::Echo | Content::Other => {
            let header = View::<ECHO_HEADER>::at(linear, offset)?;
            let identifier = Port::from_wire(header.read::<u16, ECHO_IDENTIFIER>());
            match header.read::<u8, ICMP_TYPE>() {
                kind if kind == F::ECHO_REQUEST => key.source_port = identifier,
                kind if kind == F::ECHO_REPLY => key.destination_port = identifier,
                _ => return Ok(Err(Reason::OtherProtocol)),
            }
            (Content::Echo, Segment::NOT_TCP)
        }
    };
    Ok(Ok(Headers { l4: offset, content, segment }))
}

#[inline(always)]
fn read_ports<A, const N: usize>(header: &View<N>, key: &mut FlowKey<A>) {
    key.source_port = Port::from_wire(header.read::<u16, SOURCE_PORT>());
    key.destination_port = Port::from_wire(header.read::<u16, DESTINATION_PORT>());
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
    let header = View::<ECHO_HEADER>::at(linear, offset)?;
    let old = header.read::<u16, ECHO_IDENTIFIER>();
    header.write::<u16, ECHO_IDENTIFIER>(identifier.wire());
    let checksum = checksum::update(header.read::<u16, ICMP_CHECKSUM>(), difference);
    header.write::<u16, ICMP_CHECKSUM>(checksum::update(checksum, checksum::word_difference(old, identifier.wire())));
    Ok(())
}
