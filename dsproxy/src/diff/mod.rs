//! What the maps hold vs what they should hold -> ordered writes.
//!
//! [`Known`] mirrors the maps. Planning (`plan`) never changes it: it says which writes would make one service port right,
//! and each write is entered with [`Known::applied`] once the store has taken it. A failure halfway therefore leaves a
//! true picture, and planning again from there reaches the goal.
//!
//! The order of a plan keeps the data path whole at every step: name and counters -> source ranges -> new backends ->
//! slots -> filters -> frontends -> what is no longer used.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Instant,
};

use dsproxy_common::{
    IpFamily, Protocol,
    filter::FilterBit,
    service::{self, BackendState, Frontend},
};
use ipnet::IpNet;
use thiserror::Error;

use crate::{
    few::Few,
    maps::{BackendRecord, Capacities, Contents, FilterOf, FrontendAddress, MapKind, Write},
};

mod backends;
pub mod filter;
mod ids;
mod plan;
mod runs;
mod slots;

use backends::Backends;
use filter::Filter;
use ids::Ids;
pub use plan::flags;
use runs::Runs;
use slots::{Run, SlotArray};

#[cfg(test)]
mod tests;

/// Everything that the maps of Services are known to hold.
#[derive(Debug)]
pub struct Known {
    capacities: Capacities,
    services: HashMap<u32, KnownService>,
    ids_by_name: HashMap<Arc<str>, u32>,
    service_ids: Ids,
    frontends: HashMap<FrontendAddress, Frontend>,
    families: [KnownFamily; 2],
}

/// What is known of one family's maps.
#[derive(Debug)]
struct KnownFamily {
    /// How many frontends there are.
    frontends: u32,
    /// How many source ranges there are.
    source_ranges: u32,
    backends: Backends,
    slots: SlotArray,
    frontend_filter: Filter,
    backend_filter: Filter,
    /// The bits that stand in the filter for backends, by id.
    backend_bits: Vec<Option<FilterBit>>,
}

/// What is known of one service port.
#[derive(Debug, Default)]
struct KnownService {
    name: Option<Arc<str>>,
    /// The protocol in its name.
    protocol: Option<Protocol>,
    frontends: Few<FrontendAddress>,
    source_ranges: BTreeSet<IpNet>,
    runs: [Runs; 2],
}

/// The writes that make one service port right.
#[derive(Debug, Default)]
pub struct Plan {
    /// The writes, in order.
    pub writes: Vec<Write>,
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

/// The protocol in the name of a service port, `namespace/name:port/PROTOCOL`.
fn protocol_in(name: &str) -> Option<Protocol> {
    let (_, protocol) = name.rsplit_once('/')?;
    Protocol::ALL.into_iter().find(|known| known.to_string() == protocol)
}

fn index(family: IpFamily) -> usize {
    match family {
        IpFamily::V4 => 0,
        IpFamily::V6 => 1,
    }
}

impl KnownFamily {
    fn new(family: IpFamily, capacities: &Capacities, contents: &Contents, now: Instant) -> Self {
        let filter = |filter| {
            let words = contents.filter.iter().filter(|(of, which, ..)| (*of, *which) == (family, filter));
            Filter::new(words.map(|(_, _, index, word)| (*index, *word)), now)
        };
        Self {
            frontends: 0,
            source_ranges: 0,
            backends: Backends::new(capacities.backends, contents.backends.iter().filter(|(of, ..)| *of == family)),
            slots: SlotArray::new(capacities.slots),
            frontend_filter: filter(FilterOf::Frontends),
            backend_filter: filter(FilterOf::Backends),
            backend_bits: Vec::new(),
        }
    }

    fn filter(&self, filter: FilterOf) -> &Filter {
        match filter {
            FilterOf::Frontends => &self.frontend_filter,
            FilterOf::Backends => &self.backend_filter,
        }
    }

    fn filter_mut(&mut self, filter: FilterOf) -> &mut Filter {
        match filter {
            FilterOf::Frontends => &mut self.frontend_filter,
            FilterOf::Backends => &mut self.backend_filter,
        }
    }

    /// Enters what the record of `id` says into the filter of backends.
    fn note_backend(&mut self, id: u32, record: &BackendRecord, protocol: Option<Protocol>, now: Instant) {
        let bit = protocol
            .filter(|_| record.state != BackendState::Gone)
            .map(|protocol| filter::backend_bit(record.address, record.port, protocol));
        let place = id as usize;
        if self.backend_bits.len() <= place {
            self.backend_bits.resize(place + 1, None);
        }
        let before = std::mem::replace(&mut self.backend_bits[place], bit);
        if before != bit {
            bit.into_iter().for_each(|bit| self.backend_filter.added(bit));
            before.into_iter().for_each(|bit| self.backend_filter.removed(bit, now));
        }
    }
}

/// The run of slots that stands in the array for `slots`, if they do not name their one backend by themselves.
fn run_of(slots: service::Slots) -> Option<u32> {
    (slots.count > 1).then_some(slots.first)
}

impl Known {
    /// What maps of these sizes are known to hold after `contents` were read from them.
    pub fn new(capacities: Capacities, contents: &Contents, now: Instant) -> Self {
        let mut known = Self {
            capacities,
            services: HashMap::new(),
            ids_by_name: HashMap::new(),
            service_ids: Ids::new(capacities.services),
            frontends: HashMap::new(),
            families: IpFamily::ALL.map(|family| KnownFamily::new(family, &capacities, contents, now)),
        };
        for (id, name) in &contents.names {
            known.applied(&Write::Name { service: *id, name: Some(name.clone()) }, now);
        }
        for (family, id, record) in &contents.backends {
            let protocol = known.protocol_of(record.service);
            known.families[index(*family)].note_backend(*id, record, protocol, now);
        }
        for (service, range) in &contents.source_ranges {
            known.applied(&Write::SourceRange { service: *service, range: *range }, now);
        }
        for (address, frontend) in &contents.frontends {
            let family = address.family();
            let runs = &mut known.services.entry(frontend.service).or_default().runs[index(family)].in_use;
            known.service_ids.take(frontend.service);
            for slots in [frontend.inside, frontend.outside] {
                let Some(first) = run_of(slots) else { continue };
                known.families[index(family)].slots.adopt(first, slots.count as usize, now);
                if runs.iter().all(|run| run.first != first) {
                    let backends = contents.runs.get(&(family, first)).cloned().unwrap_or_default();
                    runs.push(Run { first, backends });
                }
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
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.ids_by_name.keys()
    }

    /// The frontends of the service port `name`.
    pub fn frontends_of(&self, name: &str) -> impl Iterator<Item = FrontendAddress> {
        let service = self.ids_by_name.get(name).and_then(|id| self.services.get(id));
        service.into_iter().flat_map(|known| &known.frontends).copied()
    }

    /// Has places free at `now` that nobody has used for long enough; those side by side are one from then on.
    pub fn settle(&mut self, now: Instant) {
        self.families.iter_mut().for_each(|family| family.slots.wake(now));
    }

    /// How many frontends, backends that are not gone, slots and source ranges of `family` are in use.
    pub fn fill(&self, family: IpFamily) -> [(MapKind, u32); 4] {
        let KnownFamily { frontends, source_ranges, backends, slots, .. } = &self.families[index(family)];
        [
            (MapKind::Frontends, *frontends),
            (MapKind::Backends, backends.in_use()),
            (MapKind::Slots, slots.in_use()),
            (MapKind::SourceRanges, *source_ranges),
        ]
    }

    fn name_of(&self, service: u32) -> Option<&str> {
        self.services.get(&service)?.name.as_deref()
    }

    /// The protocol in the name of a service port.
    pub fn protocol_of(&self, service: u32) -> Option<Protocol> {
        self.services.get(&service)?.protocol
    }

    /// Enters a write that the store has taken.
    pub fn applied(&mut self, write: &Write, now: Instant) {
        match write {
            Write::Name { service, name } => self.applied_name(*service, name.as_deref(), now),
            Write::Backend { family, id, record } => {
                let protocol = self.protocol_of(record.service);
                let family = &mut self.families[index(*family)];
                family.backends.applied(*id, *record);
                family.note_backend(*id, record, protocol, now);
            }
            Write::FilterWord { family, filter, index: word, value } => {
                self.families[index(*family)].filter_mut(*filter).applied(*word, *value);
            }
            Write::Slots { family, first, service, backends } => {
                let runs = &mut self.services.entry(*service).or_default().runs[index(*family)];
                let run = Run { first: *first, backends: backends.clone() };
                runs.written(run, &mut self.families[index(*family)].slots, now);
            }
            Write::Frontend { address, frontend } => {
                let family = index(address.family());
                match self.frontends.insert(*address, *frontend) {
                    None => {
                        self.families[family].frontend_filter.added(filter::filter_bit(address));
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
                let (runs, array) = (&mut service.runs[family], &mut self.families[family].slots);
                let used = [frontend.inside, frontend.outside].into_iter().filter_map(run_of);
                used.for_each(|first| runs.used(first, array, now));
                self.release_unused_runs(frontend.service, family, now);
            }
            Write::RemoveFrontend { address } => {
                let family = index(address.family());
                if let Some(frontend) = self.frontends.remove(address) {
                    self.families[family].frontend_filter.removed(filter::filter_bit(address), now);
                    self.families[family].frontends -= 1;
                    if let Some(service) = self.services.get_mut(&frontend.service) {
                        service.frontends.remove(address);
                    }
                    self.release_unused_runs(frontend.service, family, now);
                }
            }
            Write::SourceRange { service, range } => {
                let known = self.services.entry(*service).or_default();
                let is_new = known.source_ranges.insert(*range);
                self.families[index(IpFamily::of(range.addr()))].source_ranges += u32::from(is_new);
            }
            Write::RemoveSourceRange { service, range } => {
                let was_there = self.services.get_mut(service).is_some_and(|known| known.source_ranges.remove(range));
                self.families[index(IpFamily::of(range.addr()))].source_ranges -= u32::from(was_there);
            }
            Write::ResetCounters { .. }
            | Write::Network { .. }
            | Write::RemoveNetwork { .. }
            | Write::ServiceNetwork { .. }
            | Write::Masquerade { .. }
            | Write::RemoveMasquerade { .. } => {}
        }
    }

    /// Enters that the store has not taken a write, of which any part may have happened.
    pub fn failed(&mut self, write: &Write) {
        if let Write::Slots { family, first, service, backends: _ } = write
            && let Some(known) = self.services.get_mut(service)
        {
            known.runs[index(*family)].failed(*first);
        }
    }

    fn applied_name(&mut self, service: u32, name: Option<&str>, now: Instant) {
        let known = self.services.entry(service).or_default();
        let name: Option<Arc<str>> = name.map(Arc::from);
        known.protocol = name.as_deref().and_then(protocol_in);
        if let Some(before) = std::mem::replace(&mut known.name, name.clone()) {
            self.ids_by_name.remove(&before);
        }
        match name {
            Some(name) => {
                self.ids_by_name.insert(name, service);
                self.service_ids.take(service);
            }
            None => {
                if let Some(known) = self.services.remove(&service) {
                    for (family, runs) in self.families.iter_mut().zip(known.runs) {
                        runs.release_all(&mut family.slots, now);
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
            .flat_map(|frontend| [frontend.inside, frontend.outside])
            .filter_map(run_of)
            .collect();
        known.runs[family].release_unused(&used, &mut self.families[family].slots, now);
    }
}
