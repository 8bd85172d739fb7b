//! Pods on a bridge that has the node's uplink as a port, too, and the node's addresses and default route.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::{DualStack, Namespace, Outside, Segment, Side, attachments, eventually};

use crate::cluster::{Cluster, NODE_PORT, PORT, SOON, TRAFFIC, VIP, ask_here, exposed};

/// An endpoint that is not on the bridge, one that is, and one on the other node.
const ROLES: [&str; 3] = ["local", "bridged", "remote"];

#[test]
fn services_work_on_a_bridge_with_the_uplink() {
    // The uplink is a veth in the lab; on a machine it is a NIC.
    everybody_is_answered(&["--pod-interfaces", "pod*"], &ROLES);
}

#[test]
fn services_work_on_a_bridge_with_an_uplink_that_is_named() {
    everybody_is_answered(&["--node-devices", "br0,eth0,eth1"], &ROLES);
}

#[test]
fn an_uplink_that_is_taken_for_a_pods_port_leads_to_the_endpoints_of_its_node() {
    // What comes by it counts as a pod's of this node, whose answers come back by themselves.
    everybody_is_answered(&[], &ROLES[..2]);
}

/// A client and what it asks.
struct Client<'a> {
    name: &'static str,
    namespace: &'a Namespace,
    addresses: DualStack,
    /// Whether it comes to node A by a device of the node.
    is_from_elsewhere: bool,
    frontend: (DualStack, u16),
}

fn clients<'a>(cluster: &'a Cluster, outside: &'a Outside, segment: Segment) -> Vec<Client<'a>> {
    let node_port = (cluster.node(Side::A), NODE_PORT);
    let vip = (VIP, PORT);
    let other = cluster.lab.node(Side::B);
    let far = &cluster.find("remote").pod;
    let own = [("bridged pod", &cluster.bridged_client), ("routed pod", &cluster.client)];
    let inside = own.into_iter().flat_map(|(name, pod)| {
        [vip, node_port].map(|frontend| (name, pod.namespace(), pod.addresses(), false, frontend))
    });
    let elsewhere = [
        ("far pod", far.namespace(), far.addresses(), true, node_port),
        ("other node", other.namespace(), other.addresses(), true, node_port),
        // The answer of a bridged pod comes to it past the bridge's own device.
        ("neighbour", other.namespace(), segment.neighbour, true, (segment.gateway, NODE_PORT)),
        ("outside", outside.namespace(), outside.addresses(), true, node_port),
        ("outside", outside.namespace(), outside.addresses(), true, vip),
    ];
    inside
        .chain(elsewhere)
        .map(|(name, namespace, addresses, is_from_elsewhere, frontend)| Client {
            name,
            namespace,
            addresses,
            is_from_elsewhere,
            frontend,
        })
        .collect()
}

fn everybody_is_answered(arguments: &[&str], roles: &[&str]) {
    let cluster = Cluster::build();
    let segment = cluster.lab.bridge_uplink(Side::A).expect("the NIC joins the bridge");
    let outside = cluster.lab.add_outside().expect("the host is added");
    let node = cluster.lab.node(Side::A);
    cluster.manifests.write_node(node, "somewhere").expect("the manifest is written");
    cluster.write(&exposed(&cluster, &[]));
    let _daemon = cluster.start_daemon_on(Side::A, arguments);
    let hooks = attachments(node.namespace()).expect("the kernel tells");
    for interface in ["br0", "eth0", cluster.bridged_client.host_interface()] {
        let programs = hooks.iter().filter(|hook| hook.interface == interface).count();
        assert_eq!(programs, 2, "one at ingress and one at egress of {interface}: {hooks:#?}");
    }

    let mut wrong = Vec::new();
    for role in roles {
        cluster.write(&exposed(&cluster, &[role]));
        await_endpoint(&cluster, role);
        let backend = cluster.find(role);
        for client in clients(&cluster, &outside, segment) {
            // The answer of an endpoint elsewhere would else not come back this way.
            let is_masqueraded = client.is_from_elsewhere && backend.side == Side::B;
            let wanted = if is_masqueraded { node.addresses() } else { client.addresses };
            for (family, protocol) in TRAFFIC {
                drop(backend.server.take_peers());
                let (address, port) = client.frontend;
                let target = address.socket(family, port);
                let answered = client.namespace.run(|| ask_here(target, protocol, SOON));
                let answered = answered.expect("the client is there").map_err(|error| error.to_string());
                let seen: BTreeSet<IpAddr> = backend.server.take_peers().iter().map(SocketAddr::ip).collect();
                if answered.as_deref() != Ok(*role) || seen != [wanted.of(family)].into() {
                    wrong.push(format!(
                        "{} asks {target} of {role} over {protocol}: {answered:?}, seen as {seen:?}, not {}",
                        client.name,
                        wanted.of(family)
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// Waits until a pod that has nothing to do with the bridge is answered by `role`.
fn await_endpoint(cluster: &Cluster, role: &str) {
    for family in IpFamily::ALL {
        eventually("waiting for the endpoint", SOON, || {
            let ask = || ask_here(VIP.socket(family, PORT), Protocol::Tcp, SOON / 4);
            match cluster.client.namespace().run(ask) {
                Ok(Ok(answered)) if answered == role => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .unwrap_or_else(|error| panic!("{error}"));
    }
}
