//! Objects as they stand in the API, and what they are in the model.
//!
//! They come in pairs of both families, so that no test is about one family only.

use std::net::IpAddr;

use dsproxy::model::{self, IpFamily, ObjectName, Protocol};
use serde_json::{Value, json};

pub(crate) const NAMESPACE: &str = "shop";

pub(crate) fn name(name: &str) -> ObjectName {
    ObjectName::new(NAMESPACE, name)
}

fn cluster_ips(number: u8) -> [String; 2] {
    [format!("10.96.0.{number}"), format!("fd00:96::{number:x}")]
}

/// The dual-stack Service of this name, with ClusterIPs that end in `number`.
pub(crate) fn service(name: &str, number: u8) -> Value {
    let cluster_ips = cluster_ips(number);
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": NAMESPACE, "name": name, "labels": {"app": name}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ips[0],
            "clusterIPs": cluster_ips,
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": 8080}],
            "selector": {"app": name},
        },
        "status": {"loadBalancer": {}},
    })
}

/// What [`service`] is in the model.
pub(crate) fn model_service(name: &str, number: u8) -> model::Service {
    model::Service {
        name: self::name(name),
        cluster_ips: cluster_ips(number).iter().map(|text| address(text)).collect(),
        ports: vec![model::ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        ..model::Service::default()
    }
}

/// What is known of a Service once another proxy serves it.
pub(crate) fn anothers(service: model::Service) -> model::Service {
    let model::Service { name, cluster_ips, .. } = service;
    model::Service { name, cluster_ips, is_anothers: true, ..model::Service::default() }
}

/// The slice of this name, for the Service of the name up to the last dash.
pub(crate) fn slice(name: &str, family: IpFamily, numbers: &[u8]) -> Value {
    let endpoints: Vec<Value> = numbers
        .iter()
        .map(|&number| json!({"addresses": [endpoint(family, number)], "conditions": {"ready": true}}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": NAMESPACE,
            "name": name,
            "labels": {"kubernetes.io/service-name": service_of(name)},
        },
        "addressType": family.to_string(),
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// What [`slice`] is in the model.
pub(crate) fn model_slice(name: &str, family: IpFamily, numbers: &[u8]) -> model::EndpointSlice {
    model::EndpointSlice {
        name: self::name(name),
        service: self::name(service_of(name)),
        family,
        ports: vec![model::SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: numbers.iter().map(|&number| model::Endpoint::new(address(&endpoint(family, number)))).collect(),
        triggered: None,
    }
}

fn service_of(slice: &str) -> &str {
    slice.rsplit_once('-').expect("a slice is named after its Service").0
}

fn endpoint(family: IpFamily, number: u8) -> String {
    match family {
        IpFamily::V4 => format!("10.1.0.{number}"),
        IpFamily::V6 => format!("fd00:1::{number:x}"),
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// The Node of this name in this zone, with addresses that end in `number`.
pub(crate) fn node(name: &str, zone: &str, number: u8) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]},
        "status": {"addresses": [
            {"type": "InternalIP", "address": format!("192.0.2.{number}")},
            {"type": "InternalIP", "address": format!("2001:db8::{number:x}")},
            {"type": "Hostname", "address": name},
        ]},
    })
}

/// What [`node`] is in the model.
pub(crate) fn model_node(name: &str, zone: &str, number: u8) -> model::Node {
    model::Node {
        name: ObjectName::of_cluster(name),
        addresses: vec![address(&format!("192.0.2.{number}")), address(&format!("2001:db8::{number:x}"))],
        zone: Some(zone.into()),
        pod_cidrs: ["10.1.0.0/24", "fd00:1::/64"].map(|cidr| cidr.parse().expect("a network")).into(),
        is_going: false,
    }
}

/// The ServiceCIDR of this name.
pub(crate) fn service_cidr(name: &str, cidrs: &[&str]) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name},
        "spec": {"cidrs": cidrs},
    })
}

/// What [`service_cidr`] is in the model.
pub(crate) fn model_service_cidr(name: &str, cidrs: &[&str]) -> model::ServiceCidr {
    let cidrs = cidrs.iter().map(|cidr| cidr.parse().expect("a network")).collect();
    model::ServiceCidr { name: ObjectName::of_cluster(name), cidrs }
}
