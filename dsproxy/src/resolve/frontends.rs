//! Where a service port is reached, and which endpoints clients are led to from there.
//!
//! It does not know which endpoints there are.

use std::{collections::BTreeMap, net::IpAddr};

use dsproxy_common::service::FrontendKind;
use ipnet::IpNet;

use super::{NodeView, Reach, ResolvedFrontend};
use crate::{
    maps::FrontendAddress,
    model::{IpFamily, Service, ServicePort, TrafficPolicy},
};

/// The frontends of a service port in the family of `cluster_ip`, by address and port, each once.
pub(super) fn of_port(
    service: &Service,
    port: &ServicePort,
    cluster_ip: IpAddr,
    node: &NodeView,
) -> Vec<ResolvedFrontend> {
    let family = IpFamily::of(cluster_ip);
    let of_family = |addresses: &[IpAddr]| -> Vec<IpAddr> {
        addresses.iter().copied().filter(|address| IpFamily::of(*address) == family).collect()
    };
    let internal = reach(service.internal_traffic_policy);
    let external = reach(service.external_traffic_policy);
    let checks_source = service.source_ranges.iter().any(|range| IpFamily::of(range.addr()) == family);

    let mut frontends = BTreeMap::new();
    // Of an address that is two things the first one counts: a load balancer's checks its clients even where it is an
    // externalIP, too.
    let mut add = |kind, addresses: &[IpAddr], number: u16| {
        for address in addresses {
            let address = FrontendAddress { address: *address, port: number, protocol: port.protocol };
            let (inside, outside) = match kind {
                FrontendKind::ClusterIp => (internal, internal),
                // Clients inside need no detour by the load balancer: they are led as if they had come by one.
                FrontendKind::NodePort | FrontendKind::LoadBalancer | FrontendKind::ExternalIp => {
                    (Reach::Cluster, external)
                }
            };
            let checks_source = checks_source && kind == FrontendKind::LoadBalancer;
            frontends.entry((address.address, address.port)).or_insert(ResolvedFrontend {
                address,
                kind,
                inside,
                outside,
                checks_source,
            });
        }
    };
    add(FrontendKind::ClusterIp, &[cluster_ip], port.port);
    add(FrontendKind::LoadBalancer, &of_family(&service.load_balancer_ips), port.port);
    add(FrontendKind::ExternalIp, &of_family(&service.external_ips), port.port);
    if let Some(number) = port.node_port {
        let addresses: Vec<IpAddr> = node.node_port_addresses.iter().copied().collect();
        add(FrontendKind::NodePort, &of_family(&addresses), number);
    }
    frontends.into_values().collect()
}

fn reach(policy: TrafficPolicy) -> Reach {
    match policy {
        TrafficPolicy::Cluster => Reach::Cluster,
        TrafficPolicy::Local => Reach::Local,
    }
}

/// Who may reach the load balancer's addresses of a family.
///
/// Where this node may, the addresses themselves may as well: when one of them is on a device of the node, the node's own
/// packets to it have it as their source (as in kube-proxy).
pub(super) fn source_ranges(service: &Service, family: IpFamily, node: &NodeView) -> Vec<IpNet> {
    let mut ranges: Vec<IpNet> =
        service.source_ranges.iter().copied().filter(|range| IpFamily::of(range.addr()) == family).collect();
    if node.addresses.iter().any(|address| ranges.iter().any(|range| range.contains(address))) {
        let own = service.load_balancer_ips.iter().copied().filter(|address| IpFamily::of(*address) == family);
        ranges.extend(own.map(IpNet::from));
    }
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}
