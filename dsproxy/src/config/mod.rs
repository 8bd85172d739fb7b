//! What the daemon is told, by flags or by kube-proxy's file, checked and with its defaults.
//!
//! ```text
//!   kube-proxy's flags --kube_proxy_flags--+
//!                                          +-> KubeProxyConfiguration --+
//!   --config FILE --------------- file ----+                            +-- assemble --> Config, warnings
//!   dsproxy's own flags --------- flags --------------------------------+
//! ```
//!
//! As in kube-proxy the file stands in place of the flags that it could have said, but for `--hostname-override` and the
//! log's; dsproxy's own flags always count. Nothing here looks at the machine, except for what `File::read`, `follow` and
//! [`host::families`] read.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use ipnet::IpNet;

use crate::{
    cluster_cidr::ClusterCidrs,
    datapath::{attach::AttachMode, load::Lifetimes},
    maps::Capacities,
    model::IpFamily,
};

mod assemble;
mod datapath;
mod display;
pub mod duration;
mod effective;
mod error;
mod families;
pub mod file;
pub mod flags;
pub mod follow;
pub mod host;
pub mod kube_proxy;
pub mod kube_proxy_flags;
mod places;
pub mod values;
mod without_effect;

pub use assemble::{Assembled, assemble};
pub use error::ConfigError;
pub use families::check_families;
pub use flags::{LogFormat, RunFlags};
pub use values::{GoneBackend, LbMode, LocalDetection, NodeIps, NodePortAddresses, PortRange, SocketLb, Xdp};
pub(crate) use without_effect::effect;

/// Everything that the daemon goes by. Knobs of kube-proxy mean what they mean there.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where Services and EndpointSlices come from.
    pub source: SourceConfig,
    /// The name of the Node object, in lower case; none: the host's name.
    pub hostname_override: Option<String>,
    /// The addresses of the cluster's pods.
    pub cluster_cidr: Option<ClusterCidrs>,
    /// How traffic of this node's pods is known. Default: by `cluster_cidr`.
    pub local_detection: LocalDetection,
    /// The addresses of this node that serve NodePorts. Default: all.
    pub node_port_addresses: NodePortAddresses,
    /// The ports that NodePorts are of. Default: 30000-32767.
    pub node_port_range: PortRange,
    /// The node's addresses as far as the Node object is not to say them: `--node-ip`, and `--bind-address` before it.
    pub node_ips: NodeIps,
    /// The family of the node's first address, when the Node object is not to say it.
    pub primary_family: Option<IpFamily>,
    /// Whether `externalIPs` of Services are served. Default: true.
    pub external_ips: bool,
    /// Whether everything sent to ClusterIPs is masqueraded. Default: false.
    pub masquerade_all: bool,
    /// How answers come back to clients outside from backends on other nodes. Default: through this node.
    pub lb_mode: LbMode,
    /// Whether backends here may answer directly the clients whose packets other nodes send on. Default: where `lb_mode` says that
    /// those of other nodes may.
    pub accept_direct: bool,
    /// Whether pods' traffic out of the cluster is masqueraded. Default: false.
    pub masquerade_egress: bool,
    /// Where it goes without that, beside the cluster's own addresses.
    pub non_masquerade_cidrs: Vec<IpNet>,
    /// The ports that masqueraded packets leave with. Default: 49152-65535. Never overlaps `node_port_range`.
    pub snat_ports: PortRange,
    /// Whether `snat_ports` and `node_port_range` are kept from the host's own sockets. Default: true.
    pub reserve_ports: bool,
    /// Whether what goes through a VIP from pods to pods of this node passes the host's stack by. Default: no.
    pub pod_shortcut: bool,
    /// Whose sockets are led to endpoints when they connect. Default: the host's.
    pub socket_lb: SocketLb,
    /// The cgroup below which these sockets are; none: the root of the cgroup v2 file system, wherever that is mounted.
    pub cgroup: Option<PathBuf>,
    /// What becomes of established TCP whose backend has gone. Default: it goes on.
    pub tcp_gone_backend: GoneBackend,
    /// How long connections count without a packet.
    pub lifetimes: Lifetimes,
    /// Node devices by name; empty: found.
    pub node_devices: Vec<String>,
    /// Pods' interfaces by glob; empty: found.
    pub pod_interfaces: Vec<String>,
    /// How programs are attached. Default: tcx where the kernel has it.
    pub attach: AttachMode,
    /// Where XDP is used. Default: where it serves without anybody's help.
    pub xdp: Xdp,
    /// Where `/healthz` and `/livez` are served. Default: port 10256 of all addresses. None: nowhere.
    pub healthz_bind_address: Option<SocketAddr>,
    /// Where `/metrics` is served. Default: port 10249 of the loopback address. None: nowhere.
    pub metrics_bind_address: Option<SocketAddr>,
    /// How many service ports have metrics of their own. Default: 1000.
    pub metrics_services: usize,
    /// Whether an address that cannot be listened at ends the daemon. Default: false.
    pub bind_address_hard_fail: bool,
    /// Where pins are.
    pub bpffs: PathBuf,
    /// How large the maps are made, in entries.
    pub capacities: Capacities,
    /// How many flows of each family each CPU remembers for XDP: a power of two.
    pub cached_flows: u32,
    /// What is made of the kernel's own connection table.
    pub conntrack: ConntrackConfig,
    /// The `oom_score_adj` of the process, -1000 to 1000. Default: -999.
    pub oom_score_adj: i32,
    /// kube-proxy's file that was read, which ends the daemon when it changes.
    pub file: Option<PathBuf>,
}

/// Where Services and EndpointSlices come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceConfig {
    /// A directory of manifests.
    Manifests(PathBuf),
    /// An API server.
    Kubernetes {
        /// The kubeconfig; none: as a pod does.
        kubeconfig: Option<PathBuf>,
        /// The server's URL, in place of what is said elsewhere.
        master: Option<String>,
    },
}

impl SourceConfig {
    /// The directory of manifests, if that is the source.
    pub fn manifests(&self) -> Option<&Path> {
        match self {
            Self::Manifests(directory) => Some(directory),
            Self::Kubernetes { .. } => None,
        }
    }
}

/// What is made of the kernel's own connection table, which tracks what no Service has to do with as well. Times in
/// seconds; none: as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConntrackConfig {
    /// Entries for each CPU, 0 to leave their number alone. Default: 32768.
    pub max_per_core: u32,
    /// Entries at least. Default: 131072.
    pub min: u32,
    /// Of established TCP. Default: a day.
    pub tcp_established: Option<u64>,
    /// Of TCP whose other end has closed. Default: an hour.
    pub tcp_close_wait: Option<u64>,
    /// Whether TCP out of the window is accepted. Default: left alone.
    pub tcp_be_liberal: bool,
    /// Of UDP without an answer.
    pub udp: Option<u64>,
    /// Of UDP with an answer.
    pub udp_stream: Option<u64>,
}

/// How much is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The form.
    pub format: LogFormat,
    /// A filter, as `--log-level` has it.
    pub level: String,
}
