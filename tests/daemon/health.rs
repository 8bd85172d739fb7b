//! `/healthz` says whether the node may be sent traffic, `/livez` whether the daemon is to be started again.

use dsproxy_common::IpFamily;
use dsproxy_tests::{
    apiserver::{Fault, Matching, Refusal, Resource, Verb},
    lab::DualStack,
};
use serde_json::Value;

use crate::{
    cluster::{Cluster, PORT, answers, service, wait_until_answers},
    control_plane::ControlPlane,
};

const VIP: DualStack = DualStack::cluster_ip(1);

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
    answers(client, VIP, PORT, "local").expect("the last state stays");
}
