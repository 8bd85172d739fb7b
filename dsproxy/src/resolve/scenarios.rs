//! Scenarios in text: Kubernetes objects come, change and go, and after each step it is written down what the data path
//! is to do. The files beside this one are read; each is a line of sections:
//!
//! - `=== apply` creates or changes the objects below it, as a watch would tell of them;
//! - `=== delete` takes away the objects named below it, `Kind namespace/name` a line;
//! - `=== addresses` says which addresses the devices of this node carry from now on; the node is called `node-a`;
//! - `=== resolved` is what the objects up to here ask for, and, as notes, what was left out of the last step and why.
//!
//! What is resolved: a service port, then in each family its frontends, each with its distribution, its kind where it is no
//! ClusterIP and whose endpoints clients reach where that is not the whole cluster's; then who may come by a load balancer;
//! then its endpoints, `here` if on this node, with the lists they are on where that is not the cluster's alone.
//!
//! Whatever follows the first word of a heading is for the reader. `DSPROXY_REWRITE_SCENARIOS=1` writes down what is
//! resolved now in place of what was expected; the difference is then for `git diff` and a careful eye.
//!
//! Nothing here decides what is right: the files do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use dsproxy_common::service::{BackendState, FrontendKind};
use serde::Deserialize as _;

use super::{
    Distribution, HealthCheck, Reach, Resolution, ResolvedEndpoint, ResolvedFamily, ResolvedFrontend, ResolvedPort,
    resolve,
};
use crate::{
    config::{NodeIps, NodePortAddresses},
    diff::flags,
    interfaces::NodeAddresses,
    local_node::LocalNode,
    maps::{
        Capacities, FrontendAddress,
        memory::{MemoryMaps, Served},
    },
    model::{EndpointSlice, IpFamily, Node, ObjectName, Service},
    progress::Progress,
    reconcile::Reconciler,
    source::{
        Delta, Event,
        convert::{Converted, FromObject, Kind, from_json},
    },
};

const REWRITE: &str = "DSPROXY_REWRITE_SCENARIOS";

/// The node that is this one.
const NODE: &str = "node-a";

const CAPACITIES: Capacities = Capacities {
    services: 64,
    frontends: 64,
    backends: 256,
    slots: 65_536,
    connections: 1,
    brief_connections: 1,
    affinities: 1,
    source_ranges: 64,
};

/// A file of steps.
pub(crate) struct Scenario {
    pub(crate) path: PathBuf,
    preamble: String,
    sections: Vec<Section>,
}

struct Section {
    heading: String,
    body: String,
}

/// What a section says.
pub(crate) enum Step {
    /// Objects come, change or go.
    Change(Vec<Event>, Vec<String>),
    /// The devices of this node carry these addresses.
    Addresses(NodeAddresses),
    /// The text that describes what is resolved.
    Resolved(String),
}

impl Scenario {
    fn read(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let mut scenario = Self { path: path.to_owned(), preamble: String::new(), sections: Vec::new() };
        for line in text.lines() {
            if line.starts_with("===") {
                scenario.sections.push(Section { heading: line.to_owned(), body: String::new() });
            } else {
                let body = scenario.sections.last_mut().map_or(&mut scenario.preamble, |section| &mut section.body);
                body.push_str(line);
                body.push('\n');
            }
        }
        scenario
    }

    fn write(&self) {
        let mut text = self.preamble.clone();
        for Section { heading, body } in &self.sections {
            text += heading;
            text.push('\n');
            text += body;
        }
        fs::write(&self.path, text).unwrap_or_else(|error| panic!("{}: {error}", self.path.display()));
    }

    /// The steps, with the heading of each.
    pub(crate) fn steps(&self) -> impl Iterator<Item = (&str, Step)> {
        self.sections.iter().map(|section| (section.heading.as_str(), section.step()))
    }
}

/// All scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/resolve/scenarios");
    let entries = fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let paths: BTreeSet<PathBuf> = entries.map(|entry| entry.expect("the directory can be read").path()).collect();
    assert!(paths.len() > 1, "the scenarios are in {}", directory.display());
    paths.iter().map(|path| Scenario::read(path)).collect()
}

impl Section {
    fn step(&self) -> Step {
        let Self { heading, body } = self;
        match heading.split_whitespace().nth(1) {
            Some("apply") => {
                let mut notes = Vec::new();
                let events = objects(body).filter_map(|object| applied(&object, &mut notes)).collect();
                Step::Change(events, notes)
            }
            Some("delete") => {
                Step::Change(body.lines().filter(|line| !line.is_empty()).map(deleted).collect(), Vec::new())
            }
            Some("addresses") => {
                let all = body.split_whitespace().map(|address| address.parse().expect("an address")).collect();
                Step::Addresses(NodeAddresses { all, of_devices: BTreeMap::new() })
            }
            Some("resolved") => Step::Resolved(body.trim_end().to_owned()),
            _ => panic!("{heading:?}: apply, delete, addresses or resolved"),
        }
    }
}

fn objects(yaml: &str) -> impl Iterator<Item = serde_json::Value> {
    serde_yaml::Deserializer::from_str(yaml).map(|document| {
        let value = serde_yaml::Value::deserialize(document).expect("the objects are YAML");
        serde_json::to_value(value).expect("the objects could be JSON")
    })
}

/// What a source would tell about an object.
fn applied(object: &serde_json::Value, notes: &mut Vec<String>) -> Option<Event> {
    match object["kind"].as_str() {
        Some("Service") => told::<Service>(object, notes),
        Some("EndpointSlice") => told::<EndpointSlice>(object, notes),
        Some("Node") => told::<Node>(object, notes),
        other => panic!("an object of kind {other:?}"),
    }
}

fn told<T: FromObject>(object: &serde_json::Value, notes: &mut Vec<String>) -> Option<Event> {
    match from_json::<T>(object) {
        Converted::Ours { object, skipped } => {
            notes.extend(skipped.iter().map(|part| format!("{} {}: {part}", T::KIND, object.name())));
            Some(T::event(Delta::Apply(object)))
        }
        Converted::NotOurs { name, why } => {
            notes.push(format!("{} {name}: {why}", T::KIND));
            Some(T::event(Delta::Delete(name)))
        }
        Converted::Rejected(rejected) => {
            notes.push(rejected.to_string());
            None
        }
    }
}

fn deleted(line: &str) -> Event {
    let (kind, name) = line.split_once(' ').expect("a line names a kind and an object");
    let name = match name.split_once('/') {
        Some((namespace, name)) => ObjectName::new(namespace, name),
        None => ObjectName::of_cluster(name),
    };
    match Kind::ALL.into_iter().find(|known| known.name() == kind) {
        Some(Kind::Service) => Event::Services(Delta::Delete(name)),
        Some(Kind::EndpointSlice) => Event::EndpointSlices(Delta::Delete(name)),
        Some(Kind::Node) => Event::Nodes(Delta::Delete(name)),
        Some(Kind::ServiceCidr) => Event::ServiceCidrs(Delta::Delete(name)),
        None => panic!("an object of kind {kind}"),
    }
}

/// All objects there are, and the addresses of this node.
#[derive(Default)]
pub(crate) struct Objects {
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    nodes: BTreeMap<ObjectName, Node>,
    addresses: NodeAddresses,
}

/// This node, of which nothing but its name is known.
fn local_node() -> LocalNode {
    LocalNode::new(NODE, NodeIps::default(), NodePortAddresses::All)
}

impl Objects {
    /// Takes in what a step says, which `reconciler` is told as well. Says whether there was anything.
    pub(crate) fn take(&mut self, step: Step, reconciler: Option<&mut Reconciler<MemoryMaps>>) -> bool {
        match step {
            Step::Change(events, _) => {
                events.iter().for_each(|event| self.change(event));
                if let Some(reconciler) = reconciler {
                    events.into_iter().for_each(|event| reconciler.apply(event));
                }
            }
            Step::Addresses(addresses) => {
                if let Some(reconciler) = reconciler {
                    reconciler.set_addresses(addresses.clone());
                }
                self.addresses = addresses;
            }
            Step::Resolved(_) => return false,
        }
        true
    }

    fn change(&mut self, event: &Event) {
        fn change<T: FromObject>(objects: &mut BTreeMap<ObjectName, T>, delta: &Delta<T>) {
            match delta {
                Delta::Apply(object) => drop(objects.insert(object.name().clone(), object.clone())),
                Delta::Delete(name) => drop(objects.remove(name)),
                Delta::Snapshot(_) => panic!("a scenario has no snapshots"),
            }
        }
        match event {
            Event::Services(delta) => change(&mut self.services, delta),
            Event::EndpointSlices(delta) => change(&mut self.slices, delta),
            Event::Nodes(delta) => change(&mut self.nodes, delta),
            Event::ServiceCidrs(_) => panic!("no endpoint depends on a ServiceCIDR"),
        }
    }

    /// What a source tells when it lists everything.
    pub(crate) fn listed(&self) -> [Event; 3] {
        [
            Event::Services(Delta::Snapshot(self.services.values().cloned().collect())),
            Event::EndpointSlices(Delta::Snapshot(self.slices.values().cloned().collect())),
            Event::Nodes(Delta::Snapshot(self.nodes.values().cloned().collect())),
        ]
    }

    /// Tells a reconciler everything, as after its start.
    pub(crate) fn tell(&self, reconciler: &mut Reconciler<MemoryMaps>) {
        self.listed().into_iter().for_each(|event| reconciler.apply(event));
        reconciler.set_addresses(self.addresses.clone());
    }

    fn resolutions(&self) -> Vec<(&ObjectName, Resolution)> {
        let mut node = local_node();
        node.set_object(self.nodes.get(&ObjectName::of_cluster(NODE)).cloned());
        node.set_addresses(self.addresses.clone());
        let view = node.view();
        let of = |service: &Service| {
            resolve(service, self.slices.values().filter(|slice| slice.service == service.name), &view)
        };
        self.services.iter().map(|(name, service)| (name, of(service))).collect()
    }

    /// What they ask for.
    pub(crate) fn resolved(&self) -> Vec<ResolvedPort> {
        self.resolutions().into_iter().flat_map(|(_, resolution)| resolution.ports).collect()
    }
}

struct Described<'a>(&'a [(&'a ObjectName, Resolution)], &'a [String]);

impl fmt::Display for Described<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(resolutions, notes) = self;
        if resolutions.iter().all(|(_, resolution)| resolution.ports.is_empty()) {
            writeln!(f, "nothing")?;
        }
        for (service, Resolution { ports, health_check, left_out }) in *resolutions {
            for ResolvedPort { name, affinity, families } in ports {
                write!(f, "{name}")?;
                if let Some(seconds) = affinity {
                    write!(f, ", clients stay for {seconds} s")?;
                }
                writeln!(f)?;
                families.iter().try_for_each(|family| describe_family(family, f))?;
            }
            if let Some(HealthCheck { port, local_endpoints }) = health_check {
                write!(f, "{service} health check at {port}:")?;
                local_endpoints.iter().try_for_each(|(family, count)| write!(f, " {family} {count}"))?;
                writeln!(f)?;
            }
            left_out.iter().try_for_each(|part| writeln!(f, "note: {part}"))?;
        }
        notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))
    }
}

fn describe_family(resolved: &ResolvedFamily, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let ResolvedFamily { family, frontends, endpoints, distribution, source_ranges } = resolved;
    let distribution = match distribution {
        Distribution::List => "list",
        Distribution::Maglev => "maglev",
    };
    for ResolvedFrontend { address, kind, inside, outside, checks_source } in frontends {
        let kind = match kind {
            FrontendKind::ClusterIp => "",
            FrontendKind::NodePort => " NodePort",
            FrontendKind::LoadBalancer => " LoadBalancer",
            FrontendKind::ExternalIp => " externalIP",
        };
        let reach = match (inside, outside) {
            (Reach::Cluster, Reach::Cluster) => "",
            (Reach::Local, Reach::Local) => ", local",
            (Reach::Cluster, Reach::Local) => ", local from outside",
            (Reach::Local, Reach::Cluster) => ", local from inside",
        };
        let checks = if *checks_source { ", checks its clients" } else { "" };
        writeln!(f, "  {family} {address} {distribution}{kind}{reach}{checks}")?;
    }
    source_ranges.iter().try_for_each(|range| writeln!(f, "    from {range}"))?;
    for (state, is_active) in [("active", true), ("draining", false)] {
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.is_active() == is_active) {
            let ResolvedEndpoint { address, port, is_local, is_on_node: _, in_cluster_list, in_local_list } = *endpoint;
            let here = if is_local { " here" } else { "" };
            let lists = match (in_cluster_list, in_local_list) {
                (true, true) => ", for the cluster and locally",
                (false, true) => ", locally",
                (true, false) | (false, false) => "",
            };
            writeln!(f, "    {state} {}{here}{lists}", SocketAddr::new(address, port))?;
        }
    }
    Ok(())
}

/// What maps hold: each frontend with its service port and endpoints, and how many endpoints drain.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MapState {
    served: BTreeMap<FrontendAddress, Served>,
    active: Vec<(IpAddr, u16)>,
    draining: Vec<(IpAddr, u16)>,
}

impl MapState {
    pub(crate) fn of(maps: &MemoryMaps) -> Self {
        let backends = |state| {
            let mut endpoints: Vec<_> =
                maps.backends(state).values().map(|record| (record.address, record.port)).collect();
            endpoints.sort_unstable();
            endpoints
        };
        Self {
            served: maps.served().expect("what is served is whole"),
            active: backends(BackendState::Active),
            draining: backends(BackendState::Draining),
        }
    }

    pub(crate) fn wanted(ports: &[ResolvedPort]) -> Self {
        let mut state = Self { served: BTreeMap::new(), active: Vec::new(), draining: Vec::new() };
        for ResolvedPort { name, affinity, families } in ports {
            for ResolvedFamily { family: _, frontends, endpoints, distribution: _, source_ranges } in families {
                let list = |reach| {
                    let list = endpoints.iter().filter(|endpoint| endpoint.is_in(reach));
                    list.map(|endpoint| (endpoint.address, endpoint.port)).collect::<Vec<_>>()
                };
                let drops = list(Reach::Local).is_empty() && !list(Reach::Cluster).is_empty();
                for frontend in frontends {
                    let checks_source = frontend.checks_source && !source_ranges.is_empty();
                    let mut sources = source_ranges.clone();
                    sources.sort_unstable();
                    let served = Served {
                        name: name.to_string(),
                        inside: list(frontend.inside),
                        outside: list(frontend.outside),
                        affinity: affinity.unwrap_or_default(),
                        flags: flags(frontend, drops, checks_source),
                        sources: checks_source.then_some(sources),
                    };
                    state.served.insert(frontend.address, served);
                }
                for endpoint in endpoints {
                    let of_state = if endpoint.is_active() { &mut state.active } else { &mut state.draining };
                    of_state.push((endpoint.address, endpoint.port));
                }
            }
        }
        state.active.sort_unstable();
        state.draining.sort_unstable();
        state
    }
}

/// A reconciler for empty maps that has been told that there is nothing.
pub(crate) fn synced_reconciler(now: Instant) -> Reconciler<MemoryMaps> {
    restarted(&MemoryMaps::new(CAPACITIES), &Objects::default(), now)
}

/// A reconciler as after a restart, with these maps.
fn restarted(maps: &MemoryMaps, objects: &Objects, now: Instant) -> Reconciler<MemoryMaps> {
    let mut reconciler =
        Reconciler::new(maps.clone(), &maps.contents(), local_node(), Arc::new(Progress::default()), now);
    objects.tell(&mut reconciler);
    reconciler.reconcile(now);
    reconciler
}

#[test]
fn every_scenario_is_resolved_as_written_down() {
    let rewrite = std::env::var_os(REWRITE).is_some();
    let mut differences = String::new();
    for mut scenario in scenarios() {
        let mut objects = Objects::default();
        let mut notes = Vec::new();
        let mut rewritten = Vec::new();
        for (heading, step) in scenario.steps() {
            if let Step::Change(_, new_notes) = &step {
                notes.clone_from(new_notes);
            }
            let Step::Resolved(expected) = step else {
                objects.take(step, None);
                rewritten.push(None);
                continue;
            };
            let resolved = Described(&objects.resolutions(), &notes).to_string();
            if resolved.trim_end() != expected {
                let file = scenario.path.display();
                let _ = writeln!(differences, "{file}: {heading}\n{}", difference(&expected, &resolved));
            }
            rewritten.push(Some(resolved));
        }
        if rewrite {
            let last = scenario.sections.len() - 1;
            for (at, (section, resolved)) in scenario.sections.iter_mut().zip(rewritten).enumerate() {
                if let Some(resolved) = resolved {
                    section.body = if at == last { resolved } else { resolved + "\n" };
                }
            }
            scenario.write();
        }
    }
    assert!(
        differences.is_empty() || rewrite,
        "what is resolved (+) is not what was expected (-); {REWRITE}=1 writes it down\n\n{differences}"
    );
}

#[test]
fn the_maps_hold_what_is_resolved_and_a_restart_changes_nothing() {
    for scenario in scenarios() {
        let mut now = Instant::now();
        let mut objects = Objects::default();
        let mut reconciler = synced_reconciler(now);
        for (heading, step) in scenario.steps() {
            if !objects.take(step, Some(&mut reconciler)) {
                continue;
            }
            now += Duration::from_millis(100);
            reconciler.reconcile(now);
            let at = format!("{}: {heading}", scenario.path.display());
            assert_eq!(MapState::of(reconciler.store()), MapState::wanted(&objects.resolved()), "{at}");
            let again = restarted(reconciler.store(), &objects, now);
            assert_eq!(again.store().written(), reconciler.store().written(), "{at}: after a restart");
        }
        // What has come can go.
        let names = |reconciler: &Reconciler<MemoryMaps>| reconciler.store().contents().names.len();
        assert!(names(&reconciler) > 0 || objects.resolved().is_empty(), "{}", scenario.path.display());
        Objects::default().tell(&mut reconciler);
        reconciler.reconcile(now);
        assert_eq!(MapState::of(reconciler.store()), MapState::wanted(&[]), "{}", scenario.path.display());
        assert_eq!(names(&reconciler), 0, "{}", scenario.path.display());
    }
}

#[test]
fn both_families_take_part_in_the_scenarios() {
    let mut frontends: BTreeMap<IpFamily, usize> = BTreeMap::new();
    for scenario in scenarios() {
        let mut objects = Objects::default();
        for (_, step) in scenario.steps() {
            objects.take(step, None);
            for family in objects.resolved().iter().flat_map(|port| &port.families) {
                *frontends.entry(family.family).or_default() += family.frontends.len();
            }
        }
    }
    assert!(IpFamily::ALL.iter().all(|family| frontends.get(family).is_some_and(|&count| count > 50)), "{frontends:?}");
}

/// Both texts line by line: common lines, and those of one alone behind a sign.
fn difference(expected: &str, found: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    // The length of the longest common part from each pair of lines on.
    let mut common = vec![vec![0; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] =
                if old[i] == new[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut text) = (0, 0, String::new());
    while i < old.len() || j < new.len() {
        let (sign, line) = if i < old.len() && j < new.len() && old[i] == new[j] {
            (' ', old[i])
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            ('-', old[i])
        } else {
            ('+', new[j])
        };
        i += usize::from(sign != '+');
        j += usize::from(sign != '-');
        let _ = writeln!(text, "{sign} {line}");
    }
    text
}

#[test]
fn a_difference_shows_what_changed() {
    assert_eq!(difference("a\nb\nc", "a\nx\nc\nd"), "  a\n- b\n+ x\n  c\n+ d\n");
    assert_eq!(difference("", "a"), "+ a\n");
}
