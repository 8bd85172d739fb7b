//! What kube-proxy leaves in the kernel, in each of its modes: named when the daemon starts, removed on request, and nothing
//! of anybody else's with it.

use std::{
    io::Write as _,
    process::{Command, Output, Stdio},
};

use dsproxy_common::IpFamily;
use dsproxy_tests::{
    lab::{DualStack, Lab, Namespace, Side, daemon_binary},
    rules::WAIT,
};

use crate::{
    cluster::{Cluster, PORT, answers, service, wait_until_answers},
    process::Daemon,
};

const VIP: DualStack = DualStack::cluster_ip(1);

/// Tables as others have them: a plugin's rules, and kubelet's chains.
const FOREIGN: &str = "\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:KUBE-MARK-DROP - [0:0]
:KUBE-ROUTER-SERVICES - [0:0]
:PLUGIN - [0:0]
-A PREROUTING -p sctp -m comment --comment \"no \\\" -j KUBE-SERVICES here\" -j PLUGIN
-A POSTROUTING -p sctp -j KUBE-ROUTER-SERVICES
-A KUBE-MARK-DROP -j MARK --set-xmark 0x8000/0x8000
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-POD-FW-AAAAAAAAAAAAAAAA - [0:0]
-A OUTPUT -j KUBE-FIREWALL
-A FORWARD -p sctp -j KUBE-POD-FW-AAAAAAAAAAAAAAAA
COMMIT
*mangle
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-IPTABLES-HINT - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
COMMIT
";

/// What kube-proxy's mode `iptables` adds to them, for a Service with a VIP and an endpoint.
fn in_iptables_mode(vip: &str, endpoint: &str) -> String {
    format!(
        "*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-PROXY-CANARY - [0:0]
:KUBE-SVC-TCOU7JCQXEZGVUNU - [0:0]
:KUBE-EXT-TCOU7JCQXEZGVUNU - [0:0]
:KUBE-SEP-5RQRGVRXQDNVWYFL - [0:0]
-I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SERVICES -d {vip} -p udp -m comment --comment \"kube-system/kube-dns:dns cluster IP\" -m udp --dport 53 -j KUBE-SVC-TCOU7JCQXEZGVUNU
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p udp -m udp --dport 30053 -j KUBE-EXT-TCOU7JCQXEZGVUNU
-A KUBE-EXT-TCOU7JCQXEZGVUNU -j KUBE-MARK-MASQ
-A KUBE-EXT-TCOU7JCQXEZGVUNU -j KUBE-SVC-TCOU7JCQXEZGVUNU
-A KUBE-SVC-TCOU7JCQXEZGVUNU -m statistic --mode random --probability 0.5 -j KUBE-SEP-5RQRGVRXQDNVWYFL
-A KUBE-SEP-5RQRGVRXQDNVWYFL -s {endpoint} -j KUBE-MARK-MASQ
-A KUBE-SEP-5RQRGVRXQDNVWYFL -p udp -m udp -j DNAT --to-destination {endpoint}
COMMIT
*filter
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
:KUBE-PROXY-CANARY - [0:0]
-I FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-I FORWARD -j KUBE-FORWARD
-I INPUT -m conntrack --ctstate NEW -j KUBE-EXTERNAL-SERVICES
-I INPUT -m conntrack --ctstate NEW -j KUBE-PROXY-FIREWALL
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
COMMIT
*mangle
:KUBE-PROXY-CANARY - [0:0]
COMMIT
"
    )
}

/// What kube-proxy's mode `nftables` makes, for the same Service.
fn in_nftables_mode(family: &str, address: &str, vip: &str, endpoint: &str) -> String {
    format!(
        "table {family} kube-proxy {{
    set cluster-ips {{ type {address}; elements = {{ {vip} }} }}
    map service-ips {{
        type {address} . inet_proto . inet_service : verdict
        elements = {{ {vip} . udp . 53 : goto service-ULMVA6XW-kube-system/kube-dns/udp/dns }}
    }}
    chain endpoint-5OJB2KTY-kube-system/kube-dns/udp/dns {{ meta l4proto udp dnat to {endpoint}; }}
    chain service-ULMVA6XW-kube-system/kube-dns/udp/dns {{
        numgen random mod 1 vmap {{ 0 : goto endpoint-5OJB2KTY-kube-system/kube-dns/udp/dns }}
    }}
    chain services {{ {family} daddr . meta l4proto . th dport vmap @service-ips; }}
    chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}
    chain nat-output {{ type nat hook output priority -100; jump services; }}
}}
"
    )
}

/// A table of somebody else's, with chains and rules that only look like kube-proxy's.
const FOREIGN_TABLE: &str = "\
table inet plugin {
    chain KUBE-SERVICES { counter; }
    chain input { type filter hook input priority 10; jump KUBE-SERVICES; }
}
";

/// Runs a program on the node, which must not fail, and returns what it prints.
fn run(node: &Namespace, program: &str, arguments: &[&str], input: &str) -> String {
    let output = node.run(|| {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}"));
        child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
        child.wait_with_output().expect("it ends")
    });
    let output = output.expect("the namespace is there");
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The programs of both families of a world of iptables, with a VIP and an endpoint each.
fn iptables(backend: &str) -> [(String, [&'static str; 2]); 2] {
    [
        (format!("iptables-{backend}"), ["10.96.0.10/32", "10.244.9.9"]),
        (format!("ip6tables-{backend}"), ["fd00:10:96::a/128", "fd00:10:244:9::9"]),
    ]
}

/// Everything in the kernel that may be hurt, without counters: nftables with the handles of its rules.
fn state(node: &Namespace) -> String {
    let mut all = run(node, "nft", &["-a", "-s", "list", "ruleset"], "");
    for (program, _) in iptables("legacy") {
        all += &run(node, &format!("{program}-save"), &[], "");
    }
    let without_counters = all.lines().filter(|line| !line.starts_with('#')).map(|line| match line.split_once(" [") {
        Some((chain, _)) if line.starts_with(':') => chain,
        _ => line,
    });
    without_counters.collect::<Vec<_>>().join("\n")
}

fn cleanup(lab: &Lab) -> Output {
    let mut command = Command::new(daemon_binary().expect("the daemon is built"));
    command.args(["cleanup", "--kube-proxy"]);
    let node = lab.node(Side::A).namespace();
    node.run(|| command.output()).expect("the namespace is there").expect("the command runs")
}

#[test]
fn leftovers_are_named_at_start_and_removed_on_request() {
    let cluster = Cluster::build();
    let lab = &cluster.lab;
    let node = lab.node(Side::A).namespace();
    cluster.write(&service("echo", VIP, &[cluster.backend("local")]));
    for backend in ["nft", "legacy"] {
        for (program, _) in iptables(backend) {
            run(node, &format!("{program}-restore"), &WAIT, FOREIGN);
        }
    }
    run(node, "nft", &["-f", "-"], FOREIGN_TABLE);
    let before = state(node);

    for backend in ["nft", "legacy"] {
        for (program, [vip, endpoint]) in iptables(backend) {
            run(
                node,
                &format!("{program}-restore"),
                &[&WAIT[..], &["--noflush"]].concat(),
                &in_iptables_mode(vip, endpoint),
            );
        }
    }
    run(node, "nft", &["-f", "-"], &in_nftables_mode("ip", "ipv4_addr", "10.96.0.10", "10.244.9.9:53"));
    run(node, "nft", &["-f", "-"], &in_nftables_mode("ip6", "ipv6_addr", "fd00:10:96::a", "[fd00:10:244:9::9]:53"));
    // The kernel of the test may have no dummy devices; the name is what counts.
    run(node, "ip", &["link", "add", "kube-ipvs0", "type", "bridge"], "");

    let manifests = cluster.manifests.directory().display().to_string();
    let daemon = Daemon::new(lab, &["--manifests", &manifests]).started();
    for (family, name) in [(IpFamily::V4, "ip"), (IpFamily::V6, "ip6")] {
        let table = format!("the nftables table {name} kube-proxy");
        daemon.await_log(&["WARN", "dsproxy cleanup --kube-proxy", &table]);
        for backend in ["nft", "legacy"] {
            for (table, first, more) in
                [("nat", "KUBE-SERVICES", 7), ("filter", "KUBE-SERVICES", 4), ("mangle", "KUBE-PROXY-CANARY", 0)]
            {
                let chains =
                    format!("the {family} chain {first} and {more} more in the table {table} of iptables-{backend}");
                daemon.await_log(&["WARN", &chains]);
            }
        }
    }
    daemon.await_log(&["WARN", "the device kube-ipvs0"]);

    let output = cleanup(lab);
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(printed.lines().filter(|line| line.starts_with("removed the ")).count(), 15, "{printed}");
    assert_eq!(state(node), before, "what others have is as it was");
    let links = run(node, "ip", &["-o", "link"], "");
    assert!(!links.contains("kube-ipvs0") && links.contains("eth0"), "{links}");
    // dsproxy's own is no leftover.
    for _ in 0..5 {
        answers(cluster.client.namespace(), VIP, PORT, "local").expect("the Service is served");
    }

    let output = cleanup(lab);
    assert!(output.status.success());
    assert_eq!(String::from_utf8_lossy(&output.stdout), "kube-proxy has left nothing\n");
}

#[test]
fn a_node_without_leftovers_is_not_warned_about() {
    let cluster = Cluster::build();
    let node = cluster.lab.node(Side::A).namespace();
    run(node, "iptables-nft-restore", &[], FOREIGN);
    run(node, "iptables-legacy-restore", &WAIT, FOREIGN);
    run(node, "nft", &["-f", "-"], FOREIGN_TABLE);
    cluster.write(&service("echo", VIP, &[cluster.backend("local")]));
    let manifests = cluster.manifests.directory().display().to_string();
    let daemon = Daemon::new(&cluster.lab, &["--manifests", &manifests]).started();
    wait_until_answers(cluster.client.namespace(), VIP, "local");
    let log = daemon.log();
    assert!(!log.contains("kube-proxy has left") && !log.contains("kube-proxy may have left"), "{log}");
}

#[test]
fn thousands_of_chains_are_removed() {
    const ENDPOINTS: usize = 3000;
    let lab = Lab::new().expect("the lab is built");
    let node = lab.node(Side::A).namespace();
    let hash = |mut number: usize| -> String {
        let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
        let digit = |_| {
            let letter = letters[number % letters.len()];
            number /= letters.len();
            char::from(letter)
        };
        (0..16).map(digit).collect()
    };
    let mut text = "*nat\n:KUBE-SERVICES - [0:0]\n".to_owned();
    for number in 0..ENDPOINTS {
        text += &format!(":KUBE-SEP-{} - [0:0]\n", hash(number));
    }
    text += "-A PREROUTING -j KUBE-SERVICES\n";
    for number in 0..ENDPOINTS {
        text += &format!("-A KUBE-SERVICES -p udp --dport {} -j KUBE-SEP-{}\n", number + 1, hash(number));
    }
    text += "COMMIT\n";
    run(node, "iptables-nft-restore", &[], &text);
    let output = cleanup(&lab);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let removed =
        format!("removed the IPv4 chain KUBE-SERVICES and {ENDPOINTS} more in the table nat of iptables-nft\n");
    assert_eq!(String::from_utf8_lossy(&output.stdout), removed);
    let left = run(node, "iptables-nft-save", &[], "");
    assert!(!left.contains("KUBE-"), "{left}");
}

#[test]
fn a_cleanup_without_the_capability_says_what_it_takes() {
    let lab = Lab::new().expect("the lab is built");
    let node = lab.node(Side::A).namespace();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-net_admin", "--inh-caps=-net_admin"]);
    command.arg(daemon_binary().expect("the daemon is built")).args(["cleanup", "--kube-proxy"]);
    let output = node.run(|| command.output()).expect("the namespace is there").expect("the command runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("Operation not permitted") && error.contains("CAP_NET_ADMIN"), "{error}");
}

#[test]
fn chains_of_iptables_legacy_are_told_without_its_programs() {
    let lab = Lab::new().expect("the lab is built");
    let node = lab.node(Side::A).namespace();
    run(node, "ip6tables-legacy-restore", &WAIT, FOREIGN);
    let mut command = Command::new(daemon_binary().expect("the daemon is built"));
    command.args(["cleanup", "--kube-proxy"]).env("PATH", "/nowhere");
    let output = node.run(|| command.output()).expect("the namespace is there").expect("the command runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    for part in ["the IPv6 tables", "nat", "filter", "mangle", "ip6tables-legacy-save is not there", "install iptables"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
}
