//! The flags that the chart makes of its values, read by the daemon's own command line.

use clap::Parser;
use dsproxy::config::{Assembled, RunFlags, assemble};

use crate::{
    helm,
    manifests::{container, objects, pods},
};

/// Every value of the chart that becomes a flag, set to something else than its default.
const EVERYTHING: &str = "
clusterCIDRs: [10.244.0.0/16, 'fd00:10:244::/48']
nodePortAddresses: [192.0.2.0/24, '2001:db8::/64']
nodeDevices: [eth0, eth1]
podInterfaces: ['cali*', 'veth*']
attach: clsact
xdp: 'off'
socketLB: all
masqueradeAll: true
masqueradeEgress: true
nonMasqueradeCIDRs: [10.0.0.0/8]
tcpGoneBackend: reset
snatPorts: 50000-59999
nodePortRange: 31000-31999
reservePorts: false
conntrack: {maxPerCore: 65536, min: 262144, tcpTimeoutEstablished: 2h, tcpTimeoutCloseWait: 30m, tcpBeLiberal: true,
  udpTimeout: 45s, udpTimeoutStream: 90s}
timeouts: {tcpOpening: 61s, tcpEstablished: 3h, tcpHalfClosed: 62s, tcpClosing: 63s, tcpReset: 11s, udp: 64s}
sizes: {services: 101, frontends: 102, backends: 103, slots: 104, connections: 12345678, briefConnections: 106,
  affinities: 107, cachedFlows: 108, sourceRanges: 109}
health: {port: 20256}
metrics: {bindAddress: '[::]:20249', services: 50}
bindAddressHardFail: true
log: {level: 'info,dsproxy=debug', format: json}
oomScoreAdj: -500
extraArgs: ['--feature-gates=AllowServiceExternalIPs=false']
";

/// What becomes of it, in the order of the chart.
const EXPECTED: &str = "
run
--hostname-override=$(NODE_NAME)
--cluster-cidr=10.244.0.0/16,fd00:10:244::/48
--nodeport-addresses=192.0.2.0/24,2001:db8::/64
--node-devices=eth0,eth1
--pod-interfaces=cali*,veth*
--attach=clsact
--xdp=off
--socket-lb=all
--cgroup=/host/cgroup
--masquerade-all
--masquerade-egress
--non-masquerade-cidrs=10.0.0.0/8
--tcp-gone-backend=reset
--snat-ports=50000-59999
--node-port-range=31000-31999
--reserve-ports=false
--conntrack-max-per-core=65536
--conntrack-min=262144
--conntrack-tcp-be-liberal=true
--conntrack-tcp-timeout-close-wait=30m
--conntrack-tcp-timeout-established=2h
--conntrack-udp-timeout=45s
--conntrack-udp-timeout-stream=90s
--max-affinities=107
--max-backends=103
--max-brief-connections=106
--max-cached-flows=108
--max-connections=12345678
--max-frontends=102
--max-services=101
--max-slots=104
--max-source-ranges=109
--timeout-tcp-closing=63s
--timeout-tcp-established=3h
--timeout-tcp-half-closed=62s
--timeout-tcp-opening=61s
--timeout-tcp-reset=11s
--timeout-udp=64s
--healthz-bind-address=[::]:20256
--metrics-bind-address=[::]:20249
--metrics-services=50
--bind-address-hard-fail
--oom-score-adj=-500
--log-level=info,dsproxy=debug
--log-format=json
--feature-gates=AllowServiceExternalIPs=false
";

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    flags: RunFlags,
}

/// The arguments of a container, read; `run` is the first.
fn flags(arguments: &[String]) -> RunFlags {
    assert_eq!(arguments[0], "run");
    let read = Command::try_parse_from(arguments.iter().map(|argument| argument.replace("$(NODE_NAME)", "node-a")));
    read.unwrap_or_else(|error| panic!("{error}")).flags
}

fn arguments(helm: &[&str], name: &str) -> Vec<String> {
    let pods = pods(&objects(&helm::template(helm).expect("rendered")));
    container(&pods, name).args.clone().expect("arguments")
}

fn understood(arguments: &[String]) -> Assembled {
    let assembled = assemble(&flags(arguments), None).expect("the flags make sense");
    assert!(assembled.warnings.is_empty(), "none is without effect: {:?}", assembled.warnings);
    assembled
}

fn everything() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), EVERYTHING).expect("it is written");
    file
}

#[test]
fn by_default_the_daemon_is_told_its_node_and_little_else() {
    let told = understood(&arguments(&[], "dsproxy")).config;
    let own = assemble(&Command::parse_from(["run"]).flags, None).expect("valid").config;
    assert_eq!(told.hostname_override.as_deref(), Some("node-a"));
    assert_eq!((told.oom_score_adj, own.oom_score_adj), (-997, -999), "as the kubelet gives it");
    assert_eq!(told.healthz_bind_address, own.healthz_bind_address);
    assert_eq!(told.metrics_bind_address, own.metrics_bind_address);
    assert_eq!(format!("{:?}", told.datapath_settings()), format!("{:?}", own.datapath_settings()));
}

#[test]
fn the_init_container_is_told_what_the_daemon_is() {
    let file = everything();
    for helm in [&[][..], &["--values", &file.path().display().to_string()]] {
        let mut initialize = arguments(helm, "initialize");
        assert!(flags(&initialize).init_only);
        initialize.retain(|argument| argument != "--init-only");
        assert_eq!(initialize, arguments(helm, "dsproxy"));
    }
}

#[test]
fn every_value_reaches_the_daemon() {
    let file = everything();
    let told = arguments(&["--values", &file.path().display().to_string()], "dsproxy");
    understood(&told);
    assert_eq!(told, EXPECTED.split_whitespace().collect::<Vec<_>>());
}
