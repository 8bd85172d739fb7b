//! The cluster as the source last told it, and which Services a change touches.
//!
//! Knows nothing of maps: `reconcile` asks what is to be looked at again.

mod shared_names;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;

use self::shared_names::SharedNames;
use crate::{
    few::Few,
    interfaces::NodeAddresses,
    local_node::LocalNode,
    model::{EndpointSlice, IpFamily, Node, ObjectName, Service, ServiceCidr},
    resolve::{NodeView, Resolution, resolve},
    source::{
        Delta, Event,
        convert::{FromObject, Kind},
    },
};

/// Services, EndpointSlices and what else the data path goes by.
#[derive(Debug)]
pub struct Cluster {
    services: HashMap<ObjectName, Service>,
    slices: HashMap<ObjectName, EndpointSlice>,
    /// The names of a Service's slices, by the Service.
    slices_of: HashMap<ObjectName, Few<ObjectName>>,
    shared_names: SharedNames,
    service_cidrs: BTreeMap<ObjectName, ServiceCidr>,
    node: LocalNode,
    /// What `node` amounts to.
    view: NodeView,
    /// The kinds that were listed in full at least once.
    listed: BTreeSet<Kind>,
    touched: BTreeSet<ObjectName>,
}

impl Cluster {
    /// A cluster of which this is known.
    pub fn new(node: LocalNode) -> Self {
        Self {
            services: HashMap::new(),
            slices: HashMap::new(),
            slices_of: HashMap::new(),
            shared_names: SharedNames::default(),
            service_cidrs: BTreeMap::new(),
            view: node.view(),
            node,
            listed: BTreeSet::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Whether all that has a say in which endpoint serves what was listed in full at least once. Before that, what is
    /// missing means nothing.
    pub fn is_synced(&self) -> bool {
        [Kind::Service, Kind::EndpointSlice, Kind::Node].iter().all(|kind| self.listed.contains(kind))
    }

    /// Whether it is known what the Node object says, or that there is none.
    pub fn has_node(&self) -> bool {
        self.listed.contains(&Kind::Node)
    }

    /// Whether the Node is all that is still waited for.
    pub fn lacks_node_alone(&self) -> bool {
        !self.has_node() && [Kind::Service, Kind::EndpointSlice].iter().all(|kind| self.listed.contains(kind))
    }

    /// The Node has been waited for long enough: what it says is left out until it comes.
    pub fn go_without_node(&mut self) {
        self.listed.insert(Kind::Node);
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

    /// The Service of this name.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.get(name)
    }

    /// The family of the EndpointSlice of this name.
    pub fn family_of(&self, slice: &ObjectName) -> Option<IpFamily> {
        self.slices.get(slice).map(|slice| slice.family)
    }

    /// The ranges that ClusterIPs are given out from.
    pub fn service_cidrs(&self) -> BTreeSet<IpNet> {
        self.service_cidrs.values().flat_map(|range| &range.cidrs).copied().collect()
    }

    /// This node.
    pub fn node(&self) -> &LocalNode {
        &self.node
    }

    /// This node as the rules about endpoints see it.
    pub fn view(&self) -> &NodeView {
        &self.view
    }

    /// What the Service asks of this node; nothing when there is no such Service.
    pub fn resolve(&self, service: &ObjectName) -> Resolution {
        let Some(object) = self.services.get(service) else { return Resolution::default() };
        resolve(object, self.slices_of(service), &self.view)
    }

    /// Takes in one event.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Services(delta) => self.take(delta),
            Event::EndpointSlices(delta) => self.take(delta),
            Event::Nodes(delta) => self.take(delta),
            Event::ServiceCidrs(delta) => self.take(delta),
        }
    }

    /// Takes in the addresses on this node's devices.
    pub fn set_addresses(&mut self, addresses: NodeAddresses) {
        if self.node.set_addresses(addresses) {
            self.look_at_node();
        }
    }

    fn take<T: Member>(&mut self, delta: Delta<T>) {
        match delta {
            Delta::Apply(object) => T::put(self, object),
            Delta::Delete(name) => T::remove(self, &name),
            Delta::Snapshot(objects) => {
                self.listed.insert(T::KIND);
                let listed: BTreeMap<_, _> =
                    objects.into_iter().map(|object| (object.name().clone(), object)).collect();
                let gone: Vec<_> = T::names(self).into_iter().filter(|name| !listed.contains_key(name)).collect();
                gone.iter().for_each(|name| T::remove(self, name));
                listed.into_values().for_each(|object| T::put(self, object));
            }
        }
    }

    fn slices_of(&self, service: &ObjectName) -> impl Iterator<Item = &EndpointSlice> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    /// Of a change of this node only the Services it concerns are touched.
    fn look_at_node(&mut self) {
        let view = self.node.view();
        let NodeView { name: _, zone, addresses, node_port_addresses, without_external_ips: _ } = &self.view;
        let (zone, addresses, node_ports) =
            (view.zone != *zone, view.addresses != *addresses, view.node_port_addresses != *node_port_addresses);
        let hinted = |service: &ObjectName| {
            let mut endpoints = self.slices_of(service).flat_map(|slice| &slice.endpoints);
            endpoints.any(|endpoint| !endpoint.zone_hints().is_empty())
        };
        let concerned = self.services.iter().filter(|(name, service)| {
            (node_ports && service.ports.iter().any(|port| port.node_port.is_some()))
                || (addresses && !service.source_ranges.is_empty())
                || (zone && hinted(name))
        });
        let concerned: Vec<_> = concerned.map(|(name, _)| name.clone()).collect();
        self.touched.extend(concerned);
        self.view = view;
    }
}

/// A kind of object that a cluster has.
trait Member: FromObject {
    fn names(cluster: &Cluster) -> Vec<ObjectName>;
    fn put(cluster: &mut Cluster, object: Self);
    fn remove(cluster: &mut Cluster, name: &ObjectName);
}

impl Member for Service {
    fn names(cluster: &Cluster) -> Vec<ObjectName> {
        cluster.services.keys().cloned().collect()
    }

    fn put(cluster: &mut Cluster, service: Self) {
        if cluster.services.get(&service.name) != Some(&service) {
            cluster.touched.insert(service.name.clone());
            cluster.services.insert(service.name.clone(), service);
        }
    }

    fn remove(cluster: &mut Cluster, name: &ObjectName) {
        if cluster.services.remove(name).is_some() {
            cluster.touched.insert(name.clone());
        }
    }
}

impl Member for EndpointSlice {
    fn names(cluster: &Cluster) -> Vec<ObjectName> {
        cluster.slices.keys().cloned().collect()
    }

    fn put(cluster: &mut Cluster, mut slice: Self) {
        if cluster.slices.get(&slice.name) == Some(&slice) {
            return;
        }
        // It may have belonged to another Service: the label can be edited.
        Self::remove(cluster, &slice.name);
        cluster.touched.insert(slice.service.clone());
        cluster.shared_names.share(&mut slice);
        if let Some((service, _)) = cluster.slices_of.get_key_value(&slice.service) {
            slice.service = service.clone();
        }
        cluster.slices_of.entry(slice.service.clone()).or_default().insert(slice.name.clone());
        cluster.slices.insert(slice.name.clone(), slice);
    }

    fn remove(cluster: &mut Cluster, name: &ObjectName) {
        let Some(slice) = cluster.slices.remove(name) else { return };
        if let Some(names) = cluster.slices_of.get_mut(&slice.service) {
            names.remove(name);
            if names.is_empty() {
                cluster.slices_of.remove(&slice.service);
            }
        }
        cluster.touched.insert(slice.service);
    }
}

/// Of all nodes there may be in a directory of manifests the own one alone counts.
impl Member for Node {
    fn names(cluster: &Cluster) -> Vec<ObjectName> {
        cluster.node.object().map(|node| node.name.clone()).into_iter().collect()
    }

    fn put(cluster: &mut Cluster, node: Self) {
        if *node.name.name == **cluster.node.name() && cluster.node.set_object(Some(node)) {
            cluster.look_at_node();
        }
    }

    fn remove(cluster: &mut Cluster, name: &ObjectName) {
        if *name.name == **cluster.node.name() && cluster.node.set_object(None) {
            cluster.look_at_node();
        }
    }
}

impl Member for ServiceCidr {
    fn names(cluster: &Cluster) -> Vec<ObjectName> {
        cluster.service_cidrs.keys().cloned().collect()
    }

    fn put(cluster: &mut Cluster, range: Self) {
        cluster.service_cidrs.insert(range.name.clone(), range);
    }

    fn remove(cluster: &mut Cluster, name: &ObjectName) {
        cluster.service_cidrs.remove(name);
    }
}

#[cfg(test)]
mod tests;
