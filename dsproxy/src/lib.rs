//! dsproxy: a dual-stack kube-proxy replacement with an eBPF data path.
//!
//! Data flows one way, and the tree shows it: `source` -> `model` -> `resolve` -> `diff` -> `maps`.

pub mod cluster;
pub mod datapath;
pub mod diff;
pub mod interfaces;
pub mod maglev;
pub mod maps;
pub mod model;
mod netlink;
pub mod progress;
pub mod reconcile;
pub mod resolve;
pub mod source;
