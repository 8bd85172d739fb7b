//! The rules that dsproxy is measured beside: the kernel takes them, and they serve what they are made for.

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::{
    lab::{DualStack, Side},
    rules::{DesiredState, Port, Service, Shape},
};

use crate::cluster::{BALANCER, Cluster, NODE_PORT, PORT, TARGET, VIP, answers, is_silent};

const SHAPES: [Shape; 2] = [Shape::Nftables, Shape::Iptables];

/// A Service on TCP and UDP behind a NodePort, and others with one, two and three endpoints beside it.
fn desired(cluster: &Cluster, backends: &[&str]) -> DesiredState {
    let port = |protocol, node_port| Port { protocol, number: PORT, target: TARGET, node_port };
    let background = (0..3).map(|number| Service {
        name: format!("background-{number}"),
        cluster_ips: DualStack::cluster_ip(100 + number),
        ports: vec![port(Protocol::Tcp, None), port(Protocol::Sctp, None)],
        endpoints: (0..=number).map(DualStack::external).collect(),
    });
    let mut services: Vec<Service> = background.collect();
    services.insert(
        1,
        Service {
            name: "echo".to_owned(),
            cluster_ips: VIP,
            ports: vec![port(Protocol::Tcp, Some(NODE_PORT)), port(Protocol::Udp, Some(NODE_PORT))],
            endpoints: backends.iter().map(|role| cluster.backend(role)).collect(),
        },
    );
    DesiredState {
        services,
        node: cluster.lab.node(Side::A).addresses(),
        cluster_cidr: (
            "10.244.0.0/16".parse().expect("it is a network"),
            "fd00:10:244::/48".parse().expect("it is a network"),
        ),
    }
}

#[test]
fn the_kernel_takes_rules_of_either_shape() {
    let cluster = Cluster::build();
    let desired = desired(&cluster, &["local", "remote"]);
    for shape in SHAPES {
        shape.check(cluster.lab.node(Side::A).namespace(), &desired).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn rules_that_the_kernel_does_not_take_are_an_error() {
    let cluster = Cluster::build();
    let mut desired = desired(&cluster, &["local", "remote"]);
    desired.services[1].name = "two words".to_owned();
    let refused = Shape::Nftables.check(cluster.lab.node(Side::A).namespace(), &desired);
    assert!(refused.expect_err("a chain's name is one word").to_string().contains("refused"));
}

#[test]
fn rules_of_either_shape_serve_cluster_ips_and_node_ports() {
    for shape in SHAPES {
        let cluster = Cluster::build();
        let outside = cluster.lab.add_outside().expect("the host is added");
        let node = cluster.lab.node(Side::A);
        for role in ["local", "remote"] {
            // Loaded once more over what is there.
            shape.load(node.namespace(), &desired(&cluster, &[role, role])).unwrap_or_else(|error| panic!("{error}"));
            for client in [cluster.client.namespace(), outside.namespace()] {
                answers(client, VIP, PORT, role).unwrap_or_else(|error| panic!("{shape:?}: {error}"));
            }
            let server = &cluster.find(role).server;
            server.take_peers();
            answers(outside.namespace(), node.addresses(), NODE_PORT, role)
                .unwrap_or_else(|error| panic!("{shape:?}: {error}"));
            let peers = server.take_peers();
            let own = IpFamily::ALL.map(|family| outside.addresses().of(family));
            assert!(
                !peers.is_empty() && peers.iter().all(|peer| !own.contains(&peer.ip())),
                "{shape:?}: a client by the NodePort was not masqueraded: {peers:?}"
            );
        }
        for family in IpFamily::ALL {
            is_silent(outside.namespace(), family, BALANCER, PORT).expect("nobody has asked for this address");
        }
    }
}
