//! What a Service does while nothing changes: whoever asks is answered, by the right backend, from the VIP.

use std::collections::BTreeMap;

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::{
    Attach, Bulk, DualStack, EchoServer, Load, Side, TcpSession, Wiring, attachments, eventually, link_counters,
};

use crate::cluster::{Cluster, PORT, SOON, TARGET, answers, is_without_tcx, service, wait_until_answers};

#[test]
fn every_client_is_answered_by_every_backend() {
    core_cases(Attach::Auto);
}

#[test]
fn every_client_is_answered_with_tcx() {
    if is_without_tcx() {
        return;
    }
    core_cases(Attach::Tcx);
}

#[test]
fn every_client_is_answered_with_clsact() {
    core_cases(Attach::Clsact);
}

/// Routed and bridged clients, backends in all places, TCP and UDP, connected and not, both families.
fn core_cases(attach: Attach) {
    let cluster = Cluster::build();
    let vips: Vec<DualStack> = (1..).map(DualStack::cluster_ip).take(cluster.backends.len()).collect();
    for (backend, vip) in cluster.backends.iter().zip(&vips) {
        cluster.write(&service(&backend.role, *vip, &[backend.pod.addresses()]));
    }
    let _daemon = cluster.start_daemon_with(attach);

    for client in [&cluster.client, &cluster.bridged_client] {
        for (backend, vip) in cluster.backends.iter().zip(&vips) {
            wait_until_answers(client.namespace(), *vip, &backend.role);
            // Once it is served it is always served.
            for _ in 0..20 {
                answers(client.namespace(), *vip, PORT, &backend.role).expect("the Service is served");
            }
        }
    }
    let node = cluster.lab.node(Side::A);
    let found = attachments(node.namespace()).expect("the kernel tells");
    let expected = match attach {
        Attach::Auto | Attach::Tcx => "tcx",
        Attach::Clsact => "clsact",
    };
    assert!(found.iter().all(|attachment| attachment.hook.starts_with(expected)), "{found:#?}");
    for interface in [node.interface(), cluster.client.host_interface(), cluster.bridged_client.host_interface()] {
        for direction in ["ingress", "egress"] {
            let hook = format!("{expected} {direction}");
            let programs = found.iter().filter(|found| found.interface == interface && found.hook == hook).count();
            assert_eq!(programs, 1, "{interface} {hook}: {found:#?}");
        }
    }
}

#[test]
fn traffic_that_is_not_for_a_vip_is_left_alone() {
    let cluster = Cluster::build();
    let vip = DualStack::cluster_ip(1);
    cluster.write(&service("echo", vip, &[cluster.backend("local")]));
    let other_node = cluster.lab.node(Side::B);
    let _server = EchoServer::start_in(other_node.namespace(), other_node.addresses(), TARGET, "node-b")
        .expect("the server listens");
    let _daemon = cluster.start_daemon();
    wait_until_answers(cluster.client.namespace(), vip, "local");

    for client in [&cluster.client, &cluster.bridged_client] {
        for backend in &cluster.backends {
            answers(client.namespace(), backend.pod.addresses(), TARGET, &backend.role).expect("pods reach pods");
        }
        answers(client.namespace(), other_node.addresses(), TARGET, "node-b").expect("pods reach the other node");
    }
    // A backend that is a Service's endpoint is a client like any other, too.
    answers(cluster.backends[0].pod.namespace(), cluster.backend("remote"), TARGET, "remote").expect("pods reach pods");
    answers(cluster.backends[2].pod.namespace(), cluster.backend("local"), TARGET, "local").expect("pods reach pods");
}

#[test]
fn large_transfers_arrive_intact() {
    let cluster = Cluster::build();
    let vips = [("local", DualStack::cluster_ip(1)), ("remote", DualStack::cluster_ip(2))];
    for (role, vip) in vips {
        cluster.write(&service(role, vip, &[cluster.backend(role)]));
    }
    let _daemon = cluster.start_daemon();

    let bulk = Bulk { bytes: 64 << 20 };
    for (role, vip) in vips {
        wait_until_answers(cluster.client.namespace(), vip, role);
        let backend = cluster.backends.iter().find(|backend| backend.role == role).expect("it was added");
        for family in IpFamily::ALL {
            let received = || link_counters(backend.pod.namespace(), "eth0").expect("the interface is there");
            let before = received();
            let report = bulk
                .run(cluster.client.namespace(), vip.socket(family, PORT))
                .unwrap_or_else(|error| panic!("{family} to the {role} backend: {error}"));
            assert_eq!(report.intact, bulk.bytes);
            let after = received();
            let per_packet = (after.bytes - before.bytes) / (after.packets - before.packets);
            assert!(per_packet > 1500, "{family}: {per_packet} bytes per packet: offload was lost on the way");
        }
    }
}

#[test]
fn connections_spread_evenly() {
    /// Of a uniform choice the chi-square statistic with three degrees of freedom exceeds this once in a
    /// million runs.
    const BOUND: f64 = 30.7;
    const CONNECTIONS: u64 = 4000;

    let mut cluster = Cluster::build();
    cluster.add_backend("local-too", Side::A, Wiring::Routed);
    let vip = DualStack::cluster_ip(1);
    let addresses: Vec<DualStack> = cluster.backends.iter().map(|backend| backend.pod.addresses()).collect();
    cluster.write(&service("echo", vip, &addresses));
    let _daemon = cluster.start_daemon();

    for family in IpFamily::ALL {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let target = vip.socket(family, PORT);
            eventually("waiting for the Service", SOON, || TcpSession::open(cluster.client.namespace(), target))
                .expect("the Service is served");
            let load = Load::start(cluster.client.namespace(), &[(protocol, target)]);
            eventually("waiting for connections", 20 * SOON, || match load.done() {
                CONNECTIONS.. => Ok(()),
                done => Err(format!("{done} so far")),
            })
            .expect("connections go on");
            let report = load.finish().expect("the clients run");
            assert_eq!(report.failed, 0, "{family} {protocol}: {:?}", report.failures);
            let statistic = chi_square(&report.answers, addresses.len());
            assert!(statistic < BOUND, "{family} {protocol}: chi-square {statistic:.1} of {:?}", report.answers);
        }
    }
}

/// How far `counts` are from an even spread over `choices`.
fn chi_square(counts: &BTreeMap<String, u64>, choices: usize) -> f64 {
    assert!(counts.len() <= choices, "more backends than there are: {counts:?}");
    let missing = choices - counts.len();
    let as_float = |count: u64| f64::from(u32::try_from(count).expect("thousands fit"));
    let expected = as_float(counts.values().sum()) / as_float(choices as u64);
    let deviation = |count: f64| (count - expected).powi(2) / expected;
    counts.values().map(|&count| deviation(as_float(count))).sum::<f64>() + as_float(missing as u64) * deviation(0.0)
}
