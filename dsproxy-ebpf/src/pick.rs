//! Which backend a new connection goes to.

use aya_ebpf::bindings::BPF_ANY;
use dsproxy_common::{
    count::Reason,
    flow::jiffies_since,
    hash,
    service::{Affinity, AffinityKey, Backend, BackendState, Frontend, Run, Slots},
    settings::Settings,
};

use crate::family::Family;

/// The endpoints that one client of a frontend may be sent to.
#[derive(Clone, Copy)]
pub(crate) struct Candidates {
    service: u32,
    run: Run,
}

impl Candidates {
    /// Those of `frontend` for a client inside the cluster or outside.
    ///
    /// # Errors
    ///
    /// When there are none, with what becomes of the client.
    #[inline(always)]
    pub(crate) fn of(frontend: &Frontend, is_inside: bool) -> Result<Self, Reason> {
        let run = frontend.run(is_inside);
        if run.slots.count == 0 { Err(run.nobody()) } else { Ok(Self { service: frontend.service, run }) }
    }

    /// How many slots there are.
    #[inline(always)]
    pub(crate) fn count(&self) -> u32 {
        self.run.slots.count
    }

    /// The id and record of the backend on the slot that `hash` falls on, `step` slots further on.
    ///
    /// What the slot names is checked: slots and backends are written while packets flow, and a packet that has read a
    /// frontend just before it was switched may find either already in use for something else.
    #[inline(always)]
    pub(crate) fn pick<F: Family>(&self, hash: u32, step: u32) -> Option<(u32, &'static Backend<F::Address>)> {
        let Slots { first, count } = self.run.slots;
        let id = if count == 1 {
            first
        } else {
            let mut slot = hash::slot(hash, count) + step;
            if slot >= count {
                slot -= count;
            }
            *F::maps().slots.get(first.wrapping_add(slot))?
        };
        self.eligible::<F>(id)
    }

    /// The backend `id`, if it is one of these.
    #[inline(always)]
    fn eligible<F: Family>(&self, id: u32) -> Option<(u32, &'static Backend<F::Address>)> {
        let backend = F::maps().backends.get(id)?;
        let is_one = backend.service == self.service
            && backend.state == BackendState::Active.number()
            && backend.flags & self.run.list != 0;
        is_one.then_some((id, backend))
    }

    /// The backend that `client` went to last, if it may go there again: it came within `seconds`, and the backend is still
    /// the same endpoint and one of these.
    #[inline(always)]
    pub(crate) fn remembered<F: Family>(
        &self,
        client: F::Address,
        seconds: u32,
        now: u32,
        settings: &Settings,
    ) -> Option<(u32, &'static Backend<F::Address>)> {
        let key = AffinityKey { client, service: self.service };
        // SAFETY: copied at once; an entry that another CPU replaces meanwhile is checked below like any other.
        let held = *unsafe { F::maps().affinity.get(key) }?;
        // A timeout is a day at most, and half the range of the clock some 24 days at the fastest tick.
        let timeout = seconds.saturating_mul(settings.jiffies_per_second);
        if jiffies_since(held.last_opened, now) > timeout {
            return None;
        }
        self.eligible::<F>(held.backend).filter(|(_, backend)| backend.generation == held.generation)
    }
}

/// Remembers that `client` of `service` went to the backend `id`.
#[inline(always)]
pub(crate) fn remember<F: Family>(client: F::Address, service: u32, id: u32, generation: u32, now: u32) {
    let value = Affinity { backend: id, generation, last_opened: now };
    // What cannot be remembered costs the client its affinity and no more.
    let _ = F::maps().affinity.insert(AffinityKey { client, service }, value, BPF_ANY.into());
}
