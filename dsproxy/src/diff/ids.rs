//! Small numbers given out one by one: fresh ones first, then those given back longest ago, so that a number keeps
//! its last meaning for as long as can be.

use std::collections::{HashSet, VecDeque};

/// The numbers below a capacity.
#[derive(Debug)]
pub(super) struct Ids {
    capacity: u32,
    fresh: u32,
    taken: HashSet<u32>,
    returned: VecDeque<u32>,
}

impl Ids {
    pub(super) fn new(capacity: u32) -> Self {
        Self { capacity, fresh: 0, taken: HashSet::new(), returned: VecDeque::new() }
    }

    pub(super) fn capacity(&self) -> u32 {
        self.capacity
    }

    /// The number to take next, if there is one.
    pub(super) fn peek(&self) -> Option<u32> {
        if self.fresh < self.capacity {
            return Some(self.fresh);
        }
        self.returned.iter().find(|id| !self.taken.contains(id)).copied()
    }

    /// Marks `id` as taken, whether it was given out here or found in a map.
    pub(super) fn take(&mut self, id: u32) {
        while self.fresh <= id && self.fresh < self.capacity {
            if self.fresh != id {
                self.returned.push_back(self.fresh);
            }
            self.fresh += 1;
        }
        self.taken.insert(id);
        while self.returned.front().is_some_and(|front| self.taken.contains(front)) {
            self.returned.pop_front();
        }
    }

    /// Gives `id` back.
    pub(super) fn give_back(&mut self, id: u32) {
        if self.taken.remove(&id) {
            self.returned.retain(|returned| *returned != id);
            self.returned.push_back(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fresh_numbers_come_first_then_the_oldest_returned() {
        let mut ids = Ids::new(3);
        for expected in [0, 1, 2] {
            assert_eq!(ids.peek(), Some(expected));
            ids.take(expected);
        }
        assert_eq!(ids.peek(), None);
        ids.give_back(1);
        ids.give_back(0);
        assert_eq!(ids.peek(), Some(1));
        ids.take(1);
        assert_eq!(ids.peek(), Some(0));
    }

    #[test]
    fn numbers_skipped_by_what_a_map_held_are_not_lost() {
        let mut ids = Ids::new(4);
        ids.take(2);
        assert_eq!(ids.peek(), Some(3));
        ids.take(3);
        assert_eq!(ids.peek(), Some(0));
        ids.take(0);
        assert_eq!(ids.peek(), Some(1));
        ids.take(1);
        assert_eq!(ids.peek(), None);
    }
}
