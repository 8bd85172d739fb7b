//! `--pod-shortcut`: pods of a node reach each other through Services past the host's stack, and its rules; all others as ever.

use std::process::Command;

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{Bulk, DualStack, Pod, Side};

use crate::cluster::{
    BALANCER, Cluster, NODE_PORT, PORT, TARGET, answers, exposed, is_silent, service, wait_until_answers,
};

/// Nothing is forwarded.
const CLOSED: &str = "table inet closed { chain forward { type filter hook forward priority filter; policy drop; }; }";

/// Nothing of which the stack has seen one half is forwarded.
const STRICT: &str =
    "table inet strict { chain forward { type filter hook forward priority filter; ct state invalid drop; }; }";

const FLAG: &str = "--pod-shortcut";

/// Where a backend is, and the VIP of its Service.
const SERVICES: [(&str, DualStack); 3] = [
    ("local", DualStack::cluster_ip(11)),
    ("bridged", DualStack::cluster_ip(12)),
    ("remote", DualStack::cluster_ip(13)),
];

/// A cluster with a Service for each backend.
fn served() -> Cluster {
    let cluster = Cluster::build();
    for (role, vip) in SERVICES {
        cluster.write(&service(role, vip, &[cluster.backend(role)]));
    }
    cluster
}

/// Both clients have been answered by every Service.
fn wait_for_all(cluster: &Cluster) {
    for client in [&cluster.client, &cluster.bridged_client] {
        for (role, vip) in SERVICES {
            wait_until_answers(client.namespace(), vip, role);
        }
    }
}

/// Node A goes by `rules` from here on.
fn load(cluster: &Cluster, rules: &'static str) {
    let node = cluster.lab.node(Side::A).namespace();
    let loaded = node.run(|| Command::new("nft").arg(rules).output()).expect("entered").expect("nft runs");
    assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
}

#[test]
fn pods_of_a_node_reach_each_other_past_the_hosts_rules() {
    let cluster = served();
    let daemon = cluster.start_daemon_on(Side::A, &[FLAG]);
    wait_for_all(&cluster);
    load(&cluster, CLOSED);
    for client in [&cluster.client, &cluster.bridged_client].map(Pod::namespace) {
        for (role, vip) in &SERVICES[..2] {
            for _ in 0..5 {
                answers(client, *vip, PORT, role).unwrap_or_else(|error| panic!("{role}: {error}"));
            }
            // In aggregates of segments.
            for family in IpFamily::ALL {
                Bulk { bytes: 1 << 20 }
                    .run(client, vip.socket(family, PORT))
                    .unwrap_or_else(|error| panic!("{role} {family}: {error}"));
            }
        }
        for family in IpFamily::ALL {
            let (_, remote) = SERVICES[2];
            is_silent(client, family, remote, PORT).expect("another node is reached through the stack");
        }
    }
    // Straight to the pod there is no shortcut.
    for family in IpFamily::ALL {
        let local = cluster.backend("local");
        is_silent(cluster.client.namespace(), family, local, TARGET).expect("who passes the VIP by meets the rules");
    }
    drop(daemon);
    let _daemon = cluster.start_daemon_on(Side::A, &[]);
    for client in [&cluster.client, &cluster.bridged_client] {
        for (role, vip) in &SERVICES[..2] {
            for family in IpFamily::ALL {
                is_silent(client.namespace(), family, *vip, PORT)
                    .unwrap_or_else(|error| panic!("{role}: the rules hold without the flag: {error}"));
            }
        }
    }
    load(&cluster, "delete table inet closed");
    wait_for_all(&cluster);
}

#[test]
fn with_the_shortcut_all_others_are_answered_as_ever() {
    let cluster = served();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let _daemon = cluster.start_daemon_on(Side::A, &[FLAG]);
    wait_for_all(&cluster);
    // A connection that went by both ways would be invalid to them.
    load(&cluster, STRICT);
    for (role, vip) in SERVICES {
        let backend = cluster.find(role);
        // Itself, where it is on a node with the daemon.
        if backend.side == Side::A {
            answers(backend.pod.namespace(), vip, PORT, role).unwrap_or_else(|error| panic!("{role}: {error}"));
        }
        for client in [&cluster.client, &cluster.bridged_client] {
            answers(client.namespace(), backend.pod.addresses(), TARGET, role)
                .unwrap_or_else(|error| panic!("straight to {role}: {error}"));
            // In aggregates of segments.
            for family in IpFamily::ALL {
                Bulk { bytes: 4 << 20 }
                    .run(client.namespace(), vip.socket(family, PORT))
                    .unwrap_or_else(|error| panic!("{role} {family}: {error}"));
            }
        }
    }
    for role in ["local", "bridged", "remote"] {
        cluster.write(&exposed(&cluster, &[role]));
        wait_until_answers(outside.namespace(), BALANCER, role);
        answers(outside.namespace(), cluster.node(Side::A), NODE_PORT, role)
            .unwrap_or_else(|error| panic!("{role}: {error}"));
    }
}
