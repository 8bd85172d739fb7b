//! Why an object is not served: it is none of our business, or it makes no sense.
//!
//! It does not know how that is found out.

use std::fmt;

use thiserror::Error;

use super::{AddressProblem, HEADLESS_LABEL, Kind, SERVICE_NAME_LABEL, SERVICE_PROXY_NAME_LABEL};
use crate::model::ObjectName;

/// Why a sound object is not for this proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotOurs {
    /// The Service carries the label of another proxy.
    #[error("it carries the label {SERVICE_PROXY_NAME_LABEL}")]
    OtherProxy,
    /// The Service is headless.
    #[error("it is headless (clusterIP: None)")]
    Headless,
    /// The Service is a name in DNS, whatever its clusterIP says.
    #[error("it is of type ExternalName")]
    ExternalName,
    /// The Service has no ClusterIP (yet).
    #[error("it has no ClusterIP")]
    NoClusterIp,
    /// The slice carries the label of headless Services.
    #[error("it carries the label {HEADLESS_LABEL}")]
    HeadlessSlice,
    /// The slice holds names.
    #[error("its addressType is FQDN")]
    Fqdn,
}

/// An object that makes no sense.
#[derive(Clone, Debug, Error)]
#[error("{kind} {} is left out: {reason}", DisplayName(.name.as_ref()))]
pub struct Rejected {
    /// The kind of object.
    pub kind: Kind,
    /// Its name, where it has one.
    pub name: Option<ObjectName>,
    /// What is wrong with it.
    #[source]
    pub reason: Reason,
}

struct DisplayName<'a>(Option<&'a ObjectName>);

impl fmt::Display for DisplayName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(name) => name.fmt(f),
            None => f.write_str("without a name"),
        }
    }
}

/// What is wrong with a rejected object.
#[derive(Clone, Debug, Error)]
pub enum Reason {
    /// It does not have the shape of its kind.
    #[error("it does not have the shape of its kind: {0}")]
    Shape(String),
    /// `metadata.name` is missing.
    #[error("it has no metadata.name")]
    NoName,
    /// `spec` is missing.
    #[error("it has no spec")]
    NoSpec,
    /// A ClusterIP that cannot be one.
    #[error("its ClusterIP {address:?} {problem}")]
    ClusterIp {
        /// As it stands in the object.
        address: String,
        /// What is wrong with it.
        problem: AddressProblem,
    },
    /// More ClusterIPs than families, or two of one family.
    #[error("its clusterIPs {0:?} are not one, or one of each family")]
    ClusterIps(Vec<String>),
    /// `clusterIP` and `clusterIPs` disagree.
    #[error("its clusterIP {cluster_ip:?} is not the first of its clusterIPs, {first:?}")]
    PrimaryMismatch {
        /// `spec.clusterIP`.
        cluster_ip: String,
        /// `spec.clusterIPs[0]`.
        first: String,
    },
    /// `spec.ipFamilies` holds something else than a family.
    #[error("its ipFamilies hold {0:?}; IPv4 and IPv6 are known")]
    IpFamily(String),
    /// A port number out of range.
    #[error("its port {0} is not between 1 and 65535")]
    Port(i32),
    /// A protocol that Kubernetes does not have.
    #[error("its protocol {0:?} is unknown; TCP, UDP and SCTP are known")]
    Protocol(String),
    /// Two ports with one number and protocol.
    #[error("its port {port}/{protocol} is there twice")]
    DuplicatePort {
        /// The protocol.
        protocol: String,
        /// The number.
        port: u16,
    },
    /// Two ports with one name.
    #[error("its port name {0:?} is there twice")]
    DuplicatePortName(String),
    /// Source ranges of which not one can be read.
    #[error("of its loadBalancerSourceRanges {0:?} none is a network in CIDR notation")]
    SourceRanges(Vec<String>),
    /// `addressType` of a slice is missing or unknown.
    #[error("its addressType {0:?} is unknown; IPv4, IPv6 and FQDN are known")]
    AddressType(String),
    /// A slice that belongs to no Service.
    #[error("it has no label {SERVICE_NAME_LABEL}")]
    NoService,
}
