//! The runs of slots of one service port: which stand, and where the next is to be written.

use std::{collections::BTreeSet, time::Instant};

use dsproxy_common::service;

use super::slots::{self, Placed, Run, SlotArray};
use crate::resolve::Reach;

/// The runs of one service port in one family.
#[derive(Debug, Default)]
pub(super) struct Runs {
    /// Those that frontends use.
    pub(super) in_use: Vec<Run>,
    /// Those that are written and that no frontend uses yet, in the order of writing: of the plan that is being carried out
    /// two at most, one a list.
    pub(super) pending: Vec<Run>,
    /// Those that were given back since a run was last written. Within one plan a frontend may leave a run that the next one
    /// takes up.
    left: Vec<Run>,
}

/// Where the content of a list is to stand.
#[derive(Debug)]
pub(super) struct Placement {
    /// What frontends say of it.
    pub(super) slots: service::Slots,
    /// What is to be written there, unless it stands there already.
    pub(super) write: Option<Vec<u32>>,
}

impl Runs {
    /// Enters a run that was written, and gives the place back of one that nobody will use.
    pub(super) fn written(&mut self, run: Run, array: &mut SlotArray, now: Instant) {
        // Runs are written before frontends: another plan has begun.
        self.left.clear();
        if let Some(in_use) = self.in_use.iter_mut().find(|in_use| in_use.first == run.first) {
            *in_use = run;
            return;
        }
        self.pending.retain(|pending| pending.first != run.first);
        if self.pending.len() == Reach::ALL.len() {
            array.release(self.pending.remove(0).first, now);
        }
        array.adopt(run.first, run.backends.len(), now);
        self.pending.push(run);
    }

    /// Enters that a frontend uses the run at `first` from `now` on.
    pub(super) fn used(&mut self, first: u32, array: &mut SlotArray, now: Instant) {
        if let Some(at) = self.pending.iter().position(|run| run.first == first) {
            self.in_use.reserve_exact(1);
            self.in_use.push(self.pending.remove(at));
            if self.pending.is_empty() {
                // Of all the service ports few have one at a time.
                self.pending = Vec::new();
            }
        } else if let Some(at) = self.left.iter().position(|run| run.first == first) {
            let run = self.left.remove(at);
            array.adopt(run.first, run.backends.len(), now);
            self.in_use.push(run);
        }
    }

    /// Gives those back that are not in `used`.
    pub(super) fn release_unused(&mut self, used: &BTreeSet<u32>, array: &mut SlotArray, now: Instant) {
        for run in self.in_use.extract_if(.., |run| !used.contains(&run.first)) {
            array.release(run.first, now);
            self.left.push(run);
        }
    }

    /// Gives all of them back.
    pub(super) fn release_all(&self, array: &mut SlotArray, now: Instant) {
        for run in self.in_use.iter().chain(&self.pending) {
            array.release(run.first, now);
        }
    }

    /// Enters that a run was being written when it failed: what stands there is no longer known, and so is not taken for
    /// anything that is wanted.
    pub(super) fn failed(&mut self, first: u32) {
        self.in_use.iter_mut().filter(|run| run.first == first).for_each(|run| run.backends.clear());
    }

    /// Where `content` is to stand, beside what this plan has `taken`. None when there is no room.
    ///
    /// With no room left a run in use that `may_overwrite` is written over: each of its slots names an endpoint of the same list
    /// before and after.
    pub(super) fn place(
        &self,
        content: Vec<u32>,
        array: &SlotArray,
        taken: &mut Vec<Placed>,
        may_overwrite: impl Fn(u32) -> bool,
        now: Instant,
    ) -> Option<Placement> {
        let count = u32::try_from(content.len()).ok()?;
        let stands = |first| Placement { slots: service::Slots { first, count }, write: None };
        match content.as_slice() {
            [] => return Some(stands(0)),
            [only] => return Some(stands(*only)),
            _ => {}
        }
        let is_free = |first: &u32| taken.iter().all(|placed| placed.first != *first);
        let same_size = |run: &&Run| slots::class(run.backends.len()) == slots::class(content.len());
        // One that this plan writes over will hold something else.
        let standing = self.in_use.iter().find(|run| run.backends == content).map(|run| run.first).filter(&is_free);
        let first = standing
            .or_else(|| self.pending.iter().filter(same_size).map(|run| run.first).find(is_free))
            .or_else(|| array.peek(content.len(), taken, now))
            .or_else(|| {
                let fits = |first: &u32| array.fits(*first, content.len()) && may_overwrite(*first) && is_free(first);
                self.in_use.iter().chain(&self.pending).map(|run| run.first).find(fits)
            })?;
        taken.push(Placed { first, count: content.len() });
        let write = standing.is_none().then_some(content);
        Some(Placement { slots: service::Slots { first, count }, write })
    }
}
