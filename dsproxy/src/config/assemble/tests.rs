use clap::Parser;

use super::*;
use crate::config::{GoneBackend, LbMode, SocketLb, Xdp, check_families};

#[derive(Debug, Parser)]
struct Command {
    #[command(flatten)]
    flags: RunFlags,
}

fn flags(arguments: &[&str]) -> RunFlags {
    let all = std::iter::once("run").chain(arguments.iter().copied());
    Command::try_parse_from(all).unwrap_or_else(|error| panic!("{arguments:?}: {error}")).flags
}

fn from_flags(arguments: &[&str]) -> Assembled {
    assemble(&flags(arguments), None).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

fn from_file(arguments: &[&str], text: &str) -> Result<Assembled, ConfigError> {
    let header = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let text = if text.contains("apiVersion") { text.to_owned() } else { format!("{header}{text}") };
    let file = File::parse(&text).expect("a file");
    assemble(&flags(&[&["--config", "/etc/kube-proxy.conf"], arguments].concat()), Some(&file))
}

fn minutes(count: u64) -> Duration {
    Duration::from_secs(60 * count)
}

/// Every field with its default, in the order of `Config`.
#[test]
fn defaults() {
    let Assembled { config, log, warnings, .. } = from_flags(&[]);
    let expected = Config {
        source: SourceConfig::Kubernetes { kubeconfig: None, master: None },
        hostname_override: None,
        cluster_cidr: None,
        local_detection: LocalDetection::ClusterCidr,
        node_port_addresses: NodePortAddresses::All,
        node_port_range: "30000-32767".parse().expect("ports"),
        node_ips: NodeIps::default(),
        primary_family: None,
        external_ips: true,
        masquerade_all: false,
        lb_mode: LbMode::Snat,
        accept_direct: false,
        masquerade_egress: false,
        non_masquerade_cidrs: Vec::new(),
        snat_ports: "49152-65535".parse().expect("ports"),
        reserve_ports: true,
        pod_shortcut: false,
        socket_lb: SocketLb::Host,
        cgroup: None,
        tcp_gone_backend: GoneBackend::Continue,
        lifetimes: Lifetimes::default(),
        node_devices: Vec::new(),
        pod_interfaces: Vec::new(),
        attach: crate::datapath::attach::AttachMode::Auto,
        xdp: Xdp::Auto,
        healthz_bind_address: "[::]:10256".parse().ok(),
        metrics_bind_address: "127.0.0.1:10249".parse().ok(),
        metrics_services: 1000,
        bind_address_hard_fail: false,
        bpffs: crate::datapath::bpffs::DEFAULT_DIRECTORY.into(),
        capacities: crate::maps::Capacities::default(),
        cached_flows: 16_384,
        conntrack: ConntrackConfig {
            max_per_core: 32768,
            min: 131_072,
            tcp_established: Some(86400),
            tcp_close_wait: Some(3600),
            tcp_be_liberal: false,
            udp: None,
            udp_stream: None,
        },
        oom_score_adj: -999,
        file: None,
    };
    assert_eq!(config, expected);
    assert_eq!(log, LogConfig { format: LogFormat::Text, level: "info".to_owned() });
    assert_eq!(warnings, Vec::<String>::new());
}

/// Whether a configuration is as a case wants it.
type Check = fn(&Config) -> bool;

#[test]
fn each_flag_says_what_it_says_in_kube_proxy() {
    let cases: &[(&[&str], Check)] = &[
        (&["--kubeconfig", "/k", "--master", "https://192.0.2.1"], |config| {
            config.source
                == SourceConfig::Kubernetes { kubeconfig: Some("/k".into()), master: Some("https://192.0.2.1".into()) }
        }),
        (&["--manifests", "d"], |config| config.source == SourceConfig::Manifests("d".into())),
        (&["--hostname-override", " Node-A "], |config| config.hostname_override.as_deref() == Some("node-a")),
        (&["--hostname-override="], |config| config.hostname_override.is_none()),
        (&["--cluster-cidr", "fd00::/56,10.0.0.0/8"], |config| {
            config.cluster_cidr == ClusterCidrs::parse("10.0.0.0/8,fd00::/56").ok()
        }),
        (&["--detect-local-mode", "NodeCIDR"], |config| config.local_detection == LocalDetection::NodeCidr),
        (&["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cbr0"], |config| {
            config.local_detection == LocalDetection::BridgeInterface("cbr0".into())
        }),
        (&["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=cali"], |config| {
            config.local_detection == LocalDetection::InterfaceNamePrefix("cali".into())
        }),
        (&["--masquerade-all"], |config| config.masquerade_all),
        (&["--masquerade-all=true", "--proxy-mode", "nftables"], |config| config.masquerade_all),
        (&["--masquerade-all=false"], |config| !config.masquerade_all),
        // As Go reads them.
        (&["--masquerade-all=T", "--reserve-ports=0"], |config| config.masquerade_all && !config.reserve_ports),
        (&["--pod-shortcut"], |config| config.pod_shortcut),
        (&["--pod-shortcut=false"], |config| !config.pod_shortcut),
        (&["--nodeport-addresses", "primary"], |config| config.node_port_addresses == NodePortAddresses::Primary),
        (&["--nodeport-addresses", "10.0.0.0/8,fd00::/8"], |config| {
            config.node_port_addresses.to_list() == ["10.0.0.0/8", "fd00::/8"]
        }),
        (&["--nodeport-addresses", "10.0.0.0/8", "--nodeport-addresses=fd00::/8"], |config| {
            config.node_port_addresses.to_list() == ["10.0.0.0/8", "fd00::/8"]
        }),
        (&["--bind-address", "0.0.0.0"], |config| {
            config.primary_family.is_none() && config.node_ips == NodeIps::default()
        }),
        (&["--bind-address", "::"], |config| {
            config.primary_family == Some(IpFamily::V6) && config.metrics_bind_address == "[::1]:10249".parse().ok()
        }),
        (&["--bind-address", "2001:db8::1", "--node-ip", "192.0.2.1"], |config| {
            config.node_ips.to_string() == "192.0.2.1,2001:db8::1" && config.primary_family == Some(IpFamily::V6)
        }),
        (&["--node-ip", "192.0.2.1,2001:db8::1"], |config| config.primary_family == Some(IpFamily::V4)),
        (&["--healthz-bind-address", "0.0.0.0"], |config| config.healthz_bind_address == "0.0.0.0:10256".parse().ok()),
        (&["--healthz-bind-address", "192.0.2.1:7"], |config| {
            config.healthz_bind_address == "192.0.2.1:7".parse().ok()
        }),
        (&["--healthz-bind-address="], |config| config.healthz_bind_address.is_none()),
        (&["--healthz-port", "7"], |config| config.healthz_bind_address == "[::]:7".parse().ok()),
        (&["--healthz-port", "7", "--healthz-bind-address", "192.0.2.1:8"], |config| {
            config.healthz_bind_address == "192.0.2.1:8".parse().ok()
        }),
        (&["--healthz-port=0"], |config| config.healthz_bind_address.is_none()),
        (&["--metrics-bind-address="], |config| config.metrics_bind_address.is_none()),
        (&["--metrics-port=0"], |config| config.metrics_bind_address.is_none()),
        (&["--metrics-bind-address", "::"], |config| config.metrics_bind_address == "[::]:10249".parse().ok()),
        (&["--metrics-services", "0"], |config| config.metrics_services == 0),
        (&["--bind-address-hard-fail"], |config| config.bind_address_hard_fail),
        (&["--oom-score-adj", "-5"], |config| config.oom_score_adj == -5),
        (&["--conntrack-max-per-core=0", "--conntrack-min=7", "--conntrack-tcp-be-liberal"], |config| {
            let conntrack = config.conntrack;
            (conntrack.max_per_core, conntrack.min, conntrack.tcp_be_liberal) == (0, 7, true)
        }),
        (&["--feature-gates", "AllowServiceExternalIPs=false,Other=true"], |config| !config.external_ips),
        (&["--socket-lb", "all", "--cgroup", "/c"], |config| {
            config.socket_lb == SocketLb::All && config.cgroup == Some("/c".into())
        }),
        (&["--snat-ports", "1024-2047", "--node-port-range", "3000-3001", "--reserve-ports=false"], |config| {
            config.snat_ports.ports().count() == 1024 && config.node_port_range.last == 3001 && !config.reserve_ports
        }),
        (&["--masquerade-egress", "--non-masquerade-cidrs", "10.1.2.3/8,fd00::/8"], |config| {
            config.masquerade_egress && values::joined(&config.non_masquerade_cidrs) == "10.0.0.0/8,fd00::/8"
        }),
        (&["--lb-mode", "hybrid"], |config| config.lb_mode == LbMode::Hybrid && config.accept_direct),
        (&["--lb-mode", "dsr", "--accept-direct=false"], |config| {
            config.lb_mode == LbMode::Dsr && !config.accept_direct
        }),
        (&["--accept-direct"], |config| config.lb_mode == LbMode::Snat && config.accept_direct),
        (&["--tcp-gone-backend", "reset"], |config| config.tcp_gone_backend == GoneBackend::Reset),
    ];
    for (arguments, check) in cases {
        let Assembled { config, .. } = from_flags(arguments);
        assert!(check(&config), "{arguments:?}: {config:?}");
    }
}

#[test]
fn timeouts_are_ours_or_kube_proxys() {
    let default = Lifetimes::default();
    let cases: &[(&[&str], Lifetimes)] = &[
        (
            &["--timeout-tcp-opening=1m", "--timeout-tcp-closing=3m", "--timeout-tcp-reset=4m"],
            Lifetimes { opening: minutes(1), closing: minutes(3), reset: minutes(4), ..default },
        ),
        (
            &["--conntrack-tcp-timeout-established=48h", "--conntrack-tcp-timeout-close-wait", "1h30m"],
            Lifetimes { established: minutes(48 * 60), half_closed: minutes(90), ..default },
        ),
        (
            &[
                "--conntrack-tcp-timeout-established=48h",
                "--timeout-tcp-established=1h",
                "--timeout-tcp-half-closed=2h",
            ],
            Lifetimes { established: minutes(60), half_closed: minutes(120), ..default },
        ),
        // Left alone: dsproxy's own default.
        (&["--conntrack-tcp-timeout-established=0", "--conntrack-udp-timeout=0s"], default),
        (&["--conntrack-udp-timeout-stream=3m"], Lifetimes { stateless: minutes(3), ..default }),
        (&["--conntrack-udp-timeout-stream=1m"], Lifetimes { stateless: minutes(1), ..default }),
        (&["--conntrack-udp-timeout=1m"], default),
        (
            &["--conntrack-udp-timeout=5m", "--conntrack-udp-timeout-stream=1m"],
            Lifetimes { stateless: minutes(5), ..default },
        ),
        (&["--conntrack-udp-timeout=5m", "--timeout-udp=1m"], Lifetimes { stateless: minutes(1), ..default }),
    ];
    for (arguments, expected) in cases {
        assert_eq!(from_flags(arguments).config.lifetimes, *expected, "{arguments:?}");
    }
}

#[test]
fn the_log_is_told_by_either_kind_of_flag() {
    for (arguments, format, level) in [
        (&["-v=2"][..], LogFormat::Text, "info"),
        (&["-v", "4"], LogFormat::Text, "debug"),
        (&["--v=9", "--logging-format=json"], LogFormat::Json, "trace"),
        (&["--v=9", "--log-level=warn"], LogFormat::Text, "warn"),
        (&["--logging-format=json", "--log-format=text"], LogFormat::Text, "info"),
    ] {
        assert_eq!(from_flags(arguments).log, LogConfig { format, level: level.to_owned() }, "{arguments:?}");
    }
    let file = "logging: {format: json, verbosity: 4}\n";
    let log = |arguments: &[&str]| from_file(arguments, file).expect("valid").log;
    assert_eq!(log(&[]), LogConfig { format: LogFormat::Json, level: "debug".to_owned() });
    assert_eq!(log(&["-v=6"]), LogConfig { format: LogFormat::Json, level: "trace".to_owned() });
    assert_eq!(log(&["--log-level=error"]).level, "error");
}

#[test]
fn a_file_stands_in_place_of_kube_proxys_flags_and_no_others() {
    let arguments = [
        "--hostname-override=me",
        "--kubeconfig=/flag",
        "--cluster-cidr=172.16.0.0/12",
        "--masquerade-all",
        "--master=https://192.0.2.1",
        "--socket-lb=off",
        "--timeout-udp=7s",
        "--vmodule=x=1",
    ];
    let Assembled { config, warnings, .. } = from_file(&arguments, include_str!("../kubeadm.yaml")).expect("valid");
    let kubeconfig = Some("/var/lib/kube-proxy/kubeconfig.conf".into());
    assert_eq!(config.source, SourceConfig::Kubernetes { kubeconfig, master: None });
    assert_eq!(config.cluster_cidr, ClusterCidrs::parse("10.244.0.0/16,fd00:10:244::/56").ok());
    assert!(!config.masquerade_all);
    assert_eq!(config.hostname_override.as_deref(), Some("me"));
    assert_eq!(config.socket_lb, SocketLb::Off);
    assert_eq!(config.lifetimes.stateless, Duration::from_secs(7));
    assert_eq!(config.file, Some("/etc/kube-proxy.conf".into()));
    let [replaced, without] = warnings.as_slice() else { panic!("{warnings:?}") };
    for name in ["clientConnection.kubeconfig", "clusterCIDR", "iptables.masqueradeAll", "--master"] {
        assert!(replaced.contains(name), "{replaced}");
    }
    assert!(!replaced.contains("hostname"), "{replaced}");
    assert!(without.contains("--vmodule"), "{without}");
}

#[test]
fn kubeadms_file_is_what_no_flags_are_but_for_what_it_says() {
    let file = from_file(&[], include_str!("../kubeadm.yaml")).expect("valid");
    assert_eq!(file.warnings, Vec::<String>::new());
    let flags = [
        "--kubeconfig=/var/lib/kube-proxy/kubeconfig.conf",
        "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56",
        "--bind-address=0.0.0.0",
    ];
    let mut expected = from_flags(&flags).config;
    expected.file = file.config.file.clone();
    assert_eq!(file.config, expected);
}

#[test]
fn a_file_with_everything_is_obeyed_or_warned_about() {
    let Assembled { config, log, warnings, kube_proxy } =
        from_file(&[], include_str!("../everything.yaml")).expect("valid");
    assert_eq!(config.hostname_override.as_deref(), Some("node-7"));
    assert_eq!(config.node_ips.to_string(), "2001:db8::7");
    assert_eq!(config.healthz_bind_address, "192.0.2.7:10256".parse().ok());
    assert_eq!(config.metrics_bind_address, "[::]:9249".parse().ok());
    assert!(config.bind_address_hard_fail && config.masquerade_all && !config.external_ips);
    assert_eq!(config.local_detection, LocalDetection::BridgeInterface("cbr0".into()));
    assert_eq!(config.lifetimes.stateless, minutes(3));
    assert_eq!(config.conntrack.udp, Some(45));
    assert_eq!(log.format, LogFormat::Json);
    for name in
        ["mode", "ipvs.scheduler", "winkernel.enableDSR", "featureGates.NFTablesProxyMode", "clientConnection.qps"]
    {
        assert!(
            warnings.iter().any(|warning| warning.starts_with("without effect, for") && warning.contains(name)),
            "{name}: {warnings:?}"
        );
    }
    assert_eq!(kube_proxy.healthz_bind_address.as_deref(), Some("192.0.2.7:10256"));
    assert_eq!(kube_proxy.mode.as_deref(), Some("nftables"));
}

#[test]
fn masquerade_all_is_that_of_the_mode() {
    for (text, expected) in [
        ("iptables: {masqueradeAll: true}", true),
        ("mode: ipvs\niptables: {masqueradeAll: true}", true),
        ("mode: nftables\niptables: {masqueradeAll: true}", false),
        ("mode: nftables\nnftables: {masqueradeAll: true}", true),
        ("nftables: {masqueradeAll: true}", false),
    ] {
        assert_eq!(from_file(&[], text).expect("valid").config.masquerade_all, expected, "{text}");
    }
}

#[test]
fn what_makes_no_sense_is_named_where_it_was_written() {
    for (arguments, parts) in [
        (&["--nodeport-addresses", "primary,10.0.0.0/8"][..], &["--nodeport-addresses", "primary", "alone"][..]),
        (&["--nodeport-addresses", "10.0.0.1"], &["--nodeport-addresses", "10.0.0.1", "CIDR"]),
        (
            &["--detect-local-mode", "BridgeInterface"],
            &["--detect-local-mode BridgeInterface", "--pod-bridge-interface"],
        ),
        (
            &["--detect-local-mode", "InterfaceNamePrefix"],
            &["--detect-local-mode InterfaceNamePrefix", "--pod-interface-name-prefix"],
        ),
        (&["--snat-ports", "32000-40000"], &["--snat-ports 32000-40000", "--node-port-range 30000-32767", "overlap"]),
    ] {
        let error = assemble(&flags(arguments), None).expect_err("no sense").to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{arguments:?}: {error}");
    }
    for (text, parts) in [
        ("clusterCIDR: 10.244.0.0/33", &["clusterCIDR 10.244.0.0/33", "at most 32"][..]),
        ("clusterCIDR: 10.0.0.0/8,10.1.0.0/16", &["clusterCIDR", "overlap"]),
        ("nodePortAddresses: [primary, primary]", &["nodePortAddresses", "primary"]),
        ("healthzBindAddress: here", &["healthzBindAddress", "here", "socket address"]),
        ("metricsBindAddress: '1:2:3'", &["metricsBindAddress", "1:2:3"]),
        ("bindAddress: node-a", &["bindAddress", "node-a"]),
        ("detectLocalMode: Magic", &["detectLocalMode", "Magic", "ClusterCIDR, NodeCIDR"]),
        ("detectLocalMode: BridgeInterface", &["detectLocalMode BridgeInterface", "detectLocal.bridgeInterface"]),
        ("oomScoreAdj: 1001", &["oomScoreAdj 1001", "-1000 to 1000"]),
        ("conntrack: {min: -1}", &["conntrack.min -1"]),
    ] {
        let error = from_file(&[], text).expect_err(text).to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
    }
    for arguments in [
        &["--snat-ports", "0-7"][..],
        &["--oom-score-adj", "2000"],
        &["--conntrack-min=-1"],
        &["--timeout-udp=-1s"],
        &["--timeout-udp", "5"],
        &["--node-ip", "192.0.2.1,192.0.2.2"],
        &["--socket-lb", "pods"],
        &["--detect-local-mode", "clustercidr"],
        &["--bind-address", "node-a"],
        &["--feature-gates", "X"],
    ] {
        let all = std::iter::once("run").chain(arguments.iter().copied());
        let error = Command::try_parse_from(all).expect_err("no sense").to_string();
        let mut parts = arguments.iter().flat_map(|argument| argument.split('='));
        assert!(parts.all(|part| error.contains(part)), "{error}");
    }
}

#[test]
fn the_families_of_the_host_are_looked_at() {
    let both = IpFamily::ALL;
    let (v4, v6) = ([IpFamily::V4], [IpFamily::V6]);
    let check = |arguments: &[&str], host: &[IpFamily]| {
        check_families(&from_flags(arguments).config, host).map_err(|error| error.to_string())
    };
    // kube-proxy is ended by the same.
    let error = check(&["--cluster-cidr", "fd00::/56"], &v4).expect_err("no pod would be known");
    assert!(error.contains("--cluster-cidr fd00::/56 has no CIDR of IPv4"), "{error}");
    check(&["--cluster-cidr", "10.0.0.0/8"], &v6).expect_err("no pod would be known");
    for (arguments, host, warned) in [
        (&["--cluster-cidr", "10.0.0.0/8"][..], &both[..], Some("no CIDR of IPv6")),
        (&["--cluster-cidr", "10.0.0.0/8,fd00::/56"], &both, None),
        (&["--cluster-cidr", "10.0.0.0/8,fd00::/56"], &v4, None),
        (&["--cluster-cidr", "fd00::/56", "--detect-local-mode", "NodeCIDR"], &v4, None),
        (&["--nodeport-addresses", "10.0.0.0/8"], &both, Some("no CIDR of IPv6")),
        (&["--nodeport-addresses", "10.0.0.0/8"], &v4, None),
        (&["--nodeport-addresses", "fd00::/8"], &v4, Some("no CIDR of IPv4")),
        (&["--healthz-bind-address", "[fd00::1]:7"], &v4, Some("--healthz-bind-address [fd00::1]:7")),
        (&["--metrics-bind-address", "127.0.0.1:7"], &v6, Some("--metrics-bind-address 127.0.0.1:7")),
        (&["--healthz-bind-address", "[::]:7"], &v4, None),
    ] {
        let warnings = check(arguments, host).expect("no error");
        match warned {
            Some(part) => {
                assert!(matches!(warnings.as_slice(), [only] if only.contains(part)), "{arguments:?}: {warnings:?}");
            }
            None => assert_eq!(warnings, Vec::<String>::new(), "{arguments:?}"),
        }
    }
}

#[test]
fn what_the_log_tells_makes_the_same_configuration() {
    for arguments in [
        &[][..],
        &["--manifests", "d", "--hostname-override", "n", "--node-ip", "192.0.2.1,2001:db8::1", "--max-slots", "7"],
        &["--kubeconfig", "/k", "--master", "https://192.0.2.1", "--metrics-bind-address=", "--masquerade-all"],
        &[
            "--nodeport-addresses",
            "10.0.0.0/8,fd00::/8",
            "--detect-local-mode=BridgeInterface",
            "--pod-bridge-interface=b",
        ],
        &[
            "--cluster-cidr",
            "10.0.0.0/8",
            "--nodeport-addresses=primary",
            "--cgroup=/c",
            "--oom-score-adj=0",
            "--timeout-udp=90s",
        ],
        &[
            "--node-devices=a,b",
            "--pod-interfaces=veth*",
            "--socket-lb=all",
            "--non-masquerade-cidrs=10.0.0.0/8",
            "--conntrack-udp-timeout=4m",
        ],
        &[
            "--feature-gates=AllowServiceExternalIPs=false",
            "--tcp-gone-backend=reset",
            "--reserve-ports=false",
            "--masquerade-egress",
        ],
    ] {
        let Assembled { config, .. } = from_flags(arguments);
        let told = config.to_string();
        let again = from_flags(&told.split(' ').collect::<Vec<_>>()).config;
        assert_eq!(again, config, "{told}");
    }
}
