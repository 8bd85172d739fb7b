//! From any state, through any failures and restarts, the maps come to serve exactly what is wanted.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use dsproxy_common::Protocol;
use proptest::prelude::*;

use super::*;
use crate::{
    maps::{MapStore, memory::MemoryMaps},
    model::ObjectName,
    resolve::ServicePortName,
};

const CAPACITIES: Capacities = Capacities { services: 8, frontends: 8, backends: 64, slots: 65_536, connections: 1 };

/// A service port: dual-stack, with endpoint numbers for each family.
#[derive(Clone, Debug)]
struct Wanted {
    families: Vec<IpFamily>,
    port: u16,
    active: BTreeSet<u8>,
    draining: BTreeSet<u8>,
    distribution: Distribution,
}

fn name(number: u8) -> ServicePortName {
    ServicePortName {
        service: ObjectName::new("default", &format!("service-{number}")),
        port: "http".into(),
        protocol: Protocol::Tcp,
    }
}

fn vip(family: IpFamily, number: u8) -> IpAddr {
    match family {
        IpFamily::V4 => Ipv4Addr::new(10, 96, 0, number).into(),
        IpFamily::V6 => Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, number.into()).into(),
    }
}

fn endpoint(family: IpFamily, number: u8) -> (IpAddr, u16) {
    let address = match family {
        IpFamily::V4 => Ipv4Addr::new(10, 244, 0, number).into(),
        IpFamily::V6 => Ipv6Addr::new(0xfd00, 0x244, 0, 0, 0, 0, 0, number.into()).into(),
    };
    (address, 8080)
}

fn resolved(number: u8, wanted: &Wanted) -> ResolvedPort {
    let families = wanted.families.iter().map(|family| ResolvedFamily {
        family: *family,
        frontends: vec![FrontendAddress { address: vip(*family, number), port: wanted.port, protocol: Protocol::Tcp }],
        active: wanted.active.iter().map(|endpoint_number| endpoint(*family, *endpoint_number)).collect(),
        draining: wanted
            .draining
            .difference(&wanted.active)
            .map(|endpoint_number| endpoint(*family, *endpoint_number))
            .collect(),
        distribution: wanted.distribution,
    });
    ResolvedPort { name: name(number), families: families.collect() }
}

fn wanted() -> impl Strategy<Value = Wanted> {
    (
        prop_oneof![
            Just(vec![IpFamily::V4]),
            Just(vec![IpFamily::V6]),
            Just(vec![IpFamily::V4, IpFamily::V6]),
            Just(vec![IpFamily::V6, IpFamily::V4]),
        ],
        80u16..82,
        proptest::collection::btree_set(1u8..9, 0..6),
        proptest::collection::btree_set(1u8..9, 0..3),
        prop_oneof![3 => Just(Distribution::List), 1 => Just(Distribution::Maglev)],
    )
        .prop_map(|(families, port, active, draining, distribution)| Wanted {
            families,
            port,
            active,
            draining,
            distribution,
        })
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

    fn apply(&mut self, writes: &[Write]) -> Result<(), String> {
        for write in writes {
            self.store.write(write).map_err(|error| error.to_string())?;
            self.known.applied(write, self.now);
            // At every step what is served is whole, or the kernel programs would meet a hole.
            self.store.served()?;
        }
        Ok(())
    }

    fn plan(&self, number: u8, wanted: &Wanted) -> Result<Plan, PlanError> {
        let port = resolved(number, wanted);
        self.known.plan(&port, &siblings(&port), self.now)
    }

    fn reach(&mut self, number: u8, wanted: Option<&Wanted>) -> Result<(), String> {
        let writes = match wanted {
            Some(wanted) => {
                let plan = self.plan(number, wanted).map_err(|error| error.to_string())?;
                assert!(plan.conflicts.is_empty());
                plan.writes
            }
            None => self.known.plan_removal(&name(number).to_string()),
        };
        self.apply(&writes)
    }
}

fn expected(desired: &BTreeMap<u8, Wanted>) -> BTreeMap<FrontendAddress, (String, Vec<(IpAddr, u16)>)> {
    let ports = desired.iter().map(|(number, wanted)| resolved(*number, wanted));
    ports
        .flat_map(|port| {
            let name = port.name.to_string();
            port.families.into_iter().flat_map(move |family| {
                let ResolvedFamily { family: _, frontends, active, draining: _, distribution: _ } = family;
                let name = name.clone();
                frontends.into_iter().map(move |address| (address, (name.clone(), active.clone())))
            })
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

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
                    let writes = world.known.plan_orphans();
                    world.apply(&writes).map_err(TestCaseError::fail)?;
                    let before = world.store.written();
                    for (number, wanted) in &desired {
                        world.reach(*number, Some(wanted)).map_err(TestCaseError::fail)?;
                    }
                    prop_assert_eq!(world.store.written(), before, "a restart alone changes nothing");
                }
                Step::Wait(time) => {
                    world.now += time;
                    let writes = world.known.plan_filter_retirement(world.now);
                    world.apply(&writes).map_err(TestCaseError::fail)?;
                    for address in expected(&desired).keys() {
                        prop_assert!(world.store.filter_has(address));
                    }
                }
            }
        }
        // Every endpoint that is wanted takes connections or drains, as asked; all other ids are gone.
        let count = |endpoints: &dyn Fn(&Wanted) -> usize| -> usize {
            desired.values().map(|wanted| endpoints(wanted) * wanted.families.len()).sum()
        };
        let (active, draining) = (BackendState::Active, BackendState::Draining);
        prop_assert_eq!(world.store.backends(active).len(), count(&|wanted| wanted.active.len()));
        prop_assert_eq!(
            world.store.backends(draining).len(),
            count(&|wanted| wanted.draining.difference(&wanted.active).count())
        );
    }
}

fn simple(active: impl IntoIterator<Item = u8>) -> Wanted {
    Wanted {
        families: vec![IpFamily::V4, IpFamily::V6],
        port: 80,
        active: active.into_iter().collect(),
        draining: BTreeSet::new(),
        distribution: Distribution::List,
    }
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
fn the_first_to_have_a_frontend_keeps_it_until_it_goes() {
    let mut world = World::new();
    world.reach(0, Some(&simple([1]))).expect("room");
    let mut rival = resolved(1, &simple([2]));
    for family in &mut rival.families {
        family.frontends[0].address = vip(family.family, 0);
    }
    let plan = world.known.plan(&rival, &siblings(&rival), world.now).expect("room");
    assert_eq!(plan.conflicts.len(), 2);
    assert_eq!(plan.conflicts[0].holder, "default/service-0:http/TCP");
    world.apply(&plan.writes).expect("writes");
    assert_eq!(world.store.served().expect("whole"), expected(&BTreeMap::from([(0, simple([1]))])));
    world.reach(0, None).expect("removal");
    let plan = world.known.plan(&rival, &siblings(&rival), world.now).expect("room");
    assert!(plan.conflicts.is_empty());
    world.apply(&plan.writes).expect("writes");
    let holders: BTreeSet<_> = world.store.served().expect("whole").into_values().map(|(name, _)| name).collect();
    assert_eq!(holders, BTreeSet::from(["default/service-1:http/TCP".to_owned()]));
}
