//! The objects dsproxy works on, trimmed to what is used and free of Kubernetes types.
//!
//! Sources make them (`source/convert.rs` holds all the leniency about odd input); `resolve` reads
//! them. Nothing here knows of maps or of the API server.

use std::{fmt, net::IpAddr, sync::Arc};

pub use dsproxy_common::{IpFamily, Protocol};

/// The namespace and name of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The object `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A Service that this proxy serves: it has at least one ClusterIP.
///
/// Headless and ExternalName Services, and those with an opt-out label, never become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// The ClusterIPs, primary family first, at most one of each family.
    pub cluster_ips: Vec<IpAddr>,
    /// The ports, in the order of the object.
    pub ports: Vec<ServicePort>,
    /// Whether clients outside the cluster reach it: type `NodePort` or `LoadBalancer`, or any `externalIPs`.
    pub reached_from_outside: bool,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The port's name; empty when the Service has a single unnamed port.
    pub name: Arc<str>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port number on the VIP, host byte order.
    pub port: u16,
}

/// An EndpointSlice of one address family. Slices of names (FQDN) never become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// The Service it belongs to (label `kubernetes.io/service-name`, same namespace).
    pub service: ObjectName,
    /// The slice's `addressType`; every endpoint's address is of this family.
    pub family: IpFamily,
    /// The ports every endpoint of the slice serves.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// A port of an EndpointSlice, matched to a `ServicePort` by name and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port.
    pub name: Arc<str>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port number on the endpoint, host byte order.
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first of the object's addresses, which is the only one a proxy may use.
    pub address: IpAddr,
    /// Takes new connections. Absent in the object means true.
    pub ready: bool,
    /// Answers, though perhaps terminating. Absent in the object means true.
    pub serving: bool,
    /// Is being shut down. Absent in the object means false.
    pub terminating: bool,
}
