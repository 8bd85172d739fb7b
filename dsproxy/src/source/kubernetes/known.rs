//! The names of the objects that were sent, and what a list or a watch event means next to them.
//!
//! Only names: whoever receives the events holds the objects, and there shall be no second copy.

use std::collections::HashSet;

use super::{
    super::{Delta, convert::FromObject, intake::Taken},
    earlier_run::OfKind,
};
use crate::model::ObjectName;

/// The names of the objects of one kind that the receiver has.
#[derive(Debug, Default)]
pub(super) struct Known {
    names: HashSet<ObjectName>,
    /// Those among them that are not served.
    unserved: HashSet<ObjectName>,
    /// What is served of an earlier run, until everything was listed once.
    before: OfKind,
}

/// What becomes of objects that the receiver has and a list lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lacking {
    /// They are gone.
    Gone,
    /// They stay.
    Stays,
}

impl Known {
    /// Nothing was sent yet, and `before` is what is served of an earlier run.
    pub(super) fn after(before: OfKind) -> Self {
        Self { before, ..Self::default() }
    }

    /// How many of the objects a complete list lacks, if it is hard to believe that it lacks them: none of those that are served
    /// is left, or one is missing that every API server keeps by itself.
    pub(super) fn missing<T: FromObject>(&self, objects: &[Taken<T>]) -> Option<usize> {
        let listed: HashSet<&ObjectName> = objects.iter().filter_map(Taken::name).collect();
        let kept_by_server = T::KIND.kept_by_server();
        let judge = |names: &HashSet<ObjectName>| {
            let served = || names.iter().filter(|name| !self.unserved.contains(*name));
            let mut others = served().filter(|name| Some(*name) != kept_by_server.as_ref()).peekable();
            let wiped = others.peek().is_some() && !others.any(|name| listed.contains(name));
            let server_lacks_its_own =
                kept_by_server.as_ref().is_some_and(|own| names.contains(own) && !listed.contains(own));
            let missing = served().filter(|name| !listed.contains(name)).count();
            (wiped || server_lacks_its_own).then_some(missing)
        };
        match &self.before {
            OfKind::Nothing => judge(&self.names),
            OfKind::Names(names) => judge(names),
            OfKind::Some { by_server, others } => {
                let own = kept_by_server.as_ref();
                let lacks_its_own = !own.is_some_and(|own| listed.contains(own));
                let of_server = if lacks_its_own { *by_server } else { 0 };
                let may_be_served = |object: &&Taken<T>| !matches!(object, Taken::Ours(object) if !object.is_served());
                let mut may_be_left = objects.iter().filter(may_be_served).filter_map(Taken::name);
                let wiped = !may_be_left.any(|name| Some(name) != own);
                let missing = if wiped { of_server + others } else { of_server };
                (missing > 0).then_some(missing)
            }
        }
    }

    /// What a complete list means.
    ///
    /// It is a snapshot, unless an object that the receiver has came malformed: its last good version has to
    /// stay, and only the receiver has that. Then the list is sent as the changes it amounts to; so it is when what it lacks
    /// stays.
    pub(super) fn listed<T: FromObject>(&mut self, objects: Vec<Taken<T>>, lacking: Lacking) -> Vec<Delta<T>> {
        if lacking == Lacking::Gone {
            self.before = OfKind::Nothing;
        } else if !matches!(self.before, OfKind::Nothing) {
            // The receiver has none of what is served, so nothing can be said of it but that not all is known.
            return Vec::new();
        }
        let mut names = HashSet::with_capacity(objects.len());
        let mut kept = HashSet::new();
        let mut ours = Vec::with_capacity(objects.len());
        for object in objects {
            match object {
                Taken::Ours(object) => {
                    self.note(&object);
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
        if lacking == Lacking::Stays {
            kept.extend(self.names.iter().cloned());
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
        self.unserved.retain(|name| names.contains(name));
        self.names = names;
        deltas
    }

    /// What an object that is new or has changed means.
    pub(super) fn changed<T: FromObject>(&mut self, object: Taken<T>) -> Option<Delta<T>> {
        match object {
            Taken::Ours(object) => {
                self.note(&object);
                self.names.insert(object.name().clone());
                Some(Delta::Apply(object))
            }
            Taken::NotOurs(name) => self.deleted(name),
            Taken::Bad(_) => None,
        }
    }

    /// What a deletion means.
    pub(super) fn deleted<T>(&mut self, name: ObjectName) -> Option<Delta<T>> {
        self.unserved.remove(&name);
        self.names.remove(&name).then_some(Delta::Delete(name))
    }

    fn note<T: FromObject>(&mut self, object: &T) {
        if object.is_served() {
            self.unserved.remove(object.name());
        } else {
            self.unserved.insert(object.name().clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{EndpointSlice, IpFamily, Service, ServiceCidr};

    fn service(name: &str) -> Service {
        Service { name: ObjectName::new("ns", name), cluster_ips: vec![[10, 0, 0, 1].into()], ..Service::default() }
    }

    fn ours(name: &str) -> Taken<Service> {
        Taken::Ours(service(name))
    }

    fn anothers(name: &str) -> Taken<Service> {
        Taken::Ours(Service { is_anothers: true, ..service(name) })
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
        assert_eq!(
            known.listed(vec![ours("a"), bad("b"), Taken::Bad(None)], Lacking::Gone),
            [Delta::Snapshot(vec![service("a")])]
        );
        assert_eq!(known.listed::<Service>(vec![], Lacking::Gone), [Delta::Snapshot(vec![])]);
        assert_eq!(known.deleted::<Service>(name("a")), None);
    }

    #[test]
    fn a_list_with_a_known_object_malformed_is_sent_as_changes() {
        let mut known = Known::default();
        known.listed(vec![ours("a"), ours("b"), ours("c")], Lacking::Gone);
        assert_eq!(
            known.listed(vec![bad("a"), ours("b"), ours("d"), bad("new")], Lacking::Gone),
            [Delta::Delete(name("c")), Delta::Apply(service("b")), Delta::Apply(service("d")),]
        );
        // The malformed object is still the receiver's, so it can still vanish.
        assert_eq!(known.deleted::<Service>(name("a")), Some(Delta::Delete(name("a"))));
        assert_eq!(known.deleted::<Service>(name("new")), None);
    }

    #[test]
    fn a_malformed_object_vanishes_with_a_list_that_lacks_it() {
        let mut known = Known::default();
        known.listed(vec![ours("a"), ours("b")], Lacking::Gone);
        assert_eq!(known.listed(vec![bad("a"), ours("b")], Lacking::Gone), [Delta::Apply(service("b"))]);
        assert_eq!(known.listed(vec![ours("b")], Lacking::Gone), [Delta::Snapshot(vec![service("b")])]);
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
        assert_eq!(known.listed(vec![ours("a"), ours("a")], Lacking::Gone), [Delta::Snapshot(vec![service("a")])]);
    }

    #[test]
    fn a_list_that_lacks_everything_is_hard_to_believe() {
        let mut known = Known::default();
        assert_eq!(known.missing::<Service>(&[]), None, "nothing is served yet");
        known.listed(vec![ours("a"), ours("b")], Lacking::Gone);
        assert_eq!(known.missing::<Service>(&[]), Some(2));
        assert_eq!(known.missing(&[ours("other")]), Some(2), "it is somebody else's cluster");
        assert_eq!(known.missing(&[ours("b")]), None);
        assert_eq!(known.missing(&[bad("a")]), None, "it is there, if malformed");
        assert_eq!(known.missing::<Service>(&[Taken::NotOurs(name("a"))]), None, "it is there, if another's");
        assert_eq!(known.missing(&[anothers("a")]), None, "likewise");
    }

    #[test]
    fn what_other_proxies_serve_says_nothing_of_the_rest() {
        let mut known = Known::default();
        known.listed(vec![ours("a"), anothers("mesh")], Lacking::Gone);
        assert_eq!(known.missing(&[anothers("mesh")]), Some(1));
        assert_eq!(known.missing(&[ours("a")]), None);
        known.changed(ours("mesh"));
        assert_eq!(known.missing(&[ours("mesh")]), None, "it is served now");
        let before = OfKind::Some { by_server: 0, others: 2 };
        assert_eq!(Known::after(before).missing(&[anothers("mesh")]), Some(2));
    }

    #[test]
    fn what_every_server_keeps_by_itself_says_nothing_of_the_rest_but_is_missed() {
        let kubernetes = || {
            let name = ObjectName::new("default", "kubernetes");
            Taken::Ours(Service { name, ..service("kubernetes") })
        };
        let mut known = Known::default();
        known.listed(vec![kubernetes(), ours("a"), ours("b")], Lacking::Gone);
        assert_eq!(known.missing(&[kubernetes()]), Some(2), "a server with an empty store");
        assert_eq!(known.missing(&[ours("a"), ours("b")]), Some(1), "no server leaves it out");
        assert_eq!(known.missing(&[kubernetes(), ours("b")]), None);
        known.listed(vec![kubernetes()], Lacking::Gone);
        assert_eq!(known.missing(&[kubernetes()]), None);
        assert_eq!(known.missing::<Service>(&[]), Some(1));
    }

    #[test]
    fn the_server_keeps_one_of_each_kind_but_nodes() {
        let slice = |namespace: &str, name: &str| {
            Taken::Ours(EndpointSlice {
                name: ObjectName::new(namespace, name),
                service: ObjectName::new(namespace, name),
                family: IpFamily::V4,
                ports: Vec::new(),
                endpoints: Vec::new(),
                triggered: None,
            })
        };
        let mut known = Known::default();
        known.listed(vec![slice("default", "kubernetes"), slice("ns", "a"), slice("ns", "b")], Lacking::Gone);
        assert_eq!(known.missing(&[slice("default", "kubernetes")]), Some(2), "a server with an empty store");
        assert_eq!(known.missing(&[slice("ns", "a"), slice("ns", "b")]), Some(1), "no server leaves it out");
        assert_eq!(known.missing(&[slice("default", "kubernetes"), slice("ns", "a")]), None);

        let cidr = |name: &str| Taken::Ours(ServiceCidr { name: ObjectName::of_cluster(name), cidrs: Vec::new() });
        let mut known = Known::default();
        known.listed(vec![cidr("kubernetes"), cidr("more")], Lacking::Gone);
        assert_eq!(known.missing(&[cidr("kubernetes")]), Some(1));
        assert_eq!(known.missing(&[cidr("more")]), Some(1));
        assert_eq!(known.missing(&[cidr("kubernetes"), cidr("more")]), None);
    }

    #[test]
    fn what_a_list_lacks_can_stay_while_the_rest_of_it_counts() {
        let mut known = Known::default();
        known.listed(vec![ours("a"), ours("b")], Lacking::Gone);
        assert_eq!(known.listed(vec![ours("c")], Lacking::Stays), [Delta::Apply(service("c"))]);
        assert_eq!(known.deleted::<Service>(name("a")), Some(Delta::Delete(name("a"))), "the watch takes it away");
        assert_eq!(known.missing(&[ours("c")]), None);
        assert_eq!(known.listed(vec![ours("c")], Lacking::Gone), [Delta::Snapshot(vec![service("c")])]);
    }

    #[test]
    fn what_is_served_of_an_earlier_run_is_missed_in_the_first_list() {
        let names: HashSet<ObjectName> = ["a", "b"].map(name).into();
        let mut known = Known::after(OfKind::Names(names));
        assert_eq!(known.missing(&[ours("b"), ours("c")]), None);
        assert_eq!(known.missing(&[ours("c")]), Some(2));
        assert_eq!(known.listed(vec![ours("c")], Lacking::Stays), [], "the receiver waits for all of it");
        assert_eq!(known.listed(vec![ours("c")], Lacking::Gone), [Delta::Snapshot(vec![service("c")])]);
        assert_eq!(known.missing(&[ours("c")]), None, "what was served has been replaced");

        let kubernetes = || Taken::Bad::<Service>(Some(ObjectName::new("default", "kubernetes")));
        let known = Known::after(OfKind::Some { by_server: 0, others: 5 });
        assert_eq!(known.missing::<Service>(&[]), Some(5));
        assert_eq!(known.missing(&[kubernetes()]), Some(5), "a server with an empty store");
        assert_eq!(known.missing(&[ours("a")]), None);
        let known = Known::after(OfKind::Some { by_server: 1, others: 5 });
        assert_eq!(known.missing::<Service>(&[]), Some(6));
        assert_eq!(known.missing(&[kubernetes()]), Some(5));
        assert_eq!(known.missing(&[ours("a")]), Some(1), "no server leaves it out");
        assert_eq!(known.missing(&[kubernetes(), ours("a")]), None);
        let known = Known::after(OfKind::Some { by_server: 1, others: 0 });
        assert_eq!(known.missing(&[kubernetes()]), None, "there was nothing else");
    }
}
