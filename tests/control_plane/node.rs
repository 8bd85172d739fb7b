//! The own Node and ServiceCIDRs, from an API server that has them, has not, or keeps them to itself.

use std::time::Duration;

use dsproxy::{
    model::{IpFamily, ObjectName},
    source::{Delta, kubernetes::Pace},
};
use dsproxy_tests::apiserver::{ApiServer, Fault, Matching, Refusal, Resource, StreamAct, Verb, network};
use serde_json::json;

use crate::{
    harness::{NODE, Source, pace},
    objects::{model_node, model_service, model_service_cidr, model_slice, node, service, service_cidr, slice},
};

const RANGES: [&str; 2] = ["10.96.0.0/16", "fd00:96::/112"];

#[test]
fn of_all_nodes_the_own_one_is_told() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(node(NODE, "z", 1));
        server.put(node("node-b", "z", 2));
        let (mut source, ..) = Source::watching(&server).await;
        assert_eq!(source.node().await, Delta::Snapshot(vec![model_node(NODE, "z", 1)]));
        server.put(node("node-b", "y", 2));
        server.put(node(NODE, "y", 1));
        assert_eq!(source.node().await, Delta::Apply(model_node(NODE, "y", 1)));

        let mut going = node(NODE, "y", 1);
        going["spec"]["taints"] = json!([{"key": "ToBeDeletedByClusterAutoscaler", "effect": "NoSchedule"}]);
        server.put(going);
        let Delta::Apply(marked) = source.node().await else { panic!("the Node has changed") };
        assert!(marked.is_going);
        server.delete(Resource::Nodes, "", NODE);
        assert_eq!(source.node().await, Delta::Delete(ObjectName::of_cluster(NODE)));
    });
}

#[test]
fn service_cidrs_are_followed() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service_cidr("kubernetes", &RANGES));
        let (mut source, ..) = Source::watching(&server).await;
        assert_eq!(source.service_cidr().await, Delta::Snapshot(vec![model_service_cidr("kubernetes", &RANGES)]));
        server.put(service_cidr("more", &["10.97.0.0/16"]));
        assert_eq!(source.service_cidr().await, Delta::Apply(model_service_cidr("more", &["10.97.0.0/16"])));
        server.delete(Resource::ServiceCidrs, "", "more");
        assert_eq!(source.service_cidr().await, Delta::Delete(ObjectName::of_cluster("more")));
    });
}

/// Neither a server before Kubernetes 1.33 nor a Role of before is a failure.
#[test]
fn what_the_server_does_not_have_or_show_is_gone_without() {
    for code in [403, 404] {
        network::run(|| async move {
            let server = ApiServer::start().await;
            server.put(node(NODE, "z", 1));
            server.put(service_cidr("kubernetes", &RANGES));
            server.put(service("web", 1));
            server.put(slice("web-6", IpFamily::V6, &[1]));
            for resource in [Resource::Nodes, Resource::ServiceCidrs] {
                server.faults().always(Matching::only(Verb::List, resource), Fault::Refuse(Refusal::with(code)));
            }
            let (mut source, services, slices) = Source::watching(&server).await;
            assert_eq!(services, [model_service("web", 1)]);
            assert_eq!(slices, [model_slice("web-6", IpFamily::V6, &[1])]);
            assert_eq!(source.node().await, Delta::Snapshot(vec![]));
            assert_eq!(source.service_cidr().await, Delta::Snapshot(vec![]));
            assert_eq!((source.status.failures(), source.status.last_error()), (0, None), "{code}");

            // It is tried again, and what was told once is not told anew meanwhile.
            server.until("another try", |server| server.count(Verb::List, Resource::Nodes) > 2).await;
            server.faults().clear();
            assert_eq!(source.node().await, Delta::Snapshot(vec![model_node(NODE, "z", 1)]));
            assert_eq!(source.service_cidr().await, Delta::Snapshot(vec![model_service_cidr("kubernetes", &RANGES)]));
            assert_eq!(source.status.failures(), 0, "{code}");
        });
    }
}

/// A server that starts may refuse what it allows as soon as it has read its Roles.
#[test]
fn what_is_forbidden_for_a_moment_is_waited_for() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(node(NODE, "z", 1));
        server.faults().next(Matching::only(Verb::List, Resource::Nodes), 3, Fault::Refuse(Refusal::with(403)));
        let pace = Pace { forbidden: Duration::from_secs(10), ..pace() };
        let mut source = Source::at(&server, pace).await;
        assert_eq!(source.node().await, Delta::Snapshot(vec![model_node(NODE, "z", 1)]), "not that there is none");
        assert_eq!(server.count(Verb::List, Resource::Nodes), 4);
    });
}

#[test]
fn a_right_that_is_taken_away_takes_nothing_back() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(node(NODE, "z", 1));
        let (mut source, ..) = Source::watching(&server).await;
        assert_eq!(source.node().await, Delta::Snapshot(vec![model_node(NODE, "z", 1)]));
        server.until_watched().await;
        for verb in [Verb::List, Verb::Watch] {
            server.faults().always(Matching::only(verb, Resource::Nodes), Fault::Refuse(Refusal::with(403)));
        }
        server.act_on_watches(Resource::Nodes, &StreamAct::End);
        let before = server.count(Verb::Watch, Resource::Nodes);
        server.until_watches(Resource::Nodes, before + 2).await;
        server.faults().clear();
        server.put(node(NODE, "y", 1));
        assert_eq!(source.node().await, Delta::Apply(model_node(NODE, "y", 1)));
    });
}

#[test]
fn a_node_watch_that_fails_otherwise_is_a_failure() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let lists = Matching::only(Verb::List, Resource::Nodes);
        server.faults().always(lists, Fault::Refuse(Refusal::with(500)));
        let source = Source::of(&server).await;
        source.until_failed_again(2).await;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!source.status.connected());
        assert!(source.status.last_error().is_some_and(|error| error.contains("list nodes")));
    });
}
