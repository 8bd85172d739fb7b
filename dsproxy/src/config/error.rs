//! What a configuration can be wrong in.

use thiserror::Error;

use super::{PortRange, values::ValueError};
use crate::{
    cluster_cidr::{CidrError, ClusterCidrs},
    model::IpFamily,
};

/// Why a configuration makes no sense.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Addresses of pods that are none.
    #[error("{place} {value}: {source}")]
    ClusterCidr {
        /// The flag or field.
        place: &'static str,
        /// As written.
        value: String,
        /// What is wrong with it.
        source: CidrError,
    },
    /// Another value.
    #[error("{place}: {source}")]
    Value {
        /// The flag or field.
        place: &'static str,
        /// What is wrong with it.
        source: ValueError,
    },
    /// A number out of bounds.
    #[error("{place} {value}: write a number from {least} to {most}")]
    Number {
        /// The flag or field.
        place: &'static str,
        /// As written.
        value: i64,
        /// The least that makes sense.
        least: i64,
        /// The most that makes sense.
        most: i64,
    },
    /// A way to know pods that lacks what it knows them by.
    #[error("{place} {mode} needs {lacking}")]
    Detection {
        /// The flag or field.
        place: &'static str,
        /// The way.
        mode: &'static str,
        /// The flag or field to write.
        lacking: &'static str,
    },
    /// Masqueraded packets would leave with NodePorts.
    #[error("--snat-ports {snat} and --node-port-range {node_ports} overlap; name ports that are not both")]
    PortsOverlap {
        /// The one.
        snat: PortRange,
        /// The other.
        node_ports: PortRange,
    },
    /// Pods are known by addresses of a family that the host does not have.
    #[error("{place} {cidrs} has no CIDR of {family}, the only family of this host; add one, or choose another {mode}")]
    OtherFamily {
        /// The flag or field.
        place: &'static str,
        /// The addresses.
        cidrs: ClusterCidrs,
        /// The family of the host.
        family: IpFamily,
        /// The flag or field of the way to know pods.
        mode: &'static str,
    },
    /// A value that cannot be held.
    #[error("read the configuration: {0}")]
    Json(#[from] serde_json::Error),
}
