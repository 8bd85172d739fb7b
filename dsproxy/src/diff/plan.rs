//! What it takes to make one service port right, in the order in which it is to be written.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Instant,
};

use dsproxy_common::{
    IpFamily, Protocol,
    filter::FilterBit,
    service::{BackendFlags, BackendState, Frontend, FrontendFlags, Slots},
};
use ipnet::IpNet;

use super::{Known, KnownService, Plan, PlanError, backends::Standing, filter, index, run_of, runs::Runs};
use crate::{
    maglev,
    maps::{FilterOf, FrontendAddress, MapKind, Write},
    resolve::{Distribution, Reach, ResolvedEndpoint, ResolvedFamily, ResolvedFrontend, ResolvedPort},
};

/// One service port while it is planned.
struct Draft<'a> {
    known: &'a Known,
    service: u32,
    affinity: u32,
    held: Option<&'a KnownService>,
    now: Instant,
    plan: Plan,
    /// What is to be written once the frontends have been switched.
    retirements: Vec<Write>,
    frontends: BTreeMap<FrontendAddress, Frontend>,
    /// Those that go on to check their source even when there is no range left: they let nobody in then.
    guarded: BTreeSet<FrontendAddress>,
    /// Words of filters as they will be.
    words: HashMap<(IpFamily, FilterOf, u32), u64>,
}

impl Known {
    /// The writes that make `wanted` stand in the maps.
    ///
    /// A frontend that is another service port's passes by a single write. Those that this one no longer wants are left to be
    /// taken over where they are `claimed`, so that ports may change their names, or Services swap their VIPs, without a gap.
    ///
    /// # Errors
    ///
    /// When a map has no room. Nothing has been written then, and what is served stays served, but for endpoints that are
    /// gone: see [`Known::plan_reduction`].
    pub fn plan(
        &self,
        wanted: &ResolvedPort,
        claimed: &BTreeSet<FrontendAddress>,
        now: Instant,
    ) -> Result<Plan, PlanError> {
        let name = wanted.name.to_string();
        let service = match self.ids_by_name.get(name.as_str()) {
            Some(id) => *id,
            None => self
                .service_ids
                .peek()
                .ok_or(PlanError::Full { map: MapKind::Services, capacity: self.service_ids.capacity() })?,
        };
        let held = self.services.get(&service);
        let mut draft = Draft {
            known: self,
            service,
            affinity: wanted.affinity.unwrap_or_default(),
            held,
            now,
            plan: Plan::default(),
            retirements: Vec::new(),
            frontends: BTreeMap::new(),
            guarded: BTreeSet::new(),
            words: HashMap::new(),
        };
        if held.is_none_or(|held| held.name.as_deref() != Some(&name)) {
            draft.write(Write::ResetCounters { service });
            draft.write(Write::Name { service, name: Some(name) });
        }
        for family in IpFamily::ALL {
            let absent = ResolvedFamily {
                family,
                frontends: Vec::new(),
                endpoints: Vec::new(),
                distribution: Distribution::List,
                source_ranges: Vec::new(),
            };
            let resolved = wanted.families.iter().find(|resolved| resolved.family == family).unwrap_or(&absent);
            let mut resolved = resolved.clone();
            let awaiting: Vec<_> = self.awaiting(held, wanted, family, claimed).collect();
            let guarded = awaiting.iter().filter(|frontend| frontend.checks_source);
            draft.guarded.extend(guarded.map(|frontend| frontend.address));
            resolved.frontends.extend(awaiting);
            draft.source_ranges(&resolved)?;
            let ids = draft.backends(&resolved, wanted.name.protocol)?;
            draft.slots(&resolved, &ids)?;
        }
        draft.switch_frontends()?;
        let Draft { mut plan, mut retirements, .. } = draft;
        plan.writes.append(&mut retirements);
        Ok(plan)
    }

    /// The frontends of `family` that the service port has, no longer wants, and keeps as they are until whoever claims them takes
    /// them over.
    fn awaiting<'a>(
        &'a self,
        held: Option<&'a KnownService>,
        wanted: &'a ResolvedPort,
        family: IpFamily,
        claimed: &'a BTreeSet<FrontendAddress>,
    ) -> impl Iterator<Item = ResolvedFrontend> + 'a {
        let held = held.into_iter().flat_map(|held| &held.frontends);
        held.filter(move |address| address.family() == family && claimed.contains(*address))
            .filter(|address| wanted.frontends().all(|wanted| wanted != **address))
            .filter_map(|address| {
                let frontend = self.frontends.get(address)?;
                let [inside, outside] = reaches(frontend).map(|(_, reach)| reach);
                let checks_source = frontend.has(FrontendFlags::SOURCE_RANGES);
                Some(ResolvedFrontend { address: *address, kind: frontend.kind()?, inside, outside, checks_source })
            })
    }

    /// The writes that take away what `wanted` lacks and add nothing, for when there is no room for all of it. None when
    /// the service port is not in the maps, and so has nothing to lose.
    pub fn plan_reduction(
        &self,
        wanted: &ResolvedPort,
        claimed: &BTreeSet<FrontendAddress>,
        now: Instant,
    ) -> Option<Plan> {
        let ResolvedPort { name, affinity, families } = wanted;
        let service = *self.ids_by_name.get(name.to_string().as_str())?;
        let known = self.services.get(&service)?;
        let families = families.iter().map(|resolved| self.reduced(resolved, service, known)).collect();
        let reduced = ResolvedPort { name: name.clone(), affinity: *affinity, families };
        self.plan(&reduced, claimed, now).ok()
    }

    /// What of `wanted` stands already.
    fn reduced(&self, wanted: &ResolvedFamily, service: u32, known: &KnownService) -> ResolvedFamily {
        let ResolvedFamily { family, frontends, endpoints, distribution, source_ranges } = wanted;
        let source_ranges: Vec<IpNet> =
            source_ranges.iter().filter(|range| known.source_ranges.contains(&range.trunc())).copied().collect();
        // Without any of its ranges a frontend would let everybody in.
        let opens_up = source_ranges.is_empty() && !wanted.source_ranges.is_empty();
        let stands = |frontend: &&ResolvedFrontend| {
            let held = self.frontends.get(&frontend.address);
            held.is_some_and(|held| held.service == service) && !(frontend.checks_source && opens_up)
        };
        let backends = &self.families[index(*family)].backends;
        let stands_as = |endpoint: &ResolvedEndpoint| {
            let held = backends.held(service, &(endpoint.address, endpoint.port))?;
            let keeps = |is_wanted, flag| is_wanted && held.state == BackendState::Active && held.flags & flag != 0;
            Some(ResolvedEndpoint {
                in_cluster_list: keeps(endpoint.in_cluster_list, BackendFlags::IN_CLUSTER_LIST),
                in_local_list: keeps(endpoint.in_local_list, BackendFlags::IN_LOCAL_LIST),
                ..*endpoint
            })
        };
        ResolvedFamily {
            family: *family,
            frontends: frontends.iter().filter(stands).copied().collect(),
            endpoints: endpoints.iter().filter_map(stands_as).collect(),
            distribution: *distribution,
            source_ranges,
        }
    }

    /// The writes that take a service port out of the maps.
    pub fn plan_removal(&self, name: &str) -> Vec<Write> {
        let Some((service, known)) = self.ids_by_name.get(name).and_then(|id| Some((*id, self.services.get(id)?)))
        else {
            return Vec::new();
        };
        let mut writes: Vec<Write> =
            known.frontends.iter().map(|address| Write::RemoveFrontend { address: *address }).collect();
        // A range that is left would be that of whoever gets the id next.
        writes.extend(known.source_ranges.iter().map(|range| Write::RemoveSourceRange { service, range: *range }));
        for family in IpFamily::ALL {
            let gone = self.families[index(family)].backends.removal(service);
            writes.extend(gone.into_iter().map(|(id, record)| Write::Backend { family, id, record }));
        }
        writes.push(Write::Name { service, name: None });
        writes
    }

    /// The writes that take frontends, source ranges and backends out that belong to no named service port, as a daemon that
    /// was killed halfway may leave them behind.
    pub fn plan_orphans(&self) -> Vec<Write> {
        let is_named = |service: u32| self.name_of(service).is_some();
        let mut writes: Vec<Write> = self
            .frontends
            .iter()
            .filter(|(_, frontend)| !is_named(frontend.service))
            .map(|(address, _)| Write::RemoveFrontend { address: *address })
            .collect();
        for family in IpFamily::ALL {
            let orphans = self.families[index(family)].backends.orphans(is_named);
            writes.extend(orphans.into_iter().map(|(id, record)| Write::Backend { family, id, record }));
        }
        for (service, known) in self.services.iter().filter(|(_, known)| known.name.is_none()) {
            let ranges = known.source_ranges.iter();
            writes.extend(ranges.map(|range| Write::RemoveSourceRange { service: *service, range: *range }));
            writes.push(Write::Name { service: *service, name: None });
        }
        writes
    }

    /// The writes that take those frontends out that the service port `name` has and `is_its` says are not its.
    pub fn plan_strays(&self, name: &str, is_its: impl Fn(&FrontendAddress) -> bool) -> Vec<Write> {
        let strays = self.frontends_of(name).filter(|address| !is_its(address));
        strays.map(|address| Write::RemoveFrontend { address }).collect()
    }

    /// The writes that clear the filters' bits of what has been gone for long.
    pub fn plan_filter_retirement(&self, now: Instant) -> Vec<Write> {
        let mut writes = Vec::new();
        for family in IpFamily::ALL {
            for filter in FilterOf::ALL {
                let words = self.families[index(family)].filter(filter).retirable(now);
                writes.extend(words.into_iter().map(|(index, value)| Write::FilterWord {
                    family,
                    filter,
                    index,
                    value,
                }));
            }
        }
        writes
    }
}

impl Draft<'_> {
    fn write(&mut self, write: Write) {
        self.plan.writes.push(write);
    }

    /// Sees to it that `bit` is set before what is written next.
    fn set_bit(&mut self, family: IpFamily, filter: FilterOf, bit: FilterBit) {
        let index = bit.word();
        let stands = || self.known.families[super::index(family)].filter(filter).word(index);
        let word = self.words.get(&(family, filter, index)).copied().unwrap_or_else(stands);
        if word & bit.mask() == 0 {
            let value = word | bit.mask();
            self.words.insert((family, filter, index), value);
            self.write(Write::FilterWord { family, filter, index, value });
        }
    }

    /// New source ranges come before the frontends that check them; what is no longer wanted goes when none does.
    fn source_ranges(&mut self, resolved: &ResolvedFamily) -> Result<(), PlanError> {
        let (service, family) = (self.service, resolved.family);
        let are_checked = resolved.frontends.iter().any(|frontend| frontend.checks_source);
        let is_of_family = |range: &&IpNet| IpFamily::of(range.addr()) == family;
        let wanted = resolved.source_ranges.iter().filter(|_| are_checked);
        let wanted: BTreeSet<IpNet> = wanted.filter(is_of_family).map(IpNet::trunc).collect();
        let held = self.held.into_iter().flat_map(|held| &held.source_ranges);
        let held: BTreeSet<IpNet> = held.filter(is_of_family).copied().collect();
        let added: Vec<IpNet> = wanted.difference(&held).copied().collect();
        let capacity = self.known.capacities.source_ranges;
        if added.len() > capacity.saturating_sub(self.known.families[index(family)].source_ranges) as usize {
            return Err(PlanError::Full { map: MapKind::SourceRanges, capacity });
        }
        self.plan.writes.extend(added.into_iter().map(|range| Write::SourceRange { service, range }));
        let removed = held.difference(&wanted);
        self.retirements.extend(removed.map(|range| Write::RemoveSourceRange { service, range: *range }));
        Ok(())
    }

    /// Records of backends; gives the id of each endpoint.
    fn backends(
        &mut self,
        resolved: &ResolvedFamily,
        protocol: Protocol,
    ) -> Result<BTreeMap<(IpAddr, u16), u32>, PlanError> {
        let family = resolved.family;
        let of_endpoint = |endpoint: &ResolvedEndpoint| ((endpoint.address, endpoint.port), Standing::of(endpoint));
        let wanted = resolved.endpoints.iter().map(of_endpoint).collect();
        let plan = self.known.families[index(family)].backends.plan(self.service, &wanted)?;
        for (id, record) in plan.before {
            if record.state != BackendState::Gone {
                let bit = filter::backend_bit(record.address, record.port, protocol);
                self.set_bit(family, FilterOf::Backends, bit);
            }
            self.write(Write::Backend { family, id, record });
        }
        self.retirements.extend(plan.after.into_iter().map(|(id, record)| Write::Backend { family, id, record }));
        Ok(plan.ids)
    }

    /// The slots of each list that a frontend names, and the frontends themselves.
    fn slots(&mut self, resolved: &ResolvedFamily, ids: &BTreeMap<(IpAddr, u16), u32>) -> Result<(), PlanError> {
        let ResolvedFamily { family, frontends, endpoints, distribution, source_ranges } = resolved;
        let array = &self.known.families[index(*family)].slots;
        let none = Runs::default();
        let runs = self.held.map_or(&none, |held| &held.runs[index(*family)]);
        let reached: BTreeSet<Reach> =
            frontends.iter().flat_map(|frontend| [frontend.inside, frontend.outside]).collect();
        let mut placed: BTreeMap<Reach, Slots> = BTreeMap::new();
        let mut contents: Vec<(Vec<(IpAddr, u16)>, Slots)> = Vec::new();
        let mut taken = Vec::new();
        for reach in reached {
            let list: Vec<(IpAddr, u16)> = endpoints
                .iter()
                .filter(|endpoint| endpoint.is_in(reach))
                .map(|endpoint| (endpoint.address, endpoint.port))
                .collect();
            // Lists that are equal share one run.
            if let Some((_, slots)) = contents.iter().find(|(other, _)| *other == list) {
                placed.insert(reach, *slots);
                continue;
            }
            let backends: Vec<u32> = list.iter().filter_map(|endpoint| ids.get(endpoint).copied()).collect();
            let maglev = match distribution {
                Distribution::Maglev if backends.len() > 1 => {
                    Some(maglev::table(&list).into_iter().map(|endpoint| backends[endpoint]).collect())
                }
                Distribution::List | Distribution::Maglev => None,
            };
            let may_overwrite = |first| self.is_only_for(*family, first, reach);
            // Where a table has no room a list may have: less even across nodes, and better than what was.
            let placement = maglev
                .and_then(|content| runs.place(content, array, &mut taken, may_overwrite, self.now))
                .or_else(|| runs.place(backends, array, &mut taken, may_overwrite, self.now))
                .ok_or(PlanError::Full { map: MapKind::Slots, capacity: array.capacity() })?;
            let (slots, service) = (placement.slots, self.service);
            let write = |backends| Write::Slots { family: *family, first: slots.first, service, backends };
            self.plan.writes.extend(placement.write.map(write));
            placed.insert(reach, slots);
            contents.push((list, slots));
        }
        let has = |reach| endpoints.iter().any(|endpoint| endpoint.is_in(reach));
        let drops = !has(Reach::Local) && has(Reach::Cluster);
        for frontend in frontends {
            let slots = |reach| placed.get(&reach).copied().unwrap_or_default();
            let checks_source =
                frontend.checks_source && (!source_ranges.is_empty() || self.guarded.contains(&frontend.address));
            let record = Frontend {
                service: self.service,
                inside: slots(frontend.inside),
                outside: slots(frontend.outside),
                affinity: self.affinity,
                flags: flags(frontend, drops, checks_source),
            };
            self.frontends.insert(frontend.address, record);
        }
        Ok(())
    }

    /// Whether the run at `first` stands for the list of `reach` and for no other.
    fn is_only_for(&self, family: IpFamily, first: u32, reach: Reach) -> bool {
        let addresses = self.held.into_iter().flat_map(|held| &held.frontends);
        addresses
            .filter(|address| address.family() == family)
            .filter_map(|address| self.known.frontends.get(address))
            .flat_map(reaches)
            .all(|(slots, of)| run_of(slots) != Some(first) || of == reach)
    }

    /// Frontends last, new ones before those that go: the first frontend of a run keeps it from being given to others.
    fn switch_frontends(&mut self) -> Result<(), PlanError> {
        let known = self.known;
        let mut added: BTreeMap<IpFamily, u32> = BTreeMap::new();
        let mut switches = Vec::new();
        let wanted = std::mem::take(&mut self.frontends);
        for (address, frontend) in &wanted {
            let (held, family) = (known.frontends.get(address), address.family());
            self.set_bit(family, FilterOf::Frontends, filter::filter_bit(address));
            if held.is_none() {
                *added.entry(family).or_default() += 1;
            }
            if held != Some(frontend) {
                switches.push(Write::Frontend { address: *address, frontend: *frontend });
            }
        }
        let capacity = known.capacities.frontends;
        for (family, added) in added {
            if added > capacity.saturating_sub(known.families[index(family)].frontends) {
                return Err(PlanError::Full { map: MapKind::Frontends, capacity });
            }
        }
        self.plan.writes.append(&mut switches);
        let held = self.held.into_iter().flat_map(|held| &held.frontends);
        let removed = held.filter(|address| !wanted.contains_key(address));
        self.plan.writes.extend(removed.map(|address| Write::RemoveFrontend { address: *address }));
        Ok(())
    }
}

/// The slots for clients inside and outside, and which list stands there.
fn reaches(frontend: &Frontend) -> [(Slots, Reach); 2] {
    let of = |flag| if frontend.has(flag) { Reach::Local } else { Reach::Cluster };
    [(frontend.inside, of(FrontendFlags::INSIDE_LOCAL)), (frontend.outside, of(FrontendFlags::OUTSIDE_LOCAL))]
}

/// The kind and [`FrontendFlags`] of `frontend`; `drops` when there are endpoints, and none on this node.
pub fn flags(frontend: &ResolvedFrontend, drops: bool, checks_source: bool) -> u32 {
    let local = |reach| reach == Reach::Local;
    let flag = |is_set, flag| if is_set { flag } else { 0 };
    frontend.kind as u32
        | flag(local(frontend.inside), FrontendFlags::INSIDE_LOCAL)
        | flag(local(frontend.outside), FrontendFlags::OUTSIDE_LOCAL)
        | flag(local(frontend.inside) && drops, FrontendFlags::INSIDE_DROPS)
        | flag(local(frontend.outside) && drops, FrontendFlags::OUTSIDE_DROPS)
        | flag(checks_source, FrontendFlags::SOURCE_RANGES)
}
