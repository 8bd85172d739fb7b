//! Kubernetes objects to the model: all leniency about odd input is here.
//!
//! Pure functions. They know nothing of where an object came from or of what its rejection means: the
//! sources log, count and decide whether an older version of it stays.

use std::{fmt, sync::Arc};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery, networking::v1 as networking},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Delta, Event};
use crate::model::{EndpointSlice, Node, ObjectName, Protocol, Service, ServiceCidr};

mod address;
mod node;
mod service;
mod service_cidr;
mod skipped;
mod slice;
#[cfg(test)]
mod tests;
mod verdict;

pub use self::{
    address::AddressProblem,
    node::{GOING_TAINT, ZONE_LABEL},
    service::SERVICE_PROXY_NAME_LABEL,
    skipped::Skipped,
    slice::{HEADLESS_LABEL, SERVICE_NAME_LABEL, TRIGGER_TIME_ANNOTATION},
    verdict::{NotOurs, Reason, Rejected},
};

/// The namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// A kind of object that sources produce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Service of the core group.
    Service,
    /// EndpointSlice of the group discovery.k8s.io.
    EndpointSlice,
    /// Node of the core group.
    Node,
    /// ServiceCIDR of the group networking.k8s.io.
    ServiceCidr,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::Service, Self::EndpointSlice, Self::Node, Self::ServiceCidr];

    /// The name as it stands in an object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Node => "Node",
            Self::ServiceCidr => "ServiceCIDR",
        }
    }

    /// The name as it stands in an API path and in a Role.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices.discovery.k8s.io",
            Self::Node => "nodes",
            Self::ServiceCidr => "servicecidrs.networking.k8s.io",
        }
    }

    /// Whether its objects are in namespaces.
    pub const fn is_namespaced(self) -> bool {
        match self {
            Self::Service | Self::EndpointSlice => true,
            Self::Node | Self::ServiceCidr => false,
        }
    }

    /// Whether nothing can be served without it. Of the others an API server may have none, or a Role keep them from
    /// this proxy.
    pub const fn is_necessary(self) -> bool {
        match self {
            Self::Service | Self::EndpointSlice => true,
            Self::Node | Self::ServiceCidr => false,
        }
    }

    /// The object of this kind that every API server makes by itself, and makes again when it is deleted.
    pub fn kept_by_server(self) -> Option<ObjectName> {
        match self {
            Self::Service | Self::EndpointSlice => Some(ObjectName::new(DEFAULT_NAMESPACE, "kubernetes")),
            Self::ServiceCidr => Some(ObjectName::of_cluster("kubernetes")),
            Self::Node => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A type of the model that is made from a Kubernetes object.
pub trait FromObject: Sized + Clone + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// The Kubernetes type.
    type Object: DeserializeOwned + Send;

    /// The kind of object.
    const KIND: Kind;

    /// The `apiVersion` of the object.
    const API_VERSION: &'static str;

    /// Which of them the proxy of the node `node` wants.
    fn selectors(node: &str) -> Selectors;

    /// Reads an object.
    fn from_object(object: &Self::Object) -> Converted<Self>;

    /// The namespace and name.
    fn name(&self) -> &ObjectName;

    /// Whether anything is served by it; else it is known so that it is left alone.
    fn is_served(&self) -> bool {
        true
    }

    /// A change to the objects of this kind.
    fn event(delta: Delta<Self>) -> Event;
}

/// Which objects of a kind are wanted, as the API writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selectors {
    /// By label.
    pub labels: Option<String>,
    /// By field.
    pub fields: Option<String>,
}

/// What became of an object.
#[derive(Clone, Debug)]
pub enum Converted<T> {
    /// This proxy serves it.
    Ours {
        /// The object.
        object: T,
        /// The parts of it that were left out.
        skipped: Vec<Skipped>,
    },
    /// A sound object that is no business of this proxy.
    NotOurs {
        /// Its name.
        name: ObjectName,
        /// Why not.
        why: NotOurs,
    },
    /// It makes no sense.
    Rejected(Rejected),
}

impl<T> Converted<T> {
    /// The name of the object, unless that is what it lacks.
    pub fn object_name(&self) -> Option<&ObjectName>
    where
        T: FromObject,
    {
        match self {
            Self::Ours { object, .. } => Some(object.name()),
            Self::NotOurs { name, .. } => Some(name),
            Self::Rejected(rejected) => rejected.name.as_ref(),
        }
    }
}

/// Reads an object from JSON; one that has not the shape of its kind is rejected by name.
pub fn from_json<T: FromObject>(value: &Value) -> Converted<T> {
    match T::Object::deserialize(value) {
        Ok(object) => T::from_object(&object),
        Err(error) => Converted::Rejected(Rejected {
            kind: T::KIND,
            name: json_name(T::KIND, value),
            reason: Reason::Shape(error.to_string()),
        }),
    }
}

/// The name in an object's metadata, which may be all that can be read of it.
pub fn json_name(kind: Kind, value: &Value) -> Option<ObjectName> {
    let metadata = value.get("metadata")?;
    let text = |field| metadata.get(field).and_then(Value::as_str);
    named(kind, text("namespace"), text("name"))
}

fn object_name(kind: Kind, metadata: &ObjectMeta) -> Option<ObjectName> {
    named(kind, metadata.namespace.as_deref(), metadata.name.as_deref())
}

fn named(kind: Kind, namespace: Option<&str>, name: Option<&str>) -> Option<ObjectName> {
    let name = name.filter(|name| !name.is_empty())?;
    if !kind.is_namespaced() {
        return Some(ObjectName::of_cluster(name));
    }
    let namespace = namespace.filter(|namespace| !namespace.is_empty()).unwrap_or(DEFAULT_NAMESPACE);
    Some(ObjectName::new(namespace, name))
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// A protocol as the API writes it.
fn protocol(text: Option<&str>) -> Option<Protocol> {
    match text {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|&port| port != 0)
}

impl FromObject for Service {
    type Object = core::Service;

    const KIND: Kind = Kind::Service;
    const API_VERSION: &'static str = "v1";

    fn selectors(_node: &str) -> Selectors {
        // API servers before Kubernetes 1.31 refuse a selector by `spec.clusterIP`, so headless Services come as well. Those of other
        // proxies have to: packets to their ClusterIPs are none to addresses that nobody has.
        Selectors { labels: None, fields: None }
    }

    fn from_object(object: &Self::Object) -> Converted<Self> {
        service::service(object)
    }

    fn name(&self) -> &ObjectName {
        &self.name
    }

    fn is_served(&self) -> bool {
        !self.is_anothers
    }

    fn event(delta: Delta<Self>) -> Event {
        Event::Services(delta)
    }
}

impl FromObject for EndpointSlice {
    type Object = discovery::EndpointSlice;

    const KIND: Kind = Kind::EndpointSlice;
    const API_VERSION: &'static str = "discovery.k8s.io/v1";

    fn selectors(_node: &str) -> Selectors {
        Selectors { labels: Some(format!("!{HEADLESS_LABEL}")), fields: None }
    }

    fn from_object(object: &Self::Object) -> Converted<Self> {
        slice::endpoint_slice(object)
    }

    fn name(&self) -> &ObjectName {
        &self.name
    }

    fn event(delta: Delta<Self>) -> Event {
        Event::EndpointSlices(delta)
    }
}

impl FromObject for Node {
    type Object = core::Node;

    const KIND: Kind = Kind::Node;
    const API_VERSION: &'static str = "v1";

    fn selectors(node: &str) -> Selectors {
        Selectors { labels: None, fields: Some(format!("metadata.name={node}")) }
    }

    fn from_object(object: &Self::Object) -> Converted<Self> {
        node::node(object)
    }

    fn name(&self) -> &ObjectName {
        &self.name
    }

    fn event(delta: Delta<Self>) -> Event {
        Event::Nodes(delta)
    }
}

impl FromObject for ServiceCidr {
    type Object = networking::ServiceCIDR;

    const KIND: Kind = Kind::ServiceCidr;
    const API_VERSION: &'static str = "networking.k8s.io/v1";

    fn selectors(_node: &str) -> Selectors {
        Selectors::default()
    }

    fn from_object(object: &Self::Object) -> Converted<Self> {
        service_cidr::service_cidr(object)
    }

    fn name(&self) -> &ObjectName {
        &self.name
    }

    fn event(delta: Delta<Self>) -> Event {
        Event::ServiceCidrs(delta)
    }
}

/// Most ports have no name, and the empty `Arc<str>` takes no memory.
fn port_name(name: &str) -> Arc<str> {
    if name.is_empty() { Arc::default() } else { name.into() }
}
