//! What the task tells others: load balancers, the metrics, and whoever asks whether it has begun.

use std::{
    future::{Future as _, poll_fn},
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::model::{Node, TrafficPolicy};

use super::*;

const NODE_NAME: &str = "node-a";

fn world() -> World {
    let node = LocalNode::new(NODE_NAME, crate::config::NodeIps::default(), crate::config::NodePortAddresses::All);
    let (maps, now, progress) = (MemoryMaps::new(ROOM), Instant::now(), Arc::new(Progress::default()));
    let mut world = World {
        reconciler: Reconciler::new(maps, &Contents::default(), node, progress, now),
        asked: BTreeMap::new(),
        now,
    };
    world.list();
    world
}

/// A Service of both families behind a load balancer, kept to this node by both policies.
fn kept_local() -> Service {
    Service {
        load_balancer_ips: vec![[192, 0, 2, 1].into()],
        internal_traffic_policy: TrafficPolicy::Local,
        external_traffic_policy: TrafficPolicy::Local,
        health_check_node_port: Some(32_000),
        ..service("web", &Asked::dual(1, &[]))
    }
}

fn endpoints_on(node: &str) -> [Event; 2] {
    IpFamily::ALL.map(|family| {
        let mut slice = slice("web", family, &[1, 2]);
        slice.endpoints.iter_mut().for_each(|endpoint| endpoint.node = Some(node.into()));
        Event::EndpointSlices(Delta::Apply(slice))
    })
}

fn tell(world: &mut World, events: impl IntoIterator<Item = Event>) {
    events.into_iter().for_each(|event| world.reconciler.apply(event));
    world.reconciler.reconcile(world.now);
}

#[test]
fn load_balancers_are_told_of_the_endpoints_here() {
    let mut world = world();
    let mut told = world.reconciler.health_checks();
    let count = |told: &mut watch::Receiver<HealthChecks>| {
        let checks = told.borrow_and_update();
        checks.get(&object_name("web")).map(|check| (check.port, check.local_endpoints.clone()))
    };
    let both = |count| IpFamily::ALL.map(|family| (family, count)).into();
    tell(&mut world, [Event::Services(Delta::Apply(kept_local()))]);
    assert_eq!(count(&mut told), Some((32_000, both(0))));
    tell(&mut world, endpoints_on(NODE_NAME));
    assert_eq!(count(&mut told), Some((32_000, both(2))));
    tell(&mut world, endpoints_on(NODE_NAME));
    assert!(!told.has_changed().expect("the reconciler is there"), "no news");
    tell(&mut world, endpoints_on("node-b"));
    assert_eq!(count(&mut told), Some((32_000, both(0))));
    tell(&mut world, [Event::Services(Delta::Delete(object_name("web")))]);
    assert_eq!(count(&mut told), None);
}

#[test]
fn service_ports_without_an_endpoint_here_are_counted() {
    let mut world = world();
    let counts = |world: &World| {
        let lacking = world.snapshot().no_local_endpoints;
        IpFamily::ALL.map(|family| (lacking.internal(family), lacking.external(family)))
    };
    tell(&mut world, [Event::Services(Delta::Apply(kept_local()))]);
    assert_eq!(counts(&world), [(0, 0); 2], "there is none anywhere");
    tell(&mut world, endpoints_on("node-b"));
    assert_eq!(counts(&world), [(1, 1), (1, 0)], "the load balancer has no IPv6 address");
    tell(&mut world, endpoints_on(NODE_NAME));
    assert_eq!(counts(&world), [(0, 0); 2]);
    tell(&mut world, endpoints_on("node-b"));
    tell(&mut world, [Event::Services(Delta::Delete(object_name("web")))]);
    assert_eq!(counts(&world), [(0, 0); 2]);
}

#[test]
fn a_node_that_is_about_to_go_is_told() {
    let mut world = world();
    assert!(world.snapshot().node_is_eligible);
    let node = Node { name: ObjectName::of_cluster(NODE_NAME), is_going: true, ..Node::default() };
    tell(&mut world, [Event::Nodes(Delta::Apply(node))]);
    assert!(!world.snapshot().node_is_eligible);
}

#[test]
fn what_cannot_be_served_is_counted() {
    let mut world = world();
    let mut association = service("web", &Asked::dual(1, &[]));
    association.ports[0].protocol = Protocol::Sctp;
    let mut slice = slice("web", IpFamily::V6, &[1]);
    slice.ports[0].protocol = Protocol::Sctp;
    tell(&mut world, [Event::Services(Delta::Apply(association)), Event::EndpointSlices(Delta::Apply(slice))]);
    assert_eq!(world.snapshot().left_out, 1);
    world.change([("web", None)]);
    assert_eq!(world.snapshot().left_out, 0);
}

#[test]
fn what_comes_while_something_is_done_waits_since_that_began() {
    let mut world = world();
    let (sender, mut events) = mpsc::channel(4);
    let waiting = |world: &World| world.reconciler.progress.lag().waiting_since;
    world.reconciler.work(Reconciler::reconcile, &events);
    assert_eq!(waiting(&world), None, "nothing has come");
    sender.try_send(Event::Services(Delta::Apply(kept_local()))).expect("room");
    let before = Instant::now();
    world.reconciler.work(Reconciler::reconcile, &events);
    let since = waiting(&world).expect("it waits");
    assert!(since >= before);
    world.reconciler.work(Reconciler::retry, &events);
    assert_eq!(waiting(&world), Some(since), "it was not looked at");
    tell(&mut world, events.try_recv());
    world.reconciler.progress.received(Instant::now());
    world.reconciler.work(Reconciler::reconcile, &events);
    assert_eq!(waiting(&world), None);
}

#[tokio::test(start_paused = true)]
async fn the_node_object_is_waited_for_as_long_as_kube_proxy_waits() {
    let progress = Arc::new(Progress::default());
    let reconciler = Reconciler::new(
        MemoryMaps::new(ROOM),
        &Contents::default(),
        LocalNode::default(),
        Arc::clone(&progress),
        Instant::now(),
    );
    let (events, receiver) = mpsc::channel(4);
    let (_addresses, addresses) = watch::channel(NodeAddresses::default());
    let started = time::Instant::now();
    let _task = tokio::spawn(reconciler.run(receiver, addresses));
    for event in [Event::Services(Delta::Snapshot(Vec::new())), Event::EndpointSlices(Delta::Snapshot(Vec::new()))] {
        events.send(event).await.expect("the task listens");
    }
    while !progress.snapshot().synced {
        time::sleep(Duration::from_millis(100)).await;
    }
    let waited = started.elapsed();
    assert!(waited >= NODE && waited < NODE + Duration::from_secs(1), "{waited:?}");
}

#[tokio::test(start_paused = true)]
async fn while_nothing_is_listed_nobody_is_kept_busy() {
    let (store, progress) = (MemoryMaps::new(ROOM), Arc::new(Progress::default()));
    let reconciler = Reconciler::new(store, &Contents::default(), LocalNode::default(), progress, Instant::now());
    let (_events, receiver) = mpsc::channel(4);
    let (_addresses, addresses) = watch::channel(NodeAddresses::default());
    let polls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&polls);
    let mut run = Box::pin(reconciler.run(receiver, addresses));
    let _task = tokio::spawn(poll_fn(move |context| {
        counted.fetch_add(1, Ordering::Relaxed);
        run.as_mut().poll(context)
    }));
    time::advance(NODE + Duration::from_secs(1)).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    let polls = polls.load(Ordering::Relaxed);
    assert!((2..20).contains(&polls), "{polls}");
}
