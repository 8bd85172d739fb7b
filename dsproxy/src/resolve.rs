//! Service + EndpointSlices -> what the data path is to do. A pure function; all of the rules about which endpoint
//! serves what are here.
//!
//! The rules are kube-proxy's (`pkg/proxy/topology.go` and `pkg/proxy/endpointslicecache.go` of Kubernetes 1.36).

use std::{collections::BTreeMap, fmt, net::IpAddr, sync::Arc};

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
        self.families.iter().flat_map(|family| &family.frontends).copied()
    }
}

/// A service port as the data path is to serve it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedPort {
    /// Its identity.
    pub name: ServicePortName,
    /// What it is in each family that the Service has an address of.
    pub families: Vec<ResolvedFamily>,
}

/// A service port in one family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedFamily {
    /// The family.
    pub family: IpFamily,
    /// Where it is reached.
    pub frontends: Vec<FrontendAddress>,
    /// The endpoints that new connections go to, sorted.
    pub active: Vec<(IpAddr, u16)>,
    /// The endpoints that keep the connections they have, sorted.
    pub draining: Vec<(IpAddr, u16)>,
    /// How a new connection finds its endpoint.
    pub distribution: Distribution,
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
    let select = |wanted: &dyn Fn(&Conditions) -> bool| {
        endpoints.iter().filter(|(_, conditions)| wanted(conditions)).map(|(endpoint, _)| *endpoint).collect()
    };
    ResolvedFamily {
        family,
        frontends: vec![FrontendAddress { address: vip, port: port.port, protocol: port.protocol }],
        active: select(&takes_connections),
        // Whatever still answers keeps its flows, whether it takes new ones or not.
        draining: select(&|conditions| conditions.serving && !takes_connections(conditions)),
        distribution: if service.reached_from_outside { Distribution::Maglev } else { Distribution::List },
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
