//! kube-proxy's own flags (`cmd/kube-proxy/app/options.go`), all of them, and what they say in the terms of its file.
//!
//! What is not given is absent, so that defaults are in one place.

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf};

use clap::{Args, builder::BoolishValueParser};
use serde_json::{Map, Value};

use super::{
    duration::GoDuration,
    kube_proxy::{
        API_VERSION, ClientConnection, Conntrack, DetectLocal, IpTables, Ipvs, KIND, KubeProxyConfiguration, NfTables,
    },
    values::{self, LocalDetection},
};
use crate::cluster_cidr::ClusterCidrs;

/// The port of `/healthz` and `/livez`.
pub const HEALTHZ_PORT: u16 = 10256;

/// The port of `/metrics`.
pub const METRICS_PORT: u16 = 10249;

/// kube-proxy's flags. `without_effect.rs` says which are obeyed.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "As kube-proxy has them")]
pub struct KubeProxyFlags {
    /// Reach the API server as this kubeconfig says; without it, as a pod does
    #[arg(long, value_name = "FILE", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,

    /// The URL of the API server, in place of what the kubeconfig or the pod's environment says
    #[arg(long, value_name = "URL", conflicts_with = "manifests")]
    pub master: Option<String>,

    /// The name of this node's Node object, when it is not the host's name in lower case; also beside --config
    #[arg(long, value_name = "NAME")]
    pub hostname_override: Option<String>,

    /// The addresses of the cluster's pods: one CIDR, or one of each family
    #[arg(long, value_name = "V4[,V6]", value_parser = ClusterCidrs::parse)]
    pub cluster_cidr: Option<ClusterCidrs>,

    /// How traffic of this node's pods is known: ClusterCIDR [default], NodeCIDR, BridgeInterface or InterfaceNamePrefix
    #[arg(long, value_name = "MODE", value_parser = LocalDetection::MODES)]
    pub detect_local_mode: Option<String>,

    /// The bridge that pods are on, for --detect-local-mode BridgeInterface
    #[arg(long, value_name = "NAME")]
    pub pod_bridge_interface: Option<String>,

    /// What names of pods' interfaces begin with, for --detect-local-mode InterfaceNamePrefix
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,

    /// Masquerade everything sent to ClusterIPs
    #[arg(long, value_name = "BOOL", value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub masquerade_all: Option<bool>,

    /// The node addresses that serve NodePorts: CIDRs (a family without one: all its addresses), or primary; else all
    #[arg(long, value_name = "CIDR,...|primary", value_delimiter = ',')]
    pub nodeport_addresses: Vec<String>,

    /// The node's primary address, in place of the Node object's; nothing listens there. 0.0.0.0 and :: say the family alone
    #[arg(long, value_name = "IP")]
    pub bind_address: Option<IpAddr>,

    /// Where /healthz and /livez are served [default: [::]:10256, all addresses of both families]; empty: nowhere
    #[arg(long, value_name = "HOST:PORT", value_parser = healthz_address)]
    pub healthz_bind_address: Option<String>,

    /// Where /metrics is served [default: 127.0.0.1:10249]; empty: nowhere
    #[arg(long, value_name = "HOST:PORT", value_parser = metrics_address)]
    pub metrics_bind_address: Option<String>,

    /// End when an address cannot be listened at, instead of trying again
    #[arg(long, value_name = "BOOL", value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub bind_address_hard_fail: Option<bool>,

    /// How unlikely the kernel is to end this process for want of memory, -1000 to 1000 [default: -999]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i32).range(-1000..=1000))]
    pub oom_score_adj: Option<i32>,

    /// Room in the kernel's own connection table for each CPU [default: 32768]; 0: as it is
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub conntrack_max_per_core: Option<i32>,

    /// Room in the kernel's own connection table at least [default: 131072]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub conntrack_min: Option<i32>,

    /// As --timeout-tcp-established, and for the kernel's own connection table; 0: as it is
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_established: Option<GoDuration>,

    /// As --timeout-tcp-half-closed, and for the kernel's own connection table; 0: as it is
    #[arg(long, value_name = "DURATION")]
    pub conntrack_tcp_timeout_close_wait: Option<GoDuration>,

    /// Whether the kernel's own connection table accepts TCP out of the window
    #[arg(long, value_name = "BOOL", value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub conntrack_tcp_be_liberal: Option<bool>,

    /// As --timeout-udp if that is longer, and for the kernel's own connection table; 0: as it is
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout: Option<GoDuration>,

    /// As --timeout-udp, and for the kernel's own connection table; 0: as it is
    #[arg(long, value_name = "DURATION")]
    pub conntrack_udp_timeout_stream: Option<GoDuration>,

    /// Features on or off; AllowServiceExternalIPs=false turns externalIPs off
    #[arg(long, value_name = "NAME=BOOL,...", value_delimiter = ',', value_parser = feature_gate)]
    pub feature_gates: Vec<(String, bool)>,

    /// Without effect
    #[arg(long, value_name = "MODE", hide = true)]
    pub proxy_mode: Option<String>,
    /// Without effect
    #[arg(long, value_name = "BIT", hide = true)]
    pub iptables_masquerade_bit: Option<i32>,
    /// Without effect
    #[arg(long, value_name = "BOOL", value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub iptables_localhost_nodeports: Option<bool>,
    /// Without effect
    #[arg(long, value_name = "DURATION", hide = true)]
    pub iptables_sync_period: Option<GoDuration>,
    /// Without effect
    #[arg(long, value_name = "DURATION", hide = true)]
    pub iptables_min_sync_period: Option<GoDuration>,
    /// Without effect
    #[arg(long, value_name = "DURATION", hide = true)]
    pub ipvs_sync_period: Option<GoDuration>,
    /// Without effect
    #[arg(long, value_name = "DURATION", hide = true)]
    pub ipvs_min_sync_period: Option<GoDuration>,
    /// Without effect
    #[arg(long, value_name = "NAME", hide = true)]
    pub ipvs_scheduler: Option<String>,
    /// Without effect
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', hide = true)]
    pub ipvs_exclude_cidrs: Vec<String>,
    /// Without effect
    #[arg(long, value_name = "BOOL", value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub ipvs_strict_arp: Option<bool>,
    /// Without effect
    #[arg(long, value_name = "DURATION", hide = true)]
    pub ipvs_tcp_timeout: Option<GoDuration>,
    /// Without effect
    #[arg(long, value_name = "DURATION", hide = true)]
    pub ipvs_tcpfin_timeout: Option<GoDuration>,
    /// Without effect
    #[arg(long, value_name = "DURATION", hide = true)]
    pub ipvs_udp_timeout: Option<GoDuration>,
    /// Without effect
    #[arg(long, value_name = "BOOL", value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub profiling: Option<bool>,
    /// Without effect
    #[arg(long, value_name = "VERSION", hide = true)]
    pub show_hidden_metrics_for_version: Option<String>,
    /// Without effect
    #[arg(long, value_name = "TYPE", hide = true)]
    pub kube_api_content_type: Option<String>,
    /// Without effect
    #[arg(long, value_name = "N", hide = true)]
    pub kube_api_qps: Option<f32>,
    /// Without effect
    #[arg(long, value_name = "N", hide = true)]
    pub kube_api_burst: Option<i32>,
    /// Without effect
    #[arg(long, value_name = "DURATION", hide = true)]
    pub config_sync_period: Option<GoDuration>,
    /// The port of --healthz-bind-address, 0: nowhere
    #[arg(long, value_name = "PORT", hide = true)]
    pub healthz_port: Option<u16>,
    /// The port of --metrics-bind-address, 0: nowhere
    #[arg(long, value_name = "PORT", hide = true)]
    pub metrics_port: Option<u16>,

    /// kube-proxy's flags for its log.
    #[command(flatten)]
    pub log: KubeProxyLogFlags,
}

/// kube-proxy's flags for its log (`k8s.io/component-base/logs`). They count beside `--config` as well.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "As kube-proxy has them")]
pub struct KubeProxyLogFlags {
    /// How much is logged, when --log-level does not say it: debug from 4 on, trace from 6 on
    #[arg(short, long = "v", value_name = "N")]
    pub verbosity: Option<u32>,
    /// The form of the log, when --log-format does not say it: text or json
    #[arg(long, value_name = "FORM", value_parser = ["text", "json"])]
    pub logging_format: Option<String>,
    /// Without effect
    #[arg(long, value_name = "FILTER", hide = true)]
    pub vmodule: Option<String>,
    /// Without effect
    #[arg(long, value_name = "DURATION", hide = true)]
    pub log_flush_frequency: Option<GoDuration>,
    /// Without effect
    #[arg(long, value_name = "SIZE", hide = true)]
    pub log_json_info_buffer_size: Option<String>,
    /// Without effect
    #[arg(long, value_name = "BOOL", value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub log_json_split_stream: Option<bool>,
    /// Without effect
    #[arg(long, value_name = "SIZE", hide = true)]
    pub log_text_info_buffer_size: Option<String>,
    /// Without effect
    #[arg(long, value_name = "BOOL", value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true, default_missing_value = "true", hide = true)]
    pub log_text_split_stream: Option<bool>,
}

impl KubeProxyFlags {
    /// The flags in the terms of the file. kube-proxy keeps `--masquerade-all` in the section of its mode, and so does this.
    pub fn configuration(&self) -> KubeProxyConfiguration {
        let Self {
            kubeconfig,
            // Of the API client alone: the file has no such field.
            master: _,
            hostname_override,
            cluster_cidr,
            detect_local_mode,
            pod_bridge_interface,
            pod_interface_name_prefix,
            masquerade_all,
            nodeport_addresses,
            bind_address,
            healthz_bind_address,
            metrics_bind_address,
            bind_address_hard_fail,
            oom_score_adj,
            conntrack_max_per_core,
            conntrack_min,
            conntrack_tcp_timeout_established,
            conntrack_tcp_timeout_close_wait,
            conntrack_tcp_be_liberal,
            conntrack_udp_timeout,
            conntrack_udp_timeout_stream,
            feature_gates,
            proxy_mode,
            iptables_masquerade_bit,
            iptables_localhost_nodeports,
            iptables_sync_period,
            iptables_min_sync_period,
            ipvs_sync_period,
            ipvs_min_sync_period,
            ipvs_scheduler,
            ipvs_exclude_cidrs,
            ipvs_strict_arp,
            ipvs_tcp_timeout,
            ipvs_tcpfin_timeout,
            ipvs_udp_timeout,
            profiling,
            show_hidden_metrics_for_version,
            kube_api_content_type,
            kube_api_qps,
            kube_api_burst,
            config_sync_period,
            healthz_port,
            metrics_port,
            log,
        } = self;
        let in_nftables_mode = proxy_mode.as_deref() == Some("nftables");
        KubeProxyConfiguration {
            api_version: Some(API_VERSION.to_owned()),
            kind: Some(KIND.to_owned()),
            feature_gates: some(feature_gates.iter().cloned().collect::<BTreeMap<_, _>>(), BTreeMap::is_empty),
            client_connection: section(ClientConnection {
                kubeconfig: kubeconfig.as_ref().map(|path| path.display().to_string()),
                accept_content_types: None,
                content_type: kube_api_content_type.clone(),
                qps: *kube_api_qps,
                burst: *kube_api_burst,
            }),
            logging: log.section(),
            hostname_override: hostname_override.clone(),
            bind_address: bind_address.map(|address| address.to_string()),
            healthz_bind_address: with_port(healthz_bind_address.as_deref(), *healthz_port, "::"),
            metrics_bind_address: with_port(metrics_bind_address.as_deref(), *metrics_port, "127.0.0.1"),
            bind_address_hard_fail: *bind_address_hard_fail,
            enable_profiling: *profiling,
            show_hidden_metrics_for_version: show_hidden_metrics_for_version.clone(),
            mode: proxy_mode.clone(),
            iptables: section(IpTables {
                masquerade_bit: *iptables_masquerade_bit,
                masquerade_all: masquerade_all.filter(|_| !in_nftables_mode),
                localhost_node_ports: *iptables_localhost_nodeports,
                sync_period: *iptables_sync_period,
                min_sync_period: *iptables_min_sync_period,
            }),
            ipvs: section(Ipvs {
                sync_period: *ipvs_sync_period,
                min_sync_period: *ipvs_min_sync_period,
                scheduler: ipvs_scheduler.clone(),
                exclude_cidrs: some(ipvs_exclude_cidrs.clone(), Vec::is_empty),
                strict_arp: *ipvs_strict_arp,
                tcp_timeout: *ipvs_tcp_timeout,
                tcp_fin_timeout: *ipvs_tcpfin_timeout,
                udp_timeout: *ipvs_udp_timeout,
            }),
            nftables: section(NfTables {
                masquerade_all: masquerade_all.filter(|_| in_nftables_mode),
                ..NfTables::default()
            }),
            winkernel: None,
            detect_local_mode: detect_local_mode.clone(),
            detect_local: section(DetectLocal {
                bridge_interface: pod_bridge_interface.clone(),
                interface_name_prefix: pod_interface_name_prefix.clone(),
            }),
            cluster_cidr: cluster_cidr.as_ref().map(ClusterCidrs::to_string),
            node_port_addresses: some(nodeport_addresses.clone(), Vec::is_empty),
            oom_score_adj: *oom_score_adj,
            conntrack: section(Conntrack {
                max_per_core: *conntrack_max_per_core,
                min: *conntrack_min,
                tcp_established_timeout: *conntrack_tcp_timeout_established,
                tcp_close_wait_timeout: *conntrack_tcp_timeout_close_wait,
                tcp_be_liberal: *conntrack_tcp_be_liberal,
                udp_timeout: *conntrack_udp_timeout,
                udp_stream_timeout: *conntrack_udp_timeout_stream,
            }),
            config_sync_period: *config_sync_period,
            port_range: None,
            windows_run_as_service: None,
        }
    }
}

impl KubeProxyLogFlags {
    /// The section `logging` of the file.
    fn section(&self) -> Option<Value> {
        let Self {
            verbosity,
            logging_format,
            vmodule,
            log_flush_frequency,
            log_json_info_buffer_size,
            log_json_split_stream,
            log_text_info_buffer_size,
            log_text_split_stream,
        } = self;
        let form = |size: &Option<String>, split: &Option<bool>| {
            object([("infoBufferSize", size.clone().map(Value::from)), ("splitStream", split.map(Value::from))])
        };
        object([
            ("format", logging_format.clone().map(Value::from)),
            ("verbosity", verbosity.map(Value::from)),
            ("vmodule", vmodule.clone().map(Value::from)),
            ("flushFrequency", log_flush_frequency.map(|frequency| frequency.to_string().into())),
            (
                "options",
                object([
                    ("json", form(log_json_info_buffer_size, log_json_split_stream)),
                    ("text", form(log_text_info_buffer_size, log_text_split_stream)),
                ]),
            ),
        ])
    }
}

fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Option<Value> {
    let fields = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    some(fields.collect::<Map<_, _>>(), Map::is_empty).map(Value::Object)
}

fn some<T>(value: T, is_empty: fn(&T) -> bool) -> Option<T> {
    (!is_empty(&value)).then_some(value)
}

/// A section of which something is said.
fn section<T: Default + PartialEq>(section: T) -> Option<T> {
    (section != T::default()).then_some(section)
}

/// An address with the port of a deprecated flag, which says "nowhere" with 0 and gives way to a port in the address.
fn with_port(address: Option<&str>, port: Option<u16>, default_host: &str) -> Option<String> {
    match port {
        None => address.map(str::to_owned),
        Some(0) => Some(String::new()),
        Some(port) => {
            let listen = values::listen(address.unwrap_or(default_host), port).ok()?;
            Some(listen.map(|address| address.to_string()).unwrap_or_default())
        }
    }
}

fn healthz_address(text: &str) -> Result<String, values::ValueError> {
    values::listen(text, HEALTHZ_PORT).map(|_| text.to_owned())
}

fn metrics_address(text: &str) -> Result<String, values::ValueError> {
    values::listen(text, METRICS_PORT).map(|_| text.to_owned())
}

fn feature_gate(text: &str) -> Result<(String, bool), String> {
    let parsed = text
        .split_once('=')
        .and_then(|(name, value)| Some((name.trim().to_owned(), value.trim().to_ascii_lowercase().parse().ok()?)));
    parsed.ok_or_else(|| format!("{text:?} is no feature gate; write its name, = and true or false"))
}
