//! One end of a flow replaced in the packet, with every checksum made right.

use dsproxy_common::{Address as _, Port, Protocol, checksum, count::Reason};

use crate::{
    family::Family,
    packet::{self, Linear, PacketContext, Short, TransportChange, View},
    parse::{Packet, transport},
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
    let (old_address, address_at, old_port, port_at) = match end {
        End::Source => {
            (packet.key.source, packet.l3 + F::SOURCE, packet.key.source_port, packet.l4 + transport::SOURCE_PORT)
        }
        End::Destination => (
            packet.key.destination,
            packet.l3 + F::DESTINATION,
            packet.key.destination_port,
            packet.l4 + transport::DESTINATION_PORT,
        ),
    };
    let difference = checksum::difference(old_address.words(), address.words());
    // All that is written directly comes before the helper, which invalidates what the verifier knows of the packet.
    write::<F>(context.linear(), packet.l3, (address_at, address), (port_at, port), difference)
        .map_err(|Short { .. }| Reason::RewriteFailed)?;

    let change = TransportChange {
        family: F::FAMILY,
        address: difference,
        port: (old_port, port),
        zero_means_none: matches!(packet.protocol, Protocol::Udp),
    };
    context
        .update_transport_checksum(packet.l4 + transport::checksum_offset(packet.protocol), &change)
        .map_err(|packet::Refused| Reason::RewriteFailed)
}

#[inline(always)]
fn write<F: Family>(
    linear: Linear,
    l3: usize,
    (address_at, address): (usize, F::Address),
    (port_at, port): (usize, Port),
    difference: u16,
) -> Result<(), Short> {
    packet::write_address(linear, address_at, address)?;
    F::update_header_checksum(linear, l3, difference)?;
    View::<2>::at(linear, port_at)?.write::<u16, 0>(port.wire());
    Ok(())
}
