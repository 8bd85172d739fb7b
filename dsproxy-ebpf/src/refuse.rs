//! A packet refused: it becomes an ICMP error, "port unreachable", from the address it was sent to, and goes back to its
//! sender, whose `connect` then fails at once. Where that takes more than an error, it is a reset.

use dsproxy_common::{count::Reason, settings::Settings};

use crate::{
    answer,
    family::Family,
    icmp::{self, Numbers},
    maps,
    packet::{self, BufferContext, Short, View},
    parse::Packet,
    reset, verifier,
};

/// How many bytes are summed up by one call: kernels before 6.13 take no more.
const SUMMED_AT_ONCE: u32 = 512;

/// More than the longest error quotes: a power of two, which is what the verifier can be shown of a length.
const ROOM: usize = 4 * SUMMED_AT_ONCE as usize;

/// What an error quotes, while the packet is made anew.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Quote {
    words: [u32; ROOM / 4],
}

/// Makes `packet` the answer that refuses it.
///
/// # Errors
///
/// Why there is no answer.
#[inline(always)]
pub(crate) fn refuse<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    now: u32,
    settings: &Settings,
) -> Result<(), Reason> {
    // Linux takes an error about a SYN that comes back while `connect` still holds the socket, which on a virtual device is
    // at once, only as a hint (tcp_v6_err in net/ipv6/tcp_ipv6.c). A reset waits until the socket is free.
    if F::ICMP.error_is_hint && packet.segment.opens() {
        return reset::reset::<F, C>(context, packet, now, settings);
    }
    port_unreachable::<F, C>(context, packet, now, settings)
}

#[inline(always)]
fn port_unreachable<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    now: u32,
    settings: &Settings,
) -> Result<(), Reason> {
    const { assert!(F::ICMP.longest_error - F::HEADER - icmp::HEADER < ROOM && ROOM.is_power_of_two()) };
    if !answer::is_allowed::<F, C>(context, packet) {
        return Err(Reason::Unanswerable);
    }
    answer::spend(settings, now)?;

    let Numbers { protocol, port_unreachable: (kind, code), has_pseudo_header, longest_error, error_class, .. } =
        F::ICMP;
    let quote = maps::QUOTE.get_ptr_mut(0).ok_or(Reason::RewriteFailed)?;
    let most = longest_error - F::HEADER - icmp::HEADER;
    let quoted = quoted::<F, C>(context, packet, most).ok_or(Reason::RewriteFailed)?;
    let bytes = quote.cast::<u8>();
    // SAFETY: this CPU's own value, as in `answer::spend`, with room for the most that is quoted and a word. A last word of which
    // the packet has less than four bytes is summed up whole.
    unsafe { quote.cast::<u32>().add(quoted / 4).write(0) };
    // SAFETY: as above.
    unsafe { context.copy_out(packet.l3, bytes, quoted) }.map_err(|packet::Refused| Reason::RewriteFailed)?;

    let length = icmp::HEADER + quoted;
    let mut sum = sum(bytes, quoted) + u64::from(u16::from_ne_bytes([kind, code]));
    if has_pseudo_header {
        sum += answer::pseudo_header::<F>(packet, protocol, length);
    }
    answer::make::<F, C>(context, packet, protocol, error_class, length)?;
    let l4 = packet.l3 + F::HEADER;
    let header = View::<{ icmp::HEADER }>::at(context.linear(), l4).map_err(|Short { .. }| Reason::RewriteFailed)?;
    header.write::<u8, { icmp::TYPE }>(kind);
    header.write::<u8, { icmp::CODE }>(code);
    header.write::<u16, { icmp::CHECKSUM }>(answer::checksum(sum));
    header.write::<u32, { icmp::REST }>(0);
    // SAFETY: as above.
    unsafe { context.copy_in(l4 + icmp::HEADER, bytes, quoted) }.map_err(|packet::Refused| Reason::RewriteFailed)
}

/// How many bytes of the packet are quoted, from its IP header on: all, up to `most`, but not what stands behind its end.
#[inline(always)]
fn quoted<F: Family, C: BufferContext>(context: &C, packet: &Packet<'_, F::Address>, most: usize) -> Option<usize> {
    let there = (context.length() as usize).checked_sub(packet.l3)?;
    let said = F::length(context.linear(), packet.l3).ok()?;
    let whole = said.map_or(there, |said| said.min(there));
    let quoted = verifier::blurred(whole.min(most) as u32, context.length()) as usize & (ROOM - 1);
    (quoted >= F::HEADER).then_some(quoted)
}

/// The sum over `length` bytes at `bytes`, the last word filled up with zeros.
#[inline(always)]
fn sum(bytes: *const u8, length: usize) -> u64 {
    let words = (length as u32 + 3) & !3;
    let (mut sum, mut offset) = (0, 0);
    while offset < ROOM as u32 {
        let left = words.saturating_sub(offset);
        let size = verifier::at_most::<SUMMED_AT_ONCE>(left);
        // SAFETY: so much is there behind every offset.
        sum = unsafe { packet::sum(bytes.add(offset as usize), size, sum) };
        offset += SUMMED_AT_ONCE;
    }
    sum.into()
}
