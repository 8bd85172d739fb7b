//! Lists and watches when nothing goes wrong.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use dsproxy::{
    model::IpFamily,
    source::{Delta, kubernetes::Pace},
};
use dsproxy_tests::apiserver::{ApiServer, Resource, StreamAct, Verb, network};
use serde_json::json;

use crate::{
    harness::{Source, pace},
    objects::{NAMESPACE, anothers, model_service, model_slice, name, service, slice},
};

#[test]
fn the_first_lists_are_snapshots_over_either_family() {
    for address in ["127.0.0.1", "::1"] {
        let address: IpAddr = address.parse().expect("an address");
        network::run(|| async move {
            let server = ApiServer::start_on(address).await;
            server.put(service("web", 1));
            server.put(slice("web-4", IpFamily::V4, &[1, 2]));
            server.put(slice("web-6", IpFamily::V6, &[1, 2]));
            let (mut source, services, slices) = Source::watching(&server).await;
            assert_eq!(services, [model_service("web", 1)]);
            assert_eq!(
                slices,
                [model_slice("web-4", IpFamily::V4, &[1, 2]), model_slice("web-6", IpFamily::V6, &[1, 2]),]
            );
            source.assert_silent();
            assert_eq!(source.status.failures(), 0);
            assert_eq!(source.status.rejected(), 0);
            assert_eq!(source.status.last_error(), None);
        });
    }
}

#[test]
fn an_empty_cluster_is_two_empty_snapshots() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let (_source, services, slices) = Source::watching(&server).await;
        assert_eq!((services, slices), (vec![], vec![]));
    });
}

#[test]
fn only_objects_that_say_something_to_this_proxy_are_asked_for() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let _source = Source::watching(&server).await;
        for request in server.requests() {
            let (labels, fields) = match request.resource {
                Resource::Services => (None, None),
                Resource::EndpointSlices => (Some("!service.kubernetes.io/headless"), None),
                Resource::Nodes => (None, Some("metadata.name=node-a")),
                Resource::ServiceCidrs => (None, None),
            };
            assert_eq!(request.parameter("labelSelector"), labels, "{request:?}");
            assert_eq!(request.parameter("fieldSelector"), fields, "{request:?}");
            if request.verb == Verb::Watch {
                assert_eq!(request.parameter("allowWatchBookmarks"), Some("true"), "{request:?}");
            }
        }
    });
}

#[test]
fn changes_arrive_in_order() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let (mut source, ..) = Source::watching(&server).await;
        server.put(service("web", 1));
        server.put(service("web", 2));
        server.delete(Resource::Services, NAMESPACE, "web");
        server.put(service("web", 3));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 1)));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 2)));
        assert_eq!(source.service().await, Delta::Delete(name("web")));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 3)));
        for family in IpFamily::ALL {
            server.put(slice("web-x", family, &[1]));
            server.put(slice("web-x", family, &[2, 3]));
            server.delete(Resource::EndpointSlices, NAMESPACE, "web-x");
            assert_eq!(source.slice().await, Delta::Apply(model_slice("web-x", family, &[1])));
            assert_eq!(source.slice().await, Delta::Apply(model_slice("web-x", family, &[2, 3])));
            assert_eq!(source.slice().await, Delta::Delete(name("web-x")));
        }
        source.assert_silent();
        assert_eq!(source.status.failures(), 0);
    });
}

#[test]
fn a_label_gained_takes_an_object_away_and_a_label_lost_brings_it_back() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web", 1));
        server.put(slice("web-6", IpFamily::V6, &[1]));
        let (mut source, ..) = Source::watching(&server).await;

        let mut others = service("web", 1);
        others["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!("mesh");
        server.put(others);
        assert_eq!(source.service().await, Delta::Apply(anothers(model_service("web", 1))));
        server.put(service("web", 1));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 1)));

        let mut headless = slice("web-6", IpFamily::V6, &[1]);
        headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
        server.put(headless);
        assert_eq!(source.slice().await, Delta::Delete(name("web-6")));
        let ours = model_slice("web-6", IpFamily::V6, &[1]);
        server.put(slice("web-6", IpFamily::V6, &[1]));
        assert_eq!(source.slice().await, Delta::Apply(ours));
        source.assert_silent();
    });
}

#[test]
fn a_service_without_a_cluster_ip_is_none() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let mut pending = service("web", 1);
        pending["spec"]["clusterIP"] = json!("");
        pending["spec"]["clusterIPs"] = json!([]);
        server.put(pending);
        let (mut source, services, _) = Source::watching(&server).await;
        assert_eq!(services, []);

        server.put(service("web", 1));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 1)));
        // No selector holds this back, so the proxy has to see for itself.
        let mut external = service("web", 1);
        external["spec"]["type"] = json!("ExternalName");
        server.put(external.clone());
        assert_eq!(source.service().await, Delta::Delete(name("web")));
        // What was never sent is not taken back.
        external["spec"]["externalName"] = json!("example.org");
        server.put(external);
        server.delete(Resource::Services, NAMESPACE, "web");
        server.put(service("next", 2));
        assert_eq!(source.service().await, Delta::Apply(model_service("next", 2)));

        let mut headless = service("next", 2);
        headless["spec"]["clusterIP"] = json!("None");
        headless["spec"]["clusterIPs"] = json!(["None"]);
        server.put(headless);
        assert_eq!(source.service().await, Delta::Delete(name("next")));
        assert_eq!(source.status.rejected(), 0);
    });
}

#[test]
fn pages_make_one_snapshot() {
    network::run(|| async {
        let server = ApiServer::start().await;
        for number in 1..=7 {
            server.put(service(&format!("web{number}"), number));
        }
        let pace = Pace { page_size: 3, ..pace() };
        let mut source = Source::at(&server, pace).await;
        let services: Vec<_> = (1..=7).map(|number| model_service(&format!("web{number}"), number)).collect();
        assert_eq!(source.snapshot_of_services().await, services);
        assert_eq!(server.count(Verb::List, Resource::Services), 3);
        source.until_connected().await;
        source.snapshot_of_slices().await;
        source.assert_silent();
    });
}

#[test]
fn a_watch_that_ends_goes_on_where_it_was() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web", 1));
        let (mut source, ..) = Source::watching(&server).await;
        server.put(service("web", 2));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 2)));
        for number in 3..6 {
            let watches = server.count(Verb::Watch, Resource::Services);
            server.act_on_watches(Resource::Services, &StreamAct::End);
            server.until_watches(Resource::Services, watches + 1).await;
            server.put(service("web", number));
            assert_eq!(source.service().await, Delta::Apply(model_service("web", number)));
        }
        assert_eq!(server.count(Verb::List, Resource::Services), 1);
        assert_eq!(source.status.failures(), 0);
        source.assert_silent();
    });
}

#[test]
fn a_watch_that_falls_silent_is_started_again() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let pace = Pace { watch: Duration::from_secs(1), ..pace() };
        let mut source = Source::at(&server, pace).await;
        assert_eq!(source.snapshot_of_services().await, []);
        source.until_connected().await;
        server.act_on_watches(Resource::Services, &StreamAct::FallSilent);
        server.until("silence", |server| server.open_watches(Resource::Services) == 0).await;
        let fell_silent = Instant::now();
        server.put(service("web", 1));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 1)));
        assert!(fell_silent.elapsed() >= Duration::from_secs(5), "{:?}", fell_silent.elapsed());
        assert_eq!(server.count(Verb::List, Resource::Services), 1);
        assert_eq!(source.status.failures(), 0);
    });
}

#[test]
fn the_source_ends_when_nobody_listens() {
    network::run(|| async {
        let mut server = ApiServer::start().await;
        let (source, ..) = Source::watching(&server).await;
        source.stop_listening().await;

        let (source, ..) = Source::watching(&server).await;
        server.stop().await;
        source.until_failed_again(2).await;
        source.stop_listening().await;
    });
}
