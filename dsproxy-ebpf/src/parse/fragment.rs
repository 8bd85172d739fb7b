//! Packets in fragments: only the first shows the ports (RFC 791, section 3.2; RFC 8200, section 4.5). They are remembered for
//! the others, whose addresses alone are then translated.

#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied to the stack, of which there are 512 bytes"
)]

use core::hint::cold_path;

use aya_ebpf::bindings::BPF_ANY;
use dsproxy_common::{
    count::Reason,
    flow::FlowKey,
    fragment::{Fragment, FragmentKey, LIFETIME},
};

use crate::{clock, family::Family, maps, outcome::Untranslated, verifier};

/// What of a packet this is: all of it, its first fragment, or a later one. The fragments' identification is as it stands there.
///
/// Plain numbers, so that the verifier can be made to forget which of them it is.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    kind: usize,
    identification: u32,
}

const WHOLE: usize = 0;
const FIRST: usize = 1;
const LATER: usize = 2;

impl Piece {
    pub(crate) const WHOLE: Self = Self { kind: WHOLE, identification: 0 };

    #[inline(always)]
    pub(super) const fn first(identification: u32) -> Self {
        Self { kind: FIRST, identification }
    }

    #[inline(always)]
    pub(super) const fn later(identification: u32) -> Self {
        Self { kind: LATER, identification }
    }

    /// Whether it is all of the packet.
    #[inline(always)]
    pub(crate) const fn is_whole(self) -> bool {
        self.kind == WHOLE
    }

    /// Whether it is a fragment other than the first, which has no transport header.
    #[inline(always)]
    pub(crate) const fn is_later(self) -> bool {
        self.kind == LATER
    }

    /// The same, without the verifier knowing what it is.
    #[inline(always)]
    pub(super) fn forgotten(self, noise: u32) -> Option<Self> {
        verifier::forget(self.kind, noise, LATER).map(|kind| Self { kind, ..self })
    }
}

/// Remembers the ports of `key`, those of a packet whose first fragment this is, unless what became of it shows that the
/// packet is nobody's concern. What is dropped is remembered too, so that nothing of it goes on.
#[inline(always)]
pub(crate) fn remember<F: Family>(piece: Piece, key: &FlowKey<F::Address>, outcome: &Result<Reason, Untranslated>) {
    if piece.kind != FIRST {
        return;
    }
    cold_path();
    if matches!(outcome, Err(left) if !left.reason.is_drop()) {
        return;
    }
    let (source_port, destination_port) = (key.source_port, key.destination_port);
    let fragment = Fragment { source_port, destination_port, seen: clock::now() };
    // Should there be no room, the others pass as they would have come too early.
    let _ = F::maps().fragments.insert(&identity(key, piece), &fragment, BPF_ANY.into());
}

/// Fills in the ports of `key`, those of a packet of whose fragments this is a later one. False if the first has not come.
#[inline(always)]
pub(super) fn recall<F: Family>(key: &mut FlowKey<F::Address>, piece: Piece) -> bool {
    let Some(settings) = maps::SETTINGS.get(0) else { return false };
    // SAFETY: copied at once; an entry that is replaced meanwhile is for the same addresses, and at worst of an earlier packet.
    let Some(held) = (unsafe { F::maps().fragments.get(&identity(key, piece)) }).copied() else {
        return false;
    };
    let age = clock::now().wrapping_sub(held.seen);
    (key.source_port, key.destination_port) = (held.source_port, held.destination_port);
    age <= LIFETIME.saturating_mul(settings.jiffies_per_second)
}

#[inline(always)]
fn identity<A: Copy>(key: &FlowKey<A>, piece: Piece) -> FragmentKey<A> {
    let FlowKey { source, destination, protocol, .. } = *key;
    FragmentKey { source, destination, identification: piece.identification, protocol }
}
