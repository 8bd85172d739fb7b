//! The packet at hand made into another, which goes back to whoever sent it: what refusals and resets have in common.

use dsproxy_common::{Address as _, checksum, count::Reason, settings::Settings};

use crate::{
    family::{Family, Header},
    maps,
    packet::{self, BufferContext, Short},
    parse::{Packet, link},
};

/// Whether `packet` may have an answer (RFC 1122, section 3.2.2; RFC 4443, section 2.4, e): it was sent by one host and
/// to one, and it is no later fragment. ICMP errors are never refused.
#[inline(always)]
pub(crate) fn is_allowed<F: Family, C: BufferContext>(context: &C, packet: &Packet<'_, F::Address>) -> bool {
    // Without a link-layer header there is nobody else on the link.
    let was_sent_to_many = packet.l3 > 0 && context.was_sent_to_many();
    !was_sent_to_many && !packet.piece.is_later() && F::is_host(&packet.key.source)
}

/// Takes one answer out of this CPU's budget of them.
#[inline(always)]
pub(crate) fn spend(settings: &Settings, now: u32) -> Result<(), Reason> {
    let budget = maps::REFUSALS.get_ptr_mut(0).ok_or(Reason::RefusalLimit)?;
    // SAFETY: this CPU's own value; the programs run with bottom halves disabled, so none interrupts another on a CPU.
    let (left, is_granted) = unsafe { *budget }.take(now, settings);
    // SAFETY: as above.
    unsafe { *budget = left };
    if is_granted { Ok(()) } else { Err(Reason::RefusalLimit) }
}

/// Makes the packet into one from its destination to its source, with `length` bytes of `protocol` behind an IP header
/// without options. What these bytes are is left to the caller.
#[inline(always)]
pub(crate) fn make<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    protocol: u8,
    class: u8,
    length: usize,
) -> Result<(), Reason> {
    resize(context, packet, F::HEADER + length).map_err(|packet::Refused| Reason::RewriteFailed)?;
    let linear = context.linear();
    let header = Header {
        source: &packet.key.destination,
        destination: &packet.key.source,
        protocol,
        class,
        length: length as u16,
    };
    link::turn_round(linear, packet.l3)
        .and_then(|()| F::write_header(linear, packet.l3, &header))
        .map_err(|Short { .. }| Reason::RewriteFailed)
}

/// Makes the packet as long as its link-layer header and `length` bytes.
///
/// On the way all is dropped that the buffer says of the old packet: that it is an aggregate, or what a device knows of its
/// checksum. A checksum still to be finished (`CHECKSUM_PARTIAL`) would be finished in the middle of the new one. The kernel
/// gives that up when the place where the sum starts is cut off at the front (`skb_postpull_rcsum`, include/linux/skbuff.h),
/// so the packet is made longer by that much first. It cannot be cut there while VLAN tags stand in the packet: it then stays
/// as the kernel says it is.
#[inline(always)]
fn resize<A, C: BufferContext>(context: &C, packet: &Packet<'_, A>, length: usize) -> Result<(), packet::Refused> {
    let wanted = (packet.l3 + length) as u32;
    let excess = packet.l4 as u32 + 1;
    context.resize(wanted + excess)?;
    if context.cut(excess).is_err() {
        context.resize(wanted)?;
    }
    Ok(())
}

/// The sum of the pseudo-header of an answer to `packet` (RFC 9293, section 3.1; RFC 8200, section 8.1).
#[inline(always)]
pub(crate) fn pseudo_header<F: Family>(packet: &Packet<'_, F::Address>, protocol: u8, length: usize) -> u64 {
    let (source, destination) = (packet.key.source.words(), packet.key.destination.words());
    let mut sum = u64::from((length as u32).to_be()) + u64::from(u32::from(protocol).to_be());
    let mut index = 0;
    while index < source.len() && index < destination.len() {
        sum += u64::from(source[index]) + u64::from(destination[index]);
        index += 1;
    }
    sum
}

/// The checksum of what sums up to `sum`.
#[inline(always)]
pub(crate) const fn checksum(sum: u64) -> u16 {
    !checksum::fold(sum)
}
