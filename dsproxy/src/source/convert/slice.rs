//! EndpointSlices to the model, and the parts of objects that can be left out one by one.
//!
//! It does not know which Services exist: a slice is read for itself.

use std::sync::Arc;

use k8s_openapi::api::discovery::v1 as discovery;
use thiserror::Error;

use super::{
    AddressProblem, ApiProtocol, Converted, Kind, NotOurs, Reason, Rejected,
    address::{self, AddressUse},
    label, object_name, port_name, port_number,
};
use crate::model::{Endpoint, EndpointSlice, IpFamily, ObjectName, SlicePort};

/// The label that ties a slice to its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// A slice with this label belongs to a Service without a ClusterIP.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// A part of an object that was left out while the rest is used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Skipped {
    /// SCTP is not balanced yet.
    #[error("port {port}/SCTP: SCTP is not supported yet")]
    Sctp {
        /// The number.
        port: u16,
    },
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
}

impl Skipped {
    /// Whether the object is wrong, rather than this proxy limited.
    pub fn is_nonsense(&self) -> bool {
        match self {
            Self::Sctp { .. } | Self::NoPortNumber { .. } => false,
            Self::Port { .. }
            | Self::Protocol { .. }
            | Self::DuplicatePort { .. }
            | Self::NoAddress { .. }
            | Self::Address { .. } => true,
        }
    }
}

pub(super) fn endpoint_slice(object: &discovery::EndpointSlice) -> Converted<EndpointSlice> {
    let Some(name) = object_name(&object.metadata) else {
        return Converted::Rejected(Rejected { kind: Kind::EndpointSlice, name: None, reason: Reason::NoName });
    };
    let reject = |name: ObjectName, reason| {
        Converted::Rejected(Rejected { kind: Kind::EndpointSlice, name: Some(name), reason })
    };

    if label(&object.metadata, HEADLESS_LABEL).is_some() {
        return Converted::NotOurs { name, why: NotOurs::HeadlessSlice };
    }
    let family = match object.address_type.as_str() {
        "IPv4" => IpFamily::V4,
        "IPv6" => IpFamily::V6,
        "FQDN" => {
            return Converted::NotOurs { name, why: NotOurs::Fqdn };
        }
        other => return reject(name, Reason::AddressType(other.to_owned())),
    };
    let service = match label(&object.metadata, SERVICE_NAME_LABEL) {
        Some(service) if !service.is_empty() => {
            ObjectName { namespace: Arc::clone(&name.namespace), name: service.into() }
        }
        _ => return reject(name, Reason::NoService),
    };

    let mut skipped = Vec::new();
    let ports = slice_ports(object.ports.as_deref().unwrap_or_default(), &mut skipped);
    let endpoints = endpoints(&object.endpoints, family, &mut skipped);
    Converted::Ours { object: EndpointSlice { name, service, family, ports, endpoints }, skipped }
}

fn slice_ports(ports: &[discovery::EndpointPort], skipped: &mut Vec<Skipped>) -> Vec<SlicePort> {
    let mut kept: Vec<SlicePort> = Vec::with_capacity(ports.len());
    for port in ports {
        // The API server sets an absent name to the empty one.
        let name = port.name.as_deref().unwrap_or_default();
        let Some(wanted) = port.port else {
            skipped.push(Skipped::NoPortNumber { name: name.to_owned() });
            continue;
        };
        let Some(number) = port_number(wanted) else {
            skipped.push(Skipped::Port { port: wanted });
            continue;
        };
        let protocol = match ApiProtocol::parse(port.protocol.as_deref()) {
            Some(ApiProtocol::Balanced(protocol)) => protocol,
            Some(ApiProtocol::Sctp) => {
                skipped.push(Skipped::Sctp { port: number });
                continue;
            }
            None => {
                let protocol = port.protocol.clone().unwrap_or_default();
                skipped.push(Skipped::Protocol { port: wanted, protocol });
                continue;
            }
        };
        if kept.iter().any(|other| &*other.name == name && other.protocol == protocol) {
            skipped.push(Skipped::DuplicatePort { port: number, name: name.to_owned() });
            continue;
        }
        kept.push(SlicePort { name: port_name(name), protocol, port: number });
    }
    kept
}

fn endpoints(endpoints: &[discovery::Endpoint], family: IpFamily, skipped: &mut Vec<Skipped>) -> Vec<Endpoint> {
    let mut kept = Vec::with_capacity(endpoints.len());
    for (index, endpoint) in endpoints.iter().enumerate() {
        // More than one address per endpoint was never given a meaning.
        let Some(text) = endpoint.addresses.first() else {
            skipped.push(Skipped::NoAddress { index });
            continue;
        };
        match address::parse(text, Some(family), AddressUse::Endpoint) {
            Ok(address) => {
                let conditions = endpoint.conditions.as_ref();
                kept.push(Endpoint {
                    address,
                    ready: conditions.and_then(|c| c.ready).unwrap_or(true),
                    serving: conditions.and_then(|c| c.serving).unwrap_or(true),
                    terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
                });
            }
            Err(problem) => {
                skipped.push(Skipped::Address { address: text.clone(), problem });
            }
        }
    }
    // The controller may list the same endpoints in another order at any time; that is no change.
    kept.sort_by_key(|endpoint| endpoint.address);
    kept
}
