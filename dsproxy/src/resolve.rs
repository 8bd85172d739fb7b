//! Service + EndpointSlices + what is known of this node -> what the data path is to do. A pure function; all of the rules
//! about which endpoint serves what are here.
//!
//! `frontends` says where a service port is reached, `endpoints` which endpoints it has, `topology` which of them are
//! meant for clients of this node, `health` what a load balancer is told of them.
//!
//! The rules are kube-proxy's (`pkg/proxy/serviceport.go`, `pkg/proxy/topology.go` and
//! `pkg/proxy/endpointslicecache.go` of Kubernetes 1.36).

use std::{collections::BTreeSet, fmt, net::IpAddr, sync::Arc};

use dsproxy_common::service::FrontendKind;
use ipnet::IpNet;
use thiserror::Error;

use crate::{
    maps::FrontendAddress,
    model::{EndpointSlice, IpFamily, ObjectName, Protocol, Service, ServicePort},
};

mod endpoints;
mod frontends;
mod health;
mod topology;

#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod scenarios;

pub use health::HealthCheck;

/// This node, as far as the rules ask for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Its name: endpoints on the node of this name are local.
    pub name: Arc<str>,
    /// The zone that it is in.
    pub zone: Option<Arc<str>>,
    /// Its own addresses, one of a family.
    pub addresses: Vec<IpAddr>,
    /// Where it serves NodePorts.
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// Whether it leaves `externalIPs` of Services alone (kube-proxy's feature gate `AllowServiceExternalIPs`, off).
    pub without_external_ips: bool,
}

/// What a Service asks of this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolution {
    /// Its ports; none when there is nothing to serve.
    pub ports: Vec<ResolvedPort>,
    /// What a load balancer is told.
    pub health_check: Option<HealthCheck>,
    /// What cannot be served.
    pub left_out: Vec<LeftOut>,
}

/// A part of a Service that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Error)]
pub enum LeftOut {
    /// The sum over an SCTP packet does not allow another port without being computed afresh.
    #[error(
        "{port}: endpoint {address} port {number} is left out: SCTP keeps its port, so targetPort has to equal port"
    )]
    SctpEndpoint {
        /// The service port.
        port: ServicePortName,
        /// The endpoint.
        address: IpAddr,
        /// Its port.
        number: u16,
    },
    /// As above: a NodePort is another port than that of the endpoints.
    #[error("{port}: nodePort {number} is left out: SCTP keeps its port, so nodePort would have to equal targetPort")]
    SctpNodePort {
        /// The service port.
        port: ServicePortName,
        /// The NodePort.
        number: u16,
    },
}

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
    /// How long a client stays with its endpoint after its last new connection, in seconds.
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

impl ResolvedFamily {
    /// Whether packets that frontends of these kinds lead to this node's endpoints alone are dropped: there are endpoints,
    /// and none is on this node.
    pub fn lacks_local_endpoints(&self, of: impl Fn(FrontendKind) -> bool) -> bool {
        self.frontends.iter().any(|frontend| of(frontend.kind) && frontend.outside == Reach::Local)
            && !self.endpoints.iter().any(|endpoint| endpoint.in_local_list)
            && self.endpoints.iter().any(|endpoint| endpoint.in_cluster_list)
    }
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
    /// Whether it is on any node: what is not may be anything, and knows nothing of dsproxy.
    pub is_on_node: bool,
    /// Whether it takes new connections as one of the whole cluster's.
    pub in_cluster_list: bool,
    /// Whether it takes new connections as one of this node's.
    pub in_local_list: bool,
}

impl ResolvedEndpoint {
    /// An endpoint on another node that takes new connections, or just keeps those it has.
    pub const fn remote((address, port): (IpAddr, u16), in_cluster_list: bool) -> Self {
        Self { address, port, is_local: false, is_on_node: true, in_cluster_list, in_local_list: false }
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

/// What `service` with the endpoints in `slices` asks of this node.
pub fn resolve<'a>(
    service: &Service,
    slices: impl IntoIterator<Item = &'a EndpointSlice>,
    node: &NodeView,
) -> Resolution {
    let without_external_ips;
    let service = if node.without_external_ips && !service.external_ips.is_empty() {
        without_external_ips = Service { external_ips: Vec::new(), ..service.clone() };
        &without_external_ips
    } else {
        service
    };
    let mut slices: Vec<&EndpointSlice> = slices.into_iter().collect();
    // What two slices say of one endpoint shall not depend on which of them was read first.
    slices.sort_by_key(|slice| &slice.name);
    let mut left_out = Vec::new();
    let ports = service.ports.iter().map(|port| resolve_port(service, port, &slices, node, &mut left_out)).collect();
    left_out.sort();
    left_out.dedup();
    Resolution { ports, health_check: health::check(service, &slices, node), left_out }
}

fn resolve_port(
    service: &Service,
    port: &ServicePort,
    slices: &[&EndpointSlice],
    node: &NodeView,
    left_out: &mut Vec<LeftOut>,
) -> ResolvedPort {
    let name = ServicePortName { service: service.name.clone(), port: Arc::clone(&port.name), protocol: port.protocol };
    let families = service
        .cluster_ips
        .iter()
        .map(|cluster_ip| {
            let family = IpFamily::of(*cluster_ip);
            let found = endpoints::of_port(port, slices.iter().copied().filter(|slice| slice.family == family));
            let mut frontends = frontends::of_port(service, port, *cluster_ip, node);
            let mut endpoints = endpoints::choose(&found, endpoints::Wanted::of(service, port), node);
            leave_out_other_ports(&name, port, &mut frontends, &mut endpoints, left_out);
            let outside = service.is_reached_from_outside(port);
            ResolvedFamily {
                family,
                source_ranges: frontends::source_ranges(service, family, node),
                frontends,
                endpoints,
                distribution: if outside { Distribution::Maglev } else { Distribution::List },
            }
        })
        .collect();
    ResolvedPort { affinity: service.affinity, families, name }
}

/// Whether the data path can lead packets between `of` and this port number. It rewrites addresses of SCTP packets, which their checksum
/// does not cover, and no ports.
fn is_served_at(of: &ServicePort, number: u16) -> bool {
    of.protocol != Protocol::Sctp || number == of.port
}

/// Takes what cannot be served from `frontends` and `endpoints`, and tells of it.
fn leave_out_other_ports(
    name: &ServicePortName,
    of: &ServicePort,
    frontends: &mut Vec<ResolvedFrontend>,
    endpoints: &mut Vec<ResolvedEndpoint>,
    left_out: &mut Vec<LeftOut>,
) {
    frontends.retain(|frontend| {
        let stays = is_served_at(of, frontend.address.port);
        if !stays {
            left_out.push(LeftOut::SctpNodePort { port: name.clone(), number: frontend.address.port });
        }
        stays
    });
    endpoints.retain(|endpoint| {
        let stays = is_served_at(of, endpoint.port);
        if !stays {
            let ResolvedEndpoint { address, port: number, .. } = *endpoint;
            left_out.push(LeftOut::SctpEndpoint { port: name.clone(), address, number });
        }
        stays
    });
}
