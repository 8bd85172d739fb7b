//! A TCP segment that nobody will answer: it becomes a reset (RFC 9293, section 3.10.7.1, for what has no connection) from
//! the address it was sent to, and goes back to the client, which need not find out by waiting.

use dsproxy_common::{Protocol, count::Reason, settings::Settings};

use crate::{
    answer,
    family::Family,
    packet::{BufferContext, Short, View},
    parse::{
        Packet,
        transport::{
            TCP_ACKNOWLEDGEMENT, TCP_CHECKSUM, TCP_DATA_OFFSET, TCP_FLAGS, TCP_HEADER, TCP_SEQUENCE, TCP_URGENT,
            TCP_WINDOW,
        },
    },
};

const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// What a reset says, all as it stands in the packet.
struct Numbers {
    sequence: u32,
    acknowledgement: u32,
    flags: u8,
}

/// Makes `packet`, a TCP segment, the reset that answers it.
///
/// # Errors
///
/// Why there is no answer.
#[inline(always)]
pub(crate) fn reset<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    now: u32,
    settings: &Settings,
) -> Result<(), Reason> {
    if packet.segment.resets() || !answer::is_allowed::<F, C>(context, packet) {
        return Err(Reason::Unanswerable);
    }
    answer::spend(settings, now)?;
    let Numbers { sequence, acknowledgement, flags } =
        numbers::<F, C>(context, packet).map_err(|Short { .. }| Reason::RewriteFailed)?;

    let protocol = Protocol::Tcp.number();
    answer::make::<F, C>(context, packet, protocol, 0, TCP_HEADER)?;
    let header = View::<TCP_HEADER>::at(context.linear(), packet.l3 + F::HEADER)
        .map_err(|Short { .. }| Reason::RewriteFailed)?;
    let (source, destination) = (packet.key.destination_port.wire(), packet.key.source_port.wire());
    let offset = ((TCP_HEADER / 4) << 4) as u8;
    let sum = answer::pseudo_header::<F>(packet, protocol, TCP_HEADER)
        + u64::from(source)
        + u64::from(destination)
        + u64::from(sequence)
        + u64::from(acknowledgement)
        + u64::from(u16::from_ne_bytes([offset, flags]));
    header.write::<u16, 0>(source);
    header.write::<u16, 2>(destination);
    header.write::<u32, TCP_SEQUENCE>(sequence);
    header.write::<u32, TCP_ACKNOWLEDGEMENT>(acknowledgement);
    header.write::<u8, TCP_DATA_OFFSET>(offset);
    header.write::<u8, TCP_FLAGS>(flags);
    header.write::<u16, TCP_WINDOW>(0);
    header.write::<u16, TCP_CHECKSUM>(answer::checksum(sum));
    header.write::<u16, TCP_URGENT>(0);
    Ok(())
}

/// "If the ACK bit is off, sequence number zero is used: `<SEQ=0><ACK=SEG.SEQ+SEG.LEN><CTL=RST,ACK>`. If the ACK bit is on:
/// `<SEQ=SEG.ACK><CTL=RST>`."
#[inline(always)]
fn numbers<F: Family, C: BufferContext>(context: &C, packet: &Packet<'_, F::Address>) -> Result<Numbers, Short> {
    let linear = context.linear();
    let header = View::<TCP_HEADER>::at(linear, packet.l4)?;
    if header.read::<u8, TCP_FLAGS>() & ACK != 0 {
        return Ok(Numbers { sequence: header.read::<u32, TCP_ACKNOWLEDGEMENT>(), acknowledgement: 0, flags: RST });
    }
    let sequence = u32::from_be(header.read::<u32, TCP_SEQUENCE>());
    let headers = packet.l4 - packet.l3 + usize::from(header.read::<u8, TCP_DATA_OFFSET>() >> 4) * 4;
    let whole = F::length(linear, packet.l3)?.unwrap_or(context.length() as usize - packet.l3);
    // SYN and FIN count as a byte each.
    let controls = u32::from(packet.segment.opens()) + u32::from(packet.segment.finishes());
    let length = (whole.saturating_sub(headers) as u32).wrapping_add(controls);
    Ok(Numbers { sequence: 0, acknowledgement: sequence.wrapping_add(length).to_be(), flags: RST | ACK })
}
