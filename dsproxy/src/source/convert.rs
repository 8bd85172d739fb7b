//! Kubernetes objects to the model: all leniency about odd input is here.
//!
//! Pure functions. They know nothing of where an object came from or of what its rejection means: the
//! sources log, count and decide whether an older version of it stays.

use std::{fmt, sync::Arc};

use k8s_openapi::{
    api::{core::v1 as core, discovery::v1 as discovery},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use super::{Delta, Event};
use crate::model::{EndpointSlice, ObjectName, Protocol, Service};

mod address;
mod service;
mod slice;
#[cfg(test)]
mod tests;
mod verdict;

pub use self::{
    address::AddressProblem,
    service::SERVICE_PROXY_NAME_LABEL,
    slice::{HEADLESS_LABEL, SERVICE_NAME_LABEL, Skipped},
    verdict::{NotOurs, Reason, Rejected},
};

/// The namespace of an object that names none.
const DEFAULT_NAMESPACE: &str = "default";

/// A kind of object that sources produce.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Service of the core group.
    Service,
    /// EndpointSlice of the group discovery.k8s.io.
    EndpointSlice,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 2] = [Self::Service, Self::EndpointSlice];

    /// The name as it stands in an object.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
        }
    }

    /// The name as it stands in an API path and in a Role.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices.discovery.k8s.io",
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

    /// Which of them are wanted, by label.
    const LABEL_SELECTOR: &'static str;

    /// Which of them are wanted, by field.
    const FIELD_SELECTOR: Option<&'static str>;

    /// Reads an object.
    fn from_object(object: &Self::Object) -> Converted<Self>;

    /// The namespace and name.
    fn name(&self) -> &ObjectName;

    /// A change to the objects of this kind.
    fn event(delta: Delta<Self>) -> Event;
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
            name: json_name(value),
            reason: Reason::Shape(error.to_string()),
        }),
    }
}

/// The name in an object's metadata, which may be all that can be read of it.
pub fn json_name(value: &Value) -> Option<ObjectName> {
    let metadata = value.get("metadata")?;
    let text = |field| metadata.get(field).and_then(Value::as_str);
    let name = text("name").filter(|name| !name.is_empty())?;
    Some(ObjectName::new(namespace_or_default(text("namespace")), name))
}

fn namespace_or_default(namespace: Option<&str>) -> &str {
    namespace.filter(|namespace| !namespace.is_empty()).unwrap_or(DEFAULT_NAMESPACE)
}

fn object_name(metadata: &ObjectMeta) -> Option<ObjectName> {
    let name = metadata.name.as_deref().filter(|name| !name.is_empty())?;
    Some(ObjectName::new(namespace_or_default(metadata.namespace.as_deref()), name))
}

fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// A protocol as the API writes it. SCTP is Kubernetes' own, but not balanced here.
enum ApiProtocol {
    Balanced(Protocol),
    Sctp,
}

impl ApiProtocol {
    fn parse(protocol: Option<&str>) -> Option<Self> {
        match protocol {
            None | Some("" | "TCP") => Some(Self::Balanced(Protocol::Tcp)),
            Some("UDP") => Some(Self::Balanced(Protocol::Udp)),
            Some("SCTP") => Some(Self::Sctp),
            Some(_) => None,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Balanced(Protocol::Tcp) => "TCP",
            Self::Balanced(Protocol::Udp) => "UDP",
            Self::Sctp | Self::Balanced(Protocol::Sctp) => "SCTP",
        }
    }
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|&port| port != 0)
}

impl FromObject for Service {
    type Object = core::Service;

    const KIND: Kind = Kind::Service;
    const API_VERSION: &'static str = "v1";
    const LABEL_SELECTOR: &'static str = "!service.kubernetes.io/service-proxy-name";
    // Headless Services never leave the API server.
    const FIELD_SELECTOR: Option<&'static str> = Some("spec.clusterIP!=None");

    fn from_object(object: &Self::Object) -> Converted<Self> {
        service::service(object)
    }

    fn name(&self) -> &ObjectName {
        &self.name
    }

    fn event(delta: Delta<Self>) -> Event {
        Event::Services(delta)
    }
}

impl FromObject for EndpointSlice {
    type Object = discovery::EndpointSlice;

    const KIND: Kind = Kind::EndpointSlice;
    const API_VERSION: &'static str = "discovery.k8s.io/v1";
    const LABEL_SELECTOR: &'static str = "!service.kubernetes.io/headless";
    const FIELD_SELECTOR: Option<&'static str> = None;

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

/// Most ports have no name, and the empty `Arc<str>` takes no memory.
fn port_name(name: &str) -> Arc<str> {
    if name.is_empty() { Arc::default() } else { name.into() }
}
