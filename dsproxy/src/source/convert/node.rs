//! Nodes to the model.
//!
//! It does not know which node is the own one.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;

use super::{
    Converted, Kind, Reason, Rejected, Skipped,
    address::{self, AddressUse},
    label, object_name,
};
use crate::model::{IpFamily, Node};

/// The zone of a node.
pub const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// What the cluster autoscaler puts on a node that it is about to take away.
pub const GOING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";

pub(super) fn node(object: &core::Node) -> Converted<Node> {
    let Some(name) = object_name(Kind::Node, &object.metadata) else {
        return Converted::Rejected(Rejected { kind: Kind::Node, name: None, reason: Reason::NoName });
    };
    let mut skipped = Vec::new();
    let spec = object.spec.as_ref();
    let zone = label(&object.metadata, ZONE_LABEL).filter(|zone| !zone.is_empty());
    let tainted = spec
        .and_then(|spec| spec.taints.as_ref())
        .is_some_and(|taints| taints.iter().any(|taint| taint.key == GOING_TAINT));
    Converted::Ours {
        object: Node {
            addresses: addresses(object.status.as_ref(), &mut skipped),
            zone: zone.map(Into::into),
            pod_cidrs: spec.map(|spec| pod_cidrs(spec, &mut skipped)).unwrap_or_default(),
            is_going: tainted || object.metadata.deletion_timestamp.is_some(),
            name,
        },
        skipped,
    }
}

/// The first address, and the first of the other family. Internal ones go before external ones, as for kube-proxy
/// (`GetNodeHostIPs` of `pkg/util/node`).
fn addresses(status: Option<&core::NodeStatus>, skipped: &mut Vec<Skipped>) -> Vec<IpAddr> {
    let all = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut kept: Vec<IpAddr> = Vec::new();
    for wanted in ["InternalIP", "ExternalIP"] {
        for address in all.iter().filter(|address| address.type_ == wanted) {
            match address::parse(&address.address, None, AddressUse::Vip) {
                Ok(address) if kept.iter().all(|other| IpFamily::of(*other) != IpFamily::of(address)) => {
                    kept.push(address);
                }
                Ok(_) => {}
                Err(problem) => skipped.push(Skipped::FurtherAddress {
                    field: "status.addresses",
                    address: address.address.clone(),
                    problem,
                }),
            }
        }
    }
    kept
}

/// `spec.podCIDRs`, or the one of the time before dual stack.
fn pod_cidrs(spec: &core::NodeSpec, skipped: &mut Vec<Skipped>) -> Vec<ipnet::IpNet> {
    match spec.pod_cidrs.as_deref() {
        Some(cidrs @ [_, ..]) => address::networks("podCIDRs", cidrs, skipped),
        None | Some([]) => address::networks("podCIDR", spec.pod_cidr.as_slice(), skipped),
    }
}
