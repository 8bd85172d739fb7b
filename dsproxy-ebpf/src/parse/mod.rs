//! Bytes -> `Packet`: link layer, IP header and what follows it, transport header. Nothing is looked up or changed.

pub(crate) mod ipv4;
pub(crate) mod ipv6;
pub(crate) mod link;
pub(crate) mod transport;

use dsproxy_common::{
    Protocol,
    count::Reason,
    flow::{FlowKey, Segment},
};

use crate::{
    family::Family,
    packet::{PacketContext, Short},
};

/// What an IP header leads to: addresses, protocol and the offset of the transport header.
pub(crate) struct Transport<A> {
    pub(crate) source: A,
    pub(crate) destination: A,
    pub(crate) protocol: u8,
    /// Where the transport header stands, in bytes from the start of the packet.
    pub(crate) offset: usize,
    /// Where the packet ends by what the IP header says, if it says anything.
    pub(crate) end: Option<usize>,
}

/// A TCP or UDP packet that can be looked up and rewritten.
pub(crate) struct Packet<A> {
    pub(crate) key: FlowKey<A>,
    /// Where the IP header stands, in bytes from the start of the packet.
    pub(crate) l3: usize,
    /// Where the transport header stands.
    pub(crate) l4: usize,
    pub(crate) protocol: Protocol,
    /// The flags of a TCP segment.
    pub(crate) segment: Segment,
}

/// Parses the packet whose IP header of family `F` stands at `l3`.
#[inline(always)]
pub(crate) fn packet<F: Family, C: PacketContext>(context: &C, l3: usize) -> Result<Packet<F::Address>, Reason> {
    match try_packet::<F, C>(context, l3) {
        Ok(parsed) => parsed,
        // The headers are partly in fragments of the buffer's memory: fetch them, once.
        Err(Short { end }) => {
            if end > context.length() as usize {
                return Err(Reason::Malformed);
            }
            // Enough for the longest transport header behind what was asked for.
            let wanted = (end as u32 + 40).min(context.length());
            if context.pull(wanted).is_err() {
                return Err(Reason::Malformed);
            }
            match try_packet::<F, C>(context, l3) {
                Ok(parsed) => parsed,
                Err(Short { .. }) => Err(Reason::Malformed),
            }
        }
    }
}

#[inline(always)]
fn try_packet<F: Family, C: PacketContext>(
    context: &C,
    l3: usize,
) -> Result<Result<Packet<F::Address>, Reason>, Short> {
    let transport = match F::parse(context, l3)? {
        Ok(transport) => transport,
        Err(reason) => return Ok(Err(reason)),
    };
    transport::parse(context, l3, transport)
}
