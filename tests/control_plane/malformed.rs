//! Objects that make no sense.

use dsproxy::{model::IpFamily, source::Delta};
use dsproxy_tests::apiserver::{ApiServer, Resource, StreamAct, Verb, network};
use serde_json::{Value, json};

use crate::{
    harness::Source,
    objects::{NAMESPACE, model_service, model_slice, name, service, slice},
};

/// The Service of this name in ways that make no sense, by shape and by content.
fn malformed_services(name: &str) -> Vec<Value> {
    let with = |pointer: &str, value: Value| {
        let mut service = service(name, 66);
        *service.pointer_mut(pointer).expect("the field exists") = value;
        service
    };
    vec![
        with("/spec/ports", json!("eighty")),
        with("/spec/ports/0/port", json!(0)),
        with("/spec/ports/0/port", json!(65536)),
        with("/spec/ports/0/protocol", json!("IPX")),
        with("/spec/clusterIPs", json!(["10.96.0.66", "nonsense"])),
        with("/spec", json!([])),
        with("/metadata/labels", json!("none")),
    ]
}

#[test]
fn a_malformed_object_harms_no_other_in_a_list() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let malformed = malformed_services("bad");
        for (number, mut object) in malformed.iter().cloned().enumerate() {
            object["metadata"]["name"] = json!(format!("bad{number}"));
            server.put(object);
        }
        server.put(service("a", 1));
        server.put(service("z", 2));
        let (mut source, services, _) = Source::watching(&server).await;
        assert_eq!(services, [model_service("a", 1), model_service("z", 2)]);
        assert_eq!(source.status.rejected(), malformed.len() as u64);
        assert_eq!(source.status.failures(), 0);
        source.assert_silent();
    });
}

#[test]
fn a_malformed_change_leaves_the_last_good_version() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web", 1));
        let (mut source, ..) = Source::watching(&server).await;
        let malformed = malformed_services("web");
        for object in &malformed {
            server.put(object.clone());
        }
        server.put(service("next", 2));
        // Nothing came in between, and the watch goes on.
        assert_eq!(source.service().await, Delta::Apply(model_service("next", 2)));
        assert_eq!(source.status.rejected(), malformed.len() as u64);
        server.put(service("web", 3));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 3)));
        assert_eq!(source.status.failures(), 0);
        assert_eq!(server.count(Verb::List, Resource::Services), 1);
    });
}

#[test]
fn a_malformed_object_that_is_deleted_is_gone() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web", 1));
        let (mut source, ..) = Source::watching(&server).await;
        for object in malformed_services("web") {
            server.put(object);
            server.delete(Resource::Services, NAMESPACE, "web");
            assert_eq!(source.service().await, Delta::Delete(name("web")));
            server.put(service("web", 1));
            assert_eq!(source.service().await, Delta::Apply(model_service("web", 1)));
        }
        source.assert_silent();
    });
}

#[test]
fn a_list_with_a_malformed_object_leaves_its_last_good_version() {
    network::run(|| async {
        let mut server = ApiServer::start().await;
        for (name, number) in [("bad", 1), ("gone", 2), ("same", 3), ("changed", 4)] {
            server.put(service(name, number));
        }
        let (mut source, ..) = Source::watching(&server).await;
        server.stop().await;
        server.put(malformed_services("bad").remove(0));
        server.delete(Resource::Services, NAMESPACE, "gone");
        server.put(service("changed", 5));
        server.put(service("new", 6));
        server.compact();
        server.restart().await;
        // All that the list says, but about the one object of which it says nothing sensible.
        assert_eq!(source.service().await, Delta::Delete(name("gone")));
        assert_eq!(source.service().await, Delta::Apply(model_service("changed", 5)));
        assert_eq!(source.service().await, Delta::Apply(model_service("new", 6)));
        assert_eq!(source.service().await, Delta::Apply(model_service("same", 3)));
        assert_eq!(source.status.rejected(), 1);

        // A list without it takes it away.
        assert_eq!(source.snapshot_of_slices().await, []);
        source.until_connected().await;
        source.assert_silent();
        server.stop().await;
        server.delete(Resource::Services, NAMESPACE, "bad");
        server.compact();
        server.restart().await;
        assert_eq!(
            source.snapshot_of_services().await,
            [model_service("changed", 5), model_service("new", 6), model_service("same", 3)]
        );
    });
}

#[test]
fn bad_parts_of_a_slice_are_counted_and_left_out() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let mut partly = slice("web-6", IpFamily::V6, &[1, 2]);
        let endpoints = partly["endpoints"].as_array_mut().expect("endpoints");
        endpoints.push(json!({"addresses": ["10.1.0.1"]}));
        endpoints.push(json!({"addresses": ["::1"]}));
        let ports = partly["ports"].as_array_mut().expect("ports");
        ports.push(json!({"name": "zero", "port": 0}));
        server.put(partly);
        let (source, _, slices) = Source::watching(&server).await;
        assert_eq!(slices, [model_slice("web-6", IpFamily::V6, &[1, 2])]);
        assert_eq!(source.status.skipped(), 3);
        assert_eq!(source.status.rejected(), 0);
    });
}

#[test]
fn a_slice_of_no_service_is_left_out() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let mut orphan = slice("web-4", IpFamily::V4, &[1]);
        orphan["metadata"]["labels"] = json!({});
        server.put(orphan);
        let (source, _, slices) = Source::watching(&server).await;
        assert_eq!(slices, []);
        assert_eq!(source.status.rejected(), 1);
    });
}

#[test]
fn a_line_that_is_no_event_is_answered_with_a_list() {
    for line in ["nonsense", "{}", r#"{"type":"RENAMED","object":{}}"#, r#"{"type":"ADDED"}"#] {
        network::run(|| async move {
            let server = ApiServer::start().await;
            server.put(service("web", 1));
            let (mut source, ..) = Source::watching(&server).await;
            server.act_on_watches(Resource::Services, &StreamAct::Line(line.to_owned()));
            assert_eq!(source.snapshot_of_services().await, [model_service("web", 1)], "{line}");
            source.until_connected().await;
            assert_eq!(source.status.failures(), 1);
            source.assert_silent();
        });
    }
}

#[test]
fn an_event_of_an_object_without_a_name_is_passed_over() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let (mut source, ..) = Source::watching(&server).await;
        let metadata = json!({"resourceVersion": server.version().to_string()});
        let lines =
            ["ADDED", "DELETED"].map(|event| json!({"type": event, "object": {"metadata": metadata}}).to_string());
        server.act_on_watches(Resource::Services, &StreamAct::Line(lines.join("\n")));
        source.until("the rejection", |status| status.rejected() == 1).await;
        server.put(service("web", 1));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 1)));
        assert_eq!(source.status.rejected(), 1);
        assert_eq!(source.status.failures(), 0);
    });
}
