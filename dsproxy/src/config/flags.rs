//! The flags of `dsproxy run`: kube-proxy's, and those that only dsproxy has.
//!
//! What `--config` can say as well is absent unless it is given; dsproxy's own flags have their defaults here.

use std::path::PathBuf;

use clap::{Args, ValueEnum, builder::BoolishValueParser};
use dsproxy_common::layout::capacity;
use ipnet::IpNet;

use super::{
    duration::GoDuration,
    kube_proxy_flags::KubeProxyFlags,
    values::{self, GoneBackend, LbMode, NodeIps, PortRange, SocketLb, Xdp},
};
use crate::{
    datapath::{attach::AttachMode, bpffs},
    log_level,
    maps::Capacities,
};

/// Five series each, so five thousand for each node.
const METRICS_SERVICES: usize = 1000;

/// What `dsproxy run` is told.
#[derive(Clone, Debug, Args)]
pub struct RunFlags {
    /// Take Services and EndpointSlices from the manifests in this directory, with no cluster at all
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,

    /// kube-proxy's configuration file, in place of kube-proxy's flags; the daemon ends when it changes
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Write the configuration, defaults included, in the form of kube-proxy's file, and exit
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,

    /// Set the host's sysctls as a run with these flags would, mount the bpffs if it is not, and exit
    #[arg(long, value_name = "BOOL", value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub init_only: bool,

    /// Remove everything of dsproxy's and of kube-proxy's from the kernel, as `dsproxy cleanup --kube-proxy` does, and exit
    #[arg(long, value_name = "BOOL", value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub cleanup: bool,

    /// kube-proxy's flags.
    #[command(flatten)]
    pub kube_proxy: KubeProxyFlags,

    /// dsproxy's own flags.
    #[command(flatten)]
    pub own: OwnFlags,

    /// How much is logged, and how.
    #[command(flatten)]
    pub log: LogFlags,
}

/// The flags that only dsproxy has; they count beside `--config` as well.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "As only dsproxy has them")]
pub struct OwnFlags {
    /// The devices towards other nodes and the world, instead of those that are found
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub node_devices: Vec<String>,

    /// The host sides of pods' interfaces, instead of those that are found
    #[arg(long, value_name = "GLOB,...", value_delimiter = ',')]
    pub pod_interfaces: Vec<String>,

    /// The node's addresses, instead of those in the Node object
    #[arg(long, value_name = "V4[,V6]")]
    pub node_ip: Option<NodeIps>,

    /// How programs are attached: tcx where the kernel has it, or as told
    #[arg(long, value_name = "MODE", default_value = "auto")]
    pub attach: AttachMode,

    /// Where the device's driver sends packets on between clients outside and backends on other nodes, by XDP
    #[arg(long, value_name = "WHERE", default_value = "auto")]
    pub xdp: Xdp,

    /// Whose sockets are led to endpoints when they connect: the host's own, those of pods as well, or nobody's
    #[arg(long, value_name = "WHOSE", default_value = "host")]
    pub socket_lb: SocketLb,

    /// The cgroup below which sockets are, instead of the root of the cgroup v2 file system, which is found
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,

    /// The ports that masqueraded packets leave with
    #[arg(long, value_name = "FIRST-LAST", default_value_t = PortRange { first: 49152, last: 65535 })]
    pub snat_ports: PortRange,

    /// The ports that NodePorts are of, as the API server gives them out
    #[arg(long, value_name = "FIRST-LAST", default_value_t = PortRange { first: 30000, last: 32767 })]
    pub node_port_range: PortRange,

    /// Keep the host from giving the ports of --snat-ports and --node-port-range to its own sockets
    /// (net.ipv4.ip_local_reserved_ports)
    #[arg(long, value_name = "BOOL", value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub reserve_ports: bool,

    /// Send what goes through a Service from pods to pods of this node past the host's stack, and with it past netfilter
    #[arg(long, value_name = "BOOL", value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub pod_shortcut: bool,

    /// How answers come back to clients outside from endpoints on other nodes: through this node, whose address the endpoints
    /// see (snat), or directly, and the endpoints see the client's (dsr); hybrid is dsr for TCP and snat for UDP
    #[arg(long, value_name = "MODE", default_value = "snat")]
    pub lb_mode: LbMode,

    /// Let endpoints on this node answer directly the clients whose packets other nodes send on [default: unless --lb-mode is
    /// snat]
    #[arg(long, value_name = "BOOL", value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true, default_missing_value = "true", action = clap::ArgAction::Set)]
    pub accept_direct: Option<bool>,

    /// Masquerade what pods send out of the cluster
    #[arg(long, value_name = "BOOL", value_parser = BoolishValueParser::new(), num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", action = clap::ArgAction::Set)]
    pub masquerade_egress: bool,

    /// Where pods' packets go without being masqueraded by --masquerade-egress, beside the cluster's own addresses
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',', value_parser = values::cidr)]
    pub non_masquerade_cidrs: Vec<IpNet>,

    /// What becomes of established TCP whose backend has gone from its Service
    #[arg(long, value_name = "WHAT", default_value = "continue")]
    pub tcp_gone_backend: GoneBackend,

    /// How many service ports have metrics of their own, those that were there first; the others are summed as the service "other"
    #[arg(long, value_name = "N", default_value_t = METRICS_SERVICES)]
    pub metrics_services: usize,

    /// Where pins are.
    #[command(flatten)]
    pub bpffs: BpffsFlag,

    /// How long connections count without a packet.
    #[command(flatten)]
    pub timeouts: TimeoutFlags,

    /// How large the maps are made.
    #[command(flatten)]
    pub sizes: SizeFlags,
}

/// How long connections count without a packet.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "How long connections count without a packet")]
pub struct TimeoutFlags {
    /// TCP that opens [default: 2m]
    #[arg(long, value_name = "DURATION")]
    pub timeout_tcp_opening: Option<GoDuration>,
    /// Established TCP [default: 24h]
    #[arg(long, value_name = "DURATION")]
    pub timeout_tcp_established: Option<GoDuration>,
    /// TCP of which one side has sent its FIN [default: 1h]
    #[arg(long, value_name = "DURATION")]
    pub timeout_tcp_half_closed: Option<GoDuration>,
    /// TCP of which both sides have [default: 2m]
    #[arg(long, value_name = "DURATION")]
    pub timeout_tcp_closing: Option<GoDuration>,
    /// TCP after a RST [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub timeout_tcp_reset: Option<GoDuration>,
    /// UDP and everything else [default: 2m]
    #[arg(long, value_name = "DURATION")]
    pub timeout_udp: Option<GoDuration>,
}

/// Where pins are.
#[derive(Clone, Debug, Args)]
pub struct BpffsFlag {
    /// The BPF file system for pinned maps and links; mounted there if it is not
    #[arg(long = "bpffs", value_name = "DIR", env = "DSPROXY_BPFFS", default_value = bpffs::DEFAULT_DIRECTORY)]
    pub directory: PathBuf,
}

/// How large the maps are made. Maps that are there keep their size.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "How large the maps are made")]
pub struct SizeFlags {
    /// Service ports
    #[arg(long, value_name = "N", default_value_t = Capacities::default().services, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_services: u32,
    /// Frontends of each family: an address, port and protocol each
    #[arg(long, value_name = "N", default_value_t = Capacities::default().frontends, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_frontends: u32,
    /// Backends of each family: an endpoint of a service port each
    #[arg(long, value_name = "N", default_value_t = Capacities::default().backends, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_backends: u32,
    /// Slots of each family: one a backend, or a hundred or more in a Maglev table
    #[arg(long, value_name = "N", default_value_t = Capacities::default().slots, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_slots: u32,
    /// Confirmed TCP connections of each family; when the table is full, the least recently used gives way
    #[arg(long, value_name = "N", default_value_t = Capacities::default().connections, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: u32,
    /// Connections of each family that are opening or not TCP
    #[arg(long, value_name = "N", default_value_t = Capacities::default().brief_connections, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_brief_connections: u32,
    /// Clients of each family that are remembered for session affinity
    #[arg(long, value_name = "N", default_value_t = Capacities::default().affinities, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_affinities: u32,
    /// Flows of each family that each CPU remembers for XDP, rounded down to a power of two
    #[arg(long, value_name = "N", default_value_t = capacity::CACHED_FLOWS, value_parser = clap::value_parser!(u32).range(2..))]
    pub max_cached_flows: u32,
    /// Source ranges of load balancers of each family
    #[arg(long, value_name = "N", default_value_t = Capacities::default().source_ranges, value_parser = clap::value_parser!(u32).range(1..))]
    pub max_source_ranges: u32,
}

impl SizeFlags {
    /// The sizes.
    pub fn capacities(&self) -> Capacities {
        Capacities {
            services: self.max_services,
            frontends: self.max_frontends,
            backends: self.max_backends,
            slots: self.max_slots,
            connections: self.max_connections,
            brief_connections: self.max_brief_connections,
            affinities: self.max_affinities,
            source_ranges: self.max_source_ranges,
        }
    }
}

/// How much is logged, and how.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Log")]
pub struct LogFlags {
    /// The form of the log on standard error [default: text]
    #[arg(long, value_name = "FORM")]
    pub log_format: Option<LogFormat>,

    /// What is logged: error, warn, info, debug, trace, or a list of targets and levels [default: info]
    #[arg(long, value_name = "FILTER", value_parser = log_level::parse)]
    pub log_level: Option<String>,

    /// How often drops are logged, if there were any, with their number and what to do about them, and what has no room; 0 is never
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub log_drops_every: u64,
}

/// The form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}
