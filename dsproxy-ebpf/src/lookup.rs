//! Is the packet for a Service? The filter answers most packets, the hash map the others.

use dsproxy_common::{
    filter::FilterBit,
    flow::FlowKey,
    service::{Frontend, FrontendKey},
};

use crate::family::Family;

/// What the packet's destination is looked up by.
#[inline(always)]
fn frontend_key<A: Copy>(key: &FlowKey<A>) -> FrontendKey<A> {
    FrontendKey::new(key.destination, key.destination_port, key.protocol as u8)
}

/// False when packets of `key` are certainly for no frontend, nor for what has lately been one.
#[inline(always)]
pub(crate) fn may_be_frontend<F: Family>(key: &FlowKey<F::Address>) -> bool {
    let bit = FilterBit::of(&frontend_key(key));
    F::maps().filter.get(bit.word()).is_some_and(|word| word & bit.mask() != 0)
}

/// The frontend that packets of `key` are for.
#[inline(always)]
pub(crate) fn frontend<F: Family>(key: &FlowKey<F::Address>) -> Option<Frontend> {
    // SAFETY: user space replaces a frontend by a new element. The old one's memory may be given out again while it
    // is copied here; `pick` checks that what it leads to belongs together.
    unsafe { F::maps().frontends.get(frontend_key(key)) }.copied()
}
