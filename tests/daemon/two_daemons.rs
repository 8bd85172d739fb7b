//! Two daemons on one bpffs: one is in charge, the other waits for it to end, and gives up when it does not.

use dsproxy_tests::lab::DualStack;

use crate::{
    cluster::{Cluster, PORT, answers, service, wait_until_answers},
    process::Daemon,
};

#[test]
fn one_daemon_at_a_time_is_in_charge() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let vip = DualStack::cluster_ip(1);
    cluster.write(&service("echo", vip, &[cluster.backend("local")]));
    let manifests = cluster.manifests.directory().display().to_string();
    let arguments = ["--manifests", &manifests];
    let mut first = Daemon::new(&cluster.lab, &arguments).started();
    wait_until_answers(client, vip, "local");

    let in_charge = format!("process {}", first.id());
    let refusal = Daemon::new(&cluster.lab, &arguments).refused();
    refusal.assert_one_line_with(&["another dsproxy", &in_charge, "in charge of", "--bpffs"]);
    answers(client, vip, PORT, "local").expect("what is served is left alone");

    // As in a rolling update that starts the new pod a moment too early.
    let mut second = Daemon::new(&cluster.lab, &arguments);
    second.start();
    second.await_log(&["WARN", "another dsproxy is in charge", &in_charge, "waiting"]);
    answers(client, vip, PORT, "local").expect("who waits leaves alone what is served");
    first.terminate();
    second.await_health();
    cluster.write(&service("echo", vip, &[cluster.backend("remote")]));
    wait_until_answers(client, vip, "remote");

    // One that waits can be told to end.
    first.start();
    first.await_log(&["WARN", "another dsproxy is in charge", &format!("process {}", second.id()), "waiting"]);
    first.terminate();
    answers(client, vip, PORT, "remote").expect("the Service is served");
}
