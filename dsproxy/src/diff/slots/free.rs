//! Stretches of slots that nobody uses, those side by side as one.

use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug, Default)]
pub(super) struct Free {
    /// First slot -> length.
    stretches: BTreeMap<u32, u32>,
    /// Length and first slot.
    by_length: BTreeSet<(u32, u32)>,
}

impl Free {
    /// Adds `length` slots from `first`, none of which is among them yet.
    pub(super) fn add(&mut self, mut first: u32, mut length: u32) {
        if let Some((&before, &its)) = self.stretches.range(..first).next_back()
            && before + its == first
        {
            self.remove(before, its);
            (first, length) = (before, its + length);
        }
        if let Some(&its) = self.stretches.get(&(first + length)) {
            self.remove(first + length, its);
            length += its;
        }
        self.insert(first, length);
    }

    /// Takes `length` slots from `first` out, as far as they are among them. Says whether any was.
    pub(super) fn take(&mut self, first: u32, length: u32) -> bool {
        let end = first.saturating_add(length);
        let mut is_any = false;
        while let Some((&start, &its)) = self.stretches.range(..end).next_back() {
            if start + its <= first {
                break;
            }
            is_any = true;
            self.remove(start, its);
            if start + its > end {
                self.insert(end, start + its - end);
            }
            if start < first {
                self.insert(start, first - start);
            }
        }
        is_any
    }

    /// Takes the last stretch out, if it goes up to `end`. Gives its first slot.
    pub(super) fn take_last(&mut self, end: u32) -> Option<u32> {
        let (&first, &length) = self.stretches.last_key_value()?;
        (first + length == end).then(|| {
            self.remove(first, length);
            first
        })
    }

    /// The stretches of at least so many slots, the shortest first: first slot and length.
    pub(super) fn fitting(&self, length: u32) -> impl Iterator<Item = (u32, u32)> {
        self.by_length.range((length, 0)..).map(|(length, first)| (*first, *length))
    }

    fn insert(&mut self, first: u32, length: u32) {
        self.stretches.insert(first, length);
        self.by_length.insert((length, first));
    }

    fn remove(&mut self, first: u32, length: u32) {
        self.stretches.remove(&first);
        self.by_length.remove(&(length, first));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(free: &Free) -> Vec<(u32, u32)> {
        assert_eq!(free.by_length.len(), free.stretches.len());
        free.stretches.iter().map(|(first, length)| (*first, *length)).collect()
    }

    #[test]
    fn neighbours_become_one_and_are_cut_again() {
        let mut free = Free::default();
        for first in [0, 32, 16] {
            free.add(first, 8);
        }
        assert_eq!(all(&free), [(0, 8), (16, 8), (32, 8)]);
        free.add(24, 8);
        free.add(8, 8);
        assert_eq!(all(&free), [(0, 40)]);
        free.take(8, 4);
        assert_eq!(all(&free), [(0, 8), (12, 28)]);
        assert_eq!(free.fitting(2).collect::<Vec<_>>(), [(0, 8), (12, 28)]);
        assert_eq!(free.fitting(9).collect::<Vec<_>>(), [(12, 28)]);
        free.take(4, 12);
        assert_eq!(all(&free), [(0, 4), (16, 24)]);
        assert_eq!((free.take_last(41), free.take_last(40)), (None, Some(16)));
        free.take(0, 99);
        assert_eq!(all(&free), []);
    }
}
