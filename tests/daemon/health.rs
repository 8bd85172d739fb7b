//! `/healthz` says whether the node may be sent traffic, `/livez` whether the daemon is to be started again.

use std::{fs, net::TcpListener, time::Duration};

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::{
    apiserver::{Fault, Matching, Refusal, Resource, Verb},
    lab::{Backend, DualStack, ServiceManifest, Side, eventually},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, PORT, SOON, TARGET, answers, service, wait_until_answers},
    control_plane::ControlPlane,
    process::{Daemon, get},
};

const VIP: DualStack = DualStack::cluster_ip(1);
const BALANCER: DualStack = DualStack::external(1);

/// What the API server has refused for as long as the programs took to load is asked for again no later than this.
const ASKED_AGAIN: Duration = Duration::from_secs(40);

/// A `healthCheckNodePort`.
const CHECK: u16 = 32_100;

#[test]
fn a_node_is_healthy_once_both_kinds_are_listed() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let plane = ControlPlane::start(&cluster.lab, IpFamily::V4);
    plane.apply(&service("echo", VIP, &[cluster.backend("local")]));
    let slices = Matching::only(Verb::List, Resource::EndpointSlices);
    plane.server().faults().always(slices, Fault::Refuse(Refusal::with(403)));
    let mut daemon = plane.daemon(&cluster.lab, &[]);
    daemon.start();
    daemon.await_answer("/livez", 200);
    daemon.await_log(&["endpointslices", "ClusterRole"]);

    let (status, body) = daemon.health("/healthz");
    assert_eq!(status, 503, "half of the objects are no basis: {body}");
    let body: Value = serde_json::from_str(&body).expect("health is told as JSON");
    assert_eq!((&body["healthy"], &body["lastUpdated"]), (&Value::Bool(false), &Value::Null));
    assert_eq!(daemon.health("/livez").0, 200, "a new start would not help");
    assert_eq!(daemon.metric("dsproxy_synced"), Some(0.0));
    assert_eq!(daemon.metric("dsproxy_source_connected"), Some(0.0));
    assert_eq!(daemon.metric("dsproxy_map_writes_total"), Some(0.0), "nothing is written on half of the objects");
    assert_eq!(daemon.json("services"), Value::Array(Vec::new()));

    plane.server().faults().clear();
    daemon.await_health();
    wait_until_answers(client, VIP, "local");
    let (_, body) = daemon.health("/healthz");
    let body: Value = serde_json::from_str(&body).expect("health is told as JSON");
    for family in IpFamily::ALL {
        assert_eq!(body["status"][family.to_string()]["healthy"], Value::Bool(true), "{body}");
    }
    assert!(body["lastUpdated"].is_string(), "{body}");
    assert_eq!(daemon.metric("dsproxy_synced"), Some(1.0));

    // Refusals from now on are the source's trouble, and no reason to be sent no traffic.
    plane.server().faults().always(Matching::default(), Fault::Refuse(Refusal::with(503)));
    for resource in Resource::ALL {
        plane.server().act_on_watches(resource, &dsproxy_tests::apiserver::StreamAct::Error(410));
    }
    daemon.await_log(&["refuses with 503"]);
    for path in ["/healthz", "/livez"] {
        assert_eq!(daemon.health(path).0, 200, "{path}");
    }
    let resources = ["services", "endpointslices.discovery.k8s.io", "nodes", "servicecidrs.networking.k8s.io"];
    let troubles = || -> Result<Value, String> {
        let body: Value = serde_json::from_str(&daemon.health("/healthz").1).expect("health is told as JSON");
        let told = body["source"]["resources"].as_array().cloned().unwrap_or_default();
        let is_told = |resource: &&str| {
            told.iter().any(|told| {
                told["resource"] == **resource && told["trouble"] == "server-error" && told["since"].is_string()
            })
        };
        if resources.iter().all(is_told) { Ok(body) } else { Err(body.to_string()) }
    };
    let body = eventually("the trouble", ASKED_AGAIN, troubles).expect("it is told what the matter is");
    assert_eq!(body["source"]["connected"], Value::Bool(false), "{body}");
    for resource in resources {
        let watch = format!("dsproxy_source_watch_working{{resource=\"{resource}\"}}");
        assert_eq!(daemon.metric(&watch), Some(0.0), "{resource}");
        let labels = [&format!("resource=\"{resource}\"")[..], "trouble=\"server-error\""];
        assert!(daemon.sum("dsproxy_source_watch_failures_total", &labels) >= 1.0, "{resource}");
        let since = daemon.sum("dsproxy_source_watch_trouble_since_timestamp_seconds", &labels);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        assert!(since > now - 120.0 && since <= now, "{resource}: {since}, it is {now}");
    }
    assert!(!daemon.health("/livez").1.contains("source"), "a new start would not help");
    answers(client, VIP, PORT, "local").expect("the last state stays");
}

/// A Service of a load balancer that keeps to each node's own endpoints.
fn balanced(endpoints: &[Backend]) -> ServiceManifest {
    ServiceManifest::new("default", "echo")
        .dual_stack(VIP)
        .port(Protocol::Tcp, PORT, TARGET)
        .port(Protocol::Udp, PORT, TARGET)
        .load_balancer(BALANCER)
        .external_local()
        .health_check_node_port(CHECK)
        .backends(endpoints.iter().copied())
}

fn at(cluster: &Cluster, role: &str, side: Side) -> Backend {
    Backend { node: Some(side.role()), ..cluster.backend(role).into() }
}

#[test]
fn a_load_balancer_is_told_of_this_nodes_endpoints_and_drains_while_they_still_serve() {
    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let client = outside.namespace();
    let node = cluster.lab.node(Side::A).addresses();
    // Both families are served by one socket, also where sockets are of one by default.
    let of_one = || fs::write("/proc/sys/net/ipv6/bindv6only", "1");
    cluster.lab.node(Side::A).namespace().run(of_one).expect("node A is there").expect("it is set");
    let [local, bridged] = ["local", "bridged"].map(|role| at(&cluster, role, Side::A));
    let remote = at(&cluster, "remote", Side::B);
    cluster.write(&balanced(&[remote]));
    let manifests = cluster.manifests.directory().display().to_string();
    let daemon = Daemon::new(&cluster.lab, &["--manifests", &manifests]).started();
    let await_count = |count: usize, status: u16| {
        let body = json!({
            "service": {"namespace": "default", "name": "echo"}, "localEndpoints": count, "serviceProxyHealthy": true
        });
        for family in IpFamily::ALL {
            let ask = || {
                let answer = get(client, node.socket(family, CHECK), "/any/path")?;
                let told: Value = serde_json::from_str(&answer.body).map_err(|error| error.to_string())?;
                if (answer.status, &told) == (status, &body) { Ok(answer) } else { Err(format!("{answer:?}")) }
            };
            let answer = eventually(&format!("{count} endpoints over {family}"), SOON, ask).expect("it is told");
            let head = answer.head.to_lowercase();
            for header in [
                "content-type: application/json".to_owned(),
                "x-content-type-options: nosniff".to_owned(),
                format!("x-load-balancing-endpoint-weight: {count}"),
            ] {
                assert!(head.contains(&header), "{header}: {head}");
            }
        }
    };
    await_count(0, 503);
    cluster.write(&balanced(&[remote, local, bridged]));
    await_count(2, 200);
    cluster.write(&balanced(&[remote, local]));
    await_count(1, 200);
    wait_until_answers(client, BALANCER, "local");

    // The last one here shuts down: whoever still comes is served.
    cluster.write(&balanced(&[remote, Backend { ready: false, terminating: true, ..local }]));
    await_count(0, 503);
    answers(client, BALANCER, PORT, "local").expect("the load balancer takes a while to turn away");
    assert_eq!(daemon.health("/healthz").0, 200, "nothing is wrong with the node");

    cluster.write(&service("echo", VIP, &[cluster.backend("local")]));
    for family in IpFamily::ALL {
        let closed = || match get(client, node.socket(family, CHECK), "/") {
            Err(error) if error.contains("refused") => Ok(()),
            other => Err(format!("{other:?}")),
        };
        eventually("the port is closed", SOON, closed).expect("it has no healthCheckNodePort any more");
    }
}

#[test]
fn a_health_check_port_that_is_taken_is_told_and_tried_again() {
    let cluster = Cluster::build();
    let namespace = cluster.lab.node(Side::A).namespace();
    let node = cluster.lab.node(Side::A).addresses();
    let taken = namespace.run(|| TcpListener::bind(("::", CHECK))).expect("node A is there").expect("the port is free");
    cluster.write(&balanced(&[at(&cluster, "local", Side::A)]));
    let manifests = cluster.manifests.directory().display().to_string();
    let daemon = Daemon::new(&cluster.lab, &["--manifests", &manifests]).started();
    daemon.await_log(&["healthCheckNodePort", "default/echo", &CHECK.to_string()]);
    assert_eq!(daemon.metric("dsproxy_health_check_ports_failed"), Some(1.0));
    drop(taken);
    let answered = || match get(namespace, node.socket(IpFamily::V6, CHECK), "/") {
        Ok(answer) if answer.status == 200 => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("the port is opened", 4 * SOON, answered).expect("it is tried again");
}

#[test]
fn a_node_that_is_about_to_go_is_sent_no_more_and_not_restarted() {
    let cluster = Cluster::build();
    let plane = ControlPlane::start(&cluster.lab, IpFamily::V4);
    plane.apply(&service("echo", VIP, &[cluster.backend("local")]));
    let put = |taints: Value| {
        plane.server().put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"}, "spec": {"taints": taints}
        }));
    };
    put(json!([]));
    let mut daemon = plane.daemon(&cluster.lab, &[]).started();
    let eligible = |daemon: &Daemon<'_>| {
        let body: Value = serde_json::from_str(&daemon.health("/healthz").1).expect("health is told as JSON");
        body["nodeEligible"].clone()
    };
    assert_eq!(eligible(&daemon), Value::Bool(true));
    put(json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]));
    daemon.await_answer("/healthz", 503);
    assert_eq!(eligible(&daemon), Value::Bool(false));
    let (status, body) = daemon.health("/livez");
    assert_eq!(status, 200, "{body}");
    assert!(!body.contains("nodeEligible"), "{body}");
    answers(cluster.client.namespace(), VIP, PORT, "local").expect("it still serves");
    put(json!([]));
    daemon.await_answer("/healthz", 200);
    plane.server().delete(Resource::Nodes, "", "node-a");
    daemon.await_answer("/healthz", 503);
    assert_eq!(daemon.health("/livez").0, 200);
}
