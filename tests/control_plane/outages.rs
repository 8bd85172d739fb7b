//! Connections that break, and servers that go away and come back.

use std::{
    os::unix::process::CommandExt,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dsproxy::{
    model::IpFamily,
    source::{Delta, kubernetes::Pace},
};
use dsproxy_tests::apiserver::{ApiServer, Fault, Matching, Resource, StreamAct, Verb, network};

use crate::{
    harness::{Source, pace},
    objects::{NAMESPACE, model_service, model_slice, name, service, slice},
};

#[test]
fn while_the_server_is_away_nothing_is_sent() {
    network::run(|| async {
        let mut server = ApiServer::start().await;
        server.put(service("web", 1));
        server.put(slice("web-4", IpFamily::V4, &[1]));
        let (mut source, ..) = Source::watching(&server).await;

        server.stop().await;
        source.until_failed_again(10).await;
        assert!(!source.status.connected());
        let error = source.status.last_error().expect("an error");
        assert!(error.contains("cannot be reached") && error.contains("refused"), "{error}");
        source.assert_silent();

        // What happened meanwhile comes as changes, without a list.
        server.put(service("web", 2));
        server.delete(Resource::EndpointSlices, NAMESPACE, "web-4");
        server.restart().await;
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 2)));
        assert_eq!(source.slice().await, Delta::Delete(name("web-4")));
        source.until_connected().await;
        assert_eq!(source.status.last_error(), None);
        assert_eq!(server.count(Verb::List, Resource::Services), 1);
        assert_eq!(server.count(Verb::List, Resource::EndpointSlices), 1);
        source.assert_silent();
    });
}

#[test]
fn a_server_that_comes_up_late_is_waited_for() {
    network::run(|| async {
        let mut server = ApiServer::start().await;
        server.stop().await;
        server.put(service("web", 1));
        let mut source = Source::of(&server).await;
        source.until_failed_again(5).await;
        source.assert_silent();
        assert!(!source.status.connected());
        server.restart().await;
        assert_eq!(source.snapshot_of_services().await, [model_service("web", 1)]);
        assert_eq!(source.snapshot_of_slices().await, []);
        source.until_connected().await;
    });
}

#[test]
fn a_server_that_restarts_over_and_over_costs_no_change() {
    network::run(|| async {
        let mut server = ApiServer::start().await;
        let (mut source, ..) = Source::watching(&server).await;
        for number in 1..=10 {
            server.put(service("web", number));
            assert_eq!(source.service().await, Delta::Apply(model_service("web", number)));
            server.restart().await;
            server.until_watched().await;
        }
        source.until_connected().await;
        source.assert_silent();
        assert_eq!(server.count(Verb::List, Resource::Services), 1);
        assert_eq!(source.status.rejected(), 0);
    });
}

#[test]
fn a_broken_watch_goes_on_where_it_was() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web", 1));
        let (mut source, ..) = Source::watching(&server).await;
        server.act_on_watches(Resource::Services, &StreamAct::Cut);
        server.until_watches(Resource::Services, 2).await;
        server.put(service("web", 2));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 2)));
        source.until_connected().await;
        assert_eq!(source.status.last_error(), None);
        assert_eq!(server.count(Verb::List, Resource::Services), 1);
        source.assert_silent();
    });
}

#[test]
fn half_an_event_is_none_and_comes_again_whole() {
    for act in [StreamAct::CutWithin(service("web", 3)), StreamAct::EndWithin(service("web", 3))] {
        network::run(|| async move {
            let server = ApiServer::start().await;
            server.put(service("web", 1));
            let (mut source, ..) = Source::watching(&server).await;
            server.put(service("web", 2));
            assert_eq!(source.service().await, Delta::Apply(model_service("web", 2)));
            server.act_on_watches(Resource::Services, &act);
            server.until_watches(Resource::Services, 2).await;
            source.assert_silent();
            server.put(service("web", 3));
            assert_eq!(source.service().await, Delta::Apply(model_service("web", 3)));
            source.until_connected().await;
            source.assert_silent();
            assert_eq!(source.status.rejected(), 0);
            assert_eq!(server.count(Verb::List, Resource::Services), 1);
        });
    }
}

#[test]
fn half_a_list_is_none() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web", 1));
        server.put(slice("web-6", IpFamily::V6, &[1]));
        for resource in Resource::ALL {
            server.faults().next(Matching::only(Verb::List, resource), 2, Fault::CutAnswer);
        }
        let mut source = Source::of(&server).await;
        assert_eq!(source.snapshot_of_services().await, [model_service("web", 1)]);
        assert_eq!(source.snapshot_of_slices().await, [model_slice("web-6", IpFamily::V6, &[1])]);
        source.until_connected().await;
        assert_eq!(source.status.failures(), 2 * Resource::ALL.len() as u64);
        source.assert_silent();
    });
}

#[test]
fn a_list_that_is_no_list_is_none() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web", 1));
        for text in ["", "<html>login</html>", "[]", "{\"items\": 1}", "{\"items\": []}"] {
            let lists = Matching::only(Verb::List, Resource::Services);
            server.faults().next(lists, 1, Fault::Answer(text.to_owned()));
        }
        let mut source = Source::of(&server).await;
        assert_eq!(source.snapshot_of_services().await, [model_service("web", 1)]);
        assert_eq!(source.snapshot_of_slices().await, []);
        source.until_connected().await;
        assert_eq!(source.status.failures(), 5);
        source.assert_silent();
    });
}

#[test]
fn a_slow_answer_is_waited_for() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web", 1));
        server.faults().always(Matching::default(), Fault::Delay(Duration::from_millis(100)));
        let (source, services, _) = Source::watching(&server).await;
        assert_eq!(services, [model_service("web", 1)]);
        assert_eq!(source.status.failures(), 0);
    });
}

#[test]
fn an_answer_that_never_comes_is_given_up() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web", 1));
        for verb in [Verb::List, Verb::Watch] {
            server.faults().next(Matching::only(verb, Resource::Services), 1, Fault::Hang);
        }
        let pace = Pace { answer: Duration::from_millis(200), ..pace() };
        let mut source = Source::at(&server, pace).await;
        source.until("the failure", |status| status.failures() == 1).await;
        let error = source.status.last_error().expect("an error");
        assert!(error.contains("list services") && error.contains("did not answer"), "{error}");
        assert_eq!(source.snapshot_of_services().await, [model_service("web", 1)]);
        source.until_connected().await;
        assert_eq!(source.status.failures(), 2);
    });
}

#[test]
fn an_answer_that_stalls_half_way_is_given_up() {
    network::run(|| async {
        let server = ApiServer::start().await;
        server.put(service("web", 1));
        for verb in [Verb::List, Verb::Watch] {
            server.faults().next(Matching::only(verb, Resource::Services), 1, Fault::StallAnswer);
        }
        let pace = Pace { answer: Duration::from_millis(200), watch: Duration::from_secs(1), ..pace() };
        let mut source = Source::at(&server, pace).await;
        source.until("the failure", |status| status.failures() == 1).await;
        let error = source.status.last_error().expect("an error");
        assert!(error.contains("list services") && error.contains("did not answer"), "{error}");
        assert_eq!(source.snapshot_of_services().await, [model_service("web", 1)]);
        assert_eq!(source.snapshot_of_slices().await, []);
        // Half a line of a watch is no event, and as good as silence.
        server.until_watches(Resource::Services, 2).await;
        server.put(service("web", 2));
        assert_eq!(source.service().await, Delta::Apply(model_service("web", 2)));
        source.until_connected().await;
        source.assert_silent();
        assert_eq!(source.status.rejected(), 0);
        assert_eq!(server.count(Verb::List, Resource::Services), 2);
    });
}

#[test]
fn a_server_that_ends_every_watch_at_once_is_not_stormed() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let watches = Matching::only(Verb::Watch, Resource::Services);
        server.faults().always(watches, Fault::Answer(String::new()));
        let pace = Pace {
            first_retry: Duration::from_millis(50),
            longest_retry_refused: Duration::from_millis(50),
            shortest_watch: Duration::from_secs(1),
            ..pace()
        };
        let source = Source::at(&server, pace).await;
        source.until_failed_again(4).await;
        let requests = server.requests();
        let at: Vec<_> = requests
            .iter()
            .filter(|request| (request.verb, request.resource) == (Verb::Watch, Resource::Services))
            .map(|request| request.at)
            .collect();
        for pair in at.windows(2) {
            assert!(pair[1] - pair[0] >= Duration::from_millis(25), "{:?}", pair[1] - pair[0]);
        }
        assert_eq!(server.count(Verb::List, Resource::Services), 1);
        server.faults().clear();
        source.until_connected().await;
    });
}

/// A process that another test starts is, until it calls exec(2), a copy of this one with all its sockets.
#[test]
fn a_server_is_there_again_at_once_whatever_is_started_meanwhile() {
    network::run(|| async {
        let mut server = ApiServer::start().await;
        let done = Arc::new(AtomicBool::new(false));
        let starting = std::thread::spawn({
            let done = Arc::clone(&done);
            move || {
                while !done.load(Ordering::Relaxed) {
                    // With a user to become it is a fork, which takes longer than what posix_spawn(3) does.
                    Command::new("true").uid(0).status().expect("a process");
                }
            }
        });
        for _ in 0..2000 {
            server.restart().await;
        }
        done.store(true, Ordering::Relaxed);
        starting.join().expect("processes were started");
    });
}
