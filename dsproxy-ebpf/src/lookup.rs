//! What is the packet for? Filters answer most packets, hash maps and tries the others.

use aya_ebpf::btf_maps::lpm_trie::Key;
use dsproxy_common::{
    Address,
    count::Reason,
    filter::{self, FilterBit},
    flow::{FlowKey, NO_SERVICE},
    service::{Frontend, FrontendKey, SourceRange},
    settings::{NetworkFlags, SettingFlags, Settings},
};

use crate::{family::Family, maps::Filter};

/// What the packet's destination is looked up by.
#[inline(always)]
fn frontend_key<A: Copy>(key: &FlowKey<A>) -> FrontendKey<A> {
    FrontendKey::new(key.destination, key.destination_port, key.protocol as u8)
}

#[inline(always)]
fn has_bit<A: Address>(filter: &Filter, key: &FrontendKey<A>) -> bool {
    let bit = FilterBit::of(key);
    filter.get(bit.word()).is_some_and(|word| word & bit.mask() != 0)
}

/// False when packets of `key` are certainly for no frontend, nor for what has lately been one.
#[inline(always)]
pub(crate) fn may_be_frontend<F: Family>(key: &FlowKey<F::Address>) -> bool {
    has_bit(F::maps().filter, &frontend_key(key))
}

/// False when packets of `key` are certainly not rewritten as they leave for any connection: they are from no backend, nor from what
/// has lately been one, and to none towards which any packets are.
#[inline(always)]
pub(crate) fn may_leave_rewritten<F: Family>(key: &FlowKey<F::Address>, settings: &Settings) -> bool {
    may_be_from_backend::<F>(key)
        || F::maps().leaving_filter.get(filter::cell(&frontend_key(key))).is_some_and(|cell| *cell != 0)
        // What is carried over from them is marked before they go.
        || (settings.flags & SettingFlags::BESIDE_OTHERS != 0 && may_be_for_backend::<F>(key))
}

/// Has `may_leave_rewritten` say so of packets that leave towards the backend that those of `key` do.
#[inline(always)]
pub(crate) fn mark_leaving<F: Family>(key: &FlowKey<F::Address>) {
    if let Some(cell) = F::maps().leaving_filter.get_ptr_mut(filter::cell(&frontend_key(key))) {
        // SAFETY: a pointer to a map value, valid until the program returns; whoever writes there writes the same. Nearly
        // always it is written already, and no other CPU loses its copy.
        unsafe {
            if cell.read_volatile() == 0 {
                cell.write_volatile(1);
            }
        }
    }
}

/// False when packets of `key` are certainly from no backend, nor from what has lately been one.
#[inline(always)]
pub(crate) fn may_be_from_backend<F: Family>(key: &FlowKey<F::Address>) -> bool {
    let source = FrontendKey::new(key.source, key.source_port, key.protocol as u8);
    has_bit(F::maps().egress_filter, &source)
}

/// False when packets of `key` are certainly to no backend, nor to what has lately been one.
#[inline(always)]
pub(crate) fn may_be_for_backend<F: Family>(key: &FlowKey<F::Address>) -> bool {
    has_bit(F::maps().egress_filter, &frontend_key(key))
}

/// The frontend that packets of `key` are for.
#[inline(always)]
pub(crate) fn frontend<F: Family>(key: &FlowKey<F::Address>) -> Option<Frontend> {
    frontend_at::<F>(&frontend_key(key))
}

/// The frontend at an address and port.
#[inline(always)]
pub(crate) fn frontend_at<F: Family>(key: &FrontendKey<F::Address>) -> Option<Frontend> {
    // SAFETY: user space replaces a frontend by a new element. The old one's memory may be given out again while it
    // is copied here; `pick` checks that what it leads to belongs together.
    unsafe { F::maps().frontends.get(key) }.copied()
}

/// The service port that packets of `key` are for; `NO_SERVICE` if there is none.
#[inline(always)]
pub(crate) fn service<F: Family>(key: &FlowKey<F::Address>) -> u32 {
    frontend::<F>(key).map_or(NO_SERVICE, |frontend| frontend.service)
}

/// What is known of the networks that `address` is in: `NetworkFlags`.
#[inline(always)]
pub(crate) fn network<F: Family>(address: F::Address) -> u32 {
    let bits = size_of::<F::Address>() as u32 * 8;
    F::maps().networks.get(&Key::new(bits, address)).copied().unwrap_or_default()
}

/// What becomes of a packet for no frontend: `otherwise`, unless it is for a ClusterIP, or an address that may become one.
#[inline(always)]
pub(crate) fn without_frontend<F: Family>(key: &FlowKey<F::Address>, settings: &Settings, otherwise: Reason) -> Reason {
    if !F::services(settings).has(&key.destination) {
        return otherwise;
    }
    NetworkFlags::without_frontend(network::<F>(key.destination)).unwrap_or(otherwise)
}

/// Whether `client` is within the source ranges of `service`.
#[inline(always)]
pub(crate) fn is_in_source_ranges<F: Family>(service: u32, client: F::Address) -> bool {
    let bits = size_of::<SourceRange<F::Address>>() as u32 * 8;
    F::maps().ranges.get(&Key::new(bits, SourceRange { service, client })).is_some()
}
