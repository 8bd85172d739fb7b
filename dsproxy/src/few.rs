//! A sorted set of mostly one or two items, for where there is one for each of very many things: it takes the memory of its items, where
//! a tree takes that of eleven at once.

use std::{borrow::Borrow, cmp::Ordering, slice};

/// A sorted set of few.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Few<T>(Vec<T>);

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Few<T> {
    /// All of them, in order.
    pub fn iter(&self) -> slice::Iter<'_, T> {
        self.0.iter()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The one that `order`, which says how each of those that are there compares with it, finds equal.
    pub fn find_by(&self, order: impl FnMut(&T) -> Ordering) -> Option<&T> {
        self.0.get(self.0.binary_search_by(order).ok()?)
    }

    /// Puts `item` where `order` has its place. What compares as equal is replaced, and given back.
    pub fn insert_by(&mut self, item: T, order: impl FnMut(&T) -> Ordering) -> Option<T> {
        let place = self.0.binary_search_by(order);
        self.put(place, item)
    }

    fn put(&mut self, place: Result<usize, usize>, item: T) -> Option<T> {
        match place {
            Ok(at) => Some(std::mem::replace(&mut self.0[at], item)),
            Err(at) => {
                if self.0.len() == self.0.capacity() {
                    // One more, unless there are many after all.
                    self.0.reserve_exact(1 + self.0.len() / 8);
                }
                self.0.insert(at, item);
                None
            }
        }
    }

    /// Takes out the one that `order` finds equal.
    pub fn remove_by(&mut self, order: impl FnMut(&T) -> Ordering) -> Option<T> {
        let at = self.0.binary_search_by(order).ok()?;
        Some(self.0.remove(at))
    }
}

impl<T: Ord> Few<T> {
    /// The least.
    pub fn first(&self) -> Option<&T> {
        self.0.first()
    }

    /// Puts `item` in. What was equal to it is replaced, and given back.
    pub fn insert(&mut self, item: T) -> Option<T> {
        let place = self.0.binary_search(&item);
        self.put(place, item)
    }

    /// Takes `item` out.
    pub fn remove<Q: Ord + ?Sized>(&mut self, item: &Q) -> Option<T>
    where
        T: Borrow<Q>,
    {
        self.remove_by(|held| held.borrow().cmp(item))
    }

    /// Whether `item` is one of them.
    pub fn contains<Q: Ord + ?Sized>(&self, item: &Q) -> bool
    where
        T: Borrow<Q>,
    {
        self.find_by(|held| held.borrow().cmp(item)).is_some()
    }
}

impl<T: Ord> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        let mut items: Vec<T> = items.into_iter().collect();
        items.sort();
        items.dedup();
        items.shrink_to_fit();
        Self(items)
    }
}

impl<'a, T> IntoIterator for &'a Few<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(changes in proptest::collection::vec((any::<bool>(), 0u8..40), 0..200)) {
            let (mut few, mut set) = (Few::default(), BTreeSet::new());
            for (comes, item) in changes {
                if comes {
                    prop_assert_eq!(few.insert(item).is_none(), set.insert(item));
                } else {
                    prop_assert_eq!(few.remove(&item), set.take(&item));
                }
                prop_assert!(few.iter().eq(&set));
                prop_assert_eq!((few.first(), few.is_empty(), few.contains(&7)), (set.first(), set.is_empty(), set.contains(&7)));
            }
            prop_assert_eq!(set.iter().rev().copied().collect::<Few<u8>>(), few);
        }
    }

    #[test]
    fn a_few_take_no_more_than_they_need() {
        let mut few = Few::default();
        for item in 0..8 {
            few.insert(item);
            assert_eq!(few.0.capacity(), few.0.len());
        }
    }

    #[test]
    fn what_is_equal_is_replaced() {
        let mut few: Few<(u8, &str)> = [(1, "a"), (3, "c")].into_iter().collect();
        let order = |item: u8| move |held: &(u8, &str)| held.0.cmp(&item);
        assert_eq!(few.insert_by((3, "d"), order(3)), Some((3, "c")));
        assert_eq!(few.insert_by((2, "b"), order(2)), None);
        assert_eq!(few.find_by(order(3)), Some(&(3, "d")));
        assert_eq!(few.remove_by(order(1)), Some((1, "a")));
        assert_eq!(few.iter().map(|held| held.1).collect::<String>(), "bd");
    }
}
