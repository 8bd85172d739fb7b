//! Floods of openings and datagrams from sources that are nobody's: who is connected stays so, and who comes is served.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::{
    bench::Flood,
    lab::{DualStack, Load, Side, Steady, TcpSession, eventually},
};

use crate::{
    cluster::{
        BALANCER, CLUSTER_CIDR, Cluster, NODE_PORT, PORT, SOON, TRAFFIC, VIP, answers, exposed, wait_until_answers,
    },
    process::Daemon,
};

/// How long it goes on.
const LONG: Duration = Duration::from_secs(6);

/// The first of the addresses of the network outside that nobody has.
fn spoofed() -> DualStack {
    DualStack::outside(128)
}

/// The share of new connections that has to succeed at once while the flood goes on.
const SUCCEED: f64 = 0.99;

/// What the daemon's memory may grow by, in KiB.
const GROWTH: u64 = 8 * 1024;

fn daemon<'lab>(cluster: &'lab Cluster, flags: &[&str]) -> Daemon<'lab> {
    let manifests = cluster.manifests.directory().display().to_string();
    Daemon::new(&cluster.lab, &[&["--manifests", &manifests], &CLUSTER_CIDR[..], flags].concat()).started()
}

#[test]
fn a_flood_cuts_no_connection_and_turns_hardly_any_away() {
    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let (client, busy_client) = (cluster.client.namespace(), cluster.bridged_client.namespace());
    cluster.write(&exposed(&cluster, &["local", "bridged"]));
    let daemon = daemon(&cluster, &["--log-drops-every", "2"]);
    eventually("the Service", SOON, || TcpSession::open(client, VIP.socket(IpFamily::V6, PORT)).map(drop))
        .expect("it is served");
    for family in IpFamily::ALL {
        let reached = || TcpSession::open(outside.namespace(), BALANCER.socket(family, PORT)).map(drop);
        eventually("the load balancer's address", SOON, reached).expect("it is served");
    }

    let mut established: Vec<TcpSession> = IpFamily::ALL
        .into_iter()
        .flat_map(|family| {
            [(client, VIP), (outside.namespace(), BALANCER)].map(|(from, vip)| (from, vip.socket(family, PORT)))
        })
        .map(|(from, target)| TcpSession::open(from, target).expect("the Service is served"))
        .collect();
    let steady = IpFamily::ALL.map(|family| Steady::start(client, Protocol::Tcp, VIP.socket(family, PORT)));
    let targets: Vec<_> = TRAFFIC.iter().map(|&(family, protocol)| (protocol, VIP.socket(family, PORT))).collect();
    let load = Load::start(busy_client, &targets);
    sleep(Duration::from_secs(1));
    let opened = |family: IpFamily| {
        daemon.sum("dsproxy_packets_total", &["reason=\"opened\"", &format!("ip_family=\"{family}\"")])
    };
    let (opened_before, memory_before) = (IpFamily::ALL.map(opened), daemon.resident());

    let aims = TRAFFIC.iter().map(|&(family, protocol)| (protocol, BALANCER.socket(family, PORT))).collect();
    let flood = Flood::start(&cluster.lab, &outside, aims, spoofed()).expect("the flood begins");
    sleep(LONG);
    let flooded = flood.end().expect("the flood went on");
    let (opened_after, memory_after) = (IpFamily::ALL.map(opened), daemon.resident());
    let report = load.finish().expect("the clients run");

    eprintln!("{flooded:?}, {:.0} a second; {report:?}; memory {memory_before} -> {memory_after} KiB", flooded.rate());
    for (before, after) in opened_before.into_iter().zip(opened_after) {
        // Half of the packets are of each family; some are lost on the wire.
        assert!(after - before > flooded.packets as f64 / 4.0, "{before} -> {after} of {flooded:?}");
    }
    let share = report.succeeded() as f64 / (report.succeeded() + report.failed) as f64;
    assert!(share >= SUCCEED, "{share}: {report:#?}");
    assert!(report.succeeded() > 500, "{report:#?}");
    for session in steady {
        let report = session.finish().expect("the connection goes on");
        assert_eq!(report.backends.len(), 1, "{report:?}");
    }
    for session in &mut established {
        session.exchange(b"still there?").expect("the connection stays");
    }
    assert!(memory_after <= memory_before + GROWTH, "{memory_before} -> {memory_after} KiB");
    assert_eq!(daemon.health("/healthz").0, 200);
}

#[test]
fn a_range_of_ports_that_is_used_up_is_counted_and_told_now_and_then_and_used_again() {
    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let (client, node) = (cluster.client.namespace(), cluster.lab.node(Side::A).addresses());
    cluster.write(&exposed(&cluster, &["remote"]));
    let daemon = daemon(&cluster, &["--snat-ports", "50000-50063", "--timeout-udp", "8s", "--log-drops-every", "2"]);
    wait_until_answers(client, VIP, "remote");
    let reached = || answers(outside.namespace(), node, NODE_PORT, "remote");
    eventually("the NodePort", SOON, reached).expect("it is served");
    // Through the node with a port of its own, and within the cluster, where none is needed.
    let mut established: Vec<TcpSession> = IpFamily::ALL
        .into_iter()
        .flat_map(|family| [(outside.namespace(), node.socket(family, NODE_PORT)), (client, VIP.socket(family, PORT))])
        .map(|(from, target)| TcpSession::open(from, target).expect("the Service is served"))
        .collect();
    let exhausted = |family: IpFamily| {
        daemon.sum("dsproxy_packets_total", &["reason=\"snat-exhausted\"", &format!("ip_family=\"{family}\"")])
    };
    assert_eq!(IpFamily::ALL.map(exhausted), [0.0, 0.0]);

    let aims = IpFamily::ALL.map(|family| (Protocol::Udp, node.socket(family, NODE_PORT)));
    let started = Instant::now();
    let flood = Flood::start(&cluster.lab, &outside, aims.to_vec(), spoofed()).expect("the flood begins");
    sleep(LONG);
    for session in &mut established {
        session.exchange(b"in the flood").expect("the connection stays");
    }
    let flooded = flood.end().expect("the flood went on");
    for family in IpFamily::ALL {
        let count = exhausted(family);
        assert!(count > 1000.0, "{family}: {count} of {flooded:?}");
        daemon.await_log(&[
            "WARN",
            "snat-exhausted",
            &family.to_string(),
            "--snat-ports",
            "packets=",
            "mostly=\"default/echo:",
        ]);
    }
    // All of them are one service port's, both families together.
    let all: f64 = IpFamily::ALL.map(exhausted).iter().sum();
    let of_service = || daemon.sum("dsproxy_service_drops_total", &["reason=\"snat-exhausted\"", "protocol=\"UDP\""]);
    assert!(of_service() >= all, "{} of {all}", of_service());
    let told = daemon.log().lines().filter(|line| line.contains("snat-exhausted")).count();
    let at_most = 2 * (started.elapsed().as_secs() / 2 + 2) as usize;
    assert!(told <= at_most, "{told} lines in {:?}, for {flooded:?}:\n{}", started.elapsed(), daemon.log());

    eventually("a port", 4 * SOON, reached).expect("ports of what is silent serve again");
    for session in &mut established {
        session.exchange(b"still there?").expect("the connection stays");
    }
    assert_eq!(daemon.health("/healthz").0, 200);
}
