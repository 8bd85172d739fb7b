//! EndpointSlices to the model.
//!
//! It does not know which Services exist: a slice is read for itself.

use std::{sync::Arc, time::SystemTime};

use chrono::DateTime;
use k8s_openapi::{api::discovery::v1 as discovery, apimachinery::pkg::apis::meta::v1::ObjectMeta};

use super::{
    Converted, Kind, NotOurs, Reason, Rejected, Skipped,
    address::{self, AddressUse},
    label, object_name, port_name, port_number, protocol,
};
use crate::model::{Endpoint, EndpointSlice, Hints, IpFamily, ObjectName, SlicePort};

/// The label that ties a slice to its Service.
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// When the change happened that the slice was written for.
pub const TRIGGER_TIME_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";

/// A slice with this label belongs to a Service without a ClusterIP.
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

pub(super) fn endpoint_slice(object: &discovery::EndpointSlice) -> Converted<EndpointSlice> {
    let Some(name) = object_name(Kind::EndpointSlice, &object.metadata) else {
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
    let triggered = triggered(&object.metadata);
    Converted::Ours { object: EndpointSlice { name, service, family, ports, endpoints, triggered }, skipped }
}

/// Of use to a metric alone, so a bad one is none.
fn triggered(metadata: &ObjectMeta) -> Option<SystemTime> {
    let text = metadata.annotations.as_ref()?.get(TRIGGER_TIME_ANNOTATION)?;
    DateTime::parse_from_rfc3339(text).ok().map(SystemTime::from)
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
        let Some(protocol) = protocol(port.protocol.as_deref()) else {
            let protocol = port.protocol.clone().unwrap_or_default();
            skipped.push(Skipped::Protocol { port: wanted, protocol });
            continue;
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
                let hints = endpoint.hints.as_ref();
                kept.push(Endpoint {
                    address,
                    ready: conditions.and_then(|c| c.ready).unwrap_or(true),
                    serving: conditions.and_then(|c| c.serving).unwrap_or(true),
                    terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
                    node: endpoint.node_name.as_deref().filter(|node| !node.is_empty()).map(Arc::from),
                    hints: Hints::new(
                        names(hints.and_then(|hints| hints.for_zones.as_ref()), |zone| &zone.name),
                        names(hints.and_then(|hints| hints.for_nodes.as_ref()), |node| &node.name),
                    ),
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

fn names<H>(hints: Option<&Vec<H>>, name: impl Fn(&H) -> &String) -> Box<[Arc<str>]> {
    hints.into_iter().flatten().map(|hint| Arc::from(name(hint).as_str())).collect()
}
