//! Which file holds which objects, and what a changed file means to the whole.
//!
//! Of the same object in two files, the first file in the order of names wins. It knows nothing of how files
//! are read.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
};

use tracing::warn;

use super::super::{Delta, convert::FromObject};
use crate::model::ObjectName;

/// The objects of one kind in all files.
#[derive(Debug)]
pub(super) struct Holdings<T> {
    /// Each object with the files that hold it, in order; the first wins.
    objects: HashMap<ObjectName, Vec<(Arc<Path>, T)>>,
    files: HashMap<Arc<Path>, HashSet<ObjectName>>,
}

impl<T> Default for Holdings<T> {
    fn default() -> Self {
        Self { objects: HashMap::new(), files: HashMap::new() }
    }
}

/// What a file was found to hold.
#[derive(Debug)]
pub(super) struct FileHolds<T> {
    pub(super) file: Arc<Path>,
    /// Its objects.
    pub(super) objects: Vec<T>,
    /// What to do with the objects that it held before and that are not among them.
    pub(super) missing: Missing,
}

/// What to do with objects that a file no longer holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// They are gone, but for those that are there and make no sense.
    Gone {
        /// The objects that make no sense.
        but_for: HashSet<ObjectName>,
    },
    /// Part of the file cannot be read, so they may be in there.
    Stay,
}

impl<T: FromObject> Holdings<T> {
    /// Takes in what changed files hold, and tells what changed in all.
    pub(super) fn update(&mut self, files: Vec<FileHolds<T>>) -> Vec<Delta<T>> {
        let mut deltas = Vec::new();
        let mut gone = Vec::new();
        // First what is there and then what is gone: an object that moves from one file to another does not
        // vanish in between.
        for FileHolds { file, objects, missing } in files {
            let mut held = HashSet::with_capacity(objects.len());
            for object in objects {
                let name = object.name().clone();
                if held.contains(&name) {
                    let file = file.display();
                    warn!(kind = %T::KIND, object = %name, %file, "the object is in the file twice; the first is used");
                } else {
                    held.insert(name);
                    deltas.extend(self.put(&file, object));
                }
            }
            let before = self.files.remove(&file).unwrap_or_default();
            for name in before {
                let stays = match &missing {
                    Missing::Stay => true,
                    Missing::Gone { but_for } => but_for.contains(&name),
                };
                if stays {
                    held.insert(name);
                } else if !held.contains(&name) {
                    gone.push((Arc::clone(&file), name));
                }
            }
            if !held.is_empty() {
                self.files.insert(file, held);
            }
        }
        gone.sort();
        for (file, name) in gone {
            deltas.extend(self.take(&file, name));
        }
        deltas
    }

    /// The files that hold something.
    pub(super) fn files(&self) -> impl Iterator<Item = &Arc<Path>> {
        self.files.keys()
    }

    /// All objects, each from the file that wins.
    pub(super) fn all(&self) -> Vec<T> {
        let mut all: Vec<&T> =
            self.objects.values().filter_map(|held| held.first()).map(|(_, object)| object).collect();
        all.sort_by_key(|object| object.name());
        all.into_iter().cloned().collect()
    }

    fn put(&mut self, file: &Arc<Path>, object: T) -> Option<Delta<T>> {
        let name = object.name().clone();
        let held = self.objects.entry(name).or_default();
        let place = match held.binary_search_by(|(other, _)| other.cmp(file)) {
            Ok(place) if held[place].1 == object => return None,
            Ok(place) => {
                held[place].1 = object;
                place
            }
            Err(place) => {
                held.insert(place, (Arc::clone(file), object));
                if let [(used, object), (unused, _), ..] = held.as_slice() {
                    let (used, unused) = (used.display(), unused.display());
                    warn!(
                        kind = %T::KIND, object = %object.name(), %used, %unused,
                        "the object is in two files; the first by name is used"
                    );
                }
                let same_as_before = place == 0 && held.get(1).is_some_and(|(_, before)| *before == held[0].1);
                if same_as_before {
                    return None;
                }
                place
            }
        };
        (place == 0).then(|| Delta::Apply(held[0].1.clone()))
    }

    fn take(&mut self, file: &Arc<Path>, name: ObjectName) -> Option<Delta<T>> {
        let held = self.objects.get_mut(&name)?;
        let place = held.binary_search_by(|(other, _)| other.cmp(file)).ok()?;
        let (_, taken) = held.remove(place);
        match held.first() {
            None => {
                self.objects.remove(&name);
                Some(Delta::Delete(name))
            }
            Some((_, now)) if place == 0 && *now != taken => Some(Delta::Apply(now.clone())),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Service;

    fn service(name: &str, last_octet: u8) -> Service {
        Service {
            name: ObjectName::new("ns", name),
            cluster_ips: vec![[10, 0, 0, last_octet].into()],
            ..Service::default()
        }
    }

    fn holds(file: &str, objects: Vec<Service>) -> FileHolds<Service> {
        FileHolds { file: Path::new(file).into(), objects, missing: Missing::Gone { but_for: HashSet::new() } }
    }

    fn apply(name: &str, last_octet: u8) -> Delta<Service> {
        Delta::Apply(service(name, last_octet))
    }

    fn delete(name: &str) -> Delta<Service> {
        Delta::Delete(ObjectName::new("ns", name))
    }

    #[test]
    fn only_what_changed_is_told() {
        let mut holdings = Holdings::default();
        let both = || vec![service("a", 1), service("b", 2)];
        assert_eq!(holdings.update(vec![holds("f", both())]), [apply("a", 1), apply("b", 2)]);
        assert_eq!(holdings.update(vec![holds("f", both())]), []);
        let changed = vec![service("a", 1), service("b", 3)];
        assert_eq!(holdings.update(vec![holds("f", changed)]), [apply("b", 3)]);
        assert_eq!(holdings.update(vec![holds("f", vec![service("b", 3)])]), [delete("a")]);
        assert_eq!(holdings.update(vec![holds("f", vec![])]), [delete("b")]);
        assert_eq!(holdings.files().count(), 0);
        assert_eq!(holdings.all(), []);
    }

    #[test]
    fn the_first_file_wins_whatever_the_order_of_reading() {
        for order in [["1", "2"], ["2", "1"]] {
            let mut holdings = Holdings::default();
            for file in order {
                let octet = if file == "1" { 1 } else { 2 };
                holdings.update(vec![holds(file, vec![service("a", octet)])]);
            }
            assert_eq!(holdings.all(), [service("a", 1)], "{order:?}");
            // The loser may change unseen, and comes up when the winner goes.
            assert_eq!(holdings.update(vec![holds("2", vec![service("a", 3)])]), []);
            assert_eq!(holdings.update(vec![holds("1", vec![])]), [apply("a", 3)]);
            assert_eq!(holdings.update(vec![holds("2", vec![])]), [delete("a")]);
        }
    }

    #[test]
    fn an_object_that_moves_to_another_file_does_not_vanish() {
        for (from, to) in [("1", "2"), ("2", "1")] {
            let mut holdings = Holdings::default();
            holdings.update(vec![holds(from, vec![service("a", 1)])]);
            let moved = vec![holds(from, vec![]), holds(to, vec![service("a", 1)])];
            assert_eq!(holdings.update(moved), [], "{from} to {to}");
            assert_eq!(holdings.all(), [service("a", 1)]);
            let back = vec![holds(to, vec![]), holds(from, vec![service("a", 2)])];
            let last = holdings.update(back).pop();
            assert_eq!(last, Some(apply("a", 2)), "{to} to {from}");
        }
    }

    #[test]
    fn what_cannot_be_read_stays() {
        let mut holdings = Holdings::default();
        holdings.update(vec![holds("f", vec![service("a", 1), service("b", 1), service("c", 1)])]);
        let half = FileHolds { missing: Missing::Stay, ..holds("f", vec![service("a", 2)]) };
        assert_eq!(holdings.update(vec![half]), [apply("a", 2)]);
        assert_eq!(holdings.all().len(), 3);

        let but_for = HashSet::from([ObjectName::new("ns", "b"), ObjectName::new("ns", "new")]);
        let nonsense = FileHolds { missing: Missing::Gone { but_for }, ..holds("f", vec![]) };
        assert_eq!(holdings.update(vec![nonsense]), [delete("a"), delete("c")]);
        assert_eq!(holdings.all(), [service("b", 1)]);
    }

    #[test]
    fn of_an_object_twice_in_a_file_the_first_is_used() {
        let mut holdings = Holdings::default();
        let twice = || vec![service("a", 1), service("a", 2)];
        assert_eq!(holdings.update(vec![holds("f", twice())]), [apply("a", 1)]);
        assert_eq!(holdings.update(vec![holds("f", twice())]), []);
    }
}
