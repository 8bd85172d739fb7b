//! Bytes -> `Packet`: link layer, IP header and what follows it, transport header. Nothing is changed, and nothing looked up but
//! the ports of fragments.

pub(crate) mod fragment;
pub(crate) mod ipv4;
pub(crate) mod ipv6;
pub(crate) mod link;
pub(crate) mod transport;

use core::hint::cold_path;

use dsproxy_common::{
    count::Reason,
    flow::{FlowKey, Segment},
};

use self::fragment::Piece;
use crate::{
    family::Family,
    packet::{BufferContext, Linear, Short},
    verifier,
};

/// Headers in front of the transport header that are longer than this together are left to the stack.
pub(crate) const LONGEST_HEADERS: usize = 0x1fff;

/// The end of a packet whose IP header does not tell it: beyond everything.
pub(crate) const UNKNOWN_END: usize = usize::MAX;

/// What an IP header leads to.
pub(crate) struct Transport {
    pub(crate) protocol: u8,
    /// Where the transport header stands, in bytes from the start of the packet.
    pub(crate) offset: usize,
    /// Where the packet ends by what the IP header says; `UNKNOWN_END` if it says nothing.
    pub(crate) end: usize,
    /// Of a later fragment the protocol is known, but there is no transport header.
    pub(crate) piece: Piece,
}

/// What a packet carries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    Tcp,
    Udp,
    Sctp,
    /// An ICMP or ICMPv6 echo request or reply. Its identifier stands where the side that asks has its port: a request's
    /// source port, a reply's destination port.
    Echo,
    /// An ICMP or ICMPv6 error that quotes a packet. The key has its own addresses and no ports.
    Error,
    /// Anything else: only the addresses and the protocol of the key say something.
    Other,
}

impl Content {
    /// The same, without the verifier knowing what it is: else it would follow the rest of the way once for each.
    #[inline(always)]
    fn forgotten(self, noise: u32) -> Option<Self> {
        match verifier::forget(self as usize, noise, Self::Other as usize)? {
            0 => Some(Self::Tcp),
            1 => Some(Self::Udp),
            2 => Some(Self::Sctp),
            3 => Some(Self::Echo),
            4 => Some(Self::Error),
            _ => Some(Self::Other),
        }
    }
}

/// A packet that can be looked up and, unless it carries something else, rewritten.
#[derive(Clone, Copy)]
pub(crate) struct Packet<'k, A> {
    pub(crate) key: &'k FlowKey<A>,
    /// Where the IP header stands, in bytes from the start of the packet.
    pub(crate) l3: usize,
    /// Where the transport header stands, unless this is a later fragment.
    pub(crate) l4: usize,
    pub(crate) piece: Piece,
    pub(crate) content: Content,
    /// The flags of a TCP segment.
    pub(crate) segment: Segment,
}

impl<A> Packet<'_, A> {
    /// Whether its IP header of family `F` has options or extensions behind it.
    ///
    /// The difference is hidden from the verifier, which in 6.12 mixes numbers up that are compared with sums of each other. `noise` is as
    /// for [`verifier::forget`].
    #[inline(always)]
    pub(crate) fn has_options<F: Family>(&self, noise: u32) -> bool {
        verifier::blurred((self.l4 - self.l3) as u32, noise) != F::HEADER as u32
    }
}

/// Parses a plain packet, and fills `key`: TCP or UDP, whole, right behind an Ethernet header without tags and an IP header
/// without options or extensions. None if it is another.
#[inline(always)]
pub(crate) fn plain<'k, F: Family>(linear: Linear, key: &'k mut FlowKey<F::Address>) -> Option<Packet<'k, F::Address>> {
    let (l3, l4) = (link::ETHERNET_HEADER, link::ETHERNET_HEADER + F::HEADER);
    let Plain { protocol, length } = F::plain(linear, l3, key)?;
    // Less than the header says is for the stack to throw away.
    if l4 + length > linear.length() {
        return None;
    }
    key.protocol = protocol.into();
    let (content, segment) = transport::plain::<F>(linear, l4, length, key)?;
    Some(Packet { key, l3, l4, piece: Piece::WHOLE, content, segment })
}

/// What a plain IP header says beside the addresses.
pub(crate) struct Plain {
    pub(crate) protocol: u8,
    /// How many bytes follow it.
    pub(crate) length: usize,
}

/// Parses the packet whose IP header of family `F` stands at `l3`, and fills `key`.
///
/// The key is filled where it stays, for it is what the maps are asked with: returned by value it would be copied, and its
/// bytes waited for.
#[inline(always)]
pub(crate) fn packet<'k, F: Family, C: BufferContext>(
    context: &C,
    l3: usize,
    key: &'k mut FlowKey<F::Address>,
) -> Result<Packet<'k, F::Address>, Reason> {
    let parsed = match headers::<F>(context.linear(), l3, key) {
        Ok(parsed) => parsed,
        // The headers are partly in fragments of the buffer's memory: fetch them, once.
        Err(Short { end }) => {
            cold_path();
            if end > context.length() as usize {
                return Err(Reason::Malformed);
            }
            // Enough for the longest transport header behind what was asked for.
            let wanted = (end as u32 + 40).min(context.length());
            if context.pull(wanted).is_err() {
                return Err(Reason::Malformed);
            }
            match headers::<F>(context.linear(), l3, key) {
                Ok(parsed) => parsed,
                Err(Short { .. }) => return Err(Reason::Malformed),
            }
        }
    };
    let Headers { l4, piece, content, segment } = parsed?;
    let l4 = verifier::forget(l4, context.length(), LONGEST_HEADERS).ok_or(Reason::Malformed)?;
    let piece = piece.forgotten(context.length()).ok_or(Reason::Malformed)?;
    let content = content.forgotten(context.length()).ok_or(Reason::Malformed)?;
    Ok(Packet { key, l3, l4, piece, content, segment })
}

/// What the headers say beside the key.
struct Headers {
    l4: usize,
    piece: Piece,
    content: Content,
    segment: Segment,
}

#[inline(always)]
fn headers<F: Family>(
    linear: Linear,
    l3: usize,
    key: &mut FlowKey<F::Address>,
) -> Result<Result<Headers, Reason>, Short> {
    match F::parse(linear, l3, key)? {
        Ok(transport) => transport::parse::<F>(linear, &transport, key),
        Err(reason) => Ok(Err(reason)),
    }
}
