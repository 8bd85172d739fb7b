//! The Services that are loaded to be measured against: how many there are, and their addresses by number.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use dsproxy::{
    maps::{Capacities, FrontendAddress},
    model::ObjectName,
    resolve::{Distribution, ResolvedEndpoint, ResolvedFamily, ResolvedFrontend, ResolvedPort, ServicePortName},
};
use dsproxy_common::{IpFamily, Protocol, service::FrontendKind};

use crate::prog::of_family;

/// The port on every VIP.
pub(super) const PORT: u16 = 80;
/// The port on every endpoint.
pub(super) const TARGET_PORT: u16 = 8080;

/// Maps with room for `count` Services beside the few that are measured.
pub(super) fn capacities(count: u32, connections: u32) -> Capacities {
    let services = (count + 64).next_power_of_two();
    Capacities {
        services,
        frontends: services,
        backends: 2 * services,
        slots: 4 * services.max(65_536),
        connections,
        brief_connections: connections,
        ..Capacities::default()
    }
}

/// Service number `number` of those that are only there to be many: one endpoint in each family, with the same number.
pub(super) fn background(number: u32) -> ResolvedPort {
    port(&format!("background-{number}"), Protocol::Tcp, Distribution::List, |family| {
        (background_vip(family, number), vec![endpoint(family, number)])
    })
}

/// As `background`, reached from outside at the same address: the programs take any for a node's.
pub(super) fn node_port(number: u32) -> ResolvedPort {
    let mut port = background(number);
    for frontend in port.families.iter_mut().flat_map(|family| &mut family.frontends) {
        frontend.kind = FrontendKind::NodePort;
    }
    port
}

/// One of the few Services that packets are sent to, with so many endpoints.
pub(super) fn measured(number: u32, protocol: Protocol, endpoints: u32, distribution: Distribution) -> ResolvedPort {
    port(&format!("measured-{number}"), protocol, distribution, |family| {
        // Endpoints of their own, beyond those of the others.
        (
            vip(family, number).ip(),
            (0..endpoints).map(|index| endpoint(family, 0x0080_0000 + number * 1_000 + index)).collect(),
        )
    })
}

fn port(
    name: &str,
    protocol: Protocol,
    distribution: Distribution,
    of: impl Fn(IpFamily) -> (IpAddr, Vec<SocketAddr>),
) -> ResolvedPort {
    let families = IpFamily::ALL.into_iter().map(|family| {
        let (address, endpoints) = of(family);
        ResolvedFamily {
            family,
            frontends: vec![ResolvedFrontend::cluster_ip(FrontendAddress { address, port: PORT, protocol })],
            endpoints: endpoints
                .iter()
                .map(|endpoint| ResolvedEndpoint::remote((endpoint.ip(), endpoint.port()), true))
                .collect(),
            distribution,
            source_ranges: Vec::new(),
        }
    });
    ResolvedPort {
        name: ServicePortName { service: ObjectName::new("bench", name), port: "".into(), protocol },
        affinity: None,
        families: families.collect(),
    }
}

/// The VIP of a background Service.
pub(super) fn background_vip(family: IpFamily, number: u32) -> IpAddr {
    // 10.96.0.0/13 has room for half a million.
    let v4 = Ipv4Addr::from_bits(0x0a60_0000 + number).into();
    let v6 = Ipv6Addr::from_bits(0xfd00_0096_0000_0000_0000_0000_0000_0000 + u128::from(number)).into();
    of_family(family, v4, v6)
}

/// The VIP of a measured Service.
pub(super) fn vip(family: IpFamily, number: u32) -> SocketAddr {
    let v4 = Ipv4Addr::from_bits(0x0a6f_0000 + number).into();
    let v6 = Ipv6Addr::from_bits(0xfd00_0111_0000_0000_0000_0000_0000_0000 + u128::from(number)).into();
    SocketAddr::new(of_family(family, v4, v6), PORT)
}

/// An endpoint, by a number below 2^24.
pub(super) fn endpoint(family: IpFamily, number: u32) -> SocketAddr {
    let v4 = Ipv4Addr::from_bits(0x6400_0000 + number).into();
    let v6 = Ipv6Addr::from_bits(0xfd00_0244_0000_0000_0000_0000_0000_0000 + u128::from(number)).into();
    SocketAddr::new(of_family(family, v4, v6), TARGET_PORT)
}

/// The first client.
pub(super) fn client(family: IpFamily) -> SocketAddr {
    let v4 = Ipv4Addr::new(10, 244, 0, 0).into();
    let v6 = Ipv6Addr::new(0xfd00, 0x245, 0, 0, 0, 0, 0, 0).into();
    SocketAddr::new(of_family(family, v4, v6), 1_024)
}
