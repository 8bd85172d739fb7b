//! Runs of slots within the one flat array: found, used, and after a grace time used again.
//!
//! Runs come in sizes of powers of two. A run that was given back waits before it is written again: a packet may be
//! on its way through a kernel program that has read the old frontend.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// How long a released run stays as it is. No program runs for anything like as long.
pub(super) const GRACE: Duration = Duration::from_secs(1);

/// A run of slots and what stands in them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) first: u32,
    pub(super) backends: Vec<u32>,
}

/// A place for a run that is about to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    /// The first slot.
    pub(super) first: u32,
    /// How many slots are used.
    pub(super) count: usize,
}

impl Placed {
    /// The slot behind what is set aside.
    fn end(&self) -> u32 {
        self.first.saturating_add(class(self.count))
    }
}

/// The size of the run that is set aside for `count` slots.
pub(super) fn class(count: usize) -> u32 {
    u32::try_from(count.next_power_of_two()).unwrap_or(u32::MAX)
}

/// The array of slots.
#[derive(Debug)]
pub(super) struct SlotArray {
    capacity: u32,
    /// No slot at or above this was ever used.
    fresh: u32,
    /// First slot -> size.
    used: BTreeMap<u32, u32>,
    /// Size -> first slots of released runs, with the time of release, oldest first.
    released: BTreeMap<u32, VecDeque<(u32, Instant)>>,
    in_use: u32,
}

impl SlotArray {
    pub(super) fn new(capacity: u32) -> Self {
        Self { capacity, fresh: 0, used: BTreeMap::new(), released: BTreeMap::new(), in_use: 0 }
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// How many slots are set aside for runs in use.
    pub(super) fn in_use(&self) -> u32 {
        self.in_use
    }

    /// Where a run of `count` slots may be written at `now`, beside the runs at `taken` that are about to be.
    pub(super) fn peek(&self, count: usize, taken: &[Placed], now: Instant) -> Option<u32> {
        let class = class(count);
        let is_free = |first: u32| taken.iter().all(|placed| placed.first != first);
        // Larger sizes only when there is no other way: their rest lies idle.
        let mut ready = self.released.range(class..).filter_map(|(size, runs)| {
            let (first, released) = runs.iter().find(|(first, _)| is_free(*first))?;
            (now.saturating_duration_since(*released) >= GRACE).then_some((*size, *first))
        });
        match ready.next() {
            Some((size, first)) if size == class => Some(first),
            larger => {
                let fresh = taken.iter().map(Placed::end).fold(self.fresh, u32::max);
                if class <= self.capacity.saturating_sub(fresh) { Some(fresh) } else { larger.map(|(_, first)| first) }
            }
        }
    }

    /// Whether `count` slots have room in the run in use at `start`.
    pub(super) fn fits(&self, start: u32, count: usize) -> bool {
        self.used.get(&start).is_some_and(|size| count <= *size as usize)
    }

    /// Enters a run of `count` slots from `start` that is written, or was found in the maps.
    pub(super) fn adopt(&mut self, start: u32, count: usize) {
        if self.used.contains_key(&start) {
            return;
        }
        let mut size = class(count);
        for (released_size, runs) in &mut self.released {
            if let Some(at) = runs.iter().position(|(first, _)| *first == start) {
                runs.remove(at);
                size = *released_size;
                break;
            }
        }
        // What lies between here and a run found in the maps stays idle until the next fresh start of the maps.
        self.fresh = self.fresh.max(start.saturating_add(size)).min(self.capacity);
        self.used.insert(start, size);
        self.in_use += size;
    }

    /// Gives the run at `start` back at `now`.
    pub(super) fn release(&mut self, start: u32, now: Instant) {
        if let Some(size) = self.used.remove(&start) {
            self.in_use -= size;
            self.released.entry(size).or_default().push_back((start, now));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_released_run_is_used_again_after_the_grace_time() {
        let start = Instant::now();
        let mut slots = SlotArray::new(64);
        assert_eq!(slots.peek(10, &[], start), Some(0));
        slots.adopt(0, 10);
        assert_eq!(slots.peek(10, &[], start), Some(16));
        slots.adopt(16, 10);
        slots.release(0, start);
        assert_eq!(slots.in_use(), 16);
        assert_eq!(slots.peek(16, &[], start), Some(32), "too early");
        assert_eq!(slots.peek(16, &[], start + GRACE), Some(0));
        slots.adopt(0, 16);
        assert_eq!(slots.peek(16, &[], start + GRACE), Some(32));
    }

    #[test]
    fn two_runs_of_one_plan_get_places_of_their_own() {
        let start = Instant::now();
        let mut slots = SlotArray::new(64);
        let first = Placed { first: 0, count: 10 };
        assert_eq!(slots.peek(10, &[first], start), Some(16));
        for run in [0, 16, 32] {
            slots.adopt(run, 10);
        }
        slots.release(16, start);
        slots.release(0, start);
        let later = start + GRACE;
        assert_eq!(slots.peek(10, &[], later), Some(16));
        assert_eq!(slots.peek(10, &[Placed { first: 16, count: 10 }], later), Some(0));
    }

    #[test]
    fn a_larger_run_serves_when_nothing_else_is_left() {
        let start = Instant::now();
        let mut slots = SlotArray::new(16);
        slots.adopt(0, 16);
        assert_eq!(slots.peek(2, &[], start), None);
        slots.release(0, start);
        assert_eq!(slots.peek(2, &[], start + GRACE), Some(0));
        slots.adopt(0, 2);
        slots.release(0, start);
        assert_eq!(slots.peek(16, &[], start + GRACE), Some(0), "it keeps its size");
    }
}
