//! Rules in the shape of kube-proxy's mode nftables, as text for `nft -f`.
//!
//! ```text
//!   nat prerouting, output ── services ─┬─ map service-ips {address . protocol . port} ─── service-… ── endpoint-… dnat
//!                                       └─ map service-nodeports {protocol . port} ── external-… ──┘
//!   nat postrouting ── masquerading: what has the mark
//!   filter, new connections only: firewall-ips, no-endpoint-services, no-endpoint-nodeports, cluster-ips
//! ```
//!
//! One difference is on purpose: where a Service has a single endpoint, its chain goes there without choosing. kube-proxy writes
//! a map of one element. Maps without a name take the kernel time in the square of their number, minutes for 10,000, and
//! packets to other Services do not meet them.

use std::fmt::Write as _;

use dsproxy_common::IpFamily;

use super::{
    DesiredState, MASQUERADE_MARK,
    desired::{Port, Service, ServicePort},
};

const TABLE: &str = "kube-proxy";

/// The rules of one family, for one transaction. They replace what was there.
pub(super) fn generate(state: &DesiredState, family: IpFamily) -> String {
    let (ip, address) = words(family);
    let table = format!("{ip} {TABLE}");
    let mut text = format!("add table {table}\ndelete table {table}\nadd table {table}\n");
    frame(&mut text, &table, ip, address, &state.node.of(family).to_string());
    let cluster_cidr = state.cluster_cidr_of(family);
    for port in state.ports() {
        chains(&mut text, &table, family, &port);
        rules(&mut text, &table, family, &port, &cluster_cidr);
        elements(&mut text, &table, family, &port);
    }
    for service in &state.services {
        line(&mut text, "element", &table, &format!("cluster-ips {{ {} }}", service.cluster_ips.of(family)));
    }
    text
}

/// The family's names as a table's family and a header, and as a type.
fn words(family: IpFamily) -> (&'static str, &'static str) {
    match family {
        IpFamily::V4 => ("ip", "ipv4_addr"),
        IpFamily::V6 => ("ip6", "ipv6_addr"),
    }
}

/// `add KIND TABLE WHAT`.
fn line(text: &mut String, kind: &str, table: &str, what: &str) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "add {kind} {table} {what}");
}

/// What is there without any Service.
fn frame(text: &mut String, table: &str, ip: &str, address: &str, node: &str) {
    for (name, key) in [
        ("service-ips", format!("{address} . inet_proto . inet_service")),
        ("service-nodeports", "inet_proto . inet_service".to_owned()),
        ("no-endpoint-services", format!("{address} . inet_proto . inet_service")),
        ("no-endpoint-nodeports", "inet_proto . inet_service".to_owned()),
        ("firewall-ips", format!("{address} . inet_proto . inet_service")),
    ] {
        line(text, "map", table, &format!("{name} {{ type {key} : verdict; }}"));
    }
    for (name, key) in [
        ("cluster-ips", address.to_owned()),
        ("nodeport-ips", address.to_owned()),
        ("hairpin-connections", format!("{address} . {address} . inet_proto . inet_service")),
    ] {
        line(text, "set", table, &format!("{name} {{ type {key}; }}"));
    }
    line(text, "element", table, &format!("nodeport-ips {{ {node} }}"));
    for (chain, hook) in [
        ("filter-prerouting", "filter hook prerouting priority -110"),
        ("filter-input", "filter hook input priority -110"),
        ("filter-forward", "filter hook forward priority -110"),
        ("filter-output", "filter hook output priority -110"),
        ("filter-output-post-dnat", "filter hook output priority -90"),
        ("nat-prerouting", "nat hook prerouting priority -100"),
        ("nat-output", "nat hook output priority -100"),
        ("nat-postrouting", "nat hook postrouting priority 100"),
    ] {
        line(text, "chain", table, &format!("{chain} {{ type {hook}; }}"));
    }
    let regular = [
        "firewall-check",
        "service-endpoints-check",
        "nodeport-endpoints-check",
        "cluster-ips-check",
        "services",
        "masquerading",
        "mark-for-masquerade",
    ];
    for chain in regular {
        line(text, "chain", table, chain);
    }
    let key = format!("{ip} daddr . meta l4proto . th dport");
    for (chain, rule) in [
        ("filter-prerouting", "ct state new jump firewall-check".to_owned()),
        ("filter-input", "ct state new jump nodeport-endpoints-check".to_owned()),
        ("filter-input", "ct state new jump service-endpoints-check".to_owned()),
        ("filter-forward", "ct state new jump service-endpoints-check".to_owned()),
        ("filter-forward", "ct state new jump cluster-ips-check".to_owned()),
        ("filter-output", "ct state new jump service-endpoints-check".to_owned()),
        ("filter-output", "ct state new jump firewall-check".to_owned()),
        ("filter-output-post-dnat", "ct state new jump cluster-ips-check".to_owned()),
        ("nat-prerouting", "jump services".to_owned()),
        ("nat-output", "jump services".to_owned()),
        ("nat-postrouting", "jump masquerading".to_owned()),
        ("firewall-check", format!("{key} vmap @firewall-ips")),
        ("service-endpoints-check", format!("{key} vmap @no-endpoint-services")),
        (
            "nodeport-endpoints-check",
            format!("{ip} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports"),
        ),
        ("cluster-ips-check", format!("{ip} daddr @cluster-ips reject")),
        ("services", format!("{key} vmap @service-ips")),
        ("services", format!("{ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports")),
        (
            "masquerading",
            format!(
                "ct status dnat {ip} saddr . {ip} daddr . meta l4proto . th dport @hairpin-connections \
                 jump mark-for-masquerade"
            ),
        ),
        ("masquerading", format!("meta mark & {MASQUERADE_MARK:#x} == 0 return")),
        ("masquerading", format!("meta mark set meta mark ^ {MASQUERADE_MARK:#x}")),
        ("masquerading", "masquerade fully-random".to_owned()),
        ("mark-for-masquerade", format!("meta mark set meta mark | {MASQUERADE_MARK:#x}")),
    ] {
        line(text, "rule", table, &format!("{chain} {rule}"));
    }
}

/// `service-HASH-NAMESPACE/NAME/PROTOCOL/PORT` and the like; the hash is the number.
fn chain(kind: &str, port: &ServicePort<'_>) -> String {
    let ServicePort { number, service: Service { name, .. }, port: Port { number: service_port, .. } } = port;
    let protocol = port.protocol();
    format!("{kind}-{number:08X}-bench/{name}/{protocol}/{protocol}-{service_port}")
}

/// Chains of endpoints; a chain's name holds no colons and brackets.
fn endpoint_chains(port: &ServicePort<'_>, family: IpFamily) -> Vec<String> {
    let chain = chain("endpoint", port);
    let addresses = port.service.endpoints.iter().map(|endpoint| endpoint.of(family).to_string().replace(':', "."));
    addresses.map(|address| format!("{chain}__{address}/{}", port.port.target)).collect()
}

fn chains(text: &mut String, table: &str, family: IpFamily, port: &ServicePort<'_>) {
    for endpoint in endpoint_chains(port, family) {
        line(text, "chain", table, &endpoint);
    }
    line(text, "chain", table, &chain("service", port));
    if port.port.node_port.is_some() {
        line(text, "chain", table, &chain("external", port));
    }
}

fn rules(text: &mut String, table: &str, family: IpFamily, port: &ServicePort<'_>, cluster_cidr: &str) {
    let (ip, _) = words(family);
    let (service, protocol) = (chain("service", port), port.protocol());
    let endpoints = endpoint_chains(port, family);
    for (endpoint, target) in endpoints.iter().zip(port.targets(family)) {
        line(text, "rule", table, &format!("{endpoint} meta l4proto {protocol} dnat to {target}"));
    }
    let (vip, number) = (port.service.cluster_ips.of(family), port.port.number);
    let from_elsewhere = format!("{ip} saddr != {cluster_cidr} jump mark-for-masquerade");
    line(text, "rule", table, &format!("{service} {ip} daddr {vip} {protocol} dport {number} {from_elsewhere}"));
    let choice = match &endpoints[..] {
        [only] => format!("goto {only}"),
        several => {
            let places = several.iter().enumerate().map(|(place, endpoint)| format!("{place} : goto {endpoint}"));
            let places: Vec<String> = places.collect();
            format!("numgen random mod {} vmap {{ {} }}", several.len(), places.join(", "))
        }
    };
    line(text, "rule", table, &format!("{service} {choice}"));
    if port.port.node_port.is_some() {
        let external = chain("external", port);
        line(text, "rule", table, &format!("{external} jump mark-for-masquerade"));
        line(text, "rule", table, &format!("{external} goto {service}"));
    }
}

fn elements(text: &mut String, table: &str, family: IpFamily, port: &ServicePort<'_>) {
    let (vip, protocol) = (port.service.cluster_ips.of(family), port.protocol());
    let key = format!("{vip} . {protocol} . {}", port.port.number);
    line(text, "element", table, &format!("service-ips {{ {key} : goto {} }}", chain("service", port)));
    if let Some(node_port) = port.port.node_port {
        let external = chain("external", port);
        line(text, "element", table, &format!("service-nodeports {{ {protocol} . {node_port} : goto {external} }}"));
    }
    for endpoint in &port.service.endpoints {
        let address = endpoint.of(family);
        let hairpin = format!("{address} . {address} . {protocol} . {}", port.port.target);
        line(text, "element", table, &format!("hairpin-connections {{ {hairpin} }}"));
    }
}
