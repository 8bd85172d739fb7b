//! Services to the model.
//!
//! It does not know which endpoints there are: a Service is read for itself.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::{
    ApiProtocol, Converted, Kind, NotOurs, Reason, Rejected, Skipped,
    address::{self, AddressUse},
    label, object_name, port_name, port_number,
};
use crate::model::{IpFamily, ObjectName, Service, ServicePort};

/// A Service with this label is another proxy's, whatever the label's value.
pub const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

pub(super) fn service(object: &core::Service) -> Converted<Service> {
    let Some(name) = object_name(&object.metadata) else {
        return Converted::Rejected(Rejected { kind: Kind::Service, name: None, reason: Reason::NoName });
    };
    read(name.clone(), object)
        .unwrap_or_else(|reason| Converted::Rejected(Rejected { kind: Kind::Service, name: Some(name), reason }))
}

fn read(name: ObjectName, object: &core::Service) -> Result<Converted<Service>, Reason> {
    if label(&object.metadata, SERVICE_PROXY_NAME_LABEL).is_some() {
        return Ok(Converted::NotOurs { name, why: NotOurs::OtherProxy });
    }
    let spec = object.spec.as_ref().ok_or(Reason::NoSpec)?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return Ok(Converted::NotOurs { name, why: NotOurs::ExternalName });
    }
    let cluster_ips = match cluster_ips(spec)? {
        Ok(cluster_ips) => cluster_ips,
        Err(why) => return Ok(Converted::NotOurs { name, why }),
    };
    let (ports, skipped) = service_ports(spec.ports.as_deref().unwrap_or_default())?;
    Ok(Converted::Ours {
        object: Service { name, cluster_ips, ports, reached_from_outside: reached_from_outside(spec) },
        skipped,
    })
}

fn reached_from_outside(spec: &core::ServiceSpec) -> bool {
    matches!(spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"))
        || spec.external_ips.as_ref().is_some_and(|addresses| !addresses.is_empty())
}

/// The ClusterIPs in the order of the object, which is the order of `ipFamilies`.
fn cluster_ips(spec: &core::ServiceSpec) -> Result<Result<Vec<IpAddr>, NotOurs>, Reason> {
    let single = spec.cluster_ip.as_deref().unwrap_or_default();
    let plural = spec.cluster_ips.as_deref().unwrap_or_default();
    let texts = match plural.first() {
        Some(first) if !single.is_empty() && single != first => {
            return Err(Reason::PrimaryMismatch { cluster_ip: single.to_owned(), first: first.clone() });
        }
        Some(_) => plural,
        // Objects from before dual stack, and manifests written by hand, have only clusterIP.
        None => spec.cluster_ip.as_slice(),
    };
    match texts.first().map(String::as_str) {
        None | Some("") => return Ok(Err(NotOurs::NoClusterIp)),
        Some("None") => return Ok(Err(NotOurs::Headless)),
        Some(_) => {}
    }
    if texts.len() > IpFamily::ALL.len() {
        return Err(Reason::ClusterIps(texts.to_vec()));
    }

    let families = ip_families(spec)?;
    let mut addresses = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        let address = address::parse(text, families.get(index).copied(), AddressUse::ClusterIp)
            .map_err(|problem| Reason::ClusterIp { address: text.clone(), problem })?;
        if addresses.iter().any(|&other| IpFamily::of(other) == IpFamily::of(address)) {
            return Err(Reason::ClusterIps(texts.to_vec()));
        }
        addresses.push(address);
    }
    Ok(Ok(addresses))
}

/// `spec.ipFamilies`; empty where the API server has not set them, and the addresses tell.
fn ip_families(spec: &core::ServiceSpec) -> Result<Vec<IpFamily>, Reason> {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    families
        .iter()
        .map(|family| match family.as_str() {
            "IPv4" => Ok(IpFamily::V4),
            "IPv6" => Ok(IpFamily::V6),
            other => Err(Reason::IpFamily(other.to_owned())),
        })
        .collect()
}

fn service_ports(ports: &[core::ServicePort]) -> Result<(Vec<ServicePort>, Vec<Skipped>), Reason> {
    let mut kept = Vec::with_capacity(ports.len());
    let mut skipped = Vec::new();
    for (index, port) in ports.iter().enumerate() {
        let api_protocol = ApiProtocol::parse(port.protocol.as_deref())
            .ok_or_else(|| Reason::Protocol(port.protocol.clone().unwrap_or_default()))?;
        let number = port_number(port.port).ok_or(Reason::Port(port.port))?;
        let name = port.name.as_deref().unwrap_or_default();
        for earlier in &ports[..index] {
            if earlier.name.as_deref().unwrap_or_default() == name {
                return Err(Reason::DuplicatePortName(name.to_owned()));
            }
            let same_protocol = ApiProtocol::parse(earlier.protocol.as_deref())
                .is_some_and(|earlier| earlier.name() == api_protocol.name());
            if earlier.port == port.port && same_protocol {
                return Err(Reason::DuplicatePort { protocol: api_protocol.name().to_owned(), port: number });
            }
        }
        match api_protocol {
            ApiProtocol::Balanced(protocol) => {
                kept.push(ServicePort { name: port_name(name), protocol, port: number });
            }
            ApiProtocol::Sctp => skipped.push(Skipped::Sctp { port: number }),
        }
    }
    Ok((kept, skipped))
}
