//! Service + EndpointSlices -> what the data path is to do. A pure function; all of the rules about which endpoint
//! serves what are here.
//!
//! The rules are kube-proxy's (`pkg/proxy/topology.go` and `pkg/proxy/endpointslicecache.go` of Kubernetes 1.36).

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

use dsproxy_common::service::FrontendKind;
use ipnet::IpNet;

use crate::{
    maps::FrontendAddress,
    model::{Endpoint, EndpointSlice, IpFamily, ObjectName, Protocol, Service, ServicePort},
};

#[cfg(test)]
pub(crate) mod scenarios;

/// The identity of a service port: its number may change, its name does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePortName {
    /// The Service.
    pub service: ObjectName,
    /// The port's name; empty for a single unnamed port.
    pub port: Arc<str>,
    /// The transport protocol.
    pub protocol: Protocol,
}

impl fmt::Display for ServicePortName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/{}", self.service, self.port, self.protocol)
    }
}

impl ServicePortName {
    /// Whether `name`, written as by `Display`, is a port of the same Service.
    pub fn is_sibling(&self, name: &str) -> bool {
        name.split_once(':').is_some_and(|(service, _)| service == self.service.to_string())
    }
}

impl ResolvedPort {
    /// Where it is reached, in all families.
    pub fn frontends(&self) -> impl Iterator<Item = FrontendAddress> {
        self.families.iter().flat_map(|family| &family.frontends).map(|frontend| frontend.address)
    }
}

/// A service port as the data path is to serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedPort {
    /// Its identity.
    pub name: ServicePortName,
    /// How long a client stays with its endpoint, in seconds.
    pub affinity: Option<u32>,
    /// What it is in each family that the Service has an address of.
    pub families: Vec<ResolvedFamily>,
}

/// A service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedFamily {
    /// The family.
    pub family: IpFamily,
    /// Where it is reached, sorted by address and port, each once.
    pub frontends: Vec<ResolvedFrontend>,
    /// The endpoints, sorted by address and port, each once.
    pub endpoints: Vec<ResolvedEndpoint>,
    /// How a new connection finds its endpoint.
    pub distribution: Distribution,
    /// The clients that are let through to frontends that check their source; none: everybody.
    pub source_ranges: Vec<IpNet>,
}

/// One address and port of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolvedFrontend {
    /// Where it is.
    pub address: FrontendAddress,
    /// What makes it a frontend.
    pub kind: FrontendKind,
    /// Which endpoints clients inside the cluster reach.
    pub inside: Reach,
    /// Which endpoints all other clients reach.
    pub outside: Reach,
    /// Whether only clients within the source ranges are let through.
    pub checks_source: bool,
}

impl ResolvedFrontend {
    /// A ClusterIP without a traffic policy.
    pub const fn cluster_ip(address: FrontendAddress) -> Self {
        let reach = Reach::Cluster;
        Self { address, kind: FrontendKind::ClusterIp, inside: reach, outside: reach, checks_source: false }
    }
}

/// Which endpoints of a service port clients reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reach {
    /// Those of the whole cluster.
    Cluster,
    /// Those on this node.
    Local,
}

impl Reach {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Cluster, Self::Local];
}

/// One endpoint of a service port. In neither list it drains: it keeps the connections that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolvedEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its port, host byte order.
    pub port: u16,
    /// Whether it is on this node.
    pub is_local: bool,
    /// Whether it takes new connections as one of the whole cluster's.
    pub in_cluster_list: bool,
    /// Whether it takes new connections as one of this node's.
    pub in_local_list: bool,
}

impl ResolvedEndpoint {
    /// An endpoint on another node that takes new connections, or just keeps those it has.
    pub const fn remote((address, port): (IpAddr, u16), in_cluster_list: bool) -> Self {
        Self { address, port, is_local: false, in_cluster_list, in_local_list: false }
    }

    /// Whether it takes new connections as one that `reach` names.
    pub const fn is_in(&self, reach: Reach) -> bool {
        match reach {
            Reach::Cluster => self.in_cluster_list,
            Reach::Local => self.in_local_list,
        }
    }

    /// Whether it takes new connections at all.
    pub const fn is_active(&self) -> bool {
        self.in_cluster_list || self.in_local_list
    }
}

/// What stands in the slots of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Each endpoint once: enough where this node alone decides, since a connection entry pins the flow.
    List,
    /// A Maglev table: where several nodes must send a flow to the same endpoint without talking.
    Maglev,
}

/// What `service` with the endpoints in `slices` asks of the data path, port by port.
pub fn resolve<'a>(service: &Service, slices: &(impl Iterator<Item = &'a EndpointSlice> + Clone)) -> Vec<ResolvedPort> {
    service
        .ports
        .iter()
        .map(|port| ResolvedPort {
            name: ServicePortName {
                service: service.name.clone(),
                port: Arc::clone(&port.name),
                protocol: port.protocol,
            },
            affinity: None,
            families: service
                .cluster_ips
                .iter()
                .map(|vip| resolve_family(service, port, *vip, slices.clone()))
                .collect(),
        })
        .collect()
}

fn resolve_family<'a>(
    service: &Service,
    port: &ServicePort,
    vip: IpAddr,
    slices: impl Iterator<Item = &'a EndpointSlice>,
) -> ResolvedFamily {
    let family = IpFamily::of(vip);
    let endpoints = endpoints_of_port(port, slices.filter(|slice| slice.family == family));
    // Ready alone: of a Service with publishNotReadyAddresses an endpoint may be ready that is not serving.
    let ready = |conditions: &Conditions| conditions.ready;
    let last_resort = |conditions: &Conditions| conditions.serving && conditions.terminating;

    // KEP-1669: ready endpoints, or, when there are none, those that terminate but still answer.
    let any_ready = endpoints.values().any(ready);
    let takes_connections =
        |conditions: &Conditions| if any_ready { ready(conditions) } else { last_resort(conditions) };
    let endpoints = endpoints
        .iter()
        // Whatever still answers keeps its flows, whether it takes new ones or not.
        .filter(|(_, conditions)| takes_connections(conditions) || conditions.serving)
        .map(|(endpoint, conditions)| ResolvedEndpoint::remote(*endpoint, takes_connections(conditions)));
    let address = FrontendAddress { address: vip, port: port.port, protocol: port.protocol };
    ResolvedFamily {
        family,
        frontends: vec![ResolvedFrontend::cluster_ip(address)],
        endpoints: endpoints.collect(),
        distribution: if service.reached_from_outside { Distribution::Maglev } else { Distribution::List },
        source_ranges: Vec::new(),
    }
}

#[derive(Clone, Copy)]
struct Conditions {
    ready: bool,
    serving: bool,
    terminating: bool,
}

/// The endpoints of one port, each once.
fn endpoints_of_port<'a>(
    port: &ServicePort,
    slices: impl Iterator<Item = &'a EndpointSlice>,
) -> BTreeMap<(IpAddr, u16), Conditions> {
    let mut endpoints = BTreeMap::new();
    for slice in slices {
        // By name and protocol, so a named port may have another number in each slice.
        let numbers =
            slice.ports.iter().filter(|candidate| candidate.name == port.name && candidate.protocol == port.protocol);
        for number in numbers {
            for Endpoint { address, ready, serving, terminating } in &slice.endpoints {
                let conditions = Conditions { ready: *ready, serving: *serving, terminating: *terminating };
                endpoints
                    .entry((*address, number.port))
                    .and_modify(|held: &mut Conditions| {
                        // The address of a pod that is going may already be another's.
                        if held.terminating && !conditions.terminating {
                            *held = conditions;
                        }
                    })
                    .or_insert(conditions);
            }
        }
    }
    endpoints
}
