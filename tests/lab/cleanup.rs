//! `dsproxy cleanup` takes everything with it.

use std::{fs, path::Path};

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{Attach, DualStack, Side, Wiring, attachments, eventually, tc};

use crate::cluster::{Cluster, PORT, SOON, TARGET, answers, is_silent, is_without_tcx, service, wait_until_answers};

#[test]
fn nothing_is_left_of_tcx() {
    if is_without_tcx() {
        return;
    }
    cleanup_leaves_nothing(Attach::Tcx);
}

#[test]
fn nothing_is_left_of_clsact() {
    cleanup_leaves_nothing(Attach::Clsact);
}

fn cleanup_leaves_nothing(attach: Attach) {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let node = cluster.lab.node(Side::A).namespace();
    let vip = DualStack::cluster_ip(1);
    cluster.write(&service("echo", vip, &[cluster.backend("remote")]));
    let mut daemon = cluster.start_daemon_with(attach);
    wait_until_answers(client, vip, "remote");
    assert_ne!(attachments(node).expect("the kernel tells"), []);
    assert!(pins_below(daemon.bpffs()) > 0, "maps are pinned");

    daemon.terminate().expect("SIGTERM ends it");
    // A second time there is nothing to do, which is no error.
    for _ in 0..2 {
        let output = daemon.command(&["cleanup"]).expect("the command runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(attachments(node).expect("the kernel tells"), []);
        assert_eq!(pins_below(daemon.bpffs()), 0, "nothing stays pinned");
    }
    for family in IpFamily::ALL {
        is_silent(client, family, vip, PORT).expect("the VIP is not translated any more");
    }
    answers(client, cluster.backend("remote"), TARGET, "remote").expect("pods reach pods");

    daemon.start_again().expect("the daemon starts from nothing");
    eventually("waiting for the Service", SOON, || answers(client, vip, PORT, "remote")).expect("the Service is back");
}

#[test]
fn a_daemon_whose_data_path_is_taken_away_attaches_nothing_any_more() {
    for attach in [Attach::Clsact, Attach::Tcx] {
        if attach == Attach::Tcx && is_without_tcx() {
            continue;
        }
        let cluster = Cluster::build();
        let node = cluster.lab.node(Side::A).namespace();
        let vip = DualStack::cluster_ip(1);
        cluster.write(&service("echo", vip, &[cluster.backend("remote")]));
        let daemon = cluster.start_daemon_with(attach);
        wait_until_answers(cluster.client.namespace(), vip, "remote");
        let output = daemon.command(&["cleanup"]).expect("the command runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        // Whether it notices by that or by itself.
        let late = cluster.lab.add_pod(Side::A, Wiring::Routed, "late").expect("a pod comes");
        eventually("waiting for its word", 4 * SOON, || match daemon.whole_log() {
            log if log.contains("attaches nothing any more") => Ok(()),
            log => Err(log),
        })
        .expect("it says so");
        assert_eq!(attachments(node).expect("the kernel tells"), [], "{attach:?}: {}", late.host_interface());
    }
}

#[test]
fn a_foreign_filter_is_left_alone() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let node = cluster.lab.node(Side::A).namespace();
    let interface = cluster.client.host_interface();
    let tc = |arguments: &[&str]| tc(node, arguments).expect("tc runs");
    tc(&["qdisc", "add", "dev", interface, "clsact"]);
    // It matches a protocol number that nobody uses: it is to be there, not to do anything.
    tc(&[
        &["filter", "add", "dev", interface, "ingress", "prio", "7", "protocol", "ip", "u32"][..],
        &["match", "ip", "protocol", "253", "0xff", "flowid", "1:1"],
    ]
    .concat());
    let filters = || tc(&["filter", "show", "dev", interface, "ingress"]);
    let foreign = filters();
    assert!(foreign.contains("pref 7"), "{foreign}");

    let vip = DualStack::cluster_ip(1);
    cluster.write(&service("echo", vip, &[cluster.backend("local")]));
    let mut daemon = cluster.start_daemon_with(Attach::Clsact);
    wait_until_answers(client, vip, "local");
    assert!(filters().contains(foreign.trim()), "{}", filters());

    daemon.terminate().expect("SIGTERM ends it");
    let output = daemon.command(&["cleanup"]).expect("the command runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(filters(), foreign, "what was there before is there still, and nothing else");
}

/// How many pins there are below `directory`.
fn pins_below(directory: &Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .map(|entry| entry.expect("the directory can be read").path())
        // A bpffs is born with two files that list what is loaded.
        .filter(|path| !path.ends_with("maps.debug") && !path.ends_with("progs.debug"))
        .map(|path| if path.is_dir() { pins_below(&path) } else { 1 })
        .sum()
}
