//! `status`, `services`, `backends` and `connections` tell what is so, and so do the HTTP servers.

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{DualStack, TcpSession, eventually};
use serde_json::Value;

use crate::cluster::{Cluster, PORT, SOON, service, wait_until_answers};

#[test]
fn the_commands_show_what_is_so() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let vip = DualStack::cluster_ip(1);
    let absent = DualStack::cluster_ip(2);
    cluster.write(&service("echo", vip, &[cluster.backend("local")]));
    let daemon = cluster.start_daemon();
    wait_until_answers(client, vip, "local");
    let sessions =
        IpFamily::ALL.map(|family| TcpSession::open(client, vip.socket(family, PORT)).expect("the VIP answers"));
    let json = |command| daemon.json(&[command]).expect("the command prints JSON");

    let services = json("services");
    let backends = json("backends");
    let connections = json("connections");
    for (family, session) in IpFamily::ALL.into_iter().zip(&sessions) {
        assert!(mentions(&services, &vip.of(family).to_string()), "{services}");
        assert!(!mentions(&services, &absent.of(family).to_string()), "{services}");
        assert!(mentions(&backends, &cluster.backend("local").of(family).to_string()), "{backends}");
        assert!(!mentions(&backends, &cluster.backend("remote").of(family).to_string()), "{backends}");
        let client = session.local_address().expect("the socket is bound");
        assert!(mentions(&connections, &client.ip().to_string()), "{connections}");
        assert!(mentions(&connections, &client.port().to_string()), "{connections}");
    }
    let status = json("status");
    for interface in [cluster.client.host_interface(), "eth0"] {
        assert!(mentions(&status, interface), "{status}");
    }

    cluster.write(&service("echo", vip, &[cluster.backend("remote")]));
    wait_until_answers(client, vip, "remote");
    let backends = json("backends");
    for family in IpFamily::ALL {
        assert!(mentions(&backends, &cluster.backend("remote").of(family).to_string()), "{backends}");
    }
    for command in ["status", "services", "backends", "connections"] {
        let output = daemon.command(&[command]).expect("the command runs");
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(!output.stdout.is_empty(), "{command} prints a table");
    }
}

#[test]
fn metrics_are_served_and_health_follows_the_process() {
    let cluster = Cluster::build();
    let vip = DualStack::cluster_ip(1);
    cluster.write(&service("echo", vip, &[cluster.backend("local")]));
    let mut daemon = cluster.start_daemon();
    wait_until_answers(cluster.client.namespace(), vip, "local");

    let health = daemon.health().expect("the daemon answers");
    assert_eq!(health.status, 200);
    let verdict: Value = serde_json::from_str(&health.body).expect("health is told as JSON");
    assert!(mentions(&verdict, "healthy"), "{verdict}");
    let metrics = daemon.metrics().expect("the daemon answers");
    assert_eq!(metrics.status, 200);
    assert!(metrics.body.contains("# TYPE dsproxy_") || metrics.body.contains("# TYPE kubeproxy_"), "{metrics:?}");

    daemon.kill().expect("the daemon runs");
    daemon.health().expect_err("nobody is there to answer");
    eventually("starting again", SOON, || daemon.start_again()).expect("the ports are free again");
}

/// Whether `text` is a key or a scalar anywhere in `value`, alone or as the whole of a host or port part.
fn mentions(value: &Value, text: &str) -> bool {
    let is_it = |candidate: &str| {
        candidate == text
            || candidate.split(['[', ']', ' ', ',', '/', '%']).any(|part| {
                part == text || {
                    // `address:port`, where the address may hold colons itself.
                    part.rsplit_once(':').is_some_and(|(host, port)| host == text || port == text)
                }
            })
    };
    match value {
        Value::Null | Value::Bool(_) => false,
        Value::Number(number) => number.to_string() == text,
        Value::String(string) => is_it(string),
        Value::Array(items) => items.iter().any(|item| mentions(item, text)),
        Value::Object(fields) => fields.iter().any(|(key, field)| is_it(key) || mentions(field, text)),
    }
}
