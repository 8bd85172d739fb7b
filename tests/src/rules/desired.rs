//! What is to be served, from which rules of either shape and manifests for dsproxy are made alike.

use dsproxy_common::{IpFamily, Protocol};
use ipnet::{Ipv4Net, Ipv6Net};

use crate::lab::{DualStack, ServiceManifest};

/// The Services of a cluster, as one node sees them.
#[derive(Clone, Debug)]
pub struct DesiredState {
    /// The Services, in the order in which rules are written.
    pub services: Vec<Service>,
    /// The node's addresses, which NodePorts are served on.
    pub node: DualStack,
    /// Where pods' addresses are of: clients with others are masqueraded towards ClusterIPs.
    pub cluster_cidr: (Ipv4Net, Ipv6Net),
}

/// A dual-stack Service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name, in the namespace `bench`.
    pub name: String,
    /// Its ClusterIPs.
    pub cluster_ips: DualStack,
    /// What it serves.
    pub ports: Vec<Port>,
    /// Who serves it; at least one.
    pub endpoints: Vec<DualStack>,
}

/// A port of a Service.
#[derive(Clone, Copy, Debug)]
pub struct Port {
    /// The protocol.
    pub protocol: Protocol,
    /// The port of the ClusterIPs.
    pub number: u16,
    /// The port of the endpoints.
    pub target: u16,
    /// The port of the nodes.
    pub node_port: Option<u16>,
}

/// One port of one Service: what rules are made for. The number is its place among all.
pub(super) struct ServicePort<'a> {
    pub(super) number: usize,
    pub(super) service: &'a Service,
    pub(super) port: Port,
}

impl DesiredState {
    /// Every port of every Service.
    pub(super) fn ports(&self) -> impl Iterator<Item = ServicePort<'_>> {
        let ports = self.services.iter().flat_map(|service| service.ports.iter().map(move |port| (service, *port)));
        ports.enumerate().map(|(number, (service, port))| ServicePort { number, service, port })
    }

    pub(super) fn cluster_cidr_of(&self, family: IpFamily) -> String {
        match family {
            IpFamily::V4 => self.cluster_cidr.0.to_string(),
            IpFamily::V6 => self.cluster_cidr.1.to_string(),
        }
    }

    /// The same for dsproxy.
    pub fn manifests(&self) -> Vec<ServiceManifest> {
        self.services.iter().map(Service::manifest).collect()
    }
}

impl Service {
    fn manifest(&self) -> ServiceManifest {
        let mut manifest = ServiceManifest::new("bench", &self.name)
            .dual_stack(self.cluster_ips)
            .backends(self.endpoints.iter().copied());
        for Port { protocol, number, target, node_port } in self.ports.iter().copied() {
            manifest = manifest.port(protocol, number, target);
            if let Some(node_port) = node_port {
                manifest = manifest.node_port(node_port);
            }
        }
        manifest
    }
}

impl ServicePort<'_> {
    /// `tcp`, `udp` or `sctp`.
    pub(super) fn protocol(&self) -> String {
        self.port.protocol.to_string().to_lowercase()
    }

    /// The endpoints' addresses of `family` with the port, as they stand in rules.
    pub(super) fn targets(&self, family: IpFamily) -> impl Iterator<Item = String> {
        self.service.endpoints.iter().map(move |endpoint| endpoint.socket(family, self.port.target).to_string())
    }
}
