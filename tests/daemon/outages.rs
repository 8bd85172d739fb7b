//! The API server goes and comes back, the daemon goes and comes back, and both at once; traffic does not notice.

use std::time::Duration;

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::{
    apiserver::{Fault, Gone, Matching, Refusal, Resource},
    lab::{DualStack, Load, Side, Steady, Wiring, eventually},
};
use serde_json::Value;

use crate::{
    cluster::{Cluster, PORT, answers, is_silent, service, wait_until_answers},
    control_plane::ControlPlane,
    process::Daemon,
};

/// How long it may take until a server that is back is listed again: the longest wait between two attempts, and some.
const LATER: Duration = Duration::from_secs(20);

/// How the server comes back.
#[derive(Clone, Copy, Debug)]
enum Return {
    /// With all that it knew.
    Same,
    /// With its objects, and without a history: HTTP 410 for whoever asks what happened since.
    Compacted(Gone),
    /// As restored from a backup, with versions that begin again lower.
    OtherHistory,
}

#[test]
fn an_outage_is_not_noticed() {
    outage(Return::Same);
}

#[test]
fn an_outage_after_which_the_history_is_gone_is_not_noticed() {
    outage(Return::Compacted(Gone::Event));
    outage(Return::Compacted(Gone::Status));
}

#[test]
fn an_outage_after_which_the_history_is_another_is_not_noticed() {
    outage(Return::OtherHistory);
}

fn outage(how: Return) {
    let mut cluster = Cluster::build();
    cluster.add_backend("spare", Side::B, Wiring::Routed);
    let (client, busy_client) = (cluster.client.namespace(), cluster.bridged_client.namespace());
    let mut plane = ControlPlane::start(&cluster.lab, IpFamily::V4);
    let [kept, changed, deleted, created] = [1, 2, 3, 4].map(DualStack::cluster_ip);
    plane.apply(&service("kept", kept, &[cluster.backend("local"), cluster.backend("remote")]));
    plane.apply(&service("changed", changed, &[cluster.backend("local")]));
    plane.apply(&service("deleted", deleted, &[cluster.backend("remote")]));
    let daemon = plane.daemon(&cluster.lab, &[]).started();
    wait_until_answers(client, changed, "local");
    wait_until_answers(client, deleted, "remote");
    let before = identities(&daemon, "default/kept:");
    assert_eq!(before.len(), 8, "two endpoints of two ports in two families: {before:?}");

    let targets: Vec<_> = IpFamily::ALL
        .into_iter()
        .flat_map(|family| [Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, kept.socket(family, PORT))))
        .collect();
    // From a client of their own: so many connections use its ports up, and a port that is in use towards a backend
    // through one VIP cannot be used towards it through another.
    let sessions: Vec<Steady> =
        targets.iter().map(|(protocol, target)| Steady::start(busy_client, *protocol, *target)).collect();
    let load = Load::start(busy_client, &targets);

    plane.stop();
    eventually("the loss", LATER, || match daemon.metric("dsproxy_source_connected") {
        Some(0.0) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .expect("it is noticed that the server is gone");
    plane.apply(&service("changed", changed, &[cluster.backend("bridged")]));
    plane.delete("deleted");
    plane.apply(&service("created", created, &[cluster.backend("spare")]));
    for _ in 0..20 {
        answers(client, changed, PORT, "local").expect("the last state stays");
        answers(client, deleted, PORT, "remote").expect("the last state stays");
    }
    for path in ["/healthz", "/livez"] {
        assert_eq!(daemon.health(path).0, 200, "{path}: a node without its API server is sound");
    }

    let lists = plane.lists();
    match how {
        Return::Same => plane.restart(),
        Return::Compacted(gone) => {
            plane.server().compact();
            plane.server().faults().tell_gone_by(gone);
            plane.restart();
        }
        Return::OtherHistory => plane.restart_with_other_history(5),
    }
    let soon = |what: &str, vip, role| {
        eventually(what, LATER, || answers(client, vip, PORT, role)).unwrap_or_else(|error| panic!("{how:?}: {error}"));
    };
    soon("the change", changed, "bridged");
    soon("what is new", created, "spare");
    for family in IpFamily::ALL {
        eventually("the deletion", LATER, || is_silent(client, family, deleted, PORT)).expect("it was deleted");
    }
    match how {
        Return::Same => assert_eq!(plane.lists(), lists, "the watch goes on from where it was"),
        Return::Compacted(_) | Return::OtherHistory => plane.until_listed_again(lists),
    }

    let report = load.finish().expect("the clients run");
    assert_eq!(report.failed, 0, "of {} exchanges: {:#?}", report.succeeded(), report.failures);
    assert!(report.succeeded() > 100, "{report:?}");
    for (session, (protocol, target)) in sessions.into_iter().zip(&targets) {
        let report = session.finish().unwrap_or_else(|error| panic!("{protocol} {target} was cut: {error}"));
        assert_eq!(report.backends.len(), 1, "{protocol} {target} stays with its backend: {report:?}");
    }
    assert_eq!(identities(&daemon, "default/kept:"), before, "what did not change kept its ids");
    // Each kind comes back in its own time.
    plane.until_watched();
    eventually("its connection", LATER, || match daemon.metric("dsproxy_source_connected") {
        Some(1.0) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .expect("it says that it is connected");
}

#[test]
fn a_daemon_that_starts_without_an_api_server_leaves_everything_as_it_is() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let mut plane = ControlPlane::start(&cluster.lab, IpFamily::V6);
    let [kept, deleted] = [1, 2].map(DualStack::cluster_ip);
    plane.apply(&service("kept", kept, &[cluster.backend("local"), cluster.backend("remote")]));
    plane.apply(&service("deleted", deleted, &[cluster.backend("bridged")]));
    let mut daemon = plane.daemon(&cluster.lab, &[]).started();
    wait_until_answers(client, deleted, "bridged");
    let before = (identities(&daemon, ""), frontends(&daemon));
    let session = Steady::start(client, Protocol::Tcp, kept.socket(IpFamily::V6, PORT));
    let old_session = Steady::start(client, Protocol::Udp, kept.socket(IpFamily::V4, PORT));

    plane.stop();
    daemon.kill();
    plane.delete("deleted");
    daemon.start();
    daemon.await_answer("/livez", 200);
    daemon.await_log(&["cannot be reached"]);
    let unsynced = |daemon: &Daemon<'_>| {
        assert_eq!(daemon.health("/healthz").0, 503, "nobody knows yet what this node is to serve");
        assert_eq!(daemon.metric("dsproxy_map_writes_total"), Some(0.0));
    };
    unsynced(&daemon);
    for _ in 0..20 {
        answers(client, deleted, PORT, "bridged").expect("the maps of the last run are served");
    }
    assert_eq!((identities(&daemon, ""), frontends(&daemon)), before);

    // Half of a list is none: with no slices in sight, no endpoint is taken away.
    let slices = Matching { verb: None, resource: Some(Resource::EndpointSlices) };
    plane.server().faults().always(slices, Fault::Refuse(Refusal::with(503)));
    plane.restart();
    daemon.await_log(&["endpointslices", "refuses with 503"]);
    unsynced(&daemon);
    assert_eq!((identities(&daemon, ""), frontends(&daemon)), before);

    plane.server().faults().clear();
    daemon.await_health();
    for family in IpFamily::ALL {
        is_silent(client, family, deleted, PORT).expect("what was deleted meanwhile is gone with the first list");
    }
    let kept_ids = before.0.into_iter().filter(|row| !row.starts_with("default/deleted:")).collect::<Vec<_>>();
    assert_eq!(identities(&daemon, ""), kept_ids, "ids and generations of what is left are the same");
    for session in [session, old_session] {
        let report = session.finish().expect("the connection stays");
        assert_eq!(report.backends.len(), 1, "{report:?}");
    }
}

#[test]
fn a_server_that_comes_back_with_nothing_takes_nothing_away() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let mut plane = ControlPlane::start(&cluster.lab, IpFamily::V6);
    let vips = [1, 2].map(DualStack::cluster_ip);
    let services = [
        service("shop", vips[0], &[cluster.backend("remote")]),
        service("web", vips[1], &[cluster.backend("local"), cluster.backend("bridged")]),
    ];
    services.iter().for_each(|service| plane.apply(service));
    let mut daemon = plane.daemon(&cluster.lab, &[]).started();
    wait_until_answers(client, vips[0], "remote");
    let before = (identities(&daemon, ""), frontends(&daemon));
    let session = Steady::start(client, Protocol::Tcp, vips[1].socket(IpFamily::V4, PORT));

    plane.stop();
    ["shop", "web"].into_iter().for_each(|name| plane.delete(name));
    plane.server().compact();
    plane.restart();
    let held_back = |daemon: &Daemon<'_>| {
        for (resource, objects) in [("services", 2.0), ("endpointslices.discovery.k8s.io", 4.0)] {
            let sample = format!("dsproxy_source_objects_held_back{{resource=\"{resource}\"}}");
            eventually("what is held back", LATER, || match daemon.metric(&sample) {
                Some(value) if (value - objects).abs() < 0.5 => Ok(()),
                other => Err(format!("{resource}: {other:?}")),
            })
            .expect("the list is not believed");
        }
        daemon.await_log(&["WARN", "kind=Service", "hard to believe", "missing=2"]);
        assert_eq!((identities(daemon, ""), frontends(daemon)), before);
    };
    held_back(&daemon);
    let (status, body) = daemon.health("/healthz");
    assert!(status == 200 && body.contains("objects-missing") && body.contains("\"heldBack\":2"), "{status} {body}");
    for _ in 0..10 {
        answers(client, vips[0], PORT, "remote").expect("what was served is served");
    }

    // A daemon that starts now knows what is served as well, and waits.
    daemon.kill();
    daemon.start();
    daemon.await_answer("/livez", 200);
    daemon.await_log(&["kind=EndpointSlice", "hard to believe", "listed=1", "missing=12"]);
    assert_eq!(daemon.health("/healthz").0, 503, "nobody knows yet what this node is to serve");
    assert_eq!((identities(&daemon, ""), frontends(&daemon)), before);
    answers(client, vips[0], PORT, "remote").expect("what was served is served");

    // The store is read, or restored: what was there is there again.
    plane.stop();
    services.iter().for_each(|service| plane.apply(service));
    plane.server().compact();
    plane.restart();
    daemon.await_health();
    assert_eq!((identities(&daemon, ""), frontends(&daemon)), before);
    let report = session.finish().expect("the connection stays");
    assert_eq!(report.backends.len(), 1, "{report:?}");
}

#[test]
fn a_restart_and_a_list_change_nothing() {
    let cluster = Cluster::build();
    let mut plane = ControlPlane::start(&cluster.lab, IpFamily::V4);
    let all = ["local", "bridged", "remote"].map(|role| cluster.backend(role));
    for number in 1..=5 {
        // Some with a history: endpoints that went and came back, in another order.
        let vip = DualStack::cluster_ip(number);
        plane.apply(&service(&format!("echo-{number}"), vip, &all[..usize::from(number) % 4]));
    }
    let mut daemon = plane.daemon(&cluster.lab, &[]).started();
    plane.apply(&service("echo-3", DualStack::cluster_ip(3), &[all[1]]));
    wait_until_answers(cluster.client.namespace(), DualStack::cluster_ip(3), "bridged");
    plane.apply(&service("echo-3", DualStack::cluster_ip(3), &[all[2], all[1]]));
    eventually("both endpoints", LATER, || match identities(&daemon, "default/echo-3:").len() {
        8 => Ok(()),
        other => Err(other.to_string()),
    })
    .expect("the change is seen");
    let before = (identities(&daemon, ""), frontends(&daemon));

    for same_history in [true, false] {
        daemon.kill();
        if !same_history {
            plane.restart_with_other_history(3);
        }
        daemon.start();
        daemon.await_health();
        assert_eq!((identities(&daemon, ""), frontends(&daemon)), before);
        assert_eq!(daemon.metric("dsproxy_map_writes_total"), Some(0.0), "there was nothing to write");

        let lists = plane.lists();
        plane.stop();
        // Something that is none of the daemon's business, but makes what it has seen too old.
        let mut other = plane.objects(&service("other", DualStack::cluster_ip(9), &[])).remove(0);
        other["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = Value::String("x".to_owned());
        plane.server().put(other);
        plane.server().compact();
        plane.restart();
        plane.until_listed_again(lists);
        assert_eq!((identities(&daemon, ""), frontends(&daemon)), before);
        assert_eq!(daemon.metric("dsproxy_map_writes_total"), Some(0.0), "there was nothing to write");
    }
}

#[test]
fn the_api_servers_own_service_stays_while_the_connection_is_lost() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let mut plane = ControlPlane::start(&cluster.lab, IpFamily::V4);
    let vip = DualStack::cluster_ip(1);
    plane.apply(&service("kubernetes", vip, &[cluster.backend("remote")]));
    let mut daemon = plane.daemon(&cluster.lab, &[]).started();
    wait_until_answers(client, vip, "remote");
    for _ in 0..2 {
        plane.stop();
        daemon.await_log(&["cannot be reached"]);
        answers(client, vip, PORT, "remote").expect("it stays without a connection");
        daemon.kill();
        answers(client, vip, PORT, "remote").expect("it stays without a daemon");
        daemon.start();
        daemon.await_answer("/livez", 200);
        answers(client, vip, PORT, "remote").expect("it stays with a daemon that has no connection");
        plane.restart();
        daemon.await_health();
        answers(client, vip, PORT, "remote").expect("it is there again");
    }
}

/// The endpoints in the maps whose service port's name begins with `prefix`: what they are, their ids and generations.
fn identities(daemon: &Daemon<'_>, prefix: &str) -> Vec<String> {
    rows(daemon.json("backends"), prefix, &["name", "family", "endpoint", "state", "id", "generation"])
}

/// The frontends in the maps, with what does not count traffic.
fn frontends(daemon: &Daemon<'_>) -> Vec<String> {
    rows(daemon.json("services"), "", &["name", "family", "protocol", "frontend", "endpoints", "distribution"])
}

fn rows(json: Value, prefix: &str, columns: &[&str]) -> Vec<String> {
    let Value::Array(rows) = json else { panic!("rows: {json}") };
    let of_prefix = rows.iter().filter(|row| row["name"].as_str().is_some_and(|name| name.starts_with(prefix)));
    let cell = |row: &Value, column: &&str| match row.get(column) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => panic!("no {column} in {row}"),
    };
    of_prefix.map(|row| columns.iter().map(|column| cell(row, column)).collect::<Vec<_>>().join(" ")).collect()
}
