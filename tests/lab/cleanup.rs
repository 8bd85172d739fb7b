//! `dsproxy cleanup` takes everything with it.

use std::{fs, path::Path};

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{Attach, DualStack, Side, attachments, eventually};

use crate::cluster::{Cluster, PORT, SOON, TARGET, answers, is_silent, service, wait_until_answers};

#[test]
fn nothing_is_left_of_tcx() {
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
    assert!(files_below(daemon.bpffs()) > 0, "maps are pinned");

    daemon.terminate().expect("SIGTERM ends it");
    // A second time there is nothing to do, which is no error.
    for _ in 0..2 {
        let output = daemon.command(&["cleanup"]).expect("the command runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(attachments(node).expect("the kernel tells"), []);
        assert_eq!(files_below(daemon.bpffs()), 0, "nothing stays pinned");
    }
    for family in IpFamily::ALL {
        is_silent(client, family, vip, PORT).expect("the VIP is not translated any more");
    }
    answers(client, cluster.backend("remote"), TARGET, "remote").expect("pods reach pods");

    daemon.start_again().expect("the daemon starts from nothing");
    eventually("waiting for the Service", SOON, || answers(client, vip, PORT, "remote")).expect("the Service is back");
}

/// How many files, pins included, there are below `directory`.
fn files_below(directory: &Path) -> usize {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .map(|entry| entry.expect("the directory can be read").path())
        .map(|path| if path.is_dir() { files_below(&path) } else { 1 })
        .sum()
}
