//! An API server that is of no use, in every way there is: traffic goes on, the daemon says what the matter is, and goes on by itself
//! once it is over.

use std::{process::Command, time::Duration};

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::{
    apiserver::{Fault, Matching, Refusal, Resource, StreamAct},
    lab::{DualStack, Namespace, Side, Steady, eventually},
};
use serde_json::Value;

use crate::{
    cluster::{Cluster, PORT, answers, service, wait_until_answers},
    control_plane::ControlPlane,
    process::Daemon,
};

/// How long an answer is waited for, and some.
const NOTICED: Duration = Duration::from_secs(90);

/// How long an answer is waited for that does not come either, the longest wait between two attempts, and some.
const LATER: Duration = Duration::from_secs(120);

/// Longer than an answer is waited for.
const LONG: Duration = Duration::from_secs(3600);

/// What everything depends on: without the other kinds the daemon can do, where it may not have them.
const NECESSARY: [(Resource, &str); 2] =
    [(Resource::Services, "services"), (Resource::EndpointSlices, "endpointslices.discovery.k8s.io")];

/// How the server is of no use.
enum Trouble {
    /// What is asked for goes wrong.
    Faulty(Fault),
    /// Packets to it vanish.
    Vanished,
}

impl Trouble {
    fn begin(&self, plane: &ControlPlane, node: &Namespace) {
        // An open watch may be silent for minutes: what is asked anew goes wrong.
        let end = match self {
            Self::Faulty(fault) => {
                for (resource, _) in NECESSARY {
                    let matching = Matching { verb: None, resource: Some(resource) };
                    plane.server().faults().always(matching, fault.clone());
                }
                // It needs a list next.
                StreamAct::Error(410)
            }
            Self::Vanished => {
                nft(node, "add table inet vanished");
                nft(node, "add chain inet vanished input { type filter hook input priority 0; }");
                let port = plane.server().address().port();
                nft(node, &format!("add rule inet vanished input tcp dport {port} drop"));
                StreamAct::End
            }
        };
        for (resource, _) in NECESSARY {
            plane.server().act_on_watches(resource, &end);
            plane.until_unwatched(resource);
        }
    }

    fn end(&self, plane: &ControlPlane, node: &Namespace) {
        match self {
            Self::Faulty(_) => plane.server().faults().clear(),
            Self::Vanished => nft(node, "delete table inet vanished"),
        }
    }
}

fn nft(node: &Namespace, command: &str) {
    let ran = node.run(|| Command::new("nft").arg(command).output()).expect("node A is there").expect("nft runs");
    assert!(ran.status.success(), "{command}: {}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
fn an_api_server_that_refuses_is_outlived() {
    let throttled = Refusal { code: 429, retry_after: Some(2), plain: true };
    outlive(&[
        ("unauthorized", Trouble::Faulty(Fault::Refuse(Refusal::with(401)))),
        ("forbidden", Trouble::Faulty(Fault::Refuse(Refusal::with(403)))),
        ("throttled", Trouble::Faulty(Fault::Refuse(throttled))),
        ("server-error", Trouble::Faulty(Fault::Refuse(Refusal::with(500)))),
    ]);
}

#[test]
fn an_api_server_that_is_too_slow_is_outlived() {
    outlive(&[("timeout", Trouble::Faulty(Fault::Delay(LONG)))]);
}

#[test]
fn an_api_server_that_stalls_within_its_answer_is_outlived() {
    outlive(&[("timeout", Trouble::Faulty(Fault::StallAnswer))]);
}

#[test]
fn an_api_server_whose_packets_vanish_is_outlived() {
    outlive(&[("timeout", Trouble::Vanished)]);
}

/// One trouble after the other, each with its name.
fn outlive(troubles: &[(&str, Trouble)]) {
    let cluster = Cluster::build();
    let (client, busy_client) = (cluster.client.namespace(), cluster.bridged_client.namespace());
    let node = cluster.lab.node(Side::A).namespace();
    let plane = ControlPlane::start(&cluster.lab, IpFamily::V4);
    let [kept, changed, steady] = [1, 2, 3].map(DualStack::cluster_ip);
    plane.apply(&service("kept", kept, &[cluster.backend("local"), cluster.backend("remote")]));
    plane.apply(&service("changed", changed, &[cluster.backend("local")]));
    plane.apply(&service("steady", steady, &[cluster.backend("remote")]));
    let daemon = plane.daemon(&cluster.lab, &[]).started();
    let process = daemon.id();
    wait_until_answers(client, changed, "local");
    let targets: Vec<_> = IpFamily::ALL
        .into_iter()
        .flat_map(|family| [Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, kept.socket(family, PORT))))
        .collect();
    let sessions = targets.iter().map(|(protocol, target)| Steady::start(busy_client, *protocol, *target));
    let sessions: Vec<Steady> = sessions.collect();

    let mut roles = ["local", "bridged"];
    for (name, trouble) in troubles {
        plane.until_watched();
        let before = NECESSARY.map(|(_, resource)| failures(&daemon, resource, name));
        let goes_on = || answers(client, steady, PORT, "remote").unwrap_or_else(|error| panic!("{name}: {error}"));
        trouble.begin(&plane, node);
        // What happens meanwhile is heard of later.
        let [now, next] = roles;
        plane.apply(&service("changed", changed, &[cluster.backend(next)]));
        let is_told = || {
            goes_on();
            told(&daemon, name, before)
        };
        eventually(&format!("{name} to be told"), NOTICED, is_told).unwrap_or_else(|error| panic!("{error}"));
        for _ in 0..10 {
            answers(client, changed, PORT, now).expect("the last state stays");
        }
        assert_eq!(daemon.health("/livez").0, 200, "{name}: a new start would not help");

        trouble.end(&plane, node);
        let is_well = || {
            goes_on();
            answers(client, changed, PORT, next).map_err(|error| error.to_string())?;
            is_over(&daemon)
        };
        eventually("the end of the trouble", LATER, is_well).unwrap_or_else(|error| panic!("after {name}: {error}"));
        roles = [next, now];
    }
    for (session, (protocol, target)) in sessions.into_iter().zip(&targets) {
        let report = session.finish().unwrap_or_else(|error| panic!("{protocol} {target} was cut: {error}"));
        assert_eq!(report.backends.len(), 1, "{protocol} {target} stays with its backend: {report:?}");
    }
    assert_eq!(daemon.id(), process, "the same daemon");
}

/// How often a resource has met a trouble.
fn failures(daemon: &Daemon<'_>, resource: &str, trouble: &str) -> f64 {
    let labels = [&format!("resource=\"{resource}\"")[..], &format!("trouble=\"{trouble}\"")];
    daemon.sum("dsproxy_source_watch_failures_total", &labels)
}

/// What `/healthz` says of the resource.
fn of_health(daemon: &Daemon<'_>, resource: &str) -> Value {
    let (status, body) = daemon.health("/healthz");
    assert_eq!(status, 200, "a node without its API server is sound: {body}");
    let body: Value = serde_json::from_str(&body).expect("health is told as JSON");
    let told = body["source"]["resources"].as_array().into_iter().flatten();
    let mut told = told.filter(|told| told["resource"] == *resource);
    told.next().cloned().unwrap_or(Value::Null)
}

/// Fails unless `/healthz` and the metrics name the trouble for whatever is necessary.
fn told(daemon: &Daemon<'_>, trouble: &str, before: [f64; NECESSARY.len()]) -> Result<(), String> {
    for ((_, resource), before) in NECESSARY.into_iter().zip(before) {
        let health = of_health(daemon, resource);
        let working = daemon.metric(&format!("dsproxy_source_watch_working{{resource=\"{resource}\"}}"));
        let failed = failures(daemon, resource, trouble) - before;
        let labels = [&format!("resource=\"{resource}\"")[..], &format!("trouble=\"{trouble}\"")];
        let since = daemon.sum("dsproxy_source_watch_trouble_since_timestamp_seconds", &labels);
        if health["trouble"] != *trouble || working != Some(0.0) || failed < 1.0 || since <= 0.0 {
            return Err(format!("{resource}: {health}, works {working:?}, {failed} failures, since {since}"));
        }
    }
    Ok(())
}

/// Fails unless nothing is the matter any more.
fn is_over(daemon: &Daemon<'_>) -> Result<(), String> {
    for (_, resource) in NECESSARY {
        let health = of_health(daemon, resource);
        let working = daemon.metric(&format!("dsproxy_source_watch_working{{resource=\"{resource}\"}}"));
        if !health["trouble"].is_null() || working != Some(1.0) {
            return Err(format!("{resource}: {health}, works {working:?}"));
        }
    }
    let connected = daemon.metric("dsproxy_source_connected");
    if connected == Some(1.0) { Ok(()) } else { Err(format!("connected: {connected:?}")) }
}
