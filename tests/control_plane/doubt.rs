//! Lists that lack what they cannot well lack: they are not believed at once.

use std::time::{Duration, Instant};

use dsproxy::{
    maps::{BackendRecord, Contents},
    model::IpFamily,
    source::{
        Delta, Trouble,
        kubernetes::{EarlierRun, Pace},
    },
};
use dsproxy_common::service::BackendState;
use dsproxy_tests::apiserver::{ApiServer, Fault, Matching, Resource, StreamAct, Verb, network, own_objects};
use serde_json::{Value, json};

use crate::{
    harness::{Source, pace},
    objects::{NAMESPACE, model_service, model_slice, name, service, slice},
};

/// Long enough to look around in.
const DOUBT: Duration = Duration::from_secs(1);

fn doubting() -> Pace {
    Pace { doubt: DOUBT, ..pace() }
}

/// A source of three Services and their slices of both families.
async fn source(server: &ApiServer) -> Source {
    for number in 1..=3 {
        server.put(service(&format!("web{number}"), number));
        for family in IpFamily::ALL {
            server.put(slice(&format!("web{number}-{family}"), family, &[number]));
        }
    }
    let mut source = Source::at(server, doubting()).await;
    assert_eq!(source.snapshot_of_services().await.len(), 3);
    assert_eq!(source.snapshot_of_slices().await.len(), 6);
    source.until_connected().await;
    source
}

/// A list that holds these.
fn list(server: &ApiServer, mut items: Vec<Value>) -> String {
    let version = server.version().to_string();
    for item in &mut items {
        item["metadata"]["resourceVersion"] = json!(version);
    }
    json!({"metadata": {"resourceVersion": version}, "items": items}).to_string()
}

/// The server says that there is nothing of a resource but what it makes by itself, and forgets what happened.
async fn lists_nothing(server: &ApiServer, resource: Resource, times: usize) {
    let [own_service, own_slice] = own_objects();
    let own = if resource == Resource::Services { own_service } else { own_slice };
    let empty = list(server, vec![own]);
    server.faults().next(Matching::only(Verb::List, resource), times, Fault::Answer(empty));
    server.act_on_watches(resource, &StreamAct::Error(410));
    server.act_on_watches(resource, &StreamAct::End);
    let listed = server.count(Verb::List, resource);
    server.until("an empty list", |server| server.count(Verb::List, resource) > listed).await;
}

#[test]
fn an_empty_list_takes_nothing_away_if_the_next_one_is_not() {
    for (resource, named) in
        [(Resource::Services, "services"), (Resource::EndpointSlices, "endpointslices.discovery.k8s.io")]
    {
        network::run(|| async move {
            let server = ApiServer::start().await;
            let mut source = source(&server).await;
            lists_nothing(&server, resource, 1).await;
            source.until_trouble(named, Some(Trouble::ObjectsMissing)).await;
            let held_back = if resource == Resource::Services { 3 } else { 6 };
            assert_eq!(source.watch_of(named).held_back, held_back);
            source.until_connected().await;
            source.assert_silent();
            // The watch goes on meanwhile.
            server.put(service("web9", 9));
            assert_eq!(source.service().await, Delta::Apply(model_service("web9", 9)));
            source.assert_silent();

            source.until_trouble(named, None).await;
            match resource {
                Resource::Services => assert_eq!(source.snapshot_of_services().await.len(), 4),
                _ => assert_eq!(source.snapshot_of_slices().await.len(), 6),
            }
            assert_eq!(server.count(Verb::List, resource), 3);
            source.assert_silent();
        });
    }
}

#[test]
fn a_cluster_that_was_emptied_while_nobody_watched_is_empty_after_the_wait() {
    network::run(|| async {
        let mut server = ApiServer::start().await;
        let mut source = source(&server).await;
        server.stop().await;
        for number in 1..=3 {
            server.delete(Resource::Services, NAMESPACE, &format!("web{number}"));
            for family in IpFamily::ALL {
                server.delete(Resource::EndpointSlices, NAMESPACE, &format!("web{number}-{family}"));
            }
        }
        server.compact();
        server.restart().await;
        let back = Instant::now();
        source.until_trouble("services", Some(Trouble::ObjectsMissing)).await;
        source.assert_silent();
        assert_eq!(source.snapshot_of_services().await, []);
        assert_eq!(source.snapshot_of_slices().await, []);
        let took = back.elapsed();
        assert!(took >= DOUBT && took < DOUBT + Duration::from_secs(2), "{took:?}");
        source.until_trouble("services", None).await;
        source.assert_silent();
    });
}

#[test]
fn what_the_watch_takes_away_is_gone_at_once() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let mut source = source(&server).await;
        for number in 1..=3 {
            let web = format!("web{number}");
            server.delete(Resource::Services, NAMESPACE, &web);
            assert_eq!(source.service().await, Delta::Delete(name(&web)));
        }
        assert_eq!(source.watch_of("services").trouble, None);
        source.assert_silent();
        // After a false alarm as well.
        server.put(service("web4", 4));
        source.service().await;
        lists_nothing(&server, Resource::Services, 1).await;
        source.until_trouble("services", Some(Trouble::ObjectsMissing)).await;
        server.until_watches(Resource::Services, 2).await;
        server.delete(Resource::Services, NAMESPACE, "web4");
        assert_eq!(source.service().await, Delta::Delete(name("web4")));
        source.until_trouble("services", None).await;
        assert_eq!(source.snapshot_of_services().await, []);
    });
}

#[test]
fn a_server_that_stumbles_is_not_believed_before_it_stands() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let mut source = source(&server).await;
        let alarmed = Instant::now();
        // Five times as long as it would take to be believed, it says the same and fails again.
        while alarmed.elapsed() < 2 * DOUBT {
            lists_nothing(&server, Resource::Services, 1).await;
            tokio::time::sleep(DOUBT / 20).await;
        }
        source.assert_silent();
        assert_eq!(source.watch_of("services").held_back, 3);
        assert_eq!(source.snapshot_of_services().await.len(), 3, "at last a list that is right");
    });
}

#[test]
fn a_server_that_lacks_its_own_object_is_not_believed() {
    network::run(|| async {
        let server = ApiServer::start().await;
        let family = IpFamily::V6;
        for number in 1..=8 {
            server.put(service(&format!("web{number}"), number));
            server.put(slice(&format!("web{number}-6"), family, &[number]));
        }
        let mut source = Source::at(&server, doubting()).await;
        assert_eq!(source.snapshot_of_services().await.len(), 8);
        assert_eq!(source.snapshot_of_slices().await.len(), 8);
        source.until_connected().await;
        // Half of what there is, as of a proxy that filters.
        let services = (1..=4).map(|number| service(&format!("web{number}"), number)).collect();
        let slices = (1..=4).map(|number| slice(&format!("web{number}-6"), family, &[number])).collect();
        for (resource, named, half) in [
            (Resource::Services, "services", list(&server, services)),
            (Resource::EndpointSlices, "endpointslices.discovery.k8s.io", list(&server, slices)),
        ] {
            server.faults().next(Matching::only(Verb::List, resource), 1, Fault::Answer(half));
            server.act_on_watches(resource, &StreamAct::Error(410));
            source.until_trouble(named, Some(Trouble::ObjectsMissing)).await;
            assert_eq!(source.watch_of(named).held_back, 5);
        }
        for number in 1..=4 {
            let (web, web_slice) = (format!("web{number}"), format!("web{number}-6"));
            assert_eq!(source.service().await, Delta::Apply(model_service(&web, number)), "what is listed counts");
            assert_eq!(source.slice().await, Delta::Apply(model_slice(&web_slice, family, &[number])));
        }
        source.assert_silent();
        assert_eq!(source.snapshot_of_services().await.len(), 8);
        assert_eq!(source.snapshot_of_slices().await.len(), 8);
    });
}

#[test]
fn what_an_earlier_run_has_left_is_not_replaced_by_nothing_at_once() {
    for everything in [false, true] {
        network::run(|| async move {
            let record = BackendRecord {
                address: [10, 1, 0, 1].into(),
                port: 80,
                generation: 1,
                service: 1,
                state: BackendState::Active,
                flags: 0,
            };
            let contents = Contents {
                names: vec![(1, format!("{NAMESPACE}/web1:http/TCP"))],
                backends: vec![(IpFamily::V4, 0, record)],
                ..Contents::default()
            };
            let server = ApiServer::start().await;
            if !everything {
                // Services are there, and no slice.
                server.put(service("web1", 1));
            }
            let mut source = Source::after(EarlierRun::of(&contents), &server, doubting()).await;
            let slices = "endpointslices.discovery.k8s.io";
            source.until_trouble(slices, Some(Trouble::ObjectsMissing)).await;
            if everything {
                source.until_trouble("services", Some(Trouble::ObjectsMissing)).await;
                source.assert_silent();
            } else {
                assert_eq!(source.snapshot_of_services().await, [model_service("web1", 1)]);
                source.assert_silent();
                // The store has been read: what comes is heard of, and the whole of it is known after the wait.
                server.put(slice("web1-4", IpFamily::V4, &[1]));
                assert_eq!(source.slice().await, Delta::Apply(model_slice("web1-4", IpFamily::V4, &[1])));
            }
            let listed = source.snapshot_of_slices().await;
            assert_eq!(listed.len(), usize::from(!everything));
            if everything {
                assert_eq!(source.snapshot_of_services().await, []);
            }
            source.until_trouble(slices, None).await;
        });
    }
}
