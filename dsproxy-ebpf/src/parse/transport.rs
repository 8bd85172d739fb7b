//! The transport header: ports, and the flags of a TCP segment.

use dsproxy_common::{
    Port, Protocol,
    count::Reason,
    flow::{FlowKey, Segment},
};

use super::{Headers, Transport};
use crate::{
    packet::{Linear, Short, View},
    rewrite::End,
};

/// Where the ports stand, in TCP as in UDP, and how much they take together.
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

/// Where the checksum of a transport header of `protocol` stands in it.
#[inline(always)]
pub(crate) const fn checksum_offset(protocol: Protocol) -> usize {
    match protocol {
        Protocol::Tcp => TCP_CHECKSUM,
        Protocol::Udp => UDP_CHECKSUM,
    }
}

#[inline(always)]
pub(super) fn parse<A>(
    linear: Linear,
    transport: &Transport,
    key: &mut FlowKey<A>,
) -> Result<Result<Headers, Reason>, Short> {
    let Transport { protocol, offset, end } = *transport;
    let Some(protocol) = Protocol::from_number(protocol) else {
        return Ok(Err(Reason::OtherProtocol));
    };
    let length = match protocol {
        Protocol::Tcp => TCP_HEADER,
        Protocol::Udp => UDP_HEADER,
    };
    // What stands behind the end is the padding of a short frame.
    if end.is_some_and(|end| end < offset + length) {
        return Ok(Err(Reason::Malformed));
    }
    let segment = match protocol {
        Protocol::Tcp => {
            let header = View::<TCP_HEADER>::at(linear, offset)?;
            if usize::from(header.read::<u8, TCP_DATA_OFFSET>() >> 4) * 4 < TCP_HEADER {
                return Ok(Err(Reason::Malformed));
            }
            read_ports(&header, key);
            Segment::tcp(header.read::<u8, TCP_FLAGS>())
        }
        Protocol::Udp => {
            read_ports(&View::<UDP_HEADER>::at(linear, offset)?, key);
            Segment::NOT_TCP
        }
    };
    key.protocol = protocol.number().into();
    Ok(Ok(Headers { l4: offset, protocol, segment }))
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
