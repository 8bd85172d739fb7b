//! kube-proxy-shaped rules: what a node's packets meet under kube-proxy in its modes nftables and iptables, made from a
//! desired state by generators of our own, so that dsproxy can be measured beside them.
//!
//! Measurement tooling, and not kube-proxy: it makes the rules that packets of plain Services pass (ClusterIPs, NodePorts,
//! masquerading, and the checks around them), and none for what the desired state cannot ask for, such as affinity or source
//! ranges. The shapes are those of kube-proxy 1.36 without comments, as it leaves them out itself in large clusters.

mod desired;
mod iptables;
mod load;
mod nftables;

pub use desired::{DesiredState, Port, Service};
pub use load::{RulesError, Shape, WAIT};

/// The bit of a packet's mark that says it is to be masqueraded; kube-proxy's default.
const MASQUERADE_MARK: u32 = 0x4000;
