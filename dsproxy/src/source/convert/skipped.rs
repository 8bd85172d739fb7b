//! The parts of objects that can be left out one by one.
//!
//! It does not know how they are found.

use thiserror::Error;

use super::AddressProblem;

/// A part of an object that was left out while the rest is used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Skipped {
    /// A slice's port without a number means "all ports", which no proxy can serve.
    #[error("port {name:?} has no number")]
    NoPortNumber {
        /// The port's name.
        name: String,
    },
    /// A port number out of range.
    #[error("port {port} is not between 1 and 65535")]
    Port {
        /// As it stands in the object.
        port: i32,
    },
    /// A protocol that Kubernetes does not have.
    #[error("port {port}: protocol {protocol:?} is unknown")]
    Protocol {
        /// The port.
        port: i32,
        /// As it stands in the object.
        protocol: String,
    },
    /// A second port with one name and protocol: which is meant cannot be told.
    #[error("port {port}: another port has its name {name:?} and protocol")]
    DuplicatePort {
        /// The port.
        port: u16,
        /// The name.
        name: String,
    },
    /// An endpoint without any address.
    #[error("endpoint {index} has no address")]
    NoAddress {
        /// Its place in the slice.
        index: usize,
    },
    /// An endpoint with an address that cannot be one.
    #[error("endpoint address {address:?} {problem}")]
    Address {
        /// As it stands in the object.
        address: String,
        /// What is wrong with it.
        problem: AddressProblem,
    },
    /// An address of a Service beside its ClusterIPs, or of a Node, that cannot be one.
    #[error("{field} {address:?} {problem}")]
    FurtherAddress {
        /// The field that it stands in.
        field: &'static str,
        /// As it stands in the object.
        address: String,
        /// What is wrong with it.
        problem: AddressProblem,
    },
    /// A number that cannot be a NodePort.
    #[error("nodePort {node_port} of port {port} is not between 1 and 65535")]
    NodePort {
        /// The port.
        port: u16,
        /// As it stands in the object.
        node_port: i32,
    },
    /// A number that cannot be a port for health checks.
    #[error("healthCheckNodePort {0} is not between 1 and 65535")]
    HealthCheckNodePort(i32),
    /// Something that is no network.
    #[error("{field} {cidr:?} is not a network in CIDR notation")]
    Cidr {
        /// The field that it stands in.
        field: &'static str,
        /// As it stands in the object.
        cidr: String,
    },
    /// A word that the field does not have.
    #[error("{field} {value:?} is unknown, so it counts as {instead}")]
    Word {
        /// The field that it stands in.
        field: &'static str,
        /// As it stands in the object.
        value: String,
        /// What is taken in its place.
        instead: &'static str,
    },
    /// A time for session affinity out of range.
    #[error("sessionAffinityConfig.clientIP.timeoutSeconds {0} is not between 1 and 86400, so the default counts")]
    AffinityTimeout(i32),
}

impl Skipped {
    /// Whether the object is wrong, rather than this proxy limited.
    pub fn is_nonsense(&self) -> bool {
        match self {
            Self::NoPortNumber { .. } => false,
            Self::Port { .. }
            | Self::Protocol { .. }
            | Self::DuplicatePort { .. }
            | Self::NoAddress { .. }
            | Self::Address { .. }
            | Self::FurtherAddress { .. }
            | Self::NodePort { .. }
            | Self::HealthCheckNodePort(_)
            | Self::Cidr { .. }
            | Self::Word { .. }
            | Self::AffinityTimeout(_) => true,
        }
    }
}
