//! What happens when the server no longer knows what a watch has seen.

use std::time::Duration;

use dsproxy::{
    model::IpFamily,
    source::{Delta, kubernetes::Pace},
};
use dsproxy_tests::apiserver::{ApiServer, Fault, Gone, Matching, Refusal, Resource, StreamAct, Verb, network};
use serde_json::json;

use crate::{
    harness::{Source, pace},
    objects::{NAMESPACE, model_service, model_slice, name, service, slice},
};

#[test]
fn a_forgotten_history_is_listed_again_and_what_vanished_is_gone() {
    for gone in [Gone::Status, Gone::Event] {
        network::run(|| async move {
            let mut server = ApiServer::start().await;
            server.faults().tell_gone_by(gone);
            for number in 1..=3 {
                server.put(service(&format!("web{number}"), number));
            }
            server.put(slice("web1-6", IpFamily::V6, &[1]));
            let (mut source, ..) = Source::watching(&server).await;

            server.stop().await;
            server.delete(Resource::Services, NAMESPACE, "web2");
            server.put(service("web3", 33));
            server.put(service("web4", 4));
            server.delete(Resource::EndpointSlices, NAMESPACE, "web1-6");
            server.compact();
            source.until_failed_again(2).await;
            source.assert_silent();
            server.restart().await;
            assert_eq!(
                source.snapshot_of_services().await,
                [model_service("web1", 1), model_service("web3", 33), model_service("web4", 4)],
                "{gone:?}"
            );
            assert_eq!(source.snapshot_of_slices().await, []);
            source.until_connected().await;
            assert_eq!(server.count(Verb::List, Resource::Services), 2);
            source.assert_silent();

            server.put(service("web5", 5));
            assert_eq!(source.service().await, Delta::Apply(model_service("web5", 5)));
        });
    }
}

#[test]
fn an_open_watch_can_be_told_that_its_history_is_gone() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web", 1));
        let (mut source, ..) = Source::watching(&server).await;
        server.act_on_watches(Resource::Services, &StreamAct::Error(410));
        assert_eq!(source.snapshot_of_services().await, [model_service("web", 1)]);
        source.until_connected().await;
        assert_eq!(source.status.failures(), 1);
        source.assert_silent();
    });
}

#[test]
fn an_error_that_says_nothing_against_the_history_needs_no_list() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web", 1));
        let (mut source, ..) = Source::watching(&server).await;
        server.act_on_watches(Resource::Services, &StreamAct::Error(500));
        source.until("the failure", |status| status.failures() == 1).await;
        server.put(service("web", 2));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 2)));
        source.until_connected().await;
        assert_eq!(server.count(Verb::List, Resource::Services), 1);
    });
}

#[test]
fn a_bookmark_moves_the_watch_along() {
    network::run(|| async {
        let server = ApiServer::start().await;
        // A watch that brings nothing but a bookmark may end soon without being a failure.
        let pace = Pace { shortest_watch: Duration::ZERO, ..pace() };
        let mut source = Source::at(&server, pace).await;
        assert_eq!(source.snapshot_of_slices().await, []);
        source.until_connected().await;
        assert_eq!(source.snapshot_of_services().await, []);
        // Many things happen that the watch of Services does not see, and are forgotten.
        for number in 1..=50 {
            server.put(slice("web-4", IpFamily::V4, &[number]));
            let changed = model_slice("web-4", IpFamily::V4, &[number]);
            assert_eq!(source.slice().await, Delta::Apply(changed));
        }
        server.act_on_watches(Resource::Services, &StreamAct::Bookmark);
        server.compact();
        server.act_on_watches(Resource::Services, &StreamAct::End);
        server.until_watches(Resource::Services, 2).await;
        server.put(service("web", 1));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 1)));
        assert_eq!(server.count(Verb::List, Resource::Services), 1);
        assert_eq!(source.status.failures(), 0);
    });
}

#[test]
fn a_server_restored_from_a_backup_is_listed_again() {
    // Versions of the other history below, and beyond, what was seen.
    for first_version in [5, 1_000_000] {
        network::run(|| async move {
            let mut server = ApiServer::start().await;
            server.put(service("web1", 1));
            server.put(service("web2", 2));
            server.put(slice("web1-4", IpFamily::V4, &[1]));
            let (mut source, ..) = Source::watching(&server).await;
            server.stop().await;
            server.delete(Resource::Services, NAMESPACE, "web2");
            server.put(slice("web1-4", IpFamily::V4, &[2]));
            server.restart_with_other_history(first_version).await;
            assert_eq!(source.snapshot_of_services().await, [model_service("web1", 1)]);
            let slices = source.snapshot_of_slices().await;
            assert_eq!(slices, [model_slice("web1-4", IpFamily::V4, &[2])]);
            source.until_connected().await;
            server.put(service("web2", 3));
            assert_eq!(source.service().await, Delta::Apply(model_service("web2", 3)));
            source.assert_silent();
        });
    }
}

#[test]
fn after_an_outage_one_look_tells_that_the_history_is_the_same() {
    network::run(|| async {
        let mut server = ApiServer::start().await;
        server.put(service("web", 1));
        let (mut source, ..) = Source::watching(&server).await;
        for number in 2..=3 {
            server.stop().await;
            server.put(service("web", number));
            source.until_failed_again(3).await;
            server.restart().await;
            assert_eq!(source.service().await, Delta::Apply(model_service("web", number)));
            source.until_connected().await;
            for resource in Resource::ALL {
                assert_eq!(server.count(Verb::Look, resource), usize::from(number) - 1, "{resource:?}");
                assert_eq!(server.count(Verb::List, resource), 1, "{resource:?}");
            }
        }
        // The end of a watch is none of the server.
        let watches = server.count(Verb::Watch, Resource::Services);
        server.act_on_watches(Resource::Services, &StreamAct::End);
        server.until_watches(Resource::Services, watches + 1).await;
        assert_eq!(server.count(Verb::Look, Resource::Services), 2);
        source.assert_silent();
    });
}

#[test]
fn a_look_that_tells_nothing_leaves_the_watch_as_it_is() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web", 1));
        let (mut source, ..) = Source::watching(&server).await;
        // A watch that has brought something: the end of one that has not is a failure of its own.
        server.put(service("web", 2));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 2)));
        let looks = Matching::only(Verb::Look, Resource::Services);
        server.faults().next(looks, 2, Fault::Refuse(Refusal::with(503)));
        let opaque = json!({"metadata": {"resourceVersion": "opaque"}, "items": []}).to_string();
        server.faults().next(looks, 1, Fault::Answer(opaque));
        server.act_on_watches(Resource::Services, &StreamAct::Cut);
        server.until_watches(Resource::Services, 2).await;
        server.put(service("web", 3));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 3)));
        source.until_connected().await;
        assert_eq!(source.status.failures(), 2);
        assert_eq!(server.count(Verb::Look, Resource::Services), 3, "one that failed is made again");
        assert_eq!(server.count(Verb::List, Resource::Services), 1);
        source.assert_silent();
    });
}

#[test]
fn a_version_that_goes_back_is_another_history() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web", 1));
        let (mut source, ..) = Source::watching(&server).await;
        let mut older = service("phantom", 9);
        older["metadata"]["resourceVersion"] = json!("7");
        let line = json!({"type": "ADDED", "object": older}).to_string();
        server.act_on_watches(Resource::Services, &StreamAct::Line(line));
        assert_eq!(source.snapshot_of_services().await, [model_service("web", 1)]);
        source.until_connected().await;
        assert_eq!(source.status.failures(), 1);
        source.assert_silent();
    });
}

#[test]
fn a_page_that_is_no_longer_to_be_had_is_asked_for_as_a_whole() {
    network::run(|| async {
        let server = ApiServer::start().await;
        for number in 1..=5 {
            server.put(service(&format!("web{number}"), number));
        }
        // The first page is served, and the second is not.
        let lists = Matching::only(Verb::List, Resource::Services);
        server.faults().next(lists, 1, Fault::Delay(Duration::ZERO));
        server.faults().next(lists, 1, Fault::Refuse(Refusal::with(410)));
        let pace = Pace { page_size: 2, ..pace() };
        let mut source = Source::at(&server, pace).await;
        assert_eq!(source.snapshot_of_services().await.len(), 5);
        let limits: Vec<_> = server
            .requests()
            .into_iter()
            .filter(|request| (request.verb, request.resource) == (Verb::List, Resource::Services))
            .map(|request| request.parameter("limit").map(str::to_owned))
            .collect();
        assert_eq!(limits, [Some("2".to_owned()), Some("2".to_owned()), None]);
        source.until_connected().await;
        assert_eq!(source.status.failures(), 1);
    });
}

#[test]
fn a_whole_list_that_fails_is_asked_for_in_pages_again() {
    for fault in [Fault::Hang, Fault::Refuse(Refusal::with(503)), Fault::CutAnswer] {
        network::run(|| async move {
            let server = ApiServer::start().await;
            for number in 1..=5 {
                server.put(service(&format!("web{number}"), number));
            }
            let lists = Matching::only(Verb::List, Resource::Services);
            // In pages until one is not to be had, and whole, twice.
            for _ in 0..2 {
                server.faults().next(lists, 1, Fault::Delay(Duration::ZERO));
                server.faults().next(lists, 1, Fault::Refuse(Refusal::with(410)));
                server.faults().next(lists, 1, fault.clone());
            }
            let pace = Pace { page_size: 2, answer: Duration::from_millis(200), ..pace() };
            let mut source = Source::at(&server, pace).await;
            assert_eq!(source.snapshot_of_services().await.len(), 5);
            let limits: Vec<_> = server
                .requests()
                .into_iter()
                .filter(|request| (request.verb, request.resource) == (Verb::List, Resource::Services))
                .map(|request| request.parameter("limit").and_then(|limit| limit.parse().ok()))
                .collect();
            let failed = [Some(2), Some(2), None];
            assert_eq!(limits, [&failed[..], &failed[..], &[Some(2); 3]].concat(), "{fault:?}");
            source.until_connected().await;
            assert_eq!(source.status.failures(), 4);
        });
    }
}

#[test]
fn a_deletion_during_the_first_list_is_not_missed() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web1", 1));
        server.put(service("web2", 2));
        let pace = Pace { page_size: 2, ..pace() };
        let watches = Matching::only(Verb::Watch, Resource::Services);
        server.faults().next(watches, 3, Fault::Refuse(Refusal::with(503)));
        let mut source = Source::at(&server, pace).await;
        assert_eq!(source.snapshot_of_services().await.len(), 2);
        server.delete(Resource::Services, NAMESPACE, "web2");
        assert_eq!(source.service().await, Delta::Delete(name("web2")));
        assert_eq!(source.status.failures(), 3);
    });
}
