//! From any state, through any failures and restarts, the maps come to serve exactly what is wanted, and on the way there
//! nobody is served what neither was nor is wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use dsproxy_common::service::FrontendKind;
use proptest::prelude::*;

use super::*;
use crate::{
    maps::{
        MapStore,
        memory::{MemoryMaps, Served},
    },
    model::ObjectName,
    resolve::{Distribution, Reach, ResolvedEndpoint, ResolvedFamily, ResolvedFrontend, ResolvedPort, ServicePortName},
};

const CAPACITIES: Capacities = Capacities {
    services: 8,
    frontends: 32,
    backends: 64,
    slots: 65_536,
    connections: 1,
    brief_connections: 1,
    affinities: 1,
    // For four service ports with two each, of which one is given two others before the old ones go.
    source_ranges: 10,
};

/// A service port: dual-stack, with endpoint numbers for each family.
#[derive(Clone, Debug)]
struct Wanted {
    families: Vec<IpFamily>,
    port: u16,
    endpoints: BTreeMap<u8, Standing>,
    distribution: Distribution,
    affinity: Option<u32>,
    /// A ClusterIP.
    cluster_ip: Reaches,
    /// And an ingress address of a load balancer, which checks its source.
    load_balancer: Option<Reaches>,
    source_ranges: BTreeSet<u8>,
}

/// Which endpoints clients inside and outside reach.
type Reaches = (Reach, Reach);

/// Whether an endpoint is on this node, and in which lists it is.
#[derive(Clone, Copy, Debug)]
struct Standing {
    is_local: bool,
    in_cluster_list: bool,
    in_local_list: bool,
}

impl Standing {
    const ACTIVE: Self = Self { is_local: false, in_cluster_list: true, in_local_list: false };
}

fn name(number: u8) -> ServicePortName {
    ServicePortName {
        service: ObjectName::new("default", &format!("service-{number}")),
        port: "http".into(),
        protocol: Protocol::Tcp,
    }
}

fn vip(family: IpFamily, kind: FrontendKind, number: u8) -> IpAddr {
    let kind = kind as u8;
    match family {
        IpFamily::V4 => Ipv4Addr::new(10, 96, kind, number).into(),
        IpFamily::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, kind.into(), number.into()).into(),
    }
}

fn endpoint(family: IpFamily, number: u8) -> (IpAddr, u16) {
    let address = match family {
        IpFamily::V4 => Ipv4Addr::new(10, 244, 0, number).into(),
        IpFamily::V6 => Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, number.into()).into(),
    };
    (address, 8080)
}

fn source_range(family: IpFamily, number: u8) -> IpNet {
    let text = match family {
        IpFamily::V4 => format!("192.0.{number}.0/24"),
        IpFamily::V6 => format!("2001:db8:{number}::/48"),
    };
    text.parse().expect("a network")
}

impl Wanted {
    fn frontends(&self, family: IpFamily, number: u8) -> Vec<ResolvedFrontend> {
        let frontend = |kind, (inside, outside), checks_source| {
            let address =
                FrontendAddress { address: vip(family, kind, number), port: self.port, protocol: Protocol::Tcp };
            ResolvedFrontend { address, kind, inside, outside, checks_source }
        };
        let load_balancer = self.load_balancer.map(|reaches| frontend(FrontendKind::LoadBalancer, reaches, true));
        [frontend(FrontendKind::ClusterIp, self.cluster_ip, false)].into_iter().chain(load_balancer).collect()
    }

    fn count(&self, is_counted: impl Fn(&Standing) -> bool) -> usize {
        self.endpoints.values().filter(|standing| is_counted(standing)).count() * self.families.len()
    }
}

fn resolved(number: u8, wanted: &Wanted) -> ResolvedPort {
    let families = wanted.families.iter().map(|family| {
        let endpoints = wanted.endpoints.iter().map(|(number, standing)| {
            let (address, port) = endpoint(*family, *number);
            let Standing { is_local, in_cluster_list, in_local_list } = *standing;
            ResolvedEndpoint { address, port, is_local, is_on_node: true, in_cluster_list, in_local_list }
        });
        ResolvedFamily {
            family: *family,
            frontends: wanted.frontends(*family, number),
            endpoints: endpoints.collect(),
            distribution: wanted.distribution,
            source_ranges: wanted.source_ranges.iter().map(|number| source_range(*family, *number)).collect(),
        }
    });
    ResolvedPort { name: name(number), affinity: wanted.affinity, families: families.collect() }
}

fn reaches() -> impl Strategy<Value = Reaches> {
    let reach = || prop_oneof![2 => Just(Reach::Cluster), 1 => Just(Reach::Local)];
    (reach(), reach())
}

fn standing() -> impl Strategy<Value = Standing> {
    (any::<bool>(), proptest::bool::weighted(0.7), any::<bool>()).prop_map(
        |(is_local, in_cluster_list, in_local_list)| Standing {
            is_local,
            in_cluster_list,
            in_local_list: in_local_list && is_local,
        },
    )
}

fn wanted() -> impl Strategy<Value = Wanted> {
    let families = prop_oneof![
        Just(vec![IpFamily::V4]),
        Just(vec![IpFamily::V6]),
        Just(vec![IpFamily::V4, IpFamily::V6]),
        Just(vec![IpFamily::V6, IpFamily::V4]),
    ];
    let endpoints = proptest::collection::btree_map(1u8..9, standing(), 0..6);
    let distribution = prop_oneof![3 => Just(Distribution::List), 1 => Just(Distribution::Maglev)];
    let affinity = proptest::option::weighted(0.3, 1u32..4);
    let source_ranges = proptest::collection::btree_set(0u8..4, 0..3);
    (
        (families, 80u16..82, endpoints, distribution, affinity),
        (reaches(), proptest::option::of(reaches()), source_ranges),
    )
        .prop_map(
            |((families, port, endpoints, distribution, affinity), (cluster_ip, load_balancer, source_ranges))| {
                Wanted { families, port, endpoints, distribution, affinity, cluster_ip, load_balancer, source_ranges }
            },
        )
}

/// What happens to the daemon.
#[derive(Clone, Debug)]
enum Step {
    /// A service port becomes this, or goes. The write after so many more fails.
    Change { number: u8, wanted: Option<Wanted>, fail_after: Option<usize> },
    /// The daemon is killed and reads the maps back.
    Restart,
    /// Time passes.
    Wait(Duration),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u8..4, proptest::option::weighted(0.8, wanted()), proptest::option::weighted(0.3, 0usize..12))
            .prop_map(|(number, wanted, fail_after)| Step::Change { number, wanted, fail_after }),
        1 => Just(Step::Restart),
        2 => (0u64..3).prop_map(|seconds| Step::Wait(Duration::from_secs(seconds))),
        1 => Just(Step::Wait(filter::RETIREMENT)),
    ]
}

fn siblings(port: &ResolvedPort) -> BTreeSet<FrontendAddress> {
    port.frontends().collect()
}

type State = BTreeMap<FrontendAddress, Served>;

struct World {
    store: MemoryMaps,
    known: Known,
    now: Instant,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        Self { store: MemoryMaps::new(CAPACITIES), known: Known::new(CAPACITIES, &Contents::default(), now), now }
    }

    /// Applies `writes`, which lead from `old` to `new`.
    fn apply(&mut self, writes: &[Write], old: &State, new: &State) -> Result<(), String> {
        for write in writes {
            self.store.write(write).inspect_err(|_| self.known.failed(write)).map_err(|error| error.to_string())?;
            self.known.applied(write, self.now);
            // At every step what is served is whole, or the kernel programs would meet a hole.
            for (address, served) in self.store.served()? {
                let sources = |state: &State| {
                    let ports = state.values().filter(|other| other.name == served.name);
                    ports.filter_map(|other| other.sources.clone()).flatten().collect::<Vec<_>>()
                };
                let ranges = [sources(old), sources(new)].concat();
                check_step(&served, old.get(&address), new.get(&address), &ranges)
                    .map_err(|error| format!("{address} after {write:?}: {error}"))?;
            }
        }
        Ok(())
    }

    fn plan(&self, number: u8, wanted: &Wanted) -> Result<Plan, PlanError> {
        let port = resolved(number, wanted);
        self.known.plan(&port, &siblings(&port), self.now)
    }

    fn reach(&mut self, number: u8, wanted: Option<&Wanted>) -> Result<(), String> {
        let old = self.store.served()?;
        let mut new: State = old.clone();
        new.retain(|_, served| served.name != name(number).to_string());
        let writes = match wanted {
            Some(wanted) => {
                let plan = self.plan(number, wanted).map_err(|error| error.to_string())?;
                new.extend(expected(&BTreeMap::from([(number, wanted.clone())])));
                plan.writes
            }
            None => self.known.plan_removal(&name(number).to_string()),
        };
        self.apply(&writes, &old, &new)
    }
}

/// The endpoints for one kind of client.
type List = fn(&Served) -> &[(IpAddr, u16)];

/// Whatever is served on the way from `old` to `new` was or will be served; `ranges` are those of the service port then.
fn check_step(served: &Served, old: Option<&Served>, new: Option<&Served>, ranges: &[IpNet]) -> Result<(), String> {
    let either = || old.into_iter().chain(new);
    let lists: [List; 2] = [|served| &served.inside, |served| &served.outside];
    for list in lists {
        let stray = list(served).iter().find(|endpoint| !either().any(|of| list(of).contains(endpoint)));
        if let Some(stray) = stray {
            return Err(format!("{stray:?} is not wanted"));
        }
        if list(served).is_empty() && !either().any(|of| list(of).is_empty()) {
            return Err("no endpoint".to_owned());
        }
    }
    match &served.sources {
        None if !either().any(|of| of.sources.is_none()) => Err("everybody is let in".to_owned()),
        Some(sources) => {
            let is_open = either().any(|of| of.sources.is_none());
            let stray = sources.iter().find(|range| !is_open && !ranges.contains(range));
            stray.map_or(Ok(()), |range| Err(format!("{range} is let in")))
        }
        None => Ok(()),
    }
}

fn expected(desired: &BTreeMap<u8, Wanted>) -> State {
    let mut state = State::new();
    for (number, wanted) in desired {
        for ResolvedFamily { family: _, frontends, endpoints, distribution: _, source_ranges } in
            resolved(*number, wanted).families
        {
            let list = |reach| {
                let list = endpoints.iter().filter(|endpoint| endpoint.is_in(reach));
                list.map(|endpoint| (endpoint.address, endpoint.port)).collect::<Vec<_>>()
            };
            let drops = list(Reach::Local).is_empty() && !list(Reach::Cluster).is_empty();
            for frontend in frontends {
                let checks_source = frontend.checks_source && !source_ranges.is_empty();
                let served = Served {
                    name: name(*number).to_string(),
                    inside: list(frontend.inside),
                    outside: list(frontend.outside),
                    affinity: wanted.affinity.unwrap_or_default(),
                    flags: flags(&frontend, drops, checks_source),
                    sources: checks_source.then(|| source_ranges.clone()),
                };
                state.insert(frontend.address, served);
            }
        }
    }
    state
}

/// The frontends are switched one by one: the first leaves the run that the second takes up.
#[test]
fn a_run_that_passes_from_one_frontend_to_another_stays_in_use() {
    let cluster = (Reach::Cluster, Reach::Cluster);
    let before = Wanted {
        families: vec![IpFamily::V4],
        port: 80,
        endpoints: BTreeMap::from([(3, Standing::ACTIVE), (6, Standing::ACTIVE)]),
        distribution: Distribution::List,
        affinity: None,
        cluster_ip: cluster,
        load_balancer: None,
        source_ranges: BTreeSet::new(),
    };
    let after = Wanted { cluster_ip: (Reach::Local, Reach::Local), load_balancer: Some(cluster), ..before.clone() };
    let mut world = World::new();
    world.reach(1, Some(&before)).expect("room");
    let in_use = world.known.families[0].slots.in_use();
    world.reach(1, Some(&after)).expect("room");
    assert_eq!(world.known.families[0].slots.in_use(), in_use);
    assert!(world.plan(1, &after).expect("room").writes.is_empty(), "there is nothing left to do");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_history_ends_in_what_is_wanted(steps in proptest::collection::vec(step(), 1..30)) {
        let mut world = World::new();
        let mut desired: BTreeMap<u8, Wanted> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Change { number, wanted, fail_after } => {
                    world.store.fail_after(fail_after);
                    match &wanted {
                        Some(wanted) => desired.insert(number, wanted.clone()),
                        None => desired.remove(&number),
                    };
                    // A failure is followed by another try, as the reconciler does it.
                    let outcome = world.reach(number, wanted.as_ref());
                    world.store.fail_after(None);
                    if outcome.is_err() {
                        world.reach(number, wanted.as_ref()).map_err(TestCaseError::fail)?;
                    }
                    prop_assert_eq!(world.store.served().map_err(TestCaseError::fail)?, expected(&desired));
                    // Once there, there is nothing left to do.
                    let before = world.store.written();
                    world.reach(number, wanted.as_ref()).map_err(TestCaseError::fail)?;
                    prop_assert_eq!(world.store.written(), before);
                }
                Step::Restart => {
                    world.known = Known::new(CAPACITIES, &world.store.contents(), world.now);
                    let (writes, state) = (world.known.plan_orphans(), expected(&desired));
                    world.apply(&writes, &state, &state).map_err(TestCaseError::fail)?;
                    let before = world.store.written();
                    for (number, wanted) in &desired {
                        world.reach(*number, Some(wanted)).map_err(TestCaseError::fail)?;
                    }
                    prop_assert_eq!(world.store.written(), before, "a restart alone changes nothing");
                }
                Step::Wait(time) => {
                    world.now += time;
                    let (writes, state) = (world.known.plan_filter_retirement(world.now), expected(&desired));
                    world.apply(&writes, &state, &state).map_err(TestCaseError::fail)?;
                    prop_assert_eq!(world.store.served().map_err(TestCaseError::fail)?, state);
                }
            }
        }
        // Every endpoint that is wanted takes connections or drains, as asked; all other ids are gone.
        let count = |is_counted: fn(&Standing) -> bool| -> usize {
            desired.values().map(|wanted| wanted.count(is_counted)).sum()
        };
        let (active, draining) = (BackendState::Active, BackendState::Draining);
        let is_active = |standing: &Standing| standing.in_cluster_list || standing.in_local_list;
        prop_assert_eq!(world.store.backends(active).len(), count(is_active));
        prop_assert_eq!(world.store.backends(draining).len(), count(|_| true) - count(is_active));
        // No range outlives its service port, or whoever gets the id next would inherit it.
        let ranges = desired.values().filter(|wanted| wanted.load_balancer.is_some());
        let ranges: usize = ranges.map(|wanted| wanted.source_ranges.len() * wanted.families.len()).sum();
        prop_assert_eq!(world.store.contents().source_ranges.len(), ranges);
        let filled = IpFamily::ALL.map(|family| world.known.fill(family)[3].1 as usize);
        prop_assert_eq!(filled.iter().sum::<usize>(), ranges);
    }
}

fn simple(active: impl IntoIterator<Item = u8>) -> Wanted {
    Wanted {
        families: vec![IpFamily::V4, IpFamily::V6],
        port: 80,
        endpoints: active.into_iter().map(|number| (number, Standing::ACTIVE)).collect(),
        distribution: Distribution::List,
        affinity: None,
        cluster_ip: (Reach::Cluster, Reach::Cluster),
        load_balancer: None,
        source_ranges: BTreeSet::new(),
    }
}

#[test]
fn equal_lists_share_a_run_and_others_do_not() {
    let mut world = World::new();
    let both = Standing { is_local: true, in_cluster_list: true, in_local_list: true };
    let mut wanted = simple([]);
    wanted.endpoints = BTreeMap::from([(1, both), (2, both)]);
    wanted.cluster_ip = (Reach::Cluster, Reach::Local);
    world.reach(0, Some(&wanted)).expect("room");
    let slots_in_use = |world: &World| world.known.fill(IpFamily::V4)[2].1;
    assert_eq!(slots_in_use(&world), 2);
    wanted.endpoints.insert(3, Standing::ACTIVE);
    world.reach(0, Some(&wanted)).expect("room");
    assert_eq!(slots_in_use(&world), 4 + 2);
    wanted.endpoints.remove(&3);
    world.reach(0, Some(&wanted)).expect("room");
    assert_eq!(slots_in_use(&world), 2);
}

#[test]
fn a_policy_without_an_endpoint_here_drops_only_when_there_are_others() {
    let mut world = World::new();
    let mut wanted = simple([1]);
    wanted.cluster_ip = (Reach::Cluster, Reach::Local);
    let flags = |world: &World| {
        let served = world.store.served().expect("whole");
        served.values().map(|served| served.flags).collect::<BTreeSet<_>>()
    };
    let local = service::FrontendFlags::OUTSIDE_LOCAL;
    world.reach(0, Some(&wanted)).expect("room");
    assert_eq!(flags(&world), BTreeSet::from([local | service::FrontendFlags::OUTSIDE_DROPS]));
    wanted.endpoints.clear();
    world.reach(0, Some(&wanted)).expect("room");
    assert_eq!(flags(&world), BTreeSet::from([local]), "nobody is anywhere: that is answered");
}

#[test]
fn ranges_that_do_not_fit_let_nobody_else_in() {
    let mut world = World::new();
    let mut wanted = simple([1]);
    wanted.load_balancer = Some((Reach::Cluster, Reach::Cluster));
    wanted.source_ranges = (0..4).collect();
    world.reach(0, Some(&wanted)).expect("room for four");
    wanted.source_ranges = (4..14).collect();
    let error = world.plan(0, &wanted).expect_err("no room for ten more");
    assert_eq!(
        error.to_string(),
        "the map of source ranges is full with 10 entries; --max-source-ranges sets its size"
    );
    let port = resolved(0, &wanted);
    let plan = world.known.plan_reduction(&port, &siblings(&port), world.now).expect("it stands");
    let old = world.store.served().expect("whole");
    world.apply(&plan.writes, &old, &old).expect("nobody who was not let in before");
    let served = world.store.served().expect("whole");
    let load_balancers: Vec<_> = served.values().filter_map(|served| served.sources.clone()).collect();
    assert_eq!(load_balancers, [[], []] as [[IpNet; 0]; 2], "nobody rather than everybody");
    assert_eq!(served.len(), 4);
}

#[test]
fn an_endpoint_that_comes_back_gets_its_id_and_generation_back() {
    let mut world = World::new();
    world.reach(0, Some(&simple([1, 2]))).expect("room");
    let before = world.store.backends(BackendState::Active);
    world.reach(0, Some(&simple([1]))).expect("room");
    assert_eq!(world.store.backends(BackendState::Gone).len(), 2);
    world.reach(0, Some(&simple([1, 2]))).expect("room");
    assert_eq!(world.store.backends(BackendState::Active), before);
}

#[test]
fn an_id_given_to_another_endpoint_has_another_generation() {
    let mut world = World::new();
    let capacities = Capacities { backends: 1, ..CAPACITIES };
    world.store = MemoryMaps::new(capacities);
    world.known = Known::new(capacities, &Contents::default(), world.now);
    world.reach(0, Some(&simple([1]))).expect("room");
    world.reach(0, Some(&simple([]))).expect("room");
    world.reach(0, Some(&simple([2]))).expect("the id is free again");
    let records = world.store.backends(BackendState::Active);
    assert_eq!(records.values().map(|record| record.generation).collect::<Vec<_>>(), [2, 2]);
}

#[test]
fn a_full_map_is_named_and_what_is_served_stays_served() {
    let mut world = World::new();
    for number in 0..8 {
        world.reach(number, Some(&simple([1, 2, 3]))).expect("room for eight");
    }
    let served = world.store.served().expect("whole");
    let error = world.plan(9, &simple([1])).expect_err("no room for a ninth");
    assert_eq!(error.to_string(), "the map of services is full with 8 entries; --max-services sets its size");
    let many = simple(1..60);
    let error = world.plan(0, &many).expect_err("64 backends in all");
    assert_eq!(error.to_string(), "the map of backends is full with 64 entries; --max-backends sets its size");
    assert_eq!(world.store.served().expect("whole"), served);
}

#[test]
fn a_frontend_passes_to_another_service_port_by_one_write() {
    let mut world = World::new();
    world.reach(0, Some(&simple([1, 3]))).expect("room");
    let first = expected(&BTreeMap::from([(0, simple([1, 3]))]));
    let mut rival = resolved(1, &simple([2, 4]));
    for family in &mut rival.families {
        family.frontends[0].address.address = vip(family.family, FrontendKind::ClusterIp, 0);
    }
    // The one that has it and wants it no longer leaves it to the other.
    let mut without = resolved(0, &simple([1, 3]));
    without.families.iter_mut().for_each(|family| family.frontends.clear());
    let plan = world.known.plan(&without, &siblings(&rival), world.now).expect("room");
    world.apply(&plan.writes, &first, &first).expect("writes");
    assert_eq!(world.store.served().expect("whole"), first);

    let plan = world.known.plan(&rival, &siblings(&rival), world.now).expect("room");
    let switches = plan.writes.iter().filter(|write| matches!(write, Write::Frontend { .. })).count();
    let removals = plan.writes.iter().filter(|write| matches!(write, Write::RemoveFrontend { .. })).count();
    assert_eq!((switches, removals), (2, 0), "one a family");
    let mut second = expected(&BTreeMap::from([(0, simple([2, 4]))]));
    second.values_mut().for_each(|served| served.name = rival.name.to_string());
    world.apply(&plan.writes, &first, &second).expect("writes");
    assert_eq!(world.store.served().expect("whole"), second);
    assert_eq!(world.known.fill(IpFamily::V4)[2].1, 2, "the slots of the first are free");

    // Left with the wrong one, it goes.
    let strays = world.known.plan_strays(&rival.name.to_string(), |address| address.family() == IpFamily::V6);
    world.apply(&strays, &second, &BTreeMap::new()).expect("writes");
    assert_eq!(world.store.served().expect("whole").len(), 1);
}
