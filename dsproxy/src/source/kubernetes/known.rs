//! The names of the objects that were sent, and what a list or a watch event means next to them.
//!
//! Only names: whoever receives the events holds the objects, and there shall be no second copy.

use std::collections::HashSet;

use super::super::{Delta, convert::FromObject, intake::Taken};
use crate::model::ObjectName;

/// The names of the objects of one kind that the receiver has.
#[derive(Debug, Default)]
pub(super) struct Known {
    names: HashSet<ObjectName>,
}

impl Known {
    /// What a complete list means.
    ///
    /// It is a snapshot, unless an object that the receiver has came malformed: its last good version has to
    /// stay, and only the receiver has that. Then the list is sent as the changes it amounts to.
    pub(super) fn listed<T: FromObject>(&mut self, objects: Vec<Taken<T>>) -> Vec<Delta<T>> {
        let mut names = HashSet::with_capacity(objects.len());
        let mut kept = HashSet::new();
        let mut ours = Vec::with_capacity(objects.len());
        for object in objects {
            match object {
                Taken::Ours(object) => {
                    // A page may repeat an object of the page before; the receiver gets it once.
                    if names.insert(object.name().clone()) {
                        ours.push(object);
                    }
                }
                Taken::NotOurs(_) | Taken::Bad(None) => {}
                Taken::Bad(Some(name)) => {
                    if self.names.contains(&name) {
                        kept.insert(name);
                    }
                }
            }
        }
        kept.retain(|name| !names.contains(name));
        let deltas = if kept.is_empty() {
            vec![Delta::Snapshot(ours)]
        } else {
            let gone = self.names.iter().filter(|name| !names.contains(name) && !kept.contains(name));
            let mut gone: Vec<_> = gone.cloned().collect();
            gone.sort();
            gone.into_iter().map(Delta::Delete).chain(ours.into_iter().map(Delta::Apply)).collect()
        };
        names.extend(kept);
        self.names = names;
        deltas
    }

    /// What an object that is new or has changed means.
    pub(super) fn changed<T: FromObject>(&mut self, object: Taken<T>) -> Option<Delta<T>> {
        match object {
            Taken::Ours(object) => {
                self.names.insert(object.name().clone());
                Some(Delta::Apply(object))
            }
            Taken::NotOurs(name) => self.deleted(name),
            Taken::Bad(_) => None,
        }
    }

    /// What a deletion means.
    pub(super) fn deleted<T>(&mut self, name: ObjectName) -> Option<Delta<T>> {
        self.names.remove(&name).then_some(Delta::Delete(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Service;

    fn service(name: &str) -> Service {
        Service { name: ObjectName::new("ns", name), cluster_ips: vec![[10, 0, 0, 1].into()], ..Service::default() }
    }

    fn ours(name: &str) -> Taken<Service> {
        Taken::Ours(service(name))
    }

    fn bad(name: &str) -> Taken<Service> {
        Taken::Bad(Some(ObjectName::new("ns", name)))
    }

    fn name(name: &str) -> ObjectName {
        ObjectName::new("ns", name)
    }

    #[test]
    fn a_list_is_a_snapshot() {
        let mut known = Known::default();
        assert_eq!(known.listed(vec![ours("a"), bad("b"), Taken::Bad(None)]), [Delta::Snapshot(vec![service("a")])]);
        assert_eq!(known.listed::<Service>(vec![]), [Delta::Snapshot(vec![])]);
        assert_eq!(known.deleted::<Service>(name("a")), None);
    }

    #[test]
    fn a_list_with_a_known_object_malformed_is_sent_as_changes() {
        let mut known = Known::default();
        known.listed(vec![ours("a"), ours("b"), ours("c")]);
        assert_eq!(
            known.listed(vec![bad("a"), ours("b"), ours("d"), bad("new")]),
            [Delta::Delete(name("c")), Delta::Apply(service("b")), Delta::Apply(service("d")),]
        );
        // The malformed object is still the receiver's, so it can still vanish.
        assert_eq!(known.deleted::<Service>(name("a")), Some(Delta::Delete(name("a"))));
        assert_eq!(known.deleted::<Service>(name("new")), None);
    }

    #[test]
    fn a_malformed_object_vanishes_with_a_list_that_lacks_it() {
        let mut known = Known::default();
        known.listed(vec![ours("a"), ours("b")]);
        assert_eq!(known.listed(vec![bad("a"), ours("b")]), [Delta::Apply(service("b"))]);
        assert_eq!(known.listed(vec![ours("b")]), [Delta::Snapshot(vec![service("b")])]);
    }

    #[test]
    fn only_what_was_sent_is_taken_back() {
        let mut known = Known::default();
        assert_eq!(known.changed::<Service>(Taken::NotOurs(name("a"))), None);
        assert_eq!(known.changed(ours("a")), Some(Delta::Apply(service("a"))));
        assert_eq!(known.changed(bad("a")), None);
        let gone = known.changed::<Service>(Taken::NotOurs(name("a")));
        assert_eq!(gone, Some(Delta::Delete(name("a"))));
        assert_eq!(known.deleted::<Service>(name("a")), None);
    }

    #[test]
    fn an_object_listed_twice_is_sent_once() {
        let mut known = Known::default();
        assert_eq!(known.listed(vec![ours("a"), ours("a")]), [Delta::Snapshot(vec![service("a")])]);
    }
}
