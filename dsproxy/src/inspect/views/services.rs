//! The frontends, with their endpoints and traffic.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry},
    fmt,
    net::SocketAddr,
};

use dsproxy_common::{
    IpFamily,
    count::ServiceDrops,
    service::{Frontend, FrontendFlags, FrontendKind},
};
use ipnet::IpNet;
use serde::Serialize;

use super::{name, names};
use crate::inspect::{Live, View, columns::Columns, filter::FlowFilter};

/// `dsproxy services`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Services(Vec<ServiceRow>);

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceRow {
    name: String,
    family: String,
    protocol: String,
    kind: &'static str,
    frontend: SocketAddr,
    /// Those for clients inside the cluster.
    endpoints: Vec<SocketAddr>,
    /// Those for all other clients.
    endpoints_for_outside: Vec<SocketAddr>,
    /// Whether the endpoints are those of the whole cluster or of this node.
    policy: &'static str,
    policy_for_outside: &'static str,
    distribution: &'static str,
    affinity_seconds: u32,
    /// The clients that are let through; none: everybody.
    source_ranges: Option<Vec<IpNet>>,
    connections: u64,
    packets: u64,
    bytes: u64,
    reply_packets: u64,
    reply_bytes: u64,
    /// Packets that were dropped, and calls of sockets that were refused, by reason; those that are not here are none.
    drops: BTreeMap<&'static str, u64>,
}

/// Makes `dsproxy services`: a row for each frontend that `filter` takes.
///
/// # Errors
///
/// When the maps cannot be read.
pub fn services(live: &Live, filter: &FlowFilter) -> anyhow::Result<Services> {
    let names = names(&live.maps)?;
    let backends: HashMap<_, _> =
        live.maps.backends()?.into_iter().map(|(family, id, record)| ((family, id), record)).collect();
    let ranges = live.maps.source_ranges()?;
    // Read once for all frontends of a service port, for each to say the same while packets pass.
    let mut counted = HashMap::new();
    let mut rows = Vec::new();
    for (address, frontend) in live.maps.frontends()? {
        let family = address.family();
        let inside = live.maps.slots(family, frontend.inside)?;
        let outside = live.maps.slots(family, frontend.outside)?;
        let endpoints = |slots: &[u32]| {
            let records = slots.iter().filter_map(|id| backends.get(&(family, *id)));
            let endpoints: BTreeSet<_> = records.map(|record| SocketAddr::new(record.address, record.port)).collect();
            endpoints.into_iter().collect::<Vec<_>>()
        };
        let lists = [endpoints(&inside), endpoints(&outside)];
        let is_maglev = [&inside, &outside].into_iter().zip(&lists).any(|(slots, list)| slots.len() > list.len());
        let [endpoints, endpoints_for_outside] = lists;
        let policy = |flag| if frontend.has(flag) { "local" } else { "cluster" };
        let ranges = || {
            let ranges = ranges.iter().filter(|(service, _)| *service == frontend.service).map(|(_, range)| *range);
            ranges.filter(|range| IpFamily::of(range.addr()) == family).collect()
        };
        let name = name(&names, frontend.service);
        let own = SocketAddr::new(address.address, address.port);
        let addresses: Vec<_> =
            [own].into_iter().chain(endpoints.iter().chain(&endpoints_for_outside).copied()).collect();
        if !filter.takes(address.protocol, &name, family, &addresses) {
            continue;
        }
        let (counters, drops) = match counted.entry(frontend.service) {
            Entry::Occupied(held) => *held.get(),
            Entry::Vacant(place) => {
                let service = frontend.service;
                *place.insert((live.maps.service_counters(service)?, live.maps.service_drops(service)?))
            }
        };
        rows.push(ServiceRow {
            name,
            family: family.to_string(),
            protocol: address.protocol.to_string(),
            frontend: own,
            kind: kind(&frontend),
            distribution: if is_maglev { "maglev" } else { "list" },
            endpoints,
            endpoints_for_outside,
            policy: policy(FrontendFlags::INSIDE_LOCAL),
            policy_for_outside: policy(FrontendFlags::OUTSIDE_LOCAL),
            affinity_seconds: frontend.affinity,
            source_ranges: frontend.has(FrontendFlags::SOURCE_RANGES).then(ranges),
            connections: counters.connections,
            packets: counters.packets,
            bytes: counters.bytes,
            reply_packets: counters.reply_packets,
            reply_bytes: counters.reply_bytes,
            drops: by_reason(&drops),
        });
    }
    rows.sort_by(|a, b| (&a.name, a.frontend).cmp(&(&b.name, b.frontend)));
    Ok(Services(rows))
}

impl View for Services {
    /// What differs for clients outside the cluster stands behind a slash. Traffic and drops are counted by service port, both families
    /// together, so they stand on each of its rows.
    fn table(&self) -> String {
        let mut columns = Columns::new(&[
            "SERVICE PORT",
            "KIND",
            "FRONTEND",
            "ENDPOINTS",
            "POLICY",
            "AFFINITY",
            "SOURCES",
            "CONNECTIONS",
            "PACKETS",
            "BYTES",
            "REPLY BYTES",
            "DROPPED",
        ]);
        for row in &self.0 {
            columns.row([
                row.name.clone(),
                row.kind.to_owned(),
                row.frontend.to_string(),
                both(row.endpoints.len(), row.endpoints_for_outside.len()),
                both(row.policy, row.policy_for_outside),
                if row.affinity_seconds > 0 { format!("{}s", row.affinity_seconds) } else { "none".to_owned() },
                row.source_ranges.as_ref().map_or_else(|| "all".to_owned(), |ranges| ranges.len().to_string()),
                row.connections.to_string(),
                (row.packets + row.reply_packets).to_string(),
                row.bytes.to_string(),
                row.reply_bytes.to_string(),
                dropped(&row.drops),
            ]);
        }
        columns.text()
    }
}

/// The reasons for which something was dropped, with their counts.
fn by_reason(drops: &ServiceDrops) -> BTreeMap<&'static str, u64> {
    drops.iter().filter(|(_, count)| *count > 0).map(|(reason, count)| (reason.name(), count)).collect()
}

/// The same in one cell, the most first.
fn dropped(drops: &BTreeMap<&'static str, u64>) -> String {
    let mut drops: Vec<_> = drops.iter().collect();
    drops.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let parts: Vec<_> = drops.into_iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}

/// Two cells in one, where they differ.
fn both<T: Copy + PartialEq + fmt::Display>(inside: T, outside: T) -> String {
    if inside == outside { inside.to_string() } else { format!("{inside} / {outside}") }
}

fn kind(frontend: &Frontend) -> &'static str {
    match frontend.kind() {
        Some(FrontendKind::ClusterIp) => "ClusterIP",
        Some(FrontendKind::NodePort) => "NodePort",
        Some(FrontendKind::LoadBalancer) => "LoadBalancer",
        Some(FrontendKind::ExternalIp) => "ExternalIP",
        None => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use dsproxy_common::count::Reason;

    use super::*;

    #[test]
    fn drops_are_told_by_reason_the_most_first() {
        let drops =
            ServiceDrops::of(Reason::NoEndpoint, 3).each(ServiceDrops::of(Reason::SourceRange, 12), |a, b| a + b);
        assert_eq!(dropped(&by_reason(&drops)), "12 source-range, 3 no-endpoint");
        assert_eq!(dropped(&by_reason(&ServiceDrops::default())), "none");
    }

    #[test]
    fn one_cell_says_both_where_they_differ() {
        assert_eq!(both(3, 3), "3");
        assert_eq!(both("cluster", "local"), "cluster / local");
    }

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let of_kind = |kind| super::kind(&Frontend { flags: kind as u32, ..Frontend::default() });
        let names: BTreeSet<_> = FrontendKind::ALL.into_iter().map(of_kind).collect();
        assert_eq!(names.len(), FrontendKind::ALL.len());
        assert!(!names.contains("unknown"));
    }
}
