//! What a node is told: what it serves, and how.

use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use dsproxy::resolve::{Reach, ResolvedEndpoint, ResolvedFamily, ResolvedFrontend, ResolvedPort};
use dsproxy_common::{IpFamily, Protocol, count::Reason, settings::NetworkFlags};
use ipnet::IpNet;

use super::{Shortcut, SnatPorts, tables::Backend};

/// A service port as it is to be served now.
#[derive(Clone, Debug)]
pub struct Served {
    /// The id that its counters have.
    pub id: u32,
    /// What it is. Without frontends it is served no more.
    pub port: ResolvedPort,
    /// Its endpoints on this node, those that have gone included.
    pub local: HashSet<SocketAddr>,
}

/// What holds for all.
#[derive(Clone, Debug)]
pub struct Rules {
    /// All that is sent to a ClusterIP is masqueraded.
    pub masquerade_all: bool,
    /// So is what pods send out of the cluster.
    pub masquerade_egress: bool,
    /// TCP whose backend has gone is reset.
    pub reset_gone: bool,
    /// A pod's address counts as inside, whatever it comes by.
    pub inside_by_network: bool,
    /// Whether anything is refused with an answer; else the budget for it is empty.
    pub answers: bool,
    /// The ports that masqueraded packets leave with.
    pub snat_ports: SnatPorts,
    /// Those of them that new connections get.
    pub offered_ports: SnatPorts,
    /// Of these protocols backends on other nodes answer clients outside by themselves.
    pub direct: Vec<Protocol>,
    /// Backends here do so where another node says for which VIP.
    pub accepts_direct: bool,
    /// Programs of another layout may know TCP connections that these do not.
    pub beside_others: bool,
}

/// All that the data path is told.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it serves.
    pub served: Vec<Served>,
    /// What is known of networks; of several the longest counts.
    pub networks: Vec<(IpNet, u32)>,
    /// The addresses that packets are masqueraded with.
    pub addresses: BTreeMap<IpFamily, IpAddr>,
    /// The node's own, whatever the device: its NodePorts are those of other nodes as well.
    pub own: BTreeMap<IpFamily, IpAddr>,
    /// What holds for all.
    pub rules: Rules,
    /// Where packets go past the stack from pod to pod; none where all go through it.
    pub shortcut: Option<Shortcut>,
    /// What its one device has for XDP: the count of changes of routing and the longest packet; none without XDP.
    pub xdp: Option<(u32, u16)>,
}

/// What an endpoint is to its service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Active,
    Draining,
    Gone,
}

impl Node {
    /// The frontend at `address`, with its service's number and what that is in this family.
    pub(super) fn frontend(
        &self,
        address: SocketAddr,
        protocol: u8,
    ) -> Option<(usize, &ResolvedFamily, &ResolvedFrontend)> {
        self.served.iter().enumerate().find_map(|(number, served)| {
            served.port.families.iter().find_map(|family| {
                let is_it = |frontend: &&ResolvedFrontend| {
                    let held = frontend.address;
                    (held.address, held.port, held.protocol.number()) == (address.ip(), address.port(), protocol)
                };
                Some((number, family, family.frontends.iter().find(is_it)?))
            })
        })
    }

    fn endpoint(&self, backend: &Backend) -> Option<&ResolvedEndpoint> {
        let families = &self.served[backend.service].port.families;
        families
            .iter()
            .flat_map(|family| &family.endpoints)
            .find(|endpoint| (endpoint.address, endpoint.port) == (backend.address.ip(), backend.address.port()))
    }

    pub(super) fn standing(&self, backend: &Backend) -> Standing {
        match self.endpoint(backend) {
            Some(endpoint) if endpoint.in_cluster_list || endpoint.in_local_list => Standing::Active,
            Some(_) => Standing::Draining,
            None => Standing::Gone,
        }
    }

    pub(super) fn is_local(&self, backend: &Backend) -> bool {
        self.served[backend.service].local.contains(&backend.address)
    }

    /// Whether its node can be told a VIP. No endpoint that has gone is asked for.
    pub(super) fn is_on_node(&self, backend: &Backend) -> bool {
        self.endpoint(backend).is_some_and(|endpoint| endpoint.is_on_node)
    }

    /// The endpoints that a new connection may go to.
    ///
    /// # Errors
    ///
    /// What becomes of the client, when there are none.
    pub(super) fn candidates(family: &ResolvedFamily, reach: Reach) -> Result<Vec<SocketAddr>, Reason> {
        let of = |reach| {
            let takes = move |endpoint: &&ResolvedEndpoint| match reach {
                Reach::Cluster => endpoint.in_cluster_list,
                Reach::Local => endpoint.in_local_list,
            };
            family.endpoints.iter().filter(takes).map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port))
        };
        let found: Vec<SocketAddr> = of(reach).collect();
        match reach {
            _ if !found.is_empty() => Ok(found),
            Reach::Local if of(Reach::Cluster).next().is_some() => Err(Reason::NoLocalEndpoint),
            Reach::Cluster | Reach::Local => Err(Reason::NoEndpoint),
        }
    }

    /// What is known of `address`.
    pub(super) fn network(&self, address: IpAddr) -> u32 {
        let holding = self.networks.iter().filter(|(network, _)| network.contains(&address));
        holding.max_by_key(|(network, _)| network.prefix_len()).map_or(0, |(_, flags)| *flags)
    }

    /// What becomes of a packet to `address`, where no frontend is: ClusterIPs have no other ports, and their range no others.
    pub(super) fn without_frontend(&self, address: IpAddr, otherwise: Reason) -> Reason {
        match self.network(address) {
            flags if flags & NetworkFlags::CLUSTER_IP != 0 => Reason::NoPort,
            flags if flags & NetworkFlags::SERVICE != 0 => Reason::Unallocated,
            _ => otherwise,
        }
    }
}
