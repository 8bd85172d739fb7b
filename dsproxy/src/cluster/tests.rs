//! When a cluster is complete, and which Services a change touches.

use std::net::IpAddr;

use super::*;
use crate::model::{Endpoint, Hints, ServicePort};

fn name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn service(service: &str, vip: &str) -> Service {
    Service { name: name(service), cluster_ips: vec![ip(vip)], ..Service::default() }
}

fn slice(slice: &str, service: &str) -> EndpointSlice {
    EndpointSlice {
        name: name(slice),
        service: name(service),
        family: IpFamily::V4,
        ports: Vec::new(),
        endpoints: Vec::new(),
        triggered: None,
    }
}

fn node(name: &str, zone: Option<&str>) -> Node {
    Node { name: ObjectName::of_cluster(name), zone: zone.map(Into::into), ..Node::default() }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn cluster() -> Cluster {
    Cluster::new(LocalNode::new("a", Default::default(), Default::default()))
}

fn touched(cluster: &mut Cluster) -> Vec<String> {
    cluster.take_touched().into_iter().map(|name| name.name.to_string()).collect()
}

#[test]
fn it_is_synced_when_all_that_counts_has_been_listed() {
    let mut cluster = cluster();
    cluster.apply(Event::Services(Delta::Apply(service("a", "10.96.0.1"))));
    cluster.apply(Event::Services(Delta::Snapshot(Vec::new())));
    assert!(!cluster.is_synced());
    cluster.apply(Event::EndpointSlices(Delta::Snapshot(Vec::new())));
    assert!(!cluster.is_synced());
    let mut without_node = Cluster::new(cluster.node().clone());
    cluster.apply(Event::Nodes(Delta::Snapshot(Vec::new())));
    assert!(cluster.is_synced(), "a node without an object, and no ServiceCIDRs");

    without_node.go_without_node();
    without_node.apply(Event::Services(Delta::Snapshot(Vec::new())));
    assert!(!without_node.is_synced());
    without_node.apply(Event::EndpointSlices(Delta::Snapshot(Vec::new())));
    assert!(without_node.is_synced());
}

#[test]
fn a_change_touches_its_own_service_only_and_no_change_touches_none() {
    let mut cluster = cluster();
    let services = vec![service("a", "10.96.0.1"), service("b", "10.96.0.2")];
    cluster.apply(Event::Services(Delta::Snapshot(services.clone())));
    cluster.apply(Event::EndpointSlices(Delta::Snapshot(vec![slice("a-1", "a"), slice("b-1", "b")])));
    assert_eq!(touched(&mut cluster), ["a", "b"]);

    cluster.apply(Event::Services(Delta::Snapshot(services)));
    cluster.apply(Event::EndpointSlices(Delta::Apply(slice("a-1", "a"))));
    assert!(touched(&mut cluster).is_empty());

    cluster.apply(Event::EndpointSlices(Delta::Apply(slice("a-2", "a"))));
    assert_eq!(touched(&mut cluster), ["a"]);
    cluster.apply(Event::EndpointSlices(Delta::Delete(name("b-1"))));
    assert_eq!(touched(&mut cluster), ["b"]);
}

#[test]
fn what_a_list_no_longer_has_is_gone() {
    let mut cluster = cluster();
    cluster.apply(Event::Services(Delta::Snapshot(vec![service("a", "10.96.0.1"), service("b", "10.96.0.2")])));
    cluster.apply(Event::EndpointSlices(Delta::Snapshot(vec![slice("a-1", "a")])));
    cluster.take_touched();
    cluster.apply(Event::Services(Delta::Snapshot(vec![service("a", "10.96.0.9")])));
    cluster.apply(Event::EndpointSlices(Delta::Snapshot(Vec::new())));
    assert_eq!(touched(&mut cluster), ["a", "b"]);
    assert_eq!(cluster.len(), (1, 0));
}

#[test]
fn a_slice_given_to_another_service_touches_both() {
    let mut cluster = cluster();
    cluster.apply(Event::EndpointSlices(Delta::Snapshot(vec![slice("s", "a")])));
    cluster.take_touched();
    cluster.apply(Event::EndpointSlices(Delta::Apply(slice("s", "b"))));
    assert_eq!(touched(&mut cluster), ["a", "b"]);
}

/// Services with a NodePort, with hints, with source ranges and with none of them.
fn one_of_each(cluster: &mut Cluster) {
    let port =
        ServicePort { name: "".into(), protocol: crate::model::Protocol::Tcp, port: 80, node_port: Some(30_080) };
    let endpoint = Endpoint { hints: Hints::new(["z".into()].into(), Box::default()), ..Endpoint::new(ip("10.1.0.1")) };
    let services = vec![
        service("plain", "10.96.0.1"),
        service("hinted", "10.96.0.2"),
        Service { ports: vec![port], ..service("node-port", "10.96.0.3") },
        Service { source_ranges: vec!["192.0.2.0/24".parse().expect("a range")], ..service("ranges", "10.96.0.4") },
    ];
    cluster.apply(Event::Services(Delta::Snapshot(services)));
    let slices = vec![slice("plain-1", "plain"), EndpointSlice { endpoints: vec![endpoint], ..slice("h", "hinted") }];
    cluster.apply(Event::EndpointSlices(Delta::Snapshot(slices)));
    cluster.take_touched();
}

#[test]
fn a_change_of_the_node_touches_the_services_that_it_concerns() {
    let mut cluster = cluster();
    one_of_each(&mut cluster);
    cluster.apply(Event::Nodes(Delta::Snapshot(vec![node("b", Some("z")), node("a", None)])));
    assert!(touched(&mut cluster).is_empty(), "nothing that counts is known yet");
    assert_eq!(cluster.node().object(), Some(&node("a", None)));
    cluster.apply(Event::Nodes(Delta::Apply(node("a", Some("z")))));
    assert_eq!(touched(&mut cluster), ["hinted"]);
    let with_address = Node { addresses: vec![ip("192.0.2.1")], ..node("a", Some("z")) };
    cluster.apply(Event::Nodes(Delta::Apply(with_address)));
    assert_eq!(touched(&mut cluster), ["ranges"]);
    let addresses =
        |texts: &[&str]| NodeAddresses { all: texts.iter().copied().map(ip).collect(), ..Default::default() };
    cluster.set_addresses(addresses(&["192.0.2.1"]));
    assert_eq!(touched(&mut cluster), ["node-port"]);
    cluster.set_addresses(addresses(&["192.0.2.1", "127.0.0.1"]));
    assert!(touched(&mut cluster).is_empty(), "no NodePort is served there");
    cluster.apply(Event::Nodes(Delta::Apply(Node { is_going: true, ..cluster.node().object().expect("one").clone() })));
    assert!(touched(&mut cluster).is_empty(), "no business of any Service");
    cluster.apply(Event::Nodes(Delta::Delete(ObjectName::of_cluster("b"))));
    assert!(touched(&mut cluster).is_empty(), "another node");
    cluster.apply(Event::Nodes(Delta::Snapshot(Vec::new())));
    assert!(touched(&mut cluster).is_empty(), "it stands where it stood");
    assert!(!cluster.node().is_eligible());
}

#[test]
fn the_ranges_are_those_of_all_service_cidrs() {
    let range = |name: &str, cidrs: &[&str]| ServiceCidr {
        name: ObjectName::of_cluster(name),
        cidrs: cidrs.iter().map(|cidr| cidr.parse().expect("a range")).collect(),
    };
    let mut cluster = cluster();
    cluster.apply(Event::ServiceCidrs(Delta::Snapshot(vec![range("kubernetes", &["10.96.0.0/16", "fd00:96::/112"])])));
    cluster.apply(Event::ServiceCidrs(Delta::Apply(range("more", &["10.97.0.0/16"]))));
    let texts = |cluster: &Cluster| cluster.service_cidrs().iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(texts(&cluster), ["10.96.0.0/16", "10.97.0.0/16", "fd00:96::/112"]);
    cluster.apply(Event::ServiceCidrs(Delta::Delete(ObjectName::of_cluster("kubernetes"))));
    assert_eq!(texts(&cluster), ["10.97.0.0/16"]);
}
