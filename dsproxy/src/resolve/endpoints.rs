//! The endpoints of a service port, and which of them take new connections.
//!
//! There are two lists: one for packets that may go anywhere in the cluster, and one for those that stay on this node.
//! Which list a packet asks for is the frontend's business.

use std::{collections::BTreeMap, net::IpAddr};

use super::{NodeView, ResolvedEndpoint, topology};
use crate::model::{Endpoint, EndpointSlice, Service, ServicePort, TrafficPolicy};

/// Endpoints by address and port, each once.
pub(super) type Found<'a> = BTreeMap<(IpAddr, u16), &'a Endpoint>;

/// The lists that a service port has a use for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// The list of this node.
    local: bool,
}

impl Wanted {
    /// The cluster's list is always of use: even where no packet goes by it, it tells whether there are endpoints
    /// elsewhere, so that a packet for this node's alone is dropped and not refused.
    pub(super) fn of(service: &Service, port: &ServicePort) -> Self {
        let external = service.external_traffic_policy == TrafficPolicy::Local && service.is_reached_from_outside(port);
        Self { local: service.internal_traffic_policy == TrafficPolicy::Local || external }
    }
}

/// The endpoints of one port. Of an endpoint that is in two slices what the first of them says counts.
pub(super) fn of_port<'a>(port: &ServicePort, slices: impl Iterator<Item = &'a EndpointSlice>) -> Found<'a> {
    let mut found = Found::new();
    for slice in slices {
        // By name and protocol, so a named port may have another number in each slice.
        let numbers =
            slice.ports.iter().filter(|candidate| candidate.name == port.name && candidate.protocol == port.protocol);
        for number in numbers {
            for endpoint in &slice.endpoints {
                found
                    .entry((endpoint.address, number.port))
                    .and_modify(|held: &mut &Endpoint| {
                        // The address of a pod that is going may already be another's.
                        if held.terminating && !endpoint.terminating {
                            *held = endpoint;
                        }
                    })
                    .or_insert(endpoint);
            }
        }
    }
    found
}

/// Puts endpoints on the lists (KEP-1669, KEP-2086, KEP-2433). Those that are on none and still answer keep the
/// connections they have.
pub(super) fn choose(found: &Found<'_>, wanted: Wanted, node: &NodeView) -> Vec<ResolvedEndpoint> {
    // Ready alone: of a Service with publishNotReadyAddresses an endpoint may be ready that is not serving.
    let ready = |endpoint: &Endpoint| endpoint.ready;
    let last_resort = |endpoint: &Endpoint| endpoint.serving && endpoint.terminating;
    let is_local = |endpoint: &Endpoint| is_local(endpoint, node);

    let mode = topology::Mode::of(&found.values().copied().filter(|endpoint| ready(endpoint)), node);
    let any_ready = found.values().any(|endpoint| ready(endpoint));
    let any_ready_local = found.values().any(|endpoint| is_local(endpoint) && ready(endpoint));
    found
        .iter()
        .map(|(&(address, port), endpoint)| ResolvedEndpoint {
            address,
            port,
            is_local: is_local(endpoint),
            is_on_node: endpoint.node.is_some(),
            in_cluster_list: if any_ready {
                ready(endpoint) && mode.admits(endpoint, node)
            } else {
                last_resort(endpoint)
            },
            // Topology has no say here: there is one node to choose from.
            in_local_list: wanted.local
                && is_local(endpoint)
                && if any_ready_local { ready(endpoint) } else { last_resort(endpoint) },
        })
        .filter(|resolved| {
            resolved.is_active()
                || found.get(&(resolved.address, resolved.port)).is_some_and(|endpoint| endpoint.serving)
        })
        .collect()
}

/// Whether an endpoint is on this node.
pub(super) fn is_local(endpoint: &Endpoint, node: &NodeView) -> bool {
    endpoint.node.as_ref().is_some_and(|name| *name == node.name)
}
