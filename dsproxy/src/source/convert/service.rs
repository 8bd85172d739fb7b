//! Services to the model.
//!
//! It does not know which endpoints there are: a Service is read for itself.

use std::{net::IpAddr, time::SystemTime};

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core;

use super::{
    Converted, Kind, NotOurs, Reason, Rejected, Skipped,
    address::{self, AddressUse},
    label, object_name, port_name, port_number, protocol,
};
use crate::model::{IpFamily, ObjectName, Service, ServicePort, TrafficPolicy};

/// How long a client stays with its endpoint where the object does not say, and the longest that it may, in seconds.
const AFFINITY_TIMEOUT: (u32, u32) = (10_800, 86_400);

/// A Service with this label is another proxy's, whatever the label's value.
pub const SERVICE_PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

pub(super) fn service(object: &core::Service) -> Converted<Service> {
    let Some(name) = object_name(Kind::Service, &object.metadata) else {
        return Converted::Rejected(Rejected { kind: Kind::Service, name: None, reason: Reason::NoName });
    };
    read(name.clone(), object)
        .unwrap_or_else(|reason| Converted::Rejected(Rejected { kind: Kind::Service, name: Some(name), reason }))
}

fn read(name: ObjectName, object: &core::Service) -> Result<Converted<Service>, Reason> {
    if label(&object.metadata, SERVICE_PROXY_NAME_LABEL).is_some() {
        return Ok(anothers(name, object));
    }
    let spec = object.spec.as_ref().ok_or(Reason::NoSpec)?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return Ok(Converted::NotOurs { name, why: NotOurs::ExternalName });
    }
    let cluster_ips = match cluster_ips(spec)? {
        Ok(cluster_ips) => cluster_ips,
        Err(why) => return Ok(Converted::NotOurs { name, why }),
    };
    let mut skipped = Vec::new();
    let ports = service_ports(spec.ports.as_deref().unwrap_or_default(), &mut skipped)?;
    let external_traffic_policy =
        traffic_policy("externalTrafficPolicy", spec.external_traffic_policy.as_deref(), &mut skipped);
    Ok(Converted::Ours {
        object: Service {
            created: object.metadata.creation_timestamp.as_ref().map(|created| SystemTime::from(created.0)),
            cluster_ips,
            ports,
            external_ips: external_ips(spec, &mut skipped),
            load_balancer_ips: load_balancer_ips(object.status.as_ref(), &mut skipped),
            source_ranges: source_ranges(spec, &mut skipped)?,
            internal_traffic_policy: traffic_policy(
                "internalTrafficPolicy",
                spec.internal_traffic_policy.as_deref(),
                &mut skipped,
            ),
            external_traffic_policy,
            affinity: affinity(spec, &mut skipped),
            is_anothers: false,
            health_check_node_port: health_check_node_port(spec, external_traffic_policy, &mut skipped),
            name,
        },
        skipped,
    })
}

/// A Service that another proxy serves: what else is in it, or wrong with it, is that one's business.
fn anothers(name: ObjectName, object: &core::Service) -> Converted<Service> {
    match object.spec.as_ref().map(cluster_ips) {
        Some(Ok(Ok(cluster_ips))) => Converted::Ours {
            object: Service { name, cluster_ips, is_anothers: true, ..Service::default() },
            skipped: Vec::new(),
        },
        _ => Converted::NotOurs { name, why: NotOurs::OtherProxy },
    }
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
        let address = address::parse(text, families.get(index).copied(), AddressUse::Vip)
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

fn service_ports(ports: &[core::ServicePort], skipped: &mut Vec<Skipped>) -> Result<Vec<ServicePort>, Reason> {
    let mut kept: Vec<ServicePort> = Vec::with_capacity(ports.len());
    for port in ports {
        let protocol = protocol(port.protocol.as_deref())
            .ok_or_else(|| Reason::Protocol(port.protocol.clone().unwrap_or_default()))?;
        let number = port_number(port.port).ok_or(Reason::Port(port.port))?;
        let name = port.name.as_deref().unwrap_or_default();
        for earlier in &kept {
            if &*earlier.name == name {
                return Err(Reason::DuplicatePortName(name.to_owned()));
            }
            if earlier.port == number && earlier.protocol == protocol {
                return Err(Reason::DuplicatePort { protocol: protocol.to_string(), port: number });
            }
        }
        let node_port =
            optional_port(port.node_port, skipped, |node_port| Skipped::NodePort { port: number, node_port });
        kept.push(ServicePort { name: port_name(name), protocol, port: number, node_port });
    }
    Ok(kept)
}

/// A port that is not there, which the API writes as zero, too.
fn optional_port(port: Option<i32>, skipped: &mut Vec<Skipped>, bad: impl Fn(i32) -> Skipped) -> Option<u16> {
    let port = port.filter(|port| *port != 0)?;
    let number = port_number(port);
    if number.is_none() {
        skipped.push(bad(port));
    }
    number
}

fn external_ips(spec: &core::ServiceSpec, skipped: &mut Vec<Skipped>) -> Vec<IpAddr> {
    let texts = spec.external_ips.iter().flatten().map(String::as_str);
    further_addresses("externalIPs", texts, skipped)
}

/// The ingress addresses that packets keep on their way here. A load balancer of `ipMode: Proxy` sends them on to
/// others, and one that is known by its name alone is reached wherever that leads.
fn load_balancer_ips(status: Option<&core::ServiceStatus>, skipped: &mut Vec<Skipped>) -> Vec<IpAddr> {
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let kept = ingress.into_iter().flatten().filter(|ingress| match ingress.ip_mode.as_deref() {
        None | Some("VIP") => true,
        Some(_) => false,
    });
    let texts = kept.filter_map(|ingress| ingress.ip.as_deref()).filter(|text| !text.is_empty());
    further_addresses("status.loadBalancer.ingress.ip", texts, skipped)
}

fn further_addresses<'a>(
    field: &'static str,
    texts: impl Iterator<Item = &'a str>,
    skipped: &mut Vec<Skipped>,
) -> Vec<IpAddr> {
    let mut kept = Vec::new();
    for text in texts {
        match address::parse(text, None, AddressUse::Vip) {
            Ok(address) if !kept.contains(&address) => kept.push(address),
            Ok(_) => {}
            Err(problem) => {
                skipped.push(Skipped::FurtherAddress { field, address: text.to_owned(), problem });
            }
        }
    }
    kept
}

/// `spec.loadBalancerSourceRanges`. Of a family in which everybody may come there is none. When nothing of the list can be
/// read, nobody can tell who was meant, and to let everybody in would be the worst guess.
fn source_ranges(spec: &core::ServiceSpec, skipped: &mut Vec<Skipped>) -> Result<Vec<IpNet>, Reason> {
    let texts = spec.load_balancer_source_ranges.as_deref().unwrap_or_default();
    let mut ranges = address::networks("loadBalancerSourceRanges", texts, skipped);
    if ranges.is_empty() && !texts.is_empty() {
        return Err(Reason::SourceRanges(texts.to_vec()));
    }
    for family in IpFamily::ALL {
        let of_family = |range: &IpNet| IpFamily::of(range.addr()) == family;
        if ranges.iter().any(|range| of_family(range) && range.prefix_len() == 0) {
            ranges.retain(|range| !of_family(range));
        }
    }
    Ok(ranges)
}

fn traffic_policy(field: &'static str, text: Option<&str>, skipped: &mut Vec<Skipped>) -> TrafficPolicy {
    match text {
        None | Some("" | "Cluster") => TrafficPolicy::Cluster,
        Some("Local") => TrafficPolicy::Local,
        Some(other) => {
            skipped.push(Skipped::Word { field, value: other.to_owned(), instead: "Cluster" });
            TrafficPolicy::Cluster
        }
    }
}

fn affinity(spec: &core::ServiceSpec, skipped: &mut Vec<Skipped>) -> Option<u32> {
    match spec.session_affinity.as_deref() {
        None | Some("" | "None") => return None,
        Some("ClientIP") => {}
        Some(other) => {
            skipped.push(Skipped::Word { field: "sessionAffinity", value: other.to_owned(), instead: "None" });
            return None;
        }
    }
    let (default, longest) = AFFINITY_TIMEOUT;
    let timeout = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref()?.timeout_seconds);
    match timeout.map(|seconds| (seconds, u32::try_from(seconds))) {
        None => Some(default),
        Some((_, Ok(seconds))) if (1..=longest).contains(&seconds) => Some(seconds),
        Some((seconds, _)) => {
            skipped.push(Skipped::AffinityTimeout(seconds));
            Some(default)
        }
    }
}

fn health_check_node_port(
    spec: &core::ServiceSpec,
    external_traffic_policy: TrafficPolicy,
    skipped: &mut Vec<Skipped>,
) -> Option<u16> {
    let asked = spec.type_.as_deref() == Some("LoadBalancer") && external_traffic_policy == TrafficPolicy::Local;
    let port = spec.health_check_node_port.filter(|_| asked);
    optional_port(port, skipped, Skipped::HealthCheckNodePort)
}
