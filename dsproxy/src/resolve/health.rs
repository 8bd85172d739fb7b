//! What a load balancer is told that asks whether this node has endpoints of a Service.
//!
//! It does not know how it is asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{NodeView, endpoints};
use crate::model::{EndpointSlice, IpFamily, Service};

/// What is answered at the `healthCheckNodePort` of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// The port.
    pub port: u16,
    /// How many addresses of endpoints on this node are ready, for each family of the Service. Endpoints that terminate
    /// do not count although they may be served: so a load balancer turns away while the node still forwards.
    pub local_endpoints: BTreeMap<IpFamily, usize>,
}

pub(super) fn check(service: &Service, slices: &[&EndpointSlice], node: &NodeView) -> Option<HealthCheck> {
    let port = service.health_check_node_port?;
    let count = |family: IpFamily| {
        let slices = slices.iter().copied().filter(|slice| slice.family == family);
        let found = service.ports.iter().flat_map(|port| {
            let found = endpoints::of_port(port, slices.clone()).into_iter();
            found.filter(|((_, number), _)| super::is_served_at(port, *number))
        });
        let ready: BTreeSet<IpAddr> = found
            .map(|(_, endpoint)| endpoint)
            .filter(|endpoint| endpoint.ready && endpoints::is_local(endpoint, node))
            .map(|endpoint| endpoint.address)
            .collect();
        ready.len()
    };
    let families = service.cluster_ips.iter().map(|address| IpFamily::of(*address));
    let local_endpoints = families.map(|family| (family, count(family))).collect();
    Some(HealthCheck { port, local_endpoints })
}
