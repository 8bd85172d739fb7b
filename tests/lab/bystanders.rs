//! Programs of somebody else's at the hooks of ours: each runs as if the other were not there.

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{Attach, Attachment, Bystander, DualStack, Order, Side, attachments, tc};

use crate::cluster::{Cluster, PORT, SOON, TARGET, TRAFFIC, ask_here, is_silent, is_without_tcx, service};

const VIP: DualStack = DualStack::cluster_ip(1);

#[test]
fn programs_of_others_run_beside_ours_with_tcx() {
    if is_without_tcx() {
        return;
    }
    programs_of_others_run_beside_ours(Attach::Tcx);
}

#[test]
fn programs_of_others_run_beside_ours_with_clsact() {
    programs_of_others_run_beside_ours(Attach::Clsact);
}

fn programs_of_others_run_beside_ours(attach: Attach) {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let node = cluster.lab.node(Side::A).namespace();
    let interface = cluster.client.host_interface();
    cluster.write(&service("echo", VIP, &[cluster.backend("remote")]));
    if attach == Attach::Clsact {
        tc(node, &["qdisc", "add", "dev", interface, "clsact"]).expect("the qdisc is made");
    }
    let packets =
        |order| Bystander::of_packets(node, interface, attach, order).unwrap_or_else(|error| panic!("{error}"));
    let sockets = || Bystander::of_sockets(cluster.lab.cgroup()).unwrap_or_else(|error| panic!("{error}"));
    let mut bystanders = vec![packets(Order::First), sockets()];

    let mut daemon = cluster.start_daemon_with(attach);
    exchange(&cluster, VIP, PORT, &bystanders);
    // Those that come later: in front of ours, and behind it.
    bystanders.extend([packets(Order::First), packets(Order::Last), sockets()]);
    exchange(&cluster, VIP, PORT, &bystanders);
    let is_theirs = |found: &Attachment| {
        found.program.starts_with("seen_") || (found.interface == interface && found.hook == "clsact")
    };
    let mut theirs = attachments(node).expect("the kernel tells");
    assert!(!theirs.iter().all(is_theirs), "ours are there as well: {theirs:#?}");
    theirs.retain(is_theirs);
    let qdiscs = usize::from(attach == Attach::Clsact);
    assert_eq!(theirs.len(), 6 + qdiscs, "three at ingress, three at egress: {theirs:#?}");

    daemon.kill().expect("the daemon runs");
    exchange(&cluster, VIP, PORT, &bystanders);
    daemon.start_again().expect("the daemon starts");
    exchange(&cluster, VIP, PORT, &bystanders);

    daemon.terminate().expect("SIGTERM ends it");
    let output = daemon.command(&["cleanup"]).expect("the command runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(attachments(node).expect("the kernel tells"), theirs, "nothing but theirs is left");
    for family in IpFamily::ALL {
        is_silent(client, family, VIP, PORT).expect("the VIP is not translated any more");
    }
    exchange(&cluster, cluster.backend("remote"), TARGET, &bystanders);

    daemon.start_again().expect("the daemon starts from nothing");
    exchange(&cluster, VIP, PORT, &bystanders);
}

/// Has the backend answer at `address` to a pod and to the node itself, in every way; fails unless every one of the
/// `bystanders` has run meanwhile.
fn exchange(cluster: &Cluster, address: DualStack, port: u16, bystanders: &[Bystander]) {
    let runs = || -> Vec<_> {
        bystanders.iter().map(|bystander| bystander.runs().unwrap_or_else(|error| panic!("{error}"))).collect()
    };
    let before = runs();
    for (family, protocol) in TRAFFIC {
        let ask = || ask_here(address.socket(family, port), protocol, SOON);
        for asked in [cluster.client.namespace().run(ask).expect("the client is there"), cluster.as_host(Side::A, ask)]
        {
            assert_eq!(asked.unwrap_or_else(|error| panic!("{family} {protocol}: {error}")), "remote");
        }
    }
    for (which, (before, after)) in before.into_iter().zip(runs()).enumerate() {
        for ((program, before), (_, after)) in before.into_iter().zip(after) {
            assert!(after > before, "{program} of bystander {which} ran {before} times, and not once more");
        }
    }
}
