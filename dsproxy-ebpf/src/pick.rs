//! Which backend a new connection goes to.

use dsproxy_common::{
    hash,
    service::{Backend, Frontend},
};

use crate::family::Family;

/// The id and record of the backend on the slot that `hash` falls on, `step` slots further on.
///
/// A table of slots that is being replaced stays in place for a while, and so do the backends it names: a
/// backend that has just gone is still a better answer than none.
#[inline(always)]
pub(crate) fn pick<F: Family>(frontend: &Frontend, hash: u32, step: u32) -> Option<(u32, Backend<F::Address>)> {
    let id = if frontend.slot_count == 1 {
        frontend.slots
    } else {
        let mut slot = hash::slot(hash, frontend.slot_count) + step;
        if slot >= frontend.slot_count {
            slot -= frontend.slot_count;
        }
        *F::maps().slots.get(frontend.slots.wrapping_add(slot))?
    };
    Some((id, *F::maps().backends.get(id)?))
}
