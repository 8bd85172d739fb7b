//! The cluster as the source last told it, and which Services a change touches.
//!
//! Knows nothing of maps: `reconcile` asks what is to be looked at again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::{
    model::{EndpointSlice, IpFamily, ObjectName, Service},
    resolve::{ResolvedPort, resolve},
    source::{Delta, Event},
};

/// Services and EndpointSlices.
#[derive(Debug, Default)]
pub struct Cluster {
    services: HashMap<ObjectName, Service>,
    slices: HashMap<ObjectName, EndpointSlice>,
    /// The names of a Service's slices, by the Service.
    slices_of: HashMap<ObjectName, BTreeSet<ObjectName>>,
    have_services: bool,
    have_slices: bool,
    touched: BTreeSet<ObjectName>,
}

impl Cluster {
    /// Whether both kinds have been listed in full at least once. Before that, what is missing means nothing.
    pub fn is_synced(&self) -> bool {
        self.have_services && self.have_slices
    }

    /// The Services that have changed, or whose endpoints have, since this was last asked.
    pub fn take_touched(&mut self) -> BTreeSet<ObjectName> {
        std::mem::take(&mut self.touched)
    }

    /// How many Services and EndpointSlices there are.
    pub fn len(&self) -> (usize, usize) {
        (self.services.len(), self.slices.len())
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == (0, 0)
    }

    /// Whether there is a Service of this name.
    pub fn has(&self, service: &ObjectName) -> bool {
        self.services.contains_key(service)
    }

    /// The family of the slice of this name, if there is one.
    pub fn family_of(&self, slice: &ObjectName) -> Option<IpFamily> {
        self.slices.get(slice).map(|slice| slice.family)
    }

    /// What the Service asks of the data path; nothing when there is no such Service.
    pub fn resolve(&self, service: &ObjectName) -> Vec<ResolvedPort> {
        let Some(object) = self.services.get(service) else { return Vec::new() };
        let slices = self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name));
        resolve(object, &slices)
    }

    /// Takes in one event.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Services(Delta::Apply(service)) => self.put_service(service),
            Event::Services(Delta::Delete(name)) => self.drop_service(&name),
            Event::Services(Delta::Snapshot(services)) => {
                self.have_services = true;
                let listed: BTreeMap<_, _> =
                    services.into_iter().map(|service| (service.name.clone(), service)).collect();
                let gone: Vec<_> = self.services.keys().filter(|name| !listed.contains_key(name)).cloned().collect();
                gone.iter().for_each(|name| self.drop_service(name));
                listed.into_values().for_each(|service| self.put_service(service));
            }
            Event::EndpointSlices(Delta::Apply(slice)) => self.put_slice(slice),
            Event::EndpointSlices(Delta::Delete(name)) => self.drop_slice(&name),
            Event::EndpointSlices(Delta::Snapshot(slices)) => {
                self.have_slices = true;
                let listed: BTreeMap<_, _> = slices.into_iter().map(|slice| (slice.name.clone(), slice)).collect();
                let gone: Vec<_> = self.slices.keys().filter(|name| !listed.contains_key(name)).cloned().collect();
                gone.iter().for_each(|name| self.drop_slice(name));
                listed.into_values().for_each(|slice| self.put_slice(slice));
            }
        }
    }

    fn put_service(&mut self, service: Service) {
        if self.services.get(&service.name) != Some(&service) {
            self.touched.insert(service.name.clone());
            self.services.insert(service.name.clone(), service);
        }
    }

    fn drop_service(&mut self, name: &ObjectName) {
        if self.services.remove(name).is_some() {
            self.touched.insert(name.clone());
        }
    }

    fn put_slice(&mut self, slice: EndpointSlice) {
        if self.slices.get(&slice.name) == Some(&slice) {
            return;
        }
        // It may have belonged to another Service: the label can be edited.
        self.drop_slice(&slice.name);
        self.touched.insert(slice.service.clone());
        self.slices_of.entry(slice.service.clone()).or_default().insert(slice.name.clone());
        self.slices.insert(slice.name.clone(), slice);
    }

    fn drop_slice(&mut self, name: &ObjectName) {
        let Some(slice) = self.slices.remove(name) else { return };
        if let Some(names) = self.slices_of.get_mut(&slice.service) {
            names.remove(name);
            if names.is_empty() {
                self.slices_of.remove(&slice.service);
            }
        }
        self.touched.insert(slice.service);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, vip: &str) -> Service {
        Service {
            name: ObjectName::new("default", name),
            cluster_ips: vec![vip.parse().expect("address")],
            ports: Vec::new(),
            reached_from_outside: false,
        }
    }

    fn slice(name: &str, service: &str) -> EndpointSlice {
        EndpointSlice {
            name: ObjectName::new("default", name),
            service: ObjectName::new("default", service),
            family: IpFamily::V4,
            ports: Vec::new(),
            endpoints: Vec::new(),
        }
    }

    fn touched(cluster: &mut Cluster) -> Vec<String> {
        cluster.take_touched().into_iter().map(|name| name.name.to_string()).collect()
    }

    #[test]
    fn it_is_synced_when_both_kinds_have_been_listed() {
        let mut cluster = Cluster::default();
        cluster.apply(Event::Services(Delta::Apply(service("a", "10.96.0.1"))));
        cluster.apply(Event::Services(Delta::Snapshot(Vec::new())));
        assert!(!cluster.is_synced());
        cluster.apply(Event::EndpointSlices(Delta::Snapshot(Vec::new())));
        assert!(cluster.is_synced());
    }

    #[test]
    fn a_change_touches_its_own_service_only_and_no_change_touches_none() {
        let mut cluster = Cluster::default();
        let services = vec![service("a", "10.96.0.1"), service("b", "10.96.0.2")];
        cluster.apply(Event::Services(Delta::Snapshot(services.clone())));
        cluster.apply(Event::EndpointSlices(Delta::Snapshot(vec![slice("a-1", "a"), slice("b-1", "b")])));
        assert_eq!(touched(&mut cluster), ["a", "b"]);

        cluster.apply(Event::Services(Delta::Snapshot(services)));
        cluster.apply(Event::EndpointSlices(Delta::Apply(slice("a-1", "a"))));
        assert!(touched(&mut cluster).is_empty());

        cluster.apply(Event::EndpointSlices(Delta::Apply(slice("a-2", "a"))));
        assert_eq!(touched(&mut cluster), ["a"]);
        cluster.apply(Event::EndpointSlices(Delta::Delete(ObjectName::new("default", "b-1"))));
        assert_eq!(touched(&mut cluster), ["b"]);
    }

    #[test]
    fn what_a_list_no_longer_has_is_gone() {
        let mut cluster = Cluster::default();
        cluster.apply(Event::Services(Delta::Snapshot(vec![service("a", "10.96.0.1"), service("b", "10.96.0.2")])));
        cluster.apply(Event::EndpointSlices(Delta::Snapshot(vec![slice("a-1", "a")])));
        cluster.take_touched();
        cluster.apply(Event::Services(Delta::Snapshot(vec![service("a", "10.96.0.9")])));
        cluster.apply(Event::EndpointSlices(Delta::Snapshot(Vec::new())));
        assert_eq!(touched(&mut cluster), ["a", "b"]);
        assert_eq!(cluster.len(), (1, 0));
    }

    #[test]
    fn a_slice_given_to_another_service_touches_both() {
        let mut cluster = Cluster::default();
        cluster.apply(Event::EndpointSlices(Delta::Snapshot(vec![slice("s", "a")])));
        cluster.take_touched();
        cluster.apply(Event::EndpointSlices(Delta::Apply(slice("s", "b"))));
        assert_eq!(touched(&mut cluster), ["a", "b"]);
    }
}
