//! kube-proxy's metrics that tell of Services and of the time that changes take.

use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};
use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{DualStack, eventually};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, SOON, service},
    control_plane::ControlPlane,
    process::Daemon,
};

const TRIGGER: &str = "endpoints.kubernetes.io/last-change-trigger-time";

fn await_metric(daemon: &Daemon<'_>, sample: &str, expected: f64) {
    let outcome = eventually(sample, SOON, || match daemon.metric(sample) {
        Some(value) if (value - expected).abs() < f64::EPSILON => Ok(()),
        other => Err(format!("{other:?}")),
    });
    outcome.unwrap_or_else(|error| panic!("{error}:\n{}", daemon.beside_metrics("/metrics").1));
}

#[test]
fn the_time_since_what_happened_is_told_for_each_family() {
    let cluster = Cluster::build();
    let plane = ControlPlane::start(&cluster.lab, IpFamily::V4);
    let objects = plane.objects(&service("echo", DualStack::cluster_ip(1), &[cluster.backend("local")]));
    let annotate = |seconds_ago: i64| {
        let at = DateTime::<Utc>::from(SystemTime::now()) - chrono::Duration::seconds(seconds_ago);
        for mut object in objects.clone() {
            if object["kind"] == "EndpointSlice" {
                object["metadata"]["annotations"][TRIGGER] = at.to_rfc3339_opts(SecondsFormat::Nanos, true).into();
            }
            plane.server().put(object);
        }
    };
    // Of the time before the daemon ran, which is not its to tell.
    annotate(3600);
    let daemon = plane.daemon(&cluster.lab, &[]).started();
    // The API server has a slice of its own.
    for (family, slices) in [(IpFamily::V4, 2.0), (IpFamily::V6, 1.0)] {
        let sample = format!("kubeproxy_sync_proxy_rules_endpoint_changes_total{{ip_family=\"{family}\"}}");
        await_metric(&daemon, &sample, slices);
    }
    let sample =
        |name: &str, family| format!("kubeproxy_network_programming_duration_seconds_{name}{{ip_family=\"{family}\"}}");
    for family in IpFamily::ALL {
        assert_eq!(daemon.metric(&sample("count", family)), Some(0.0));
    }
    annotate(0);
    for family in IpFamily::ALL {
        await_metric(&daemon, &sample("count", family), 1.0);
        let took = daemon.metric(&sample("sum", family)).expect("a sum");
        assert!((0.0..30.0).contains(&took), "{took} s");
    }
}

#[test]
fn service_ports_without_local_endpoints_are_counted_by_policy() {
    let cluster = Cluster::build();
    let plane = ControlPlane::start(&cluster.lab, IpFamily::V4);
    let with = |name: &str, number, changes: Value, node: &str| {
        let objects = plane.objects(&service(name, DualStack::cluster_ip(number), &[cluster.backend("remote")]));
        for mut object in objects {
            if object["kind"] == "EndpointSlice" {
                for endpoint in object["endpoints"].as_array_mut().expect("endpoints") {
                    endpoint["nodeName"] = node.into();
                }
            } else {
                for (field, value) in changes.as_object().expect("fields") {
                    object["spec"][field] = value.clone();
                }
            }
            plane.server().put(object);
        }
    };
    let internal = json!({"internalTrafficPolicy": "Local"});
    let external = json!({"externalTrafficPolicy": "Local", "externalIPs": ["192.0.2.77", "2001:db8::77"]});
    with("internal", 1, internal.clone(), "node-b");
    with("external", 2, external.clone(), "node-b");
    with("neither", 3, json!({}), "node-b");
    let daemon = plane.daemon(&cluster.lab, &[]).started();
    let sample = |family, policy| {
        format!(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{{ip_family=\"{family}\",traffic_policy=\"{policy}\"}}"
        )
    };
    // Each of the test's Services has two ports.
    for family in IpFamily::ALL {
        await_metric(&daemon, &sample(family, "internal"), 2.0);
        await_metric(&daemon, &sample(family, "external"), 2.0);
    }
    with("internal", 1, internal, "node-a");
    with("external", 2, external, "node-a");
    for family in IpFamily::ALL {
        await_metric(&daemon, &sample(family, "internal"), 0.0);
        await_metric(&daemon, &sample(family, "external"), 0.0);
    }
}
