//! Runs of slots within the one flat array: found, used, and after a grace time used again.
//!
//! Runs come in sizes of powers of two. A run that was given back waits before it is written again: a packet may be
//! on its way through a kernel program that has read the old frontend.

mod free;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use self::free::Free;

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
    /// No slot at or above this is used, or was a moment ago.
    fresh: u32,
    /// First slot -> size.
    used: BTreeMap<u32, u32>,
    /// Below `fresh`.
    free: Free,
    /// Stretches that were given back and are not free yet, the oldest first: when, the first slot, and the length.
    resting: VecDeque<(Instant, u32, u32)>,
    in_use: u32,
}

impl SlotArray {
    pub(super) fn new(capacity: u32) -> Self {
        Self { capacity, fresh: 0, used: BTreeMap::new(), free: Free::default(), resting: VecDeque::new(), in_use: 0 }
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
        let rested = self.resting.iter().take_while(|(since, ..)| has_rested(*since, now));
        let rested = rested.map(|(_, first, length)| (*first, *length));
        let beside_taken = |(first, length): (u32, u32)| {
            let mut start = first;
            while let Some(placed) = taken.iter().find(|placed| placed.first < start + class && start < placed.end()) {
                start = placed.end();
            }
            (start + class <= first + length).then_some(start)
        };
        let fresh = taken.iter().map(Placed::end).fold(self.fresh, u32::max);
        let fresh = (class <= self.capacity.saturating_sub(fresh)).then_some(fresh);
        self.free.fitting(class).chain(rested.filter(|(_, length)| *length >= class)).find_map(beside_taken).or(fresh)
    }

    /// Whether `count` slots have room in the run in use at `start`.
    pub(super) fn fits(&self, start: u32, count: usize) -> bool {
        self.used.get(&start).is_some_and(|size| count <= *size as usize)
    }

    /// Enters a run of `count` slots from `start` that is written at `now`, or was found in the maps.
    pub(super) fn adopt(&mut self, start: u32, count: usize, now: Instant) {
        let size = class(count);
        match self.used.get(&start) {
            // Found once more, with more in it: what was written over it last is not all that may be read.
            Some(known) if *known < size => self.in_use -= known,
            Some(_) => return,
            None => {}
        }
        self.wake(now);
        if !self.free.take(start, size) && start < self.fresh {
            self.take_from_resting(start, size);
        }
        let end = start.saturating_add(size).min(self.capacity);
        if end > self.fresh {
            // What is left out was taken beside it by another run of the same plan, which is entered next.
            if start > self.fresh {
                self.free.add(self.fresh, start - self.fresh);
            }
            self.fresh = end;
        }
        self.used.insert(start, size);
        self.in_use += size;
    }

    /// Gives the run at `start` back at `now`.
    pub(super) fn release(&mut self, start: u32, now: Instant) {
        self.wake(now);
        if let Some(size) = self.used.remove(&start) {
            self.in_use -= size;
            self.resting.push_back((now, start, size));
        }
    }

    /// Frees what has rested for long enough.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some((since, first, length)) = self.resting.front().copied()
            && has_rested(since, now)
        {
            self.resting.pop_front();
            self.free.add(first, length);
        }
        if let Some(first) = self.free.take_last(self.fresh) {
            self.fresh = first;
        }
    }

    /// A run that was left a moment ago may be taken up again by a frontend of the same service port.
    fn take_from_resting(&mut self, start: u32, size: u32) {
        let holds = |(_, first, length): &(Instant, u32, u32)| *first <= start && start < first + length;
        // It was among the last.
        let Some(at) = self.resting.iter().rposition(holds) else { return };
        let (since, first, length) = self.resting[at];
        let (end, its_end) = (start + size, first + length);
        let rests = [(first, start - first), (end, its_end.saturating_sub(end))];
        self.resting.remove(at);
        for (first, length) in rests.into_iter().filter(|(_, length)| *length > 0) {
            self.resting.insert(at, (since, first, length));
        }
    }
}

fn has_rested(since: Instant, now: Instant) -> bool {
    now.saturating_duration_since(since) >= GRACE
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_released_run_is_used_again_after_the_grace_time() {
        let start = Instant::now();
        let mut slots = SlotArray::new(64);
        assert_eq!(slots.peek(10, &[], start), Some(0));
        slots.adopt(0, 10, start);
        assert_eq!(slots.peek(10, &[], start), Some(16));
        slots.adopt(16, 10, start);
        slots.release(0, start);
        assert_eq!(slots.in_use(), 16);
        assert_eq!(slots.peek(16, &[], start), Some(32), "too early");
        let later = start + GRACE;
        assert_eq!(slots.peek(16, &[], later), Some(0));
        slots.adopt(0, 16, later);
        assert_eq!(slots.peek(16, &[], later), Some(32));
    }

    #[test]
    fn two_runs_of_one_plan_get_places_of_their_own() {
        let start = Instant::now();
        let mut slots = SlotArray::new(64);
        let first = Placed { first: 0, count: 10 };
        assert_eq!(slots.peek(10, &[first], start), Some(16));
        for run in [0, 16, 32] {
            slots.adopt(run, 10, start);
        }
        slots.release(16, start);
        slots.release(0, start);
        let later = start + GRACE;
        let first = slots.peek(10, &[], later).expect("room");
        let second = slots.peek(10, &[Placed { first, count: 10 }], later).expect("room");
        assert_eq!(std::collections::BTreeSet::from([first, second]), [0, 16].into());
        let both = [0, 16].map(|first| Placed { first, count: 10 });
        assert_eq!(slots.peek(10, &both, later), Some(48));
    }

    #[test]
    fn a_larger_place_is_cut_and_becomes_whole_again() {
        let start = Instant::now();
        let mut slots = SlotArray::new(16);
        slots.adopt(0, 16, start);
        assert_eq!(slots.peek(2, &[], start), None);
        slots.release(0, start);
        let later = start + GRACE;
        for first in [0, 2, 4] {
            assert_eq!(slots.peek(2, &[], later), Some(first));
            slots.adopt(first, 2, later);
        }
        assert_eq!((slots.in_use(), slots.peek(16, &[], later)), (6, None));
        for first in [2, 0, 4] {
            slots.release(first, later);
        }
        assert_eq!(slots.peek(16, &[], later), None);
        slots.wake(later + GRACE);
        assert_eq!(slots.peek(16, &[], later + GRACE), Some(0));
    }

    #[test]
    fn what_lies_between_runs_that_were_found_is_used() {
        let start = Instant::now();
        let mut slots = SlotArray::new(64);
        // Two frontends may name one run with different counts, of which either may be what stands there.
        for (first, count) in [(48, 2), (16, 3), (16, 9)] {
            slots.adopt(first, count, start);
        }
        assert_eq!(slots.in_use(), 18);
        let mut found = Vec::new();
        while let Some(first) = slots.peek(8, &[], start) {
            slots.adopt(first, 8, start);
            found.push(first);
        }
        found.sort_unstable();
        assert_eq!(found, [0, 8, 32, 40, 50]);
    }

    /// What is done with the array.
    #[derive(Clone, Debug)]
    enum Step {
        /// Runs of one plan.
        Place(Vec<usize>),
        Release(usize),
        Wait(u64),
        /// The daemon starts again.
        Restart,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => proptest::collection::vec(2usize..70, 1..3).prop_map(Step::Place),
            4 => any::<usize>().prop_map(Step::Release),
            2 => (1u64..1500).prop_map(Step::Wait),
            1 => Just(Step::Restart),
        ];
        proptest::collection::vec(step, 1..120)
    }

    proptest! {
        #[test]
        fn no_run_is_where_another_is_or_was_a_moment_ago_and_no_slot_is_lost(steps in steps()) {
            const CAPACITY: u32 = 512;
            let mut now = Instant::now();
            let mut slots = SlotArray::new(CAPACITY);
            let mut runs: Vec<(u32, usize)> = Vec::new();
            let mut left: Vec<(Instant, u32, u32)> = Vec::new();
            let overlap = |first: u32, size: u32, other: u32, its: u32| first < other + its && other < first + size;
            for step in steps {
                match step {
                    Step::Place(counts) => {
                        let mut taken = Vec::new();
                        for count in counts {
                            let Some(first) = slots.peek(count, &taken, now) else { continue };
                            let size = class(count);
                            prop_assert!(first + size <= CAPACITY);
                            let others = runs.iter().copied().chain(taken.iter().map(|placed| (placed.first, placed.count)));
                            for (other, its) in others {
                                prop_assert!(!overlap(first, size, other, class(its)), "{first} {size} {other} {its}");
                            }
                            for (since, other, its) in &left {
                                prop_assert!(has_rested(*since, now) || !overlap(first, size, *other, *its));
                            }
                            taken.push(Placed { first, count });
                        }
                        for Placed { first, count } in taken {
                            slots.adopt(first, count, now);
                            runs.push((first, count));
                        }
                    }
                    Step::Release(which) if !runs.is_empty() => {
                        let (first, count) = runs.swap_remove(which % runs.len());
                        slots.release(first, now);
                        left.push((now, first, class(count)));
                    }
                    Step::Release(_) => {}
                    Step::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
                    Step::Restart => {
                        // No program runs for as long as a start takes.
                        now += GRACE;
                        slots = SlotArray::new(CAPACITY);
                        for (first, count) in &runs {
                            slots.adopt(*first, *count, now);
                        }
                    }
                }
                prop_assert_eq!(slots.in_use(), runs.iter().map(|(_, count)| class(*count)).sum::<u32>());
            }
            for (first, _) in runs {
                slots.release(first, now);
            }
            now += GRACE;
            slots.wake(now);
            prop_assert_eq!(slots.peek(CAPACITY as usize, &[], now), Some(0), "all of it is one again");
        }
    }
}
