//! dsproxy: a dual-stack kube-proxy replacement with an eBPF data path.
//!
//! Data flows one way, and the tree shows it: `source` -> `model` -> `resolve` -> `diff` -> `maps`.

pub mod allocator;
pub mod app;
pub mod attachments;
pub mod boot_clock;
pub mod capabilities;
pub mod claims;
pub mod cli;
pub mod cluster;
pub mod cluster_cidr;
pub mod complaint;
pub mod config;
pub mod daemon_word;
pub mod datapath;
pub mod diff;
pub mod drop_log;
mod end;
mod few;
pub mod full_log;
#[cfg(test)]
mod garbled;
pub mod health;
mod hooks;
pub mod host_settings;
pub mod http;
pub mod inspect;
pub mod interfaces;
pub mod jiffies;
pub mod leftovers;
pub mod local_node;
pub mod log_level;
pub mod maglev;
pub mod maps;
pub mod masquerade;
pub mod metrics;
pub mod model;
mod netlink;
pub mod networks;
#[cfg(feature = "packet-log")]
mod packet_log;
pub mod progress;
pub mod reconcile;
pub mod resolve;
pub mod routing;
pub mod sockets;
pub mod source;
pub mod start_event;
mod succession;
pub mod sync_times;
