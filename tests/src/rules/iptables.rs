//! Rules in the shape of kube-proxy's mode iptables, as text for `iptables-restore`.
//!
//! ```text
//!   nat PREROUTING, OUTPUT ── KUBE-SERVICES, a rule for each port ─── KUBE-SVC-… ── KUBE-SEP-… DNAT
//!                                 └─ last: KUBE-NODEPORTS ── KUBE-EXT-… ──┘
//!   nat POSTROUTING ── KUBE-POSTROUTING: what has the mark
//! ```

use std::fmt::Write as _;

use dsproxy_common::IpFamily;

use super::{DesiredState, MASQUERADE_MARK, desired::ServicePort};

/// The chains that are there without any Service, in either table.
const FILTER_CHAINS: [&str; 5] =
    ["KUBE-SERVICES", "KUBE-EXTERNAL-SERVICES", "KUBE-FORWARD", "KUBE-NODEPORTS", "KUBE-PROXY-FIREWALL"];
const NAT_CHAINS: [&str; 4] = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-POSTROUTING", "KUBE-MARK-MASQ"];

/// The rules of one family. They replace what was there.
pub(super) fn generate(state: &DesiredState, family: IpFamily) -> String {
    let mut chains = String::new();
    let mut rules = String::new();
    let cluster_cidr = state.cluster_cidr_of(family);
    for port in state.ports() {
        service_port(&mut chains, &mut rules, family, &port, &cluster_cidr);
    }
    format!(
        "{}*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n\
         {}{chains}{}{rules}-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS\nCOMMIT\n",
        filter(),
        declared(&NAT_CHAINS),
        nat()
    )
}

fn declared(chains: &[&str]) -> String {
    chains.iter().map(|chain| format!(":{chain} - [0:0]\n")).collect()
}

/// The table `filter`, which holds rules of Services without endpoints alone.
fn filter() -> String {
    let new = "-m conntrack --ctstate NEW -j";
    let rules = [
        format!("INPUT {new} KUBE-PROXY-FIREWALL"),
        "INPUT -j KUBE-NODEPORTS".to_owned(),
        format!("INPUT {new} KUBE-EXTERNAL-SERVICES"),
        format!("FORWARD {new} KUBE-PROXY-FIREWALL"),
        "FORWARD -j KUBE-FORWARD".to_owned(),
        format!("FORWARD {new} KUBE-SERVICES"),
        format!("FORWARD {new} KUBE-EXTERNAL-SERVICES"),
        format!("OUTPUT {new} KUBE-PROXY-FIREWALL"),
        format!("OUTPUT {new} KUBE-SERVICES"),
        "KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP".to_owned(),
        format!("KUBE-FORWARD -m mark --mark {MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x} -j ACCEPT"),
        "KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT".to_owned(),
    ];
    format!(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n{}{}COMMIT\n",
        declared(&FILTER_CHAINS),
        rules.iter().map(|rule| format!("-A {rule}\n")).collect::<String>()
    )
}

/// The rules of the table `nat` that are there without any Service, but for the last.
fn nat() -> String {
    [
        "PREROUTING -j KUBE-SERVICES".to_owned(),
        "OUTPUT -j KUBE-SERVICES".to_owned(),
        "POSTROUTING -j KUBE-POSTROUTING".to_owned(),
        format!("KUBE-POSTROUTING -m mark ! --mark {MASQUERADE_MARK:#x}/{MASQUERADE_MARK:#x} -j RETURN"),
        format!("KUBE-POSTROUTING -j MARK --xor-mark {MASQUERADE_MARK:#x}"),
        "KUBE-POSTROUTING -j MASQUERADE --random-fully".to_owned(),
        format!("KUBE-MARK-MASQ -j MARK --or-mark {MASQUERADE_MARK:#x}"),
    ]
    .iter()
    .map(|rule| format!("-A {rule}\n"))
    .collect()
}

fn service_port(chains: &mut String, rules: &mut String, family: IpFamily, port: &ServicePort<'_>, cluster_cidr: &str) {
    let chain = |kind: &str, number: usize| format!("KUBE-{kind}-{number:016X}");
    // Writing to a string cannot fail.
    let mut declare = |chain: &str| {
        let _ = writeln!(chains, ":{chain} - [0:0]");
    };
    let mut rule = |chain: &str, rule: &str| {
        let _ = writeln!(rules, "-A {chain} {rule}");
    };
    let (protocol, host) = (port.protocol(), host_bits(family));
    let service = chain("SVC", port.number);
    let to = format!(
        "-d {}/{host} -p {protocol} -m {protocol} --dport {}",
        port.service.cluster_ips.of(family),
        port.port.number
    );
    declare(&service);
    rule("KUBE-SERVICES", &format!("{to} -j {service}"));
    rule(&service, &format!("! -s {cluster_cidr} {to} -j KUBE-MARK-MASQ"));
    let endpoints = port.service.endpoints.iter().map(|endpoint| endpoint.of(family)).zip(port.targets(family));
    let count = port.service.endpoints.len();
    for (place, (address, target)) in endpoints.enumerate() {
        // Unique as long as no port has 256 endpoints.
        let endpoint = chain("SEP", port.number << 8 | place);
        declare(&endpoint);
        let left = count - place;
        let choice = match left {
            1 => String::new(),
            left => format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64),
        };
        rule(&service, &format!("{choice}-j {endpoint}"));
        rule(&endpoint, &format!("-s {address}/{host} -j KUBE-MARK-MASQ"));
        rule(&endpoint, &format!("-p {protocol} -m {protocol} -j DNAT --to-destination {target}"));
    }
    if let Some(node_port) = port.port.node_port {
        let external = chain("EXT", port.number);
        declare(&external);
        rule("KUBE-NODEPORTS", &format!("-p {protocol} -m {protocol} --dport {node_port} -j {external}"));
        rule(&external, "-j KUBE-MARK-MASQ");
        rule(&external, &format!("-j {service}"));
    }
}

fn host_bits(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 32,
        IpFamily::V6 => 128,
    }
}
