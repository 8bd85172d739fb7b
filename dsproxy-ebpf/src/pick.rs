//! Which backend a new connection goes to.

use dsproxy_common::{
    hash,
    service::{Backend, BackendState, Frontend},
};

use crate::family::Family;

/// The id and record of the backend on the slot that `hash` falls on, `step` slots further on.
///
/// What the slot names is checked: slots and backends are written while packets flow, and a packet that has read a
/// frontend just before it was switched may find either already in use for something else.
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
    let backend = F::maps().backends.get(id)?;
    (backend.service == frontend.service && backend.state == BackendState::Active.number()).then_some((id, *backend))
}
