//! How a value is called where it was written: by its flag, or by its field of the file.

use super::Config;

/// How the places of a value are called: by flag or by field.
pub(super) struct Places {
    pub(super) cluster_cidr: &'static str,
    pub(super) node_port_addresses: &'static str,
    pub(super) healthz: &'static str,
    pub(super) metrics: &'static str,
    pub(super) bind_address: &'static str,
    pub(super) detection: &'static str,
    pub(super) bridge: &'static str,
    pub(super) prefix: &'static str,
    pub(super) oom_score_adj: &'static str,
    pub(super) max_per_core: &'static str,
    pub(super) min: &'static str,
}

pub(super) const FLAGS: Places = Places {
    cluster_cidr: "--cluster-cidr",
    node_port_addresses: "--nodeport-addresses",
    healthz: "--healthz-bind-address",
    metrics: "--metrics-bind-address",
    bind_address: "--bind-address",
    detection: "--detect-local-mode",
    bridge: "--pod-bridge-interface",
    prefix: "--pod-interface-name-prefix",
    oom_score_adj: "--oom-score-adj",
    max_per_core: "--conntrack-max-per-core",
    min: "--conntrack-min",
};

pub(super) const FIELDS: Places = Places {
    cluster_cidr: "clusterCIDR",
    node_port_addresses: "nodePortAddresses",
    healthz: "healthzBindAddress",
    metrics: "metricsBindAddress",
    bind_address: "bindAddress",
    detection: "detectLocalMode",
    bridge: "detectLocal.bridgeInterface",
    prefix: "detectLocal.interfaceNamePrefix",
    oom_score_adj: "oomScoreAdj",
    max_per_core: "conntrack.maxPerCore",
    min: "conntrack.min",
};

impl Places {
    /// As `config` was told.
    pub(super) fn of(config: &Config) -> &'static Self {
        if config.file.is_some() { &FIELDS } else { &FLAGS }
    }
}
