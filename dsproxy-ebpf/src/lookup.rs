//! Is the packet for a Service? The filter answers most packets, the hash map the others.

use dsproxy_common::{
    filter::FilterBit,
    flow::FlowKey,
    service::{Frontend, FrontendKey},
};

use crate::family::Family;

/// What the packet's destination is looked up by.
#[inline(always)]
pub(crate) fn frontend_key<A: Copy>(key: &FlowKey<A>) -> FrontendKey<A> {
    FrontendKey::new(key.destination, key.destination_port, key.protocol as u8)
}

/// False when `key` is certainly no frontend, nor has lately been one.
#[inline(always)]
pub(crate) fn may_be_frontend<F: Family>(key: &FrontendKey<F::Address>) -> bool {
    let bit = FilterBit::of(key);
    F::maps().filter.get(bit.word()).is_some_and(|word| word & bit.mask() != 0)
}

/// The frontend at `key`.
#[inline(always)]
pub(crate) fn frontend<F: Family>(key: &FrontendKey<F::Address>) -> Option<Frontend> {
    // SAFETY: user space replaces a frontend by a new element. The old one's memory may be given out again while it
    // is copied here; `pick` checks that what it leads to belongs together.
    unsafe { F::maps().frontends.get(key) }.copied()
}
