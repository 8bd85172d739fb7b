//! Servers that answer, but not as wished.

use std::time::Duration;

use dsproxy::{model::IpFamily, source::Delta};
use dsproxy_tests::apiserver::{ApiServer, Fault, Matching, Refusal, Resource, Verb, network};

use crate::{
    harness::Source,
    objects::{model_service, model_slice, service, slice},
};

const REFUSALS: [(u16, &str); 6] = [
    (401, "check the token"),
    (403, "allow list and watch on services in a ClusterRole"),
    (404, "check that the address"),
    (429, "too many requests"),
    (500, "it is tried again"),
    (503, "unable to handle"),
];

#[test]
fn a_refused_list_is_tried_again() {
    for (code, advice) in REFUSALS {
        network::run(|| async move {
            let server = ApiServer::start().await;
            server.put(service("web", 1));
            let lists = Matching::only(Verb::List, Resource::Services);
            server.faults().always(lists, Fault::Refuse(Refusal::with(code)));
            let mut source = Source::of(&server).await;
            assert_eq!(source.snapshot_of_slices().await, []);
            source.until_failed_again(3).await;
            source.assert_silent();
            assert!(!source.status.connected());
            let error = source.status.last_error().expect("an error");
            for part in ["list services", &code.to_string(), advice] {
                assert!(error.contains(part), "{part:?} in {error}");
            }

            server.faults().clear();
            assert_eq!(source.snapshot_of_services().await, [model_service("web", 1)]);
            source.until_connected().await;
            assert_eq!(source.status.last_error(), None);
        });
    }
}

#[test]
fn a_refused_watch_is_tried_again_without_a_list() {
    for code in [401, 403, 429, 500, 503] {
        network::run(|| async move {
            let server = ApiServer::start().await;
            server.put(service("web", 1));
            let watches = Matching::only(Verb::Watch, Resource::Services);
            server.faults().next(watches, 3, Fault::Refuse(Refusal::with(code)));
            let (mut source, services, _) = Source::watching(&server).await;
            assert_eq!(services, [model_service("web", 1)]);
            assert_eq!(source.status.failures(), 3, "{code}");
            assert_eq!(server.count(Verb::List, Resource::Services), 1, "{code}");
            source.assert_silent();
        });
    }
}

#[test]
fn a_watch_that_is_refused_for_what_it_asks_is_listed_again() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let watches = Matching::only(Verb::Watch, Resource::Services);
        server.faults().next(watches, 1, Fault::Refuse(Refusal::with(400)));
        let (mut source, ..) = Source::watching(&server).await;
        assert_eq!(source.snapshot_of_services().await, []);
        assert_eq!(server.count(Verb::List, Resource::Services), 2);
        source.assert_silent();
    });
}

#[test]
fn a_server_that_asks_for_time_gets_it() {
    for plain in [false, true] {
        network::run(|| async move {
            let server = ApiServer::start().await;
            let lists = Matching::only(Verb::List, Resource::Services);
            let refusal = Refusal { code: 429, retry_after: Some(1), plain };
            server.faults().next(lists, 1, Fault::Refuse(refusal));
            let mut source = Source::of(&server).await;
            assert_eq!(source.snapshot_of_services().await, []);
            let requests = server.requests();
            let at: Vec<_> = requests
                .iter()
                .filter(|request| (request.verb, request.resource) == (Verb::List, Resource::Services))
                .map(|request| request.at)
                .collect();
            assert_eq!(at.len(), 2);
            assert!(at[1] - at[0] >= Duration::from_secs(1), "{:?}", at[1] - at[0]);
        });
    }
}

#[test]
fn a_refusal_for_one_kind_does_not_hold_up_the_other() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(slice("web-6", IpFamily::V6, &[1]));
        let slices = Matching { verb: None, resource: Some(Resource::EndpointSlices) };
        server.faults().always(slices, Fault::Refuse(Refusal::with(403)));
        let mut source = Source::of(&server).await;
        assert_eq!(source.snapshot_of_services().await, []);
        server.put(service("web", 1));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 1)));
        source.until_failed_again(3).await;
        assert!(!source.status.connected());
        let error = source.status.last_error().expect("an error");
        assert!(error.contains("list and watch on endpointslices.discovery.k8s.io"), "{error}");
        source.assert_silent();

        server.faults().clear();
        assert_eq!(source.snapshot_of_slices().await, [model_slice("web-6", IpFamily::V6, &[1])]);
        source.until_connected().await;
    });
}
