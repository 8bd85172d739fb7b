//! Where a variant is measured: a lab with clients and backends in the places that make a difference, and the Services in it.

use std::net::{Ipv6Addr, SocketAddr};

use dsproxy_common::{IpFamily, Protocol};
use ipnet::{Ipv4Net, Ipv6Net};

use super::{super::BenchError, backend::Backend};
use crate::{
    lab::{DualStack, Lab, Namespace, Outside, Pod, Side, Wiring, like_hardware},
    rules::{DesiredState, Port, Service},
};

/// The port of the ClusterIPs.
const PORT: u16 = 80;

/// Backends forget connections that are over. Masquerading gives a port to one client after the other, and with thousands of
/// connections a second it soon is one that the backend has in TIME_WAIT, from a client whose timestamps were ahead: the SYN is
/// answered with an ACK, and sent again 8 ms later. That says more of the backend's memory than of what is in between.
const NO_TIME_WAIT: (&str, &str) = ("net/ipv4/tcp_max_tw_buckets", "0");

/// The ClusterIPs of the Services that are there to be many begin here.
const FIRST_BACKGROUND: u16 = 0x0100;

/// How a client comes to a backend. Each way is a Service of its own, which has two endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// A pod on the node, by the ClusterIP, to a pod beside it.
    Local,
    /// A pod on the node, by the ClusterIP, to a pod on the other node.
    Remote,
    /// A host outside, by the node's port, to a pod on the other node.
    NodePort,
}

impl Way {
    pub(super) const ALL: [Self; 3] = [Self::Local, Self::Remote, Self::NodePort];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Local => "pod to a local pod",
            Self::Remote => "pod to a remote pod",
            Self::NodePort => "outside, by NodePort, to a remote pod",
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Local => 1,
            Self::Remote => 2,
            Self::NodePort => 3,
        }
    }

    /// The port of its backends, which no other way has.
    pub(super) fn target(self) -> u16 {
        8000 + self.number()
    }

    fn node_port(self) -> Option<u16> {
        (self == Self::NodePort).then_some(30_000 + self.number())
    }

    fn side(self) -> Side {
        match self {
            Self::Local => Side::A,
            Self::Remote | Self::NodePort => Side::B,
        }
    }
}

/// A lab with all that traffic needs but the proxy.
pub(super) struct Stage {
    client: Pod,
    outside: Outside,
    /// Two on each side.
    pods: Vec<(Side, Pod)>,
    _backends: Vec<Backend>,
    // Last, so that the namespaces go after what lives in them.
    lab: Lab,
}

impl Stage {
    /// The node that the proxy is on.
    pub(super) const SIDE: Side = Side::A;

    pub(super) fn build() -> Result<Self, BenchError> {
        let lab = Lab::new()?;
        let client = lab.add_pod(Side::A, Wiring::Routed, "client")?;
        let outside = lab.add_outside()?;
        let mut pods = Vec::new();
        let mut backends = Vec::new();
        for (side, role) in [(Side::A, "local-1"), (Side::A, "local-2"), (Side::B, "remote-1"), (Side::B, "remote-2")] {
            let pod = lab.add_pod(side, Wiring::Routed, role)?;
            pod.namespace().set_sysctls(&[NO_TIME_WAIT])?;
            let targets = Way::ALL.into_iter().filter(|way| way.side() == side).map(Way::target);
            backends.push(Backend::start(pod.namespace(), targets.collect())?);
            pods.push((side, pod));
        }
        Ok(Self { client, outside, pods, _backends: backends, lab })
    }

    /// Has every device on the way from outside to the other node be to XDP what hardware is: before anything is sent.
    pub(super) fn make_like_hardware(&self) -> Result<(), BenchError> {
        let far = self.lab.node(Side::B);
        like_hardware(self.outside.namespace(), Outside::INTERFACE)?;
        like_hardware(far.namespace(), far.interface())?;
        for (_, pod) in self.pods.iter().filter(|(side, _)| *side == Side::B) {
            like_hardware(pod.namespace(), "eth0")?;
        }
        Ok(())
    }

    pub(super) fn lab(&self) -> &Lab {
        &self.lab
    }

    pub(super) fn node_name(&self) -> &'static str {
        Self::SIDE.role()
    }

    pub(super) fn client(&self, way: Way) -> &Namespace {
        match way {
            Way::Local | Way::Remote => self.client.namespace(),
            Way::NodePort => self.outside.namespace(),
        }
    }

    /// The host outside.
    pub(super) fn outside(&self) -> &Outside {
        &self.outside
    }

    /// Where the client of `way` sends to: what stands for the Service, or one of its pods.
    pub(super) fn target(&self, way: Way, family: IpFamily, straight: bool) -> SocketAddr {
        match way {
            _ if straight => self.endpoints(way)[0].socket(family, way.target()),
            Way::Local | Way::Remote => DualStack::cluster_ip(way.number()).socket(family, PORT),
            Way::NodePort => {
                let node = self.lab.node(Self::SIDE).addresses();
                node.socket(family, way.node_port().unwrap_or_default())
            }
        }
    }

    fn endpoints(&self, way: Way) -> Vec<DualStack> {
        let pods = self.pods.iter().filter(|(side, _)| *side == way.side());
        pods.map(|(_, pod)| pod.addresses()).collect()
    }

    /// So many Services: those under test in the middle, where a list of rules is walked half way, and others around them, each with one
    /// endpoint that does not exist.
    pub(super) fn desired(&self, count: u32) -> DesiredState {
        let others = count.saturating_sub(Way::ALL.len() as u32);
        let mut services: Vec<Service> = (0..others).map(background).collect();
        let middle = services.len() / 2;
        services.splice(middle..middle, Way::ALL.map(|way| self.service(way)));
        DesiredState { services, node: self.lab.node(Self::SIDE).addresses(), cluster_cidr: cluster_cidr() }
    }

    fn service(&self, way: Way) -> Service {
        let port = |protocol| Port { protocol, number: PORT, target: way.target(), node_port: way.node_port() };
        Service {
            name: format!("measured-{}", way.number()),
            cluster_ips: DualStack::cluster_ip(way.number()),
            ports: vec![port(Protocol::Tcp), port(Protocol::Udp)],
            endpoints: self.endpoints(way),
        }
    }
}

/// The networks that all pods of the lab are of.
fn cluster_cidr() -> (Ipv4Net, Ipv6Net) {
    let DualStack { v4, v6 } =
        DualStack { v4: [10, 244, 0, 0].into(), v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0) };
    (Ipv4Net::new_assert(v4, 16), Ipv6Net::new_assert(v6, 48))
}

fn background(number: u32) -> Service {
    // 10.244.64.0 and what follows: no pod of the lab has them.
    let v4 = u32::from_be_bytes([10, 244, 64, 0]) + number;
    let v6 = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0xffff, 0, 0, 0, 0).to_bits() + u128::from(number);
    Service {
        name: format!("background-{number}"),
        cluster_ips: DualStack::cluster_ip(FIRST_BACKGROUND + number as u16),
        ports: vec![Port { protocol: Protocol::Tcp, number: PORT, target: 8080, node_port: None }],
        endpoints: vec![DualStack { v4: v4.into(), v6: v6.into() }],
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn background_services_have_addresses_of_their_own_within_the_networks() {
        let (v4, v6) = cluster_cidr();
        let mut seen = HashSet::new();
        for number in 0..10_000 {
            let Service { cluster_ips, endpoints, .. } = background(number);
            assert!(v4.contains(&endpoints[0].v4) && v6.contains(&endpoints[0].v6));
            for address in [cluster_ips, endpoints[0]] {
                assert!(IpFamily::ALL.into_iter().all(|family| seen.insert(address.of(family))), "{address}");
            }
        }
    }
}
