//! One end of a flow replaced in the packet, with every checksum made right.

use core::hint::cold_path;

use dsproxy_common::{Address as _, Port, checksum, count::Reason};

use crate::{
    family::Family,
    packet::{self, PacketContext, Short, TransportChange},
    parse::{Content, Packet, transport},
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
pub(crate) fn rewrite<F: Family, C: PacketContext>(
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
