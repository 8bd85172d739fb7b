//! Nodes as text, as the kernel describes them, and the roles that come out.

use std::net::IpAddr;

use super::*;
use crate::interfaces::{Address, Route, RouteKey};

/// Reads a node: one line a link, `name kind [word...]`, its index being the line's number.
///
/// Words: an address or a route as `addr=PREFIX` (or `tentative=`, `deprecated=`) / `route=PREFIX`, `peer` for another end in
/// another namespace, `master=NAME`, `down`; a hardware type in place of Ethernet as `type=NUMBER`.
pub(in crate::interfaces) fn node(text: &str) -> Snapshot {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let index_of = |name: &str| {
        let at = lines.iter().position(|line| line.split(' ').next() == Some(name));
        at.expect("a link of that name") as u32 + 1
    };
    let (mut links, mut addresses, mut routes) = (Vec::new(), Vec::new(), Vec::new());
    for line in &lines {
        let mut words = line.split_whitespace();
        let name = words.next().expect("name");
        let index = index_of(name);
        let kind = words.next().expect("kind");
        let mut link = Link {
            index,
            name: name.into(),
            kind: if kind == "nic" { String::new() } else { kind.into() },
            hardware: if kind == "loopback" { libc::ARPHRD_LOOPBACK } else { libc::ARPHRD_ETHER },
            loopback: kind == "loopback",
            up: true,
            ..Link::default()
        };
        for word in words {
            match word.split_once('=') {
                Some((kind @ ("addr" | "tentative" | "deprecated"), prefix)) => {
                    let (address, prefix_len) = prefix_of(prefix);
                    let global = match address {
                        IpAddr::V4(_) => true,
                        IpAddr::V6(address) => !address.is_unicast_link_local(),
                    };
                    let (usable, preferred) = (kind != "tentative", kind != "deprecated");
                    addresses.push(Address { link: index, address, prefix_len, global, usable, preferred });
                }
                Some(("route", prefix)) => {
                    let (destination, prefix_len) = prefix_of(prefix);
                    let key = RouteKey { table: 254, destination, prefix_len, tos: 0, priority: 0 };
                    // The reader of messages leaves out what cannot count.
                    if super::super::snapshot::is_wide(destination, prefix_len) {
                        routes.push(Route { key, protocol: libc::RTPROT_STATIC, links: vec![index] });
                    }
                }
                Some(("master", master)) => link.master = Some(index_of(master)),
                Some(("type", number)) => link.hardware = number.parse().expect("number"),
                None if word == "peer" => (link.peer, link.peer_elsewhere) = (Some(2), true),
                None if word == "down" => link.up = false,
                _ => panic!("what is {word:?}?"),
            }
        }
        links.push(link);
    }
    Snapshot::new(links, addresses, routes)
}

fn prefix_of(text: &str) -> (IpAddr, u8) {
    let (address, length) = text.split_once('/').expect("a prefix");
    (address.parse().expect("an address"), length.parse().expect("a length"))
}

fn roles_with(text: &str, overrides: &Overrides) -> String {
    let words: Vec<String> = classify(&node(text), overrides)
        .into_values()
        .map(|Interface { name, role, link_layer, .. }| {
            let role = match role {
                Role::PodInterface => "pod",
                Role::NodeDevice => "node",
            };
            let layer = match link_layer {
                LinkLayer::Ethernet => "",
                LinkLayer::None => "/ip",
            };
            format!("{name}:{role}{layer}")
        })
        .collect();
    words.join(" ")
}

fn roles(text: &str) -> String {
    roles_with(text, &Overrides::default())
}

fn overrides(node_devices: &[&str], pod_interfaces: &[&str]) -> Overrides {
    let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    Overrides::new(&owned(node_devices), &owned(pod_interfaces)).expect("patterns")
}

/// Pods' interfaces, each with the device that has its IP layer, where only pods are behind that.
fn ip_devices(text: &str, overrides: &Overrides) -> String {
    let snapshot = node(text);
    let words: Vec<String> = classify(&snapshot, overrides)
        .into_values()
        .filter_map(|Interface { name, ip_device, .. }| {
            let device = snapshot.links.get(&ip_device?.index).expect("a link");
            Some(format!("{name}:{}", device.name))
        })
        .collect();
    words.join(" ")
}

#[test]
fn pods_are_routed_to_by_their_interface_or_their_bridge() {
    let detected = Overrides::default();
    let routed = "
        eth0 nic addr=192.0.2.10/24 route=0.0.0.0/0
        veth1 veth peer
        veth2 veth peer
    ";
    assert_eq!(ip_devices(routed, &detected), "veth1:veth1 veth2:veth2");
    assert_eq!(ip_devices(BRIDGED, &detected), "veth1:cni0 veth2:cni0");
    let other_port = "
        br0 bridge addr=10.244.1.1/24
        veth1 veth peer master=br0
        tap0 tun master=br0
        veth2 veth peer
    ";
    assert_eq!(ip_devices(other_port, &detected), "veth2:veth2", "more than pods is behind the bridge");
    let leading_out = "
        br0 bridge addr=10.244.1.1/24 route=0.0.0.0/0
        veth1 veth peer master=br0
    ";
    assert_eq!(ip_devices(leading_out, &detected), "", "the world is behind the bridge");
    assert_eq!(ip_devices(BRIDGED, &overrides(&["eth0", "cni0"], &[])), "", "the bridge is named as a node device");
    let switched = "
        ovs openvswitch
        veth1 veth peer master=ovs
    ";
    assert_eq!(ip_devices(switched, &detected), "", "which device routes to a switch is the switch's business");
}

const BRIDGED: &str = "
    lo loopback addr=127.0.0.1/8
    eth0 nic addr=192.0.2.10/24 route=0.0.0.0/0
    eth1 nic
    cni0 bridge addr=10.244.1.1/24 addr=fd00:10:244:1::1/64
    veth1 veth peer master=cni0 addr=fe80::1/64
    veth2 veth peer master=cni0 down
    flannel.1 vxlan addr=10.244.1.0/32 route=10.244.0.0/24
    nodelocaldns dummy addr=169.254.20.10/32
    kube-ipvs0 dummy addr=10.96.0.1/16
    ifb0 ifb route=10.0.0.0/8
";

#[test]
fn bridged_pods() {
    assert_eq!(roles(BRIDGED), "eth0:node veth1:pod veth2:pod flannel.1:node");
}

#[test]
fn routed_pods_with_an_address_on_each_veth() {
    let node = "
        eth0 nic addr=2001:db8::10/64
        cali1 veth peer addr=169.254.1.1/32 addr=fe80::ecee:eeff:feee:eeee/64 route=10.1.0.5/32
        lxc2 veth peer addr=10.1.0.1/32 route=fd00::5/128 route=fe80::/64
        nk3 netkit peer route=10.1.0.7/32
        local0 veth
    ";
    assert_eq!(roles(node), "eth0:node cali1:pod lxc2:pod nk3:pod");
}

#[test]
fn a_nic_that_is_a_veth() {
    let node = "
        eth0 veth peer addr=172.18.0.2/16 route=0.0.0.0/0 route=fe80::/64
        eth1 veth peer route=fd01::/64
        veth3 veth peer route=10.244.0.2/32
    ";
    assert_eq!(roles(node), "eth0:node eth1:node veth3:pod");
}

#[test]
fn a_nic_with_a_host_address_and_a_default_route() {
    assert_eq!(roles("ens4 nic addr=10.128.0.5/32 route=0.0.0.0/0"), "ens4:node");
    assert_eq!(roles("ens4 nic addr=10.128.0.5/32 route=10.128.0.1/32"), "");
}

#[test]
fn bridges_that_lead_out() {
    let enslaved_nic = "
        br0 bridge addr=192.0.2.1/24
        eth0 nic master=br0
        veth1 veth peer master=br0
    ";
    assert_eq!(roles(enslaved_nic), "br0:node eth0:node veth1:pod");
    let no_pods = "
        br0 bridge addr=192.0.2.1/24
        eth0 nic master=br0
        tap0 tun master=br0
        veth1 veth peer
    ";
    assert_eq!(roles(no_pods), "br0:node veth1:pod");
    let no_way_out = "
        br0 bridge
        eth0 nic master=br0
        veth1 veth peer master=br0
    ";
    assert_eq!(roles(no_way_out), "veth1:pod");
    let uplink_that_is_a_veth = "
        br0 bridge addr=192.0.2.1/24 route=::/0
        eth0 veth peer master=br0
        veth1 veth peer master=br0
    ";
    assert_eq!(roles(uplink_that_is_a_veth), "br0:node eth0:pod veth1:pod");
    let named = overrides(&["br0", "eth0"], &[]);
    assert_eq!(roles_with(uplink_that_is_a_veth, &named), "br0:node eth0:node veth1:pod");
    let default_route = "
        br0 bridge addr=192.0.2.1/24 route=::/0
        veth1 veth peer master=br0
    ";
    assert_eq!(roles(default_route), "br0:node veth1:pod");
    let without_address = "
        br0 bridge
        eth0 nic master=br0
    ";
    assert_eq!(roles(without_address), "");
    let dummy_port = "
        br0 bridge addr=10.0.0.1/24
        fix dummy master=br0
    ";
    assert_eq!(roles(dummy_port), "");
}

#[test]
fn ports_of_bonds_are_left_to_their_master() {
    let node = "
        bond0 bond addr=192.0.2.10/24
        eth0 nic master=bond0 route=10.0.0.0/8
        lab0 veth peer master=bond0
        vrf1 vrf route=10.0.0.0/8
        eth2 nic master=vrf1 addr=198.51.100.1/24
        pod3 veth peer master=vrf1
        ovs-system openvswitch
        pod4 veth peer master=ovs-system
        eth5 nic master=ovs-system
    ";
    assert_eq!(roles(node), "bond0:node eth2:node pod3:pod pod4:pod");
}

#[test]
fn devices_without_a_link_layer_header() {
    let node = "
        wg0 wireguard type=65534 route=10.0.0.0/8
        tunl0 ipip type=768 route=10.1.0.0/26
        ip6tnl0 ip6tnl type=769
        sit1 sit type=776 route=2001:db8:1::/48
        ib0 nic type=32 addr=192.0.2.1/24
    ";
    assert_eq!(roles(node), "wg0:node/ip tunl0:node/ip sit1:node/ip");
}

#[test]
fn overrides_replace_their_role_alone() {
    let with = |nodes: &[&str], pods: &[&str]| roles_with(BRIDGED, &overrides(nodes, pods));
    assert_eq!(with(&["eth1"], &[]), "eth1:node veth1:pod veth2:pod");
    assert_eq!(with(&[], &["veth1", "none*"]), "eth0:node cni0:node veth1:pod veth2:node flannel.1:node");
    assert_eq!(with(&["eth0"], &["eth*"]), "eth0:node eth1:pod");
    assert_eq!(with(&[], &["eth?"]), "eth0:pod eth1:pod cni0:node flannel.1:node");
    assert_eq!(with(&["lo", "gone0"], &[]), "veth1:pod veth2:pod");
    // A dummy that was named is taken at the user's word.
    assert_eq!(with(&["kube-ipvs0"], &["x"]), "kube-ipvs0:node");
}

#[test]
fn a_veth_nic_does_not_become_a_pod_when_another_device_is_named() {
    let node = "
        eth0 veth peer addr=172.18.0.2/16
        eth1 veth peer addr=172.19.0.2/16
    ";
    assert_eq!(roles_with(node, &overrides(&["eth1"], &[])), "eth1:node");
}

#[test]
fn a_bad_pattern_is_refused() {
    let error = Overrides::new(&[], &["veth[".into()]).expect_err("unclosed class");
    assert!(error.to_string().contains("veth["), "{error}");
}
