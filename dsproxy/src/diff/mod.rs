//! What the maps hold vs what they should hold -> ordered writes.
//!
//! [`Known`] mirrors the maps. Planning never changes it: it says which writes would make one service port right,
//! and each write is entered with [`Known::applied`] once the store has taken it. A failure halfway therefore leaves a
//! true picture, and planning again from there reaches the goal.
//!
//! The order of a plan keeps the data path whole at every step: name and counters -> new backends -> slots -> filter
//! -> frontends -> what is no longer used.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Instant,
};

use dsproxy_common::{
    IpFamily,
    service::{BackendState, Frontend},
};
use thiserror::Error;

use crate::{
    maglev,
    maps::{Capacities, Contents, FrontendAddress, MapKind, Write},
    resolve::{Distribution, ResolvedFamily, ResolvedPort, ServicePortName},
};

mod backends;
pub mod filter;
mod ids;
mod slots;

use backends::Backends;
use filter::Filter;
use ids::Ids;
use slots::{Run, Slots};

#[cfg(test)]
mod tests;

/// Everything the maps are known to hold.
#[derive(Debug)]
pub struct Known {
    services: HashMap<u32, KnownService>,
    ids_by_name: HashMap<String, u32>,
    service_ids: Ids,
    frontends: HashMap<FrontendAddress, Frontend>,
    frontend_capacity: u32,
    families: [KnownFamily; 2],
}

/// What is known of one family's maps.
#[derive(Debug)]
struct KnownFamily {
    /// How many frontends there are.
    frontends: u32,
    backends: Backends,
    slots: Slots,
    filter: Filter,
}

/// What is known of one service port.
#[derive(Debug, Default)]
struct KnownService {
    name: Option<String>,
    frontends: BTreeSet<FrontendAddress>,
    families: [KnownServiceFamily; 2],
}

#[derive(Debug, Default)]
struct KnownServiceFamily {
    /// The runs that frontends use: one, and while they are being switched, two.
    runs: Vec<Run>,
    /// A run that is written and that no frontend uses yet.
    pending: Option<Run>,
}

/// The writes that make one service port right, and what could not be had.
#[derive(Debug, Default)]
pub struct Plan {
    /// The writes, in order.
    pub writes: Vec<Write>,
    /// Frontends left out because they belong to another service port.
    pub conflicts: Vec<Conflict>,
}

/// Two service ports want one frontend. The first to have it keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The frontend.
    pub address: FrontendAddress,
    /// Which service port has it.
    pub holder: String,
}

/// Why a service port cannot be planned.
#[derive(Debug, Error)]
pub enum PlanError {
    /// There is no room.
    #[error("the map of {} is full with {capacity} entries; {} sets its size", map.name(), map.flag().unwrap_or("nothing"))]
    Full {
        /// Which map.
        map: MapKind,
        /// How many entries it has.
        capacity: u32,
    },
}

/// Where `content` stands, or is to be written at `now`: the frontend's `slots` and `slot_count`, and the run to write
/// unless it stands there already. None when there is no room.
fn place(
    content: Vec<u32>,
    known: Option<&KnownServiceFamily>,
    slots: &Slots,
    now: Instant,
) -> Option<(u32, u32, Option<Vec<u32>>)> {
    let count = u32::try_from(content.len()).ok()?;
    match content.as_slice() {
        [] => return Some((0, 0, None)),
        [only] => return Some((*only, 1, None)),
        _ => {}
    }
    let pending = known.and_then(|known| known.pending.as_ref());
    let runs = || known.into_iter().flat_map(|known| &known.runs).chain(pending);
    if let Some(run) = runs().find(|run| run.backends == content) {
        return Some((run.first, count, None));
    }
    let first = pending
        .filter(|pending| slots::class(pending.backends.len()) == slots::class(content.len()))
        .map(|pending| pending.first)
        .or_else(|| slots.peek(content.len(), now))
        // With no room left the run in use is written over: each of its slots names an endpoint of this service port
        // before and after.
        .or_else(|| runs().map(|run| run.first).find(|first| slots.fits(*first, content.len())))?;
    Some((first, count, Some(content)))
}

fn index(family: IpFamily) -> usize {
    match family {
        IpFamily::V4 => 0,
        IpFamily::V6 => 1,
    }
}

impl Known {
    /// What maps of these sizes are known to hold after `contents` were read from them.
    pub fn new(capacities: Capacities, contents: &Contents, now: Instant) -> Self {
        let family = |family| KnownFamily {
            frontends: 0,
            backends: Backends::new(capacities.backends, contents.backends.iter().filter(|(of, ..)| *of == family)),
            slots: Slots::new(capacities.slots),
            filter: Filter::new(
                contents.filter.iter().filter(|(of, ..)| *of == family).map(|(_, index, word)| (*index, *word)),
                now,
            ),
        };
        let mut known = Self {
            services: HashMap::new(),
            ids_by_name: HashMap::new(),
            service_ids: Ids::new(capacities.services),
            frontends: HashMap::new(),
            frontend_capacity: capacities.frontends,
            families: [family(IpFamily::V4), family(IpFamily::V6)],
        };
        for (id, name) in &contents.names {
            known.applied(&Write::Name { service: *id, name: Some(name.clone()) }, now);
        }
        for (address, frontend) in &contents.frontends {
            let family = index(address.family());
            let service = known.services.entry(frontend.service).or_default();
            known.service_ids.take(frontend.service);
            let runs = &mut service.families[family].runs;
            if frontend.slot_count > 1 && runs.iter().all(|run| run.first != frontend.slots) {
                let backends = contents.runs.get(&(address.family(), frontend.slots)).cloned().unwrap_or_default();
                let run = Run { first: frontend.slots, backends };
                known.families[family].slots.adopt(run.first, frontend.slot_count as usize);
                runs.push(run);
            }
            known.applied(&Write::Frontend { address: *address, frontend: *frontend }, now);
        }
        known
    }

    /// How many service ports there are.
    pub fn service_count(&self) -> usize {
        self.ids_by_name.len()
    }

    /// The names of all service ports.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.ids_by_name.keys().map(String::as_str)
    }

    /// How many frontends, backends that are not gone, and slots of `family` are in use.
    pub fn fill(&self, family: IpFamily) -> [(MapKind, u32); 3] {
        let KnownFamily { frontends, backends, slots, filter: _ } = &self.families[index(family)];
        [(MapKind::Frontends, *frontends), (MapKind::Backends, backends.in_use()), (MapKind::Slots, slots.in_use())]
    }

    /// The writes that make `wanted` stand in the maps.
    ///
    /// `siblings` are the frontends of all ports of its Service: between these a frontend passes by a single write,
    /// so that ports may change their names or swap their numbers without a gap.
    ///
    /// # Errors
    ///
    /// When a map has no room. Nothing has been written then, and what is served stays served, but for endpoints that are
    /// gone: see [`Known::plan_reduction`].
    pub fn plan(
        &self,
        wanted: &ResolvedPort,
        siblings: &BTreeSet<FrontendAddress>,
        now: Instant,
    ) -> Result<Plan, PlanError> {
        let name = wanted.name.to_string();
        let service = match self.ids_by_name.get(&name) {
            Some(id) => *id,
            None => self
                .service_ids
                .peek()
                .ok_or(PlanError::Full { map: MapKind::Services, capacity: self.service_ids.capacity() })?,
        };
        let mut plan = Plan::default();
        let known = self.services.get(&service);
        if known.is_none_or(|known| known.name.as_deref() != Some(&name)) {
            plan.writes.push(Write::ResetCounters { service });
            plan.writes.push(Write::Name { service, name: Some(name) });
        }

        let mut retirements = Vec::new();
        let mut frontends = BTreeMap::new();
        for family in IpFamily::ALL {
            let absent = ResolvedFamily {
                family,
                frontends: Vec::new(),
                active: Vec::new(),
                draining: Vec::new(),
                distribution: Distribution::List,
            };
            let resolved = wanted.families.iter().find(|resolved| resolved.family == family).unwrap_or(&absent);
            self.plan_family(service, known, resolved, now, &mut plan, &mut retirements, &mut frontends)?;
        }
        self.plan_frontends(&wanted.name, service, known, &frontends, siblings, &mut plan)?;
        plan.writes.append(&mut retirements);
        Ok(plan)
    }

    /// The writes that take away what `wanted` lacks and add nothing, for when there is no room for all of it. None when
    /// the service port is not in the maps, and so has nothing to lose.
    pub fn plan_reduction(
        &self,
        wanted: &ResolvedPort,
        siblings: &BTreeSet<FrontendAddress>,
        now: Instant,
    ) -> Option<Plan> {
        let ResolvedPort { name, families } = wanted;
        let service = *self.ids_by_name.get(&name.to_string())?;
        let reduced = families.iter().map(|resolved| {
            let ResolvedFamily { family, frontends, active, draining, distribution } = resolved;
            let backends = &self.families[index(*family)].backends;
            let stands =
                |address: &&FrontendAddress| self.frontends.get(address).is_some_and(|held| held.service == service);
            let is_active = |endpoint: &&(IpAddr, u16)| backends.state(service, endpoint) == BackendState::Active;
            let keeps_flows = |endpoint: &&(IpAddr, u16)| match backends.state(service, endpoint) {
                BackendState::Active => !active.contains(endpoint),
                BackendState::Draining => true,
                BackendState::Gone => false,
            };
            ResolvedFamily {
                family: *family,
                frontends: frontends.iter().filter(stands).copied().collect(),
                active: active.iter().filter(is_active).copied().collect(),
                draining: active.iter().chain(draining).filter(keeps_flows).copied().collect(),
                distribution: *distribution,
            }
        });
        let reduced = ResolvedPort { name: name.clone(), families: reduced.collect() };
        self.plan(&reduced, siblings, now).ok()
    }

    /// Backends and slots of one family; collects the frontends and what is to go once they have been switched.
    #[expect(clippy::too_many_arguments, reason = "the parts of one plan, each filled in at its place in the order")]
    fn plan_family(
        &self,
        service: u32,
        known: Option<&KnownService>,
        resolved: &ResolvedFamily,
        now: Instant,
        plan: &mut Plan,
        retirements: &mut Vec<Write>,
        frontends: &mut BTreeMap<FrontendAddress, Frontend>,
    ) -> Result<(), PlanError> {
        let family = resolved.family;
        let KnownFamily { frontends: _, backends, slots, filter: _ } = &self.families[index(family)];
        let states = [(&resolved.active, BackendState::Active), (&resolved.draining, BackendState::Draining)];
        let wanted: BTreeMap<(IpAddr, u16), BackendState> = states
            .into_iter()
            .flat_map(|(endpoints, state)| endpoints.iter().map(move |endpoint| (*endpoint, state)))
            .collect();
        let backend_plan = backends.plan(service, &wanted)?;
        let write = |(id, record)| Write::Backend { family, id, record };
        plan.writes.extend(backend_plan.before.into_iter().map(write));
        retirements.extend(backend_plan.after.into_iter().map(write));

        let active: Vec<u32> =
            resolved.active.iter().filter_map(|endpoint| backend_plan.ids.get(endpoint).copied()).collect();
        let maglev = match resolved.distribution {
            Distribution::Maglev if active.len() > 1 => {
                Some(maglev::table(&resolved.active).into_iter().map(|endpoint| active[endpoint]).collect())
            }
            Distribution::List | Distribution::Maglev => None,
        };
        let known = known.map(|known| &known.families[index(family)]);
        // Where a table has no room a list may have: less even across nodes, and better than what was.
        let (first, slot_count, run) = maglev
            .and_then(|content| place(content, known, slots, now))
            .or_else(|| place(active, known, slots, now))
            .ok_or(PlanError::Full { map: MapKind::Slots, capacity: slots.capacity() })?;
        plan.writes.extend(run.map(|backends| Write::Slots { family, first, service, backends }));
        let frontend = Frontend { service, slots: first, slot_count, flags: 0 };
        frontends.extend(resolved.frontends.iter().map(|address| (*address, frontend)));
        Ok(())
    }

    fn plan_frontends(
        &self,
        name: &ServicePortName,
        service: u32,
        known: Option<&KnownService>,
        wanted: &BTreeMap<FrontendAddress, Frontend>,
        siblings: &BTreeSet<FrontendAddress>,
        plan: &mut Plan,
    ) -> Result<(), PlanError> {
        let mut words: HashMap<(IpFamily, u32), u64> = HashMap::new();
        let mut added: BTreeMap<IpFamily, u32> = BTreeMap::new();
        let mut switches = Vec::new();
        for (address, frontend) in wanted {
            let held = self.frontends.get(address);
            let holder = held.filter(|held| held.service != service).and_then(|held| self.name_of(held.service));
            if let Some(holder) = holder.filter(|holder| !name.is_sibling(holder)) {
                plan.conflicts.push(Conflict { address: *address, holder: holder.to_owned() });
                continue;
            }
            let family = address.family();
            let filter = &self.families[index(family)].filter;
            let bit = filter::filter_bit(address);
            let word = words.get(&(family, bit.word())).copied().unwrap_or_else(|| filter.word(bit.word()));
            if word & bit.mask() == 0 {
                words.insert((family, bit.word()), word | bit.mask());
                plan.writes.push(Write::FilterWord { family, index: bit.word(), value: word | bit.mask() });
            }
            if held.is_none() {
                *added.entry(family).or_default() += 1;
            }
            if held != Some(frontend) {
                switches.push(Write::Frontend { address: *address, frontend: *frontend });
            }
        }
        for (family, added) in added {
            if added > self.frontend_capacity.saturating_sub(self.families[index(family)].frontends) {
                return Err(PlanError::Full { map: MapKind::Frontends, capacity: self.frontend_capacity });
            }
        }
        plan.writes.append(&mut switches);
        // Removals last: the first frontend of a run keeps it from being given to others.
        let removed =
            known.into_iter().flat_map(|known| &known.frontends).filter(|address| !siblings.contains(address));
        plan.writes.extend(removed.map(|address| Write::RemoveFrontend { address: *address }));
        Ok(())
    }

    /// The writes that take a service port out of the maps.
    pub fn plan_removal(&self, name: &str) -> Vec<Write> {
        let Some((service, known)) = self.ids_by_name.get(name).and_then(|id| Some((*id, self.services.get(id)?)))
        else {
            return Vec::new();
        };
        let mut writes: Vec<Write> =
            known.frontends.iter().map(|address| Write::RemoveFrontend { address: *address }).collect();
        for family in IpFamily::ALL {
            let gone = self.families[index(family)].backends.removal(service);
            writes.extend(gone.into_iter().map(|(id, record)| Write::Backend { family, id, record }));
        }
        writes.push(Write::Name { service, name: None });
        writes
    }

    /// The writes that take frontends and backends out that belong to no named service port, as a daemon that was
    /// killed halfway may leave them behind.
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
        let unnamed = self.services.iter().filter(|(_, known)| known.name.is_none()).map(|(service, _)| *service);
        writes.extend(unnamed.map(|service| Write::Name { service, name: None }));
        writes
    }

    /// The writes that clear the filter's bits of frontends that have been gone for long.
    pub fn plan_filter_retirement(&self, now: Instant) -> Vec<Write> {
        IpFamily::ALL
            .into_iter()
            .flat_map(|family| {
                let words = self.families[index(family)].filter.retirable(now);
                words.into_iter().map(move |(index, value)| Write::FilterWord { family, index, value })
            })
            .collect()
    }

    fn name_of(&self, service: u32) -> Option<&str> {
        self.services.get(&service)?.name.as_deref()
    }

    /// Enters a write that the store has taken.
    pub fn applied(&mut self, write: &Write, now: Instant) {
        match write {
            Write::ResetCounters { service: _ } => {}
            Write::Name { service, name } => self.applied_name(*service, name.as_deref(), now),
            Write::Backend { family, id, record } => self.families[index(*family)].backends.applied(*id, *record),
            Write::FilterWord { family, index: word, value } => {
                self.families[index(*family)].filter.applied(*word, *value);
            }
            Write::Slots { family, first, service, backends } => {
                let slots = &mut self.families[index(*family)].slots;
                let known = &mut self.services.entry(*service).or_default().families[index(*family)];
                let run = Run { first: *first, backends: backends.clone() };
                if let Some(in_use) = known.runs.iter_mut().find(|in_use| in_use.first == *first) {
                    *in_use = run;
                    return;
                }
                if let Some(pending) = known.pending.take().filter(|pending| pending.first != *first) {
                    slots.release(pending.first, now);
                }
                slots.adopt(run.first, run.backends.len());
                known.pending = Some(run);
            }
            Write::Frontend { address, frontend } => {
                let family = index(address.family());
                match self.frontends.insert(*address, *frontend) {
                    None => {
                        self.families[family].filter.added(address);
                        self.families[family].frontends += 1;
                    }
                    Some(before) if before.service != frontend.service => {
                        if let Some(service) = self.services.get_mut(&before.service) {
                            service.frontends.remove(address);
                        }
                        self.release_unused_runs(before.service, family, now);
                    }
                    Some(_) => {}
                }
                let service = self.services.entry(frontend.service).or_default();
                service.frontends.insert(*address);
                let known = &mut service.families[family];
                let uses = |run: &mut Run| frontend.slot_count > 1 && run.first == frontend.slots;
                known.runs.extend(known.pending.take_if(uses));
                self.release_unused_runs(frontend.service, family, now);
            }
            Write::RemoveFrontend { address } => {
                let family = index(address.family());
                if let Some(frontend) = self.frontends.remove(address) {
                    self.families[family].filter.removed(address, now);
                    self.families[family].frontends -= 1;
                    if let Some(service) = self.services.get_mut(&frontend.service) {
                        service.frontends.remove(address);
                    }
                    self.release_unused_runs(frontend.service, family, now);
                }
            }
        }
    }

    /// Enters that the store has not taken a write, of which any part may have happened.
    pub fn failed(&mut self, write: &Write) {
        if let Write::Slots { family, first, service, backends: _ } = write
            && let Some(known) = self.services.get_mut(service)
        {
            let runs = &mut known.families[index(*family)].runs;
            // What stands there is no longer known, and so is not taken for anything that is wanted.
            runs.iter_mut().filter(|run| run.first == *first).for_each(|run| run.backends.clear());
        }
    }

    fn applied_name(&mut self, service: u32, name: Option<&str>, now: Instant) {
        let known = self.services.entry(service).or_default();
        if let Some(before) = std::mem::replace(&mut known.name, name.map(str::to_owned)) {
            self.ids_by_name.remove(&before);
        }
        match name {
            Some(name) => {
                self.ids_by_name.insert(name.to_owned(), service);
                self.service_ids.take(service);
            }
            None => {
                if let Some(known) = self.services.remove(&service) {
                    for (family, known) in self.families.iter_mut().zip(known.families) {
                        for run in known.runs.iter().chain(&known.pending) {
                            family.slots.release(run.first, now);
                        }
                    }
                }
                self.service_ids.give_back(service);
            }
        }
    }

    /// Releases the runs of a service port that none of its frontends uses any more.
    fn release_unused_runs(&mut self, service: u32, family: usize, now: Instant) {
        let Some(known) = self.services.get_mut(&service) else { return };
        let used: BTreeSet<u32> = known
            .frontends
            .iter()
            .filter(|address| index(address.family()) == family)
            .filter_map(|address| self.frontends.get(address))
            .filter(|frontend| frontend.slot_count > 1)
            .map(|frontend| frontend.slots)
            .collect();
        let slots = &mut self.families[family].slots;
        known.families[family].runs.retain(|run| {
            let is_used = used.contains(&run.first);
            if !is_used {
                slots.release(run.first, now);
            }
            is_used
        });
    }
}
