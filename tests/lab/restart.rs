//! The daemon goes and comes back, and traffic does not notice.

use std::{fs, time::Duration};

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::{Attach, DualStack, Load, Steady, TcpSession, UdpSession, eventually};

use crate::cluster::{Cluster, PORT, SOON, answers, is_silent, is_without_tcx, service, wait_until_answers};

const VIP: DualStack = DualStack::cluster_ip(1);

/// Exchanges in each phase: with the daemon, without it, and with it again.
const PHASE: u64 = 2000;

#[test]
fn a_killed_daemon_is_not_noticed_with_tcx() {
    if is_without_tcx() {
        return;
    }
    kill_and_restart_under_load(Attach::Tcx);
}

#[test]
fn a_killed_daemon_is_not_noticed_with_clsact() {
    kill_and_restart_under_load(Attach::Clsact);
}

fn kill_and_restart_under_load(attach: Attach) {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    cluster.write(&service("echo", VIP, &[cluster.backend("local"), cluster.backend("remote")]));
    let mut daemon = cluster.start_daemon_with(attach);
    let targets: Vec<_> = IpFamily::ALL
        .into_iter()
        .flat_map(|family| [Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, VIP.socket(family, PORT))))
        .collect();
    eventually("waiting for the Service", SOON, || {
        targets.iter().try_for_each(|(_, target)| UdpSession::open(client, *target, true)?.ask().map(drop))
    })
    .expect("the Service is served");

    let long_lived: Vec<Steady> =
        targets.iter().map(|(protocol, target)| Steady::start(client, *protocol, *target)).collect();
    let before = syn_retransmissions(&cluster);
    let load = Load::start(client, &targets);
    let go_on = || {
        let goal = load.done() + PHASE;
        eventually("waiting for exchanges", Duration::from_secs(120), || match load.done() {
            done if done >= goal => Ok(()),
            done => Err(format!("{done} of {goal}")),
        })
        .expect("traffic goes on");
    };
    go_on();
    for _ in 0..2 {
        daemon.kill().expect("the daemon runs");
        go_on();
        daemon.start_again().expect("the daemon starts");
        go_on();
    }

    let report = load.finish().expect("the clients run");
    assert_eq!(report.failed, 0, "of {} exchanges: {:#?}", report.succeeded(), report.failures);
    assert!(report.succeeded() >= 5 * PHASE);
    assert_eq!(report.answers.len(), 2, "both backends take part: {:?}", report.answers);
    assert_eq!(syn_retransmissions(&cluster) - before, 0, "not one SYN had to be sent twice");
    for (session, (protocol, target)) in long_lived.into_iter().zip(&targets) {
        let report = session.finish().unwrap_or_else(|error| panic!("{protocol} {target} was cut: {error}"));
        assert_eq!(report.backends.len(), 1, "{protocol} {target} stays with its backend: {report:?}");
    }
}

/// How many SYNs the client had to send again, from its namespace's own counters.
pub(crate) fn syn_retransmissions(cluster: &Cluster) -> u64 {
    // The counters of the calling thread's namespace, as opposed to the process's.
    let text = cluster
        .client
        .namespace()
        .run(|| fs::read_to_string("/proc/thread-self/net/netstat"))
        .expect("the namespace is there")
        .expect("the kernel counts");
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    names
        .split(' ')
        .zip(values.split(' '))
        .find(|(name, _)| *name == "TCPSynRetrans")
        .and_then(|(_, value)| value.parse().ok())
        .expect("the counter is there")
}

#[test]
fn what_changed_while_the_daemon_was_away_is_put_right() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let [kept, deleted, created] = [1, 2, 3].map(DualStack::cluster_ip);
    let doomed = service("deleted", deleted, &[cluster.backend("local")]);
    cluster.write(&service("kept", kept, &[cluster.backend("local")]));
    cluster.write(&doomed);
    let mut daemon = cluster.start_daemon();
    wait_until_answers(client, kept, "local");
    wait_until_answers(client, deleted, "local");

    daemon.kill().expect("the daemon runs");
    cluster.write(&service("kept", kept, &[cluster.backend("remote")]));
    cluster.manifests.remove(&doomed).expect("the manifest is removed");
    cluster.write(&service("created", created, &[cluster.backend("bridged")]));
    let late = cluster
        .lab
        .add_pod(dsproxy_tests::lab::Side::A, dsproxy_tests::lab::Wiring::Routed, "late")
        .expect("the pod is added");
    answers(client, kept, PORT, "local").expect("the last state stays while the daemon is away");
    answers(client, deleted, PORT, "local").expect("the last state stays while the daemon is away");

    daemon.start_again().expect("the daemon starts");
    wait_until_answers(client, kept, "remote");
    wait_until_answers(client, created, "bridged");
    wait_until_answers(late.namespace(), created, "bridged");
    for family in IpFamily::ALL {
        eventually("waiting for the deletion", SOON, || is_silent(client, family, deleted, PORT))
            .expect("a Service that was deleted meanwhile is not served");
    }
}

#[test]
fn a_daemon_that_is_told_to_end_leaves_traffic_alone() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    cluster.write(&service("echo", VIP, &[cluster.backend("remote")]));
    let mut daemon = cluster.start_daemon();
    wait_until_answers(client, VIP, "remote");

    let status = daemon.terminate().expect("SIGTERM ends it");
    assert!(status.success(), "{status}");
    for _ in 0..20 {
        answers(client, VIP, PORT, "remote").expect("the data path stays");
    }
    daemon.start_again().expect("the daemon starts");
    answers(client, VIP, PORT, "remote").expect("the Service is served");
}

#[test]
fn a_client_stays_with_its_endpoint_through_a_restart() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let roles = ["local", "bridged", "remote"];
    cluster.write(&service("echo", VIP, &roles.map(|role| cluster.backend(role))).affinity(600));
    let mut daemon = cluster.start_daemon();
    let role_of = |family| {
        let target = VIP.socket(family, PORT);
        TcpSession::open(client, target).expect("the Service is served").backend().to_owned()
    };
    let before = IpFamily::ALL.map(role_of);
    let stays = |when: &str| {
        for (family, before) in IpFamily::ALL.into_iter().zip(&before) {
            // Each comes from another port, which spreads without affinity.
            for _ in 0..12 {
                assert_eq!(role_of(family), *before, "{family}, {when}");
            }
        }
    };
    stays("with the daemon");
    daemon.kill().expect("the daemon runs");
    stays("without it");
    daemon.start_again().expect("the daemon starts");
    stays("with it again");
}
