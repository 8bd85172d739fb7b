//! One end of a flow replaced in the packet, with every checksum made right.

use core::hint::cold_path;

use dsproxy_common::{Address as _, Port, cached_flow::CachedFlow, checksum, count::Reason};

use crate::{
    family::Family,
    packet::{self, BufferContext, Linear, Short, TransportChange, View},
    parse::{Content, Packet, link::ETHERNET_HEADER, transport},
};

/// Which end of the flow is replaced.
#[derive(Clone, Copy)]
pub(crate) enum End {
    /// Source address and port.
    Source,
    /// Destination address and port.
    Destination,
}

/// Puts `address` and `port` at one end of the packet.
#[inline(always)]
pub(crate) fn rewrite<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    end: End,
    address: F::Address,
    port: Port,
) -> Result<(), Reason> {
    let (old_address, old_port) = match end {
        End::Source => (packet.key.source, packet.key.source_port),
        End::Destination => (packet.key.destination, packet.key.destination_port),
    };
    let difference = checksum::difference(old_address.words(), address.words());
    // All that is written directly comes before the helper, which invalidates what the verifier knows of the packet.
    let linear = context.linear();
    let written = F::write_address(linear, packet.l3, end, address, difference).and_then(|()| match packet.content {
        // What follows the IP header is payload.
        _ if packet.piece.is_later() => {
            cold_path();
            Ok(())
        }
        Content::Tcp | Content::Udp => transport::write_port(linear, packet.l4, end, port),
        Content::Echo => {
            cold_path();
            let difference = if F::ICMP.has_pseudo_header { difference } else { 0 };
            transport::write_identifier(linear, packet.l4, port, difference)
        }
        // Neither ports nor checksum: who asks for another port is refused in user space.
        Content::Sctp | Content::Error | Content::Other => {
            cold_path();
            Ok(())
        }
    });
    written.map_err(|Short { .. }| Reason::RewriteFailed)?;

    if packet.piece.is_later() {
        cold_path();
        return Ok(());
    }
    let Some(offset) = transport::checksum_offset(packet.content) else { return Ok(()) };
    let change = TransportChange {
        family: F::FAMILY,
        address: difference,
        port: (old_port, port),
        zero_means_none: matches!(packet.content, Content::Udp),
    };
    context.update_transport_checksum(packet.l4 + offset, &change).map_err(|packet::Refused| Reason::RewriteFailed)
}

/// Makes of a plain packet (`parse::plain`) with `content` what is remembered of its flow, for it goes on without the stack: both
/// ends are replaced, and one hop less is left to it. None if it has none left: then nothing is written, for it is the stack that
/// tells the sender.
#[inline(always)]
pub(crate) fn cross<F: Family>(linear: Linear, content: Content, flow: &CachedFlow<F::Address>) -> Option<()> {
    let (l3, l4) = (ETHERNET_HEADER, ETHERNET_HEADER + F::HEADER);
    if matches!(content, Content::Tcp) {
        let header = View::<{ transport::TCP_HEADER }>::at(linear, l4).ok()?;
        F::cross(linear, l3, flow)?;
        transport::write_ports(&header, flow.ports);
        transport::update_checksum::<{ transport::TCP_CHECKSUM }, _>(&header, flow.transport_difference);
    } else {
        let header = View::<{ transport::UDP_HEADER }>::at(linear, l4).ok()?;
        F::cross(linear, l3, flow)?;
        transport::write_ports(&header, flow.ports);
        transport::update_udp_checksum(&header, flow.transport_difference);
    }
    Some(())
}
