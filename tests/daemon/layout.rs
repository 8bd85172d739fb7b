//! Pinned maps that are not what this version expects: the daemon refuses them, and the data path goes on with them.

use std::fs;

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{DualStack, TcpSession};

use crate::{
    cluster::{Cluster, PORT, answers, service, wait_until_answers},
    process::{Daemon, bpffs, pinned_maps},
};

#[test]
fn maps_of_another_layout_are_refused_and_go_on() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let vip = DualStack::cluster_ip(1);
    cluster.write(&service("echo", vip, &[cluster.backend("local")]));
    let manifests = cluster.manifests.directory().display().to_string();
    let mut daemon = Daemon::new(&cluster.lab, &["--manifests", &manifests]).started();
    wait_until_answers(client, vip, "local");
    let mut sessions =
        IpFamily::ALL.map(|family| TcpSession::open(client, vip.socket(family, PORT)).expect("the Service is served"));
    daemon.kill();

    // Each pin takes another's place: the other family's differ in their sizes, the others in their type as well.
    let maps = pinned_maps(&bpffs(&cluster.lab));
    for (name, in_place_of) in [
        ("BACKENDS_V6", "BACKENDS_V4"),
        ("FRONTENDS_V4", "FRONTENDS_V6"),
        ("SLOTS_V4", "FRONTENDS_V4"),
        ("FORWARD_V6", "SETTINGS"),
    ] {
        let (pin, place) = (maps.join(name), maps.join(in_place_of));
        let (spare, gone) = (maps.join("spare"), maps.join("gone"));
        fs::rename(&place, &gone).expect("move the pin away");
        fs::rename(&pin, &place).expect("put another in its place");
        let refusal = Daemon::new(&cluster.lab, &["--manifests", &manifests]).refused();
        refusal.assert_one_line_with(&[in_place_of, "not what this version of dsproxy expects", "dsproxy cleanup"]);
        // The pin that was missing was made anew.
        if pin.exists() {
            fs::rename(&pin, &spare).expect("move the new pin away");
            fs::remove_file(&spare).expect("remove the new pin");
        }
        fs::rename(&place, &pin).expect("put the pin back");
        fs::rename(&gone, &place).expect("put the pin back");
        answers(client, vip, PORT, "local").expect("the data path goes on");
        for session in &mut sessions {
            session.exchange(b"still there?").expect("the connection stays");
        }
    }

    cluster.write(&service("echo", vip, &[cluster.backend("remote")]));
    daemon.start();
    daemon.await_health();
    wait_until_answers(client, vip, "remote");
    for session in &mut sessions {
        session.exchange(b"still there?").expect("the connection stays");
    }
}

#[test]
fn maps_of_another_size_are_kept_with_a_word() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let vip = DualStack::cluster_ip(1);
    cluster.write(&service("echo", vip, &[cluster.backend("local")]));
    let manifests = cluster.manifests.directory().display().to_string();
    let mut daemon = Daemon::new(&cluster.lab, &["--manifests", &manifests, "--max-backends", "100"]).started();
    wait_until_answers(client, vip, "local");
    daemon.kill();
    let daemon = Daemon::new(&cluster.lab, &["--manifests", &manifests, "--max-backends", "200"]).started();
    daemon.await_log(&["WARN", "keep the sizes", "backends: 100", "backends: 200", "dsproxy cleanup"]);
    assert_eq!(daemon.metric("dsproxy_map_capacity{map=\"backends\"}"), Some(100.0));
    answers(client, vip, PORT, "local").expect("the Service is served");
}

#[test]
fn a_pin_that_is_missing_is_made_up_for() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let [kept, deleted] = [1, 2].map(DualStack::cluster_ip);
    cluster.write(&service("kept", kept, &[cluster.backend("local"), cluster.backend("local")]));
    let doomed = service("deleted", deleted, &[cluster.backend("remote")]);
    cluster.write(&doomed);
    let manifests = cluster.manifests.directory().display().to_string();
    let mut daemon = Daemon::new(&cluster.lab, &["--manifests", &manifests]).started();
    wait_until_answers(client, kept, "local");
    wait_until_answers(client, deleted, "remote");
    daemon.kill();
    cluster.manifests.remove(&doomed).expect("the manifest is removed");

    let maps = pinned_maps(&bpffs(&cluster.lab));
    for name in ["SETTINGS", "BACKENDS_V4", "SLOTS_V6", "SERVICE_NAMES"] {
        fs::remove_file(maps.join(name)).expect("remove the pin");
        daemon.start();
        daemon.await_health();
        wait_until_answers(client, kept, "local");
        let rows = daemon.json("services");
        let names: Vec<&str> = rows.as_array().expect("rows").iter().filter_map(|row| row["name"].as_str()).collect();
        assert_eq!(names.len(), 4, "{name}: {names:?}");
        assert!(names.iter().all(|name| name.starts_with("default/kept:")), "{name}: {names:?}");
        daemon.kill();
    }
}
