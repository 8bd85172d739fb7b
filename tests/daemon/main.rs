//! The daemon as a whole, against an API server, with real traffic: outages, bad input, full maps. Needs root, and the
//! daemon's binary; `cargo xtask test` sees to both.

mod churn;
mod configuration;
mod control_plane;
mod floods;
mod full_maps;
mod health;
mod kernel_without;
mod kube_proxy_metrics;
mod layout;
mod leftovers;
mod outages;
mod process;
mod rbac;
mod refusals;
mod serve;
mod traffic_metrics;
mod trouble;
mod two_daemons;

// The small cluster of pods, which the tests of traffic start from as well.
#[allow(dead_code, reason = "what the tests of traffic alone need of it")]
#[path = "../lab/cluster.rs"]
mod cluster;
