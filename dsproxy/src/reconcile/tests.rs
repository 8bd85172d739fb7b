//! Whatever happens to the maps and to the order of events, the maps come to serve what is asked for, and until then
//! they serve nothing that is not.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use dsproxy_common::settings::NetworkFlags;
use proptest::prelude::*;

use super::*;
use crate::{
    maps::{
        Capacities, FrontendAddress,
        memory::{MemoryMaps, Served},
    },
    model::{Endpoint, EndpointSlice, Protocol, Service, ServiceCidr, ServicePort, SlicePort},
    resolve::scenarios::{MapState, Objects, scenarios, synced_reconciler},
    source::Delta,
};

mod told;

const ROOM: Capacities = Capacities {
    services: 64,
    frontends: 64,
    backends: 256,
    slots: 4096,
    connections: 1,
    brief_connections: 1,
    affinities: 1,
    source_ranges: 64,
};

/// What tests say of a Service: its ClusterIPs by their last number, its port, and its endpoints.
#[derive(Clone, Debug, PartialEq)]
struct Asked {
    families: Vec<IpFamily>,
    vip: u8,
    port: u16,
    endpoints: Vec<u8>,
    /// When it was made, in seconds; zero: it does not say.
    created: u64,
}

impl Asked {
    fn dual(vip: u8, endpoints: &[u8]) -> Self {
        Self { families: IpFamily::ALL.to_vec(), vip, port: 80, endpoints: endpoints.to_vec(), created: 0 }
    }

    fn frontends(&self) -> impl Iterator<Item = FrontendAddress> {
        let &Self { vip: number, port, .. } = self;
        let vips = self.families.iter().map(move |family| vip(*family, number));
        vips.map(move |address| FrontendAddress { address, port, protocol: Protocol::Tcp })
    }

    fn created(&self) -> Option<SystemTime> {
        (self.created > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(self.created))
    }

    fn endpoints(&self, family: IpFamily) -> Vec<(IpAddr, u16)> {
        let mut endpoints: Vec<_> = self.endpoints.iter().map(|number| (endpoint(family, *number), 8080)).collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        endpoints
    }
}

fn vip(family: IpFamily, number: u8) -> IpAddr {
    match family {
        IpFamily::V4 => Ipv4Addr::new(10, 96, 0, number).into(),
        IpFamily::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

fn endpoint(family: IpFamily, number: u8) -> IpAddr {
    match family {
        IpFamily::V4 => Ipv4Addr::new(10, 244, 0, number).into(),
        IpFamily::V6 => Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

fn object_name(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn port_name(name: &str) -> String {
    format!("default/{name}:http/TCP")
}

fn slice_name(name: &str, family: IpFamily) -> ObjectName {
    object_name(&format!("{name}-{family}"))
}

fn service(name: &str, asked: &Asked) -> Service {
    Service {
        name: object_name(name),
        created: asked.created(),
        cluster_ips: asked.families.iter().map(|family| vip(*family, asked.vip)).collect(),
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: asked.port, node_port: None }],
        ..Service::default()
    }
}

fn slice(name: &str, family: IpFamily, endpoints: &[u8]) -> EndpointSlice {
    EndpointSlice {
        name: slice_name(name, family),
        service: object_name(name),
        family,
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: endpoints.iter().map(|number| Endpoint::new(endpoint(family, *number))).collect(),
        triggered: None,
    }
}

/// A reconciler and the time.
struct World {
    reconciler: Reconciler<MemoryMaps>,
    asked: BTreeMap<String, Asked>,
    now: Instant,
}

impl World {
    fn new(capacities: Capacities) -> Self {
        let mut world = Self::unsynced(MemoryMaps::new(capacities), Instant::now());
        world.list();
        world
    }

    fn unsynced(maps: MemoryMaps, now: Instant) -> Self {
        let contents = maps.contents();
        let reconciler = Reconciler::new(maps, &contents, LocalNode::default(), Arc::new(Progress::default()), now);
        Self { reconciler, asked: BTreeMap::new(), now }
    }

    /// The source lists what is asked for.
    fn list(&mut self) {
        let services = self.asked.iter().map(|(name, asked)| service(name, asked)).collect();
        let slices = self
            .asked
            .iter()
            .flat_map(|(name, asked)| IpFamily::ALL.map(|family| slice(name, family, &asked.endpoints)))
            .collect();
        self.reconciler.apply(Event::Services(Delta::Snapshot(services)));
        self.reconciler.apply(Event::EndpointSlices(Delta::Snapshot(slices)));
        self.reconciler.apply(Event::Nodes(Delta::Snapshot(Vec::new())));
        self.reconciler.reconcile(self.now);
    }

    /// The Services become this, or go, all in one batch.
    fn change<'a>(&mut self, changes: impl IntoIterator<Item = (&'a str, Option<Asked>)>) {
        for (name, asked) in changes {
            match &asked {
                Some(wanted) => {
                    self.reconciler.apply(Event::Services(Delta::Apply(service(name, wanted))));
                    for family in IpFamily::ALL {
                        let slice = slice(name, family, &wanted.endpoints);
                        self.reconciler.apply(Event::EndpointSlices(Delta::Apply(slice)));
                    }
                }
                None => {
                    self.reconciler.apply(Event::Services(Delta::Delete(object_name(name))));
                    for family in IpFamily::ALL {
                        self.reconciler.apply(Event::EndpointSlices(Delta::Delete(slice_name(name, family))));
                    }
                }
            }
            match asked {
                Some(asked) => drop(self.asked.insert(name.to_owned(), asked)),
                None => drop(self.asked.remove(name)),
            }
        }
        self.reconciler.reconcile(self.now);
    }

    fn put(&mut self, name: &str, asked: Asked) {
        self.change([(name, Some(asked))]);
    }

    /// Time passes; what is to be tried again by then is.
    fn pass(&mut self, time: Duration) {
        self.now += time;
        if self.reconciler.retry_at.is_some_and(|at| at <= self.now) {
            self.reconciler.retry(self.now);
        }
    }

    fn restart(&mut self) {
        let Self { reconciler, asked, now } = self;
        *self = Self { asked: std::mem::take(asked), ..Self::unsynced(reconciler.store.clone(), *now) };
        self.list();
    }

    fn served(&self) -> BTreeMap<FrontendAddress, Served> {
        self.reconciler.store.served().expect("what is served is whole")
    }

    /// The Services whose frontends stand, each with all of its endpoints, in every family it asks for.
    fn served_in_full(&self) -> Vec<&str> {
        let served = self.served();
        let is_served = |(name, asked): &(&String, &Asked)| {
            let is_whole = |address: &FrontendAddress, served: &Served| {
                served.name == port_name(name) && served.inside == asked.endpoints(address.family())
            };
            asked.frontends().all(|address| served.get(&address).is_some_and(|served| is_whole(&address, served)))
        };
        self.asked.iter().filter(is_served).map(|(name, _)| name.as_str()).collect()
    }

    /// Who of those that ask for `frontend` is to have it.
    fn holder(&self, frontend: FrontendAddress) -> &str {
        let claimants = self.asked.iter().filter(|(_, asked)| asked.frontends().any(|address| address == frontend));
        claimants.min_by_key(|(name, asked)| (asked.created(), *name)).map_or("", |(name, _)| name)
    }

    fn snapshot(&self) -> Snapshot {
        self.reconciler.progress.snapshot()
    }
}

#[test]
fn nothing_is_written_before_all_that_counts_is_listed() {
    for services_first in [true, false] {
        let mut world = World::unsynced(MemoryMaps::new(ROOM), Instant::now());
        let services = Event::Services(Delta::Snapshot(vec![service("web", &Asked::dual(1, &[1]))]));
        let slices = Event::EndpointSlices(Delta::Snapshot(vec![
            slice("web", IpFamily::V4, &[1]),
            slice("web", IpFamily::V6, &[1]),
        ]));
        let (first, second) = if services_first { (services, slices) } else { (slices, services) };
        world.reconciler.apply(first);
        world.reconciler.apply(Event::Services(Delta::Apply(service("cart", &Asked::dual(2, &[])))));
        world.reconciler.apply(Event::EndpointSlices(Delta::Apply(slice("cart", IpFamily::V6, &[2]))));
        world.reconciler.reconcile(world.now);
        assert_eq!(world.reconciler.store.written(), 0);
        assert!(!world.snapshot().synced);
        world.reconciler.apply(second);
        world.reconciler.reconcile(world.now);
        assert!(!world.snapshot().synced, "what the Node says is still to come");
        world.reconciler.apply(Event::Nodes(Delta::Snapshot(Vec::new())));
        world.reconciler.reconcile(world.now);
        assert!(world.snapshot().synced);
        assert_eq!(world.served().keys().filter(|address| address.address == vip(address.family(), 1)).count(), 2);
    }
}

#[test]
fn the_maps_of_an_earlier_run_stay_until_everything_is_listed() {
    let mut earlier = World::new(ROOM);
    earlier.change([("kept", Some(Asked::dual(1, &[1, 2]))), ("gone", Some(Asked::dual(2, &[3])))]);
    let before = earlier.served();
    let records = earlier.reconciler.store.contents().backends;

    let mut world = World::unsynced(earlier.reconciler.store.clone(), earlier.now);
    let written = world.reconciler.store.written();
    world.reconciler.apply(Event::Services(Delta::Snapshot(Vec::new())));
    world.reconciler.reconcile(world.now);
    assert_eq!(world.served(), before, "an empty list of one kind means nothing yet");
    assert_eq!(world.reconciler.store.written(), written);

    world.asked = earlier.asked.clone();
    world.asked.remove("gone");
    world.list();
    assert_eq!(world.served_in_full(), ["kept"]);
    assert_eq!(world.served().len(), 2, "what was deleted meanwhile goes");
    let contents = world.reconciler.store.contents();
    assert_eq!(contents.names.len(), 1);
    for record in &records {
        let (family, _, _) = record;
        let kept = record.2.address == endpoint(*family, 1) || record.2.address == endpoint(*family, 2);
        assert_eq!(contents.backends.contains(record), kept, "{record:?}: ids and generations of what is kept");
    }
}

#[test]
fn the_first_sync_takes_out_what_a_killed_run_left_halfway() {
    // Every place at which a run can be killed while it writes two Services.
    for killed_after in 0.. {
        let mut earlier = World::new(ROOM);
        earlier.reconciler.store.fail_after(Some(killed_after));
        earlier.change([("a", Some(Asked::dual(1, &[1, 2]))), ("b", Some(Asked::dual(2, &[3])))]);
        earlier.reconciler.store.fail_after(None);
        let was_killed = !earlier.snapshot().failed.is_empty();

        let mut world = World::unsynced(earlier.reconciler.store.clone(), earlier.now);
        world.list();
        assert_eq!(world.served(), BTreeMap::new(), "killed after {killed_after}");
        assert_eq!(world.reconciler.store.contents().names, []);
        for state in [BackendState::Active, BackendState::Draining] {
            assert_eq!(world.reconciler.store.backends(state), BTreeMap::new(), "killed after {killed_after}");
        }
        // Nothing is lost by it: there is room for everything again.
        world.change([("a", Some(Asked::dual(1, &[1, 2]))), ("b", Some(Asked::dual(2, &[3])))]);
        assert_eq!(world.served_in_full(), ["a", "b"]);
        if !was_killed {
            assert!(killed_after > 10);
            return;
        }
    }
}

#[test]
fn a_failed_write_is_tried_again_after_a_second_and_harms_no_other() {
    let steps: [&[(&str, Option<Asked>)]; 4] = [
        &[("a", Some(Asked::dual(1, &[1, 2, 3]))), ("b", Some(Asked::dual(2, &[4, 5])))],
        &[("a", Some(Asked::dual(1, &[1, 3, 6]))), ("b", Some(Asked::dual(3, &[4])))],
        &[("a", None), ("b", Some(Asked { families: vec![IpFamily::V6], ..Asked::dual(3, &[4, 5, 6]) }))],
        &[("a", Some(Asked::dual(3, &[1]))), ("b", None)],
    ];
    let mut failures = 0;
    for (at, step) in steps.iter().enumerate() {
        for fail_after in 0.. {
            let mut world = World::new(ROOM);
            for earlier in &steps[..at] {
                world.change(earlier.iter().cloned());
            }
            world.reconciler.store.fail_after(Some(fail_after));
            world.change(step.iter().cloned());
            let failed = world.snapshot().failed;
            if failed.is_empty() {
                break;
            }
            failures += 1;
            // Only once does a write fail, so that the other Service is what it should be.
            assert_eq!(failed.values().map(String::as_str).collect::<Vec<_>>(), ["failure on demand"]);
            assert!(world.snapshot().stuck);
            let others: Vec<&str> = world
                .asked
                .keys()
                .map(String::as_str)
                .filter(|name| !failed.contains_key(&object_name(name)))
                .collect();
            let in_full = world.served_in_full();
            // A frontend that could not be taken away cannot be another's yet.
            let free = world.snapshot().conflicts == 0;
            assert!(!free || others.iter().all(|name| in_full.contains(name)), "step {at}, {fail_after}: {failed:?}");

            world.pass(Duration::from_millis(900));
            assert!(!world.snapshot().failed.is_empty(), "it is not its time yet");
            world.pass(Duration::from_millis(100));
            assert_eq!(world.snapshot().failed, BTreeMap::new(), "step {at}, write {fail_after}");
            let wanted: usize = world.asked.values().map(|asked| asked.families.len()).sum();
            assert_eq!(world.served_in_full().len(), world.asked.len(), "step {at}, write {fail_after}");
            assert_eq!(world.served().len(), wanted, "step {at}, write {fail_after}");
            assert_eq!(world.reconciler.retry_at, None);
        }
    }
    assert!(failures > 30, "{failures}");
}

#[test]
fn every_scenario_ends_well_whichever_write_fails() {
    for scenario in scenarios() {
        for fail_after in 0..40 {
            let mut now = Instant::now();
            let mut objects = Objects::default();
            let mut reconciler = synced_reconciler(now);
            for (heading, step) in scenario.steps() {
                if !objects.take(step, Some(&mut reconciler)) {
                    continue;
                }
                reconciler.store.fail_after(Some(fail_after));
                reconciler.reconcile(now);
                reconciler.store.served().expect("what is served is whole");
                reconciler.store.fail_after(None);
                now += Duration::from_secs(2);
                if reconciler.retry_at.is_some() {
                    reconciler.retry(now);
                }
                let at = format!("{}: {heading}: {fail_after}", scenario.path.display());
                assert_eq!(MapState::of(&reconciler.store), MapState::wanted(&objects.resolved()), "{at}");
            }
        }
    }
}

#[test]
fn waits_between_attempts_grow_and_begin_anew_after_a_success() {
    let tiny = Capacities { services: 1, ..ROOM };
    let mut world = World::new(tiny);
    world.change([("a", Some(Asked::dual(1, &[1]))), ("b", Some(Asked::dual(2, &[2])))]);
    let mut waits = Vec::new();
    for _ in 0..7 {
        let at = world.reconciler.retry_at.expect("b has no room");
        waits.push((at - world.now).as_secs());
        world.pass(at - world.now);
    }
    assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
    world.change([("b", None)]);
    assert_eq!(world.reconciler.retry_at, None);
    world.put("b", Asked::dual(2, &[2]));
    assert_eq!(world.reconciler.retry_at, Some(world.now + Duration::from_secs(1)));
}

#[test]
fn a_vip_passes_from_one_service_to_another_in_one_batch() {
    // Whichever of them comes first in the batch.
    for (from, to) in [("a", "b"), ("b", "a")] {
        let mut world = World::new(ROOM);
        world.put(from, Asked::dual(1, &[1]));
        world.change([(from, None), (to, Some(Asked::dual(1, &[2])))]);
        assert_eq!(world.served_in_full(), [to], "the old one was deleted");
        assert_eq!(world.served().len(), 2);

        world.change([(to, Some(Asked::dual(2, &[2]))), (from, Some(Asked::dual(1, &[1])))]);
        assert_eq!(world.served_in_full(), ["a", "b"], "the old one moved away");

        world.change([(to, Some(Asked::dual(1, &[2]))), (from, Some(Asked::dual(2, &[1])))]);
        assert_eq!(world.served_in_full(), ["a", "b"], "they swap");
        assert_eq!(world.snapshot().conflicts, 0);
        assert_eq!(world.snapshot().failed, BTreeMap::new());
    }
}

#[test]
fn three_services_pass_their_vips_round() {
    for [first, second, third] in [[1, 2, 3], [2, 3, 1], [3, 1, 2], [3, 2, 1]] {
        let mut world = World::new(ROOM);
        let of = |vips: [u8; 3]| ["a", "b", "c"].into_iter().zip(vips.map(|vip| Some(Asked::dual(vip, &[vip, 9]))));
        world.change(of([1, 2, 3]));
        world.change(of([first, second, third]));
        assert_eq!(world.served_in_full(), ["a", "b", "c"], "{first} {second} {third}");
        assert_eq!(world.served().len(), 6);
    }
}

#[test]
fn a_conflict_ends_when_the_holder_goes_or_moves() {
    let leave: [(&str, Option<Asked>); 4] = [
        ("deleted", None),
        ("another address", Some(Asked::dual(2, &[1]))),
        ("another port", Some(Asked { port: 81, ..Asked::dual(1, &[1]) })),
        ("another family", Some(Asked { families: vec![IpFamily::V4], ..Asked::dual(2, &[1]) })),
    ];
    for (how, holder) in leave {
        let mut world = World::new(ROOM);
        world.put("holder", Asked::dual(1, &[1]));
        world.put("rival", Asked::dual(1, &[2]));
        assert_eq!(world.served_in_full(), ["holder"], "the first keeps it");
        assert_eq!(world.snapshot().conflicts, 2, "one in each family");
        world.put("rival", Asked::dual(1, &[2, 3]));
        assert_eq!(world.snapshot().conflicts, 2);

        world.change([("holder", holder)]);
        assert!(world.served_in_full().contains(&"rival"), "{how}");
        assert_eq!(world.served_in_full().len(), world.asked.len(), "{how}");
        assert_eq!(world.snapshot().conflicts, 0, "{how}");
    }
}

#[test]
fn a_conflict_in_one_family_leaves_the_other_alone() {
    for family in IpFamily::ALL {
        let mut world = World::new(ROOM);
        world.put("holder", Asked { families: vec![family], ..Asked::dual(1, &[1]) });
        world.put("rival", Asked::dual(1, &[2]));
        assert_eq!(world.snapshot().conflicts, 1);
        let served = world.served();
        for frontend in world.asked["rival"].frontends() {
            let expected = if frontend.family() == family { "holder" } else { "rival" };
            assert_eq!(served[&frontend].name, port_name(expected));
        }
        world.change([("rival", None)]);
        assert_eq!(world.snapshot().conflicts, 0, "who is gone wants nothing");
        assert_eq!(world.served_in_full(), ["holder"]);
    }
}

#[test]
fn the_oldest_has_the_frontend_whatever_the_order_and_after_a_restart() {
    let asked = |endpoint, created| Asked { created, ..Asked::dual(1, &[endpoint]) };
    // By name the others would come first.
    let all = [("a", asked(1, 3)), ("b", asked(2, 2)), ("c", asked(3, 1))];
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [2, 0, 1]] {
        let mut world = World::new(ROOM);
        for at in order {
            let (name, asked) = all[at].clone();
            world.put(name, asked);
        }
        assert_eq!(world.served_in_full(), ["c"], "{order:?}");
        assert_eq!(world.snapshot().conflicts, 4, "two Services, two families");
        let (before, written) = (world.served(), world.reconciler.store.written());
        world.restart();
        assert_eq!((world.served(), world.reconciler.store.written()), (before, written), "{order:?}");
        world.change([("c", None)]);
        assert_eq!(world.served_in_full(), ["b"], "the next oldest has it at once");
        world.change([("b", None)]);
        assert_eq!(world.served_in_full(), ["a"]);
        assert_eq!(world.snapshot().conflicts, 0);
    }
}

#[test]
fn cluster_ips_ranges_and_node_addresses_follow() {
    let cidr = |text: &str| text.parse::<ipnet::IpNet>().expect("a network");
    let mut world = World::new(ROOM);
    world.put("a", Asked::dual(1, &[1]));
    let networks = |world: &World| world.reconciler.store.contents().networks.into_iter().collect::<BTreeMap<_, _>>();
    let of_a = IpFamily::ALL.map(|family| ipnet::IpNet::from(vip(family, 1)));
    assert_eq!(networks(&world).into_keys().collect::<Vec<_>>(), of_a);

    let range = ServiceCidr { name: ObjectName::of_cluster("kubernetes"), cidrs: vec![cidr("10.96.0.0/12")] };
    world.reconciler.apply(Event::ServiceCidrs(Delta::Snapshot(vec![range])));
    world.reconciler.set_addresses(NodeAddresses {
        of_devices: BTreeMap::from([(7, [cidr("192.0.2.1/32").addr(), cidr("2001:db8::1/128").addr()].into())]),
        ..NodeAddresses::default()
    });
    world.reconciler.reconcile(world.now);
    let of_range = NetworkFlags::SERVICE | NetworkFlags::NOT_MASQUERADED;
    assert_eq!(networks(&world)[&cidr("10.96.0.0/12")], of_range);
    assert_eq!(networks(&world)[&of_a[0]], of_range | NetworkFlags::CLUSTER_IP);
    let contents = world.reconciler.store.contents();
    assert_eq!(contents.service_networks, [(IpFamily::V4, Some(cidr("10.96.0.0/12"))), (IpFamily::V6, Some(of_a[1]))]);
    assert_eq!(contents.masquerade.len(), 4, "the device and all others, in either family");

    // A write that fails is tried again without another event.
    world.reconciler.store.fail_after(Some(0));
    world.reconciler.set_addresses(NodeAddresses::default());
    world.reconciler.reconcile(world.now);
    assert!(world.snapshot().stuck);
    world.pass(Duration::from_secs(1));
    assert!(world.reconciler.store.contents().masquerade.is_empty() && !world.snapshot().stuck);

    world.change([("a", None)]);
    assert_eq!(networks(&world).into_keys().collect::<Vec<_>>(), [cidr("10.96.0.0/12")]);
    assert_eq!(world.reconciler.store.contents().service_networks[1], (IpFamily::V6, None));
}

#[test]
fn networks_without_room_keep_nothing_else_out_and_make_no_node_unhealthy() {
    let mut world = World::new(ROOM);
    world.put("a", Asked::dual(1, &[1]));
    let ranges = |count: u32| {
        let range = |number: u32| ipnet::IpNet::new(Ipv4Addr::from_bits(0xac10_0000 + (number << 8)).into(), 24);
        let cidrs = (0..count).map(|number| range(number).expect("a network")).collect();
        Event::ServiceCidrs(Delta::Snapshot(vec![ServiceCidr { name: ObjectName::of_cluster("many"), cidrs }]))
    };
    let entries = |world: &World, family| world.reconciler.networks.entries(family);
    world.reconciler.apply(ranges(ROOM.networks()));
    world.reconciler.reconcile(world.now);
    assert_eq!(entries(&world, IpFamily::V4), ROOM.networks());
    world.put("b", Asked::dual(2, &[2]));
    assert_eq!(world.served_in_full(), ["a", "b"]);
    assert_eq!(entries(&world, IpFamily::V6), 2, "in the other family there is room");
    let snapshot = world.snapshot();
    assert!(snapshot.host_failure.is_some_and(|why| why.contains("networks is full")) && !snapshot.stuck);
    assert!(world.reconciler.progress.full()[&MapKind::Networks] >= 2);

    // What goes makes room for what waits, in the same go.
    world.change([("a", None)]);
    assert_eq!((entries(&world, IpFamily::V4), entries(&world, IpFamily::V6)), (ROOM.networks(), 1));
    world.reconciler.apply(ranges(3));
    world.reconciler.reconcile(world.now);
    assert_eq!(world.snapshot().host_failure, None);
    assert_eq!((entries(&world, IpFamily::V4), entries(&world, IpFamily::V6)), (4, 1));
}

#[tokio::test(start_paused = true)]
async fn the_node_is_waited_for_from_when_all_else_was_listed() {
    let World { reconciler, .. } = World::unsynced(MemoryMaps::new(ROOM), Instant::now());
    let progress = Arc::clone(&reconciler.progress);
    let (sender, events) = mpsc::channel(8);
    let (_addresses, watch) = watch::channel(NodeAddresses::default());
    let task = tokio::spawn(reconciler.run(events, watch));
    // The API server is away for long, and then one kind is listed before another.
    time::sleep(10 * NODE).await;
    sender.send(Event::Services(Delta::Snapshot(Vec::new()))).await.expect("it listens");
    time::sleep(NODE).await;
    sender.send(Event::EndpointSlices(Delta::Snapshot(Vec::new()))).await.expect("it listens");
    time::sleep(NODE / 2).await;
    assert!(!progress.snapshot().synced, "what the Node says is waited for");
    time::sleep(NODE).await;
    assert!(progress.snapshot().synced, "for so long");
    task.abort();
}

/// A run that was killed may leave frontends of a service port without a name.
#[test]
fn leftovers_that_could_not_be_removed_are_tried_again() {
    let mut world = World::new(ROOM);
    world.put("a", Asked::dual(1, &[1]));
    world.put("b", Asked::dual(2, &[2]));
    let mut store = world.reconciler.store.clone();
    let names = store.contents().names;
    let (of_a, _) = names.iter().find(|(_, name)| *name == port_name("a")).expect("it is served");
    store.write(&Write::Name { service: *of_a, name: None }).expect("written");
    for count in 0..12 {
        let mut world = World { asked: BTreeMap::new(), ..World::unsynced(store.clone(), world.now) };
        world.asked.insert("b".to_owned(), Asked::dual(2, &[2]));
        world.reconciler.store.fail_after(Some(count));
        world.list();
        // Something else happens meanwhile.
        world.put("b", Asked::dual(2, &[2, 3]));
        world.pass(Duration::from_secs(1));
        let left = world.reconciler.store.contents().frontends;
        assert_eq!(left.len(), 2, "{count}: {left:?}");
        assert!(!world.snapshot().stuck, "{count}");
    }
}

/// Fills one map; gives the Services that fit, and the message about the others.
fn fill(capacities: Capacities) -> (World, String) {
    let mut world = World::new(capacities);
    let names: Vec<String> = (1..=6).map(|number| format!("s{number}")).collect();
    for (number, name) in (1..).zip(&names) {
        world.put(name, Asked::dual(number, &[2 * number, 2 * number + 1]));
    }
    let snapshot = world.snapshot();
    let reasons: BTreeSet<&String> = snapshot.failed.values().collect();
    assert_eq!(reasons.len(), 1, "{reasons:?}");
    let reason = reasons.into_iter().next().cloned().unwrap_or_default();
    (world, reason)
}

#[test]
fn what_fits_is_served_and_room_is_used_within_a_second() {
    for (capacities, map, flag) in [
        (Capacities { services: 3, ..ROOM }, "services is full with 3", "--max-services"),
        (Capacities { frontends: 3, ..ROOM }, "frontends is full with 3", "--max-frontends"),
        (Capacities { backends: 7, ..ROOM }, "backends is full with 7", "--max-backends"),
        (Capacities { slots: 6, ..ROOM }, "slots is full with 6", "--max-slots"),
    ] {
        let (mut world, reason) = fill(capacities);
        assert!(reason.contains(map) && reason.contains(flag), "{reason}");
        assert_eq!(world.served_in_full(), ["s1", "s2", "s3"]);
        assert_eq!(world.served().len(), 6, "nothing is served in part");
        let snapshot = world.snapshot();
        assert_eq!(snapshot.failed.len(), 3);
        assert!(!snapshot.stuck, "the maps are as good as they can be");
        let refused: u64 = world.reconciler.progress.full().values().sum();
        assert!(refused >= 3, "{map}: {refused}");

        // Long after the last attempt, when the next would be half a minute away.
        for _ in 0..20 {
            world.pass(Duration::from_secs(10));
        }
        assert_eq!(world.served_in_full(), ["s1", "s2", "s3"]);
        world.change([("s2", None)]);
        world.pass(Duration::from_secs(1));
        assert_eq!(world.served_in_full(), ["s1", "s3", "s4"], "{map}");
        world.change([("s1", None), ("s3", None), ("s4", None)]);
        world.pass(Duration::from_secs(1));
        assert_eq!(world.served_in_full(), ["s5", "s6"], "{map}");
        assert_eq!(world.snapshot().failed, BTreeMap::new(), "{map}");
    }
}

#[test]
fn a_full_map_keeps_no_service_from_changing() {
    let full = Capacities { services: 2, frontends: 2, backends: 4, slots: 4, ..ROOM };
    let mut world = World::new(full);
    world.change([("a", Some(Asked::dual(1, &[1, 2]))), ("b", Some(Asked::dual(2, &[3, 4])))]);
    assert_eq!(world.served_in_full(), ["a", "b"]);
    assert_eq!(world.reconciler.known.fill(IpFamily::V4)[2].1, 4, "no slot is free either");
    for (what, asked) in [
        ("all endpoints", Asked::dual(1, &[5, 6])),
        ("one endpoint", Asked::dual(1, &[5, 7])),
        ("the port", Asked { port: 81, ..Asked::dual(1, &[5, 7]) }),
        ("the VIP", Asked::dual(3, &[5, 7])),
        ("everything", Asked { port: 81, ..Asked::dual(4, &[8, 9]) }),
    ] {
        world.put("a", asked);
        assert!(world.served_in_full().contains(&"b"), "{what}: the other does not notice");
        // Slots that were given up are written again after their grace time.
        world.pass(Duration::from_secs(1));
        assert_eq!(world.served_in_full(), ["a", "b"], "{what}");
        assert_eq!(world.snapshot().failed, BTreeMap::new(), "{what}");
    }
}

#[test]
fn endpoints_that_are_gone_are_not_served_for_want_of_room() {
    let mut world = World::new(Capacities { backends: 3, ..ROOM });
    world.put("a", Asked::dual(1, &[1, 2, 3]));
    world.put("a", Asked::dual(1, &[3, 4, 5, 6]));
    let (name, reason) = world.snapshot().failed.pop_first().expect("four do not fit");
    assert_eq!(name, object_name("a"));
    assert!(reason.contains("--max-backends"), "{reason}");
    for (address, Served { inside: endpoints, .. }) in world.served() {
        assert_eq!(
            endpoints,
            [(endpoint(address.family(), 3), 8080)],
            "of those that are wanted, the one that has a place"
        );
    }
    world.put("a", Asked::dual(1, &[3, 4, 5]));
    assert_eq!(world.served_in_full(), ["a"]);
}

#[test]
fn the_same_list_again_writes_nothing() {
    let mut world = World::new(ROOM);
    world.change([("a", Some(Asked::dual(1, &[1, 2, 3]))), ("b", Some(Asked::dual(2, &[])))]);
    let (written, contents) = (world.reconciler.store.written(), world.reconciler.store.contents().backends);
    world.list();
    world.restart();
    world.list();
    assert_eq!(world.reconciler.store.written(), written);
    assert_eq!(world.reconciler.store.contents().backends, contents);
}

#[tokio::test]
async fn the_task_heals_by_itself_and_ends_with_its_source() {
    let mut maps = MemoryMaps::new(ROOM);
    maps.fail_after(Some(3));
    let progress = Arc::new(Progress::default());
    let reconciler =
        Reconciler::new(maps, &Contents::default(), LocalNode::default(), Arc::clone(&progress), Instant::now());
    let (events, receiver) = mpsc::channel(4);
    let (_addresses, no_addresses) = watch::channel(NodeAddresses::default());
    let task = tokio::spawn(reconciler.run(receiver, no_addresses));
    let web = Asked::dual(1, &[1]);
    let services = Delta::Snapshot(vec![service("web", &web)]);
    let slices = Delta::Snapshot(IpFamily::ALL.map(|family| slice("web", family, &web.endpoints)).to_vec());
    events.send(Event::Services(services)).await.expect("the task listens");
    events.send(Event::EndpointSlices(slices)).await.expect("the task listens");
    events.send(Event::Nodes(Delta::Snapshot(Vec::new()))).await.expect("the task listens");

    let until = async |what: &str, holds: &dyn Fn(&Snapshot) -> bool| {
        let within = async {
            while !holds(&progress.snapshot()) {
                time::sleep(Duration::from_millis(5)).await;
            }
        };
        let waited = time::timeout(Duration::from_secs(20), within).await;
        assert!(waited.is_ok(), "waited in vain for {what}: {:?}", progress.snapshot());
    };
    until("the failure", &|snapshot| !snapshot.failed.is_empty()).await;
    until("its end", &|snapshot| snapshot.failed.is_empty()).await;
    assert_eq!(progress.snapshot().service_ports, 1);
    assert!(progress.updated().is_some());
    drop(events);
    task.await.expect("the task ends with its source");
}

/// What happens.
#[derive(Clone, Debug)]
enum Happening {
    /// Services become this, or go, in one batch; the write after so many more fails.
    Batch { changes: Vec<(u8, Option<Asked>)>, fail_after: Option<usize> },
    /// The daemon is killed and starts again, and the write after so many more fails.
    Restart { fail_after: Option<usize> },
    /// The source lists everything again.
    List,
    /// So many milliseconds pass.
    Wait(u64),
}

fn asked() -> impl Strategy<Value = Asked> {
    let families = prop_oneof![
        2 => Just(IpFamily::ALL.to_vec()),
        1 => Just(vec![IpFamily::V4]),
        1 => Just(vec![IpFamily::V6]),
        1 => Just(vec![IpFamily::V6, IpFamily::V4]),
    ];
    (families, 1u8..5, 80u16..82, proptest::collection::vec(1u8..7, 0..5), 0u64..3)
        .prop_map(|(families, vip, port, endpoints, created)| Asked { families, vip, port, endpoints, created })
}

fn happening() -> impl Strategy<Value = Happening> {
    let fail_after = || proptest::option::weighted(0.3, 0usize..20);
    let changes = proptest::collection::vec((0u8..5, proptest::option::weighted(0.75, asked())), 1..4);
    prop_oneof![
        6 => (changes, fail_after()).prop_map(|(changes, fail_after)| Happening::Batch { changes, fail_after }),
        1 => fail_after().prop_map(|fail_after| Happening::Restart { fail_after }),
        1 => Just(Happening::List),
        2 => (0u64..3000).prop_map(Happening::Wait),
    ]
}

fn capacities() -> impl Strategy<Value = Capacities> {
    prop_oneof![
        2 => Just(ROOM),
        1 => (1u32..5, 1u32..6, 1u32..12, 2u32..24).prop_map(|(services, frontends, backends, slots)| Capacities {
            services,
            frontends,
            backends,
            slots,
            ..ROOM
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_history_ends_in_what_is_asked_for(
        capacities in capacities(),
        happenings in proptest::collection::vec(happening(), 1..25),
    ) {
        let mut world = World::new(capacities);
        for happening in happenings {
            match happening {
                Happening::Batch { changes, fail_after } => {
                    world.reconciler.store.fail_after(fail_after);
                    let names: Vec<_> = changes.iter().map(|(number, _)| format!("s{number}")).collect();
                    let changes = changes.into_iter().map(|(_, asked)| asked);
                    world.change(names.iter().map(String::as_str).zip(changes));
                }
                Happening::Restart { fail_after } => {
                    world.reconciler.store.fail_after(fail_after);
                    world.restart();
                }
                Happening::List => world.list(),
                Happening::Wait(milliseconds) => world.pass(Duration::from_millis(milliseconds)),
            }
            world.reconciler.store.fail_after(None);
            check_what_is_served(&world)?;
        }

        // Whatever failed has its next attempt, and what was released may be used again.
        for _ in 0..3 {
            world.pass(Duration::from_secs(31));
        }
        check_what_is_served(&world)?;
        let snapshot = world.snapshot();
        prop_assert!(!snapshot.stuck, "{snapshot:?}");
        let served = world.served();
        for (name, asked) in &world.asked {
            if snapshot.failed.contains_key(&object_name(name)) {
                continue;
            }
            for frontend in asked.frontends() {
                if world.holder(frontend) == name {
                    let Served { name: holder, inside: endpoints, .. } = &served[&frontend];
                    prop_assert_eq!(holder, &port_name(name));
                    prop_assert_eq!(endpoints, &asked.endpoints(frontend.family()));
                }
            }
        }
        // Every frontend that somebody wants and has room for is somebody's, and none is anybody else's.
        for (frontend, Served { name: holder, .. }) in &served {
            let wants_it = |(name, asked): (&String, &Asked)| {
                port_name(name) == *holder && asked.frontends().any(|address| address == *frontend)
            };
            prop_assert!(world.asked.iter().any(wants_it), "{} is {}'s", frontend, holder);
        }
        if capacities == ROOM {
            prop_assert!(snapshot.failed.is_empty(), "{:?}", snapshot.failed);
        }
    }
}

/// No endpoint is served under a name that never asked for it, and what is served is whole.
fn check_what_is_served(world: &World) -> Result<(), TestCaseError> {
    let served = world.reconciler.store.served().map_err(TestCaseError::fail)?;
    for (frontend, Served { name: holder, inside: endpoints, .. }) in served {
        for (address, _) in endpoints {
            prop_assert_eq!(IpFamily::of(address), frontend.family(), "{} of {}", frontend, holder);
        }
    }
    Ok(())
}
