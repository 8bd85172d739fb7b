//! The manifests' rules of who may do what, against what the daemon asks an API server for: nothing is missing, and nothing is
//! there that it does not need. The server refuses, and fails the test for, any request that it does not know.

use std::collections::BTreeSet;

use dsproxy_common::IpFamily;
use dsproxy_tests::{apiserver::Verb, lab::DualStack};
use k8s_openapi::api::rbac::v1::PolicyRule;
use serde::Deserialize as _;
use serde_json::Value;

use crate::{
    cluster::{Cluster, service, wait_until_answers},
    control_plane::ControlPlane,
};

/// Within the test, which may run on another machine than it was built on.
const MANIFESTS: &str = include_str!("../../deploy/dsproxy.yaml");

/// Where the server takes Events about what has no namespace.
const EVENTS_NAMESPACE: &str = "default";

/// One thing that may be done: verb, API group, resource, and the namespace if it is in one alone.
type Permission = (String, String, String, Option<String>);

fn permissions(rules: &[PolicyRule], namespace: Option<&str>) -> BTreeSet<Permission> {
    let mut all = BTreeSet::new();
    for rule in rules {
        // Whatever else a rule can say would be left out of the comparison.
        assert!(rule.resource_names.is_none() && rule.non_resource_urls.is_none(), "{rule:?}");
        for group in rule.api_groups.iter().flatten() {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    all.insert((verb.clone(), group.clone(), resource.clone(), namespace.map(str::to_owned)));
                }
            }
        }
    }
    all
}

fn allowed() -> BTreeSet<Permission> {
    let mut all = BTreeSet::new();
    for document in serde_yaml::Deserializer::from_str(MANIFESTS) {
        let object = Value::deserialize(document).expect("the manifests are YAML");
        let namespace = match object["kind"].as_str() {
            Some("ClusterRole") => None,
            Some("Role") => Some(object["metadata"]["namespace"].as_str().expect("a Role has a namespace")),
            _ => continue,
        };
        let rules = Vec::<PolicyRule>::deserialize(&object["rules"]).expect("rules");
        all.extend(permissions(&rules, namespace));
    }
    all
}

#[test]
fn the_roles_allow_what_the_daemon_asks_for_and_nothing_else() {
    let cluster = Cluster::build();
    let mut plane = ControlPlane::start(&cluster.lab, IpFamily::V4);
    let vip = DualStack::cluster_ip(1);
    plane.apply(&service("echo", vip, &[cluster.backend("local")]));
    let _daemon = plane.daemon(&cluster.lab, &[]).started();
    plane.until_watched();
    plane.until_told_of_the_start();
    // A second time, as after an outage: it may ask for no more then.
    let lists = plane.lists();
    plane.stop();
    plane.restart_with_other_history(5_000_000);
    plane.until_listed_again(lists);
    wait_until_answers(cluster.client.namespace(), vip, "local");

    let mut used: BTreeSet<Permission> = plane
        .server()
        .requests()
        .into_iter()
        .map(|request| {
            let (group, name) = request.resource.group_and_name();
            let verb = match request.verb {
                Verb::List | Verb::Look => "list",
                Verb::Watch => "watch",
            };
            (verb.to_owned(), group.to_owned(), name.to_owned(), None)
        })
        .collect();
    if !plane.server().events().is_empty() {
        let [verb, group, resource] = ["create", "events.k8s.io", "events"].map(str::to_owned);
        used.insert((verb, group, resource, Some(EVENTS_NAMESPACE.to_owned())));
    }
    assert_eq!(used, allowed(), "what is used, and what deploy/dsproxy.yaml allows");
}
