//! Backend ids of one family: which endpoint of which service port each names, and which may be given to another.
//!
//! An id whose endpoint has gone keeps its record, so that established connections still find their way, and is given to
//! another endpoint as late as can be. An endpoint that comes back before that gets its id and its connections back.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use dsproxy_common::{
    IpFamily,
    service::{BackendFlags, BackendState},
};

use super::PlanError;
use crate::{
    few::Few,
    maps::{BackendRecord, MapKind},
    resolve::ResolvedEndpoint,
};

/// An endpoint of a service port.
type Endpoint = (IpAddr, u16);

/// The flags that tell which lists a backend is in.
const LISTS: u8 = BackendFlags::IN_CLUSTER_LIST | BackendFlags::IN_LOCAL_LIST;

/// How the record of a backend is to stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    state: BackendState,
    flags: u8,
}

impl Standing {
    /// That of a wanted endpoint.
    pub(super) fn of(endpoint: &ResolvedEndpoint) -> Self {
        let flag = |is_set, flag| if is_set { flag } else { 0 };
        Self {
            state: if endpoint.is_active() { BackendState::Active } else { BackendState::Draining },
            flags: flag(endpoint.is_local, BackendFlags::LOCAL)
                | flag(endpoint.is_on_node, BackendFlags::ON_NODE)
                | flag(endpoint.in_cluster_list, BackendFlags::IN_CLUSTER_LIST)
                | flag(endpoint.in_local_list, BackendFlags::IN_LOCAL_LIST),
        }
    }
}

/// The ids of one family.
#[derive(Debug)]
pub(super) struct Backends {
    capacity: u32,
    /// Every id below the first that was never used.
    records: Vec<Option<BackendRecord>>,
    /// The ids of a service port's endpoints, by endpoint, those that are gone included.
    by_service: HashMap<u32, Few<u32>>,
    /// Ids that are gone, by their place in the order of going.
    gone: BTreeMap<u64, u32>,
    /// The place of each id that is gone.
    gone_places: HashMap<u32, u64>,
    places: u64,
    in_use: u32,
}

/// What is to be written for a service port.
#[derive(Debug)]
pub(super) struct BackendPlan {
    /// The id of each wanted endpoint.
    pub(super) ids: BTreeMap<Endpoint, u32>,
    /// Records to write before any slot names them.
    pub(super) before: Vec<(u32, BackendRecord)>,
    /// Records to write when no slot names them any more.
    pub(super) after: Vec<(u32, BackendRecord)>,
}

impl Backends {
    pub(super) fn new<'a>(capacity: u32, found: impl Iterator<Item = &'a (IpFamily, u32, BackendRecord)>) -> Self {
        let mut backends = Self {
            capacity,
            records: Vec::new(),
            by_service: HashMap::new(),
            gone: BTreeMap::new(),
            gone_places: HashMap::new(),
            places: 0,
            in_use: 0,
        };
        for (_, id, record) in found {
            backends.applied(*id, *record);
        }
        backends
    }

    /// How many ids name an endpoint that is not gone.
    pub(super) fn in_use(&self) -> u32 {
        self.in_use
    }

    /// The record of `endpoint` of `service`, unless that is gone.
    pub(super) fn held(&self, service: u32, endpoint: &Endpoint) -> Option<BackendRecord> {
        let id = self.id_of(service, endpoint)?;
        self.record(id).filter(|record| record.state != BackendState::Gone)
    }

    /// What it takes for `service` to have just the endpoints `wanted`.
    pub(super) fn plan(&self, service: u32, wanted: &BTreeMap<Endpoint, Standing>) -> Result<BackendPlan, PlanError> {
        let mut plan = BackendPlan { ids: BTreeMap::new(), before: Vec::new(), after: Vec::new() };
        let mut free = self.free(service, wanted);
        for (endpoint, Standing { state, flags }) in wanted {
            let id = match self.id_of(service, endpoint) {
                Some(id) => id,
                None => free.next().ok_or(PlanError::Full { map: MapKind::Backends, capacity: self.capacity })?,
            };
            plan.ids.insert(*endpoint, id);
            let held = self.record(id);
            let names_it = |held: &BackendRecord| held.service == service && (held.address, held.port) == *endpoint;
            let generation = match held {
                Some(held) if names_it(&held) => held.generation,
                Some(held) => held.generation.wrapping_add(1).max(1),
                None => 1,
            };
            let (address, port) = *endpoint;
            let record = BackendRecord { address, port, generation, service, state: *state, flags: *flags };
            // A record is not written in one piece: first no connection may take it for what it was.
            if let Some(held) = held.filter(|held| !names_it(held)) {
                plan.before.push((id, gone(BackendRecord { generation, ..held })));
            }
            let meanwhile = held.filter(names_it).map_or(record, |held| meanwhile(held, record));
            if held != Some(meanwhile) {
                plan.before.push((id, meanwhile));
            }
            if meanwhile != record {
                plan.after.push((id, record));
            }
        }
        let is_unwanted = |id: &u32| self.endpoint(*id).is_some_and(|endpoint| !wanted.contains_key(&endpoint));
        plan.after.extend(self.going(self.ids(service).filter(is_unwanted)));
        Ok(plan)
    }

    /// What it takes for `service` to have no endpoints.
    pub(super) fn removal(&self, service: u32) -> Vec<(u32, BackendRecord)> {
        self.going(self.ids(service)).collect()
    }

    /// What it takes for service ports that are not `named` to have no endpoints.
    pub(super) fn orphans(&self, named: impl Fn(u32) -> bool) -> Vec<(u32, BackendRecord)> {
        let unnamed = self.by_service.iter().filter(|(service, _)| !named(**service));
        self.going(unnamed.flat_map(|(_, known)| known).copied()).collect()
    }

    fn going(&self, ids: impl Iterator<Item = u32>) -> impl Iterator<Item = (u32, BackendRecord)> {
        ids.filter_map(|id| Some((id, self.record(id)?)))
            .filter(|(_, record)| record.state != BackendState::Gone)
            .map(|(id, record)| (id, gone(record)))
    }

    /// The ids to give out, in order: never used, then gone for longest. Not those of endpoints of `service` that
    /// are wanted again.
    fn free<'a>(&'a self, service: u32, wanted: &'a BTreeMap<Endpoint, Standing>) -> impl Iterator<Item = u32> + 'a {
        let fresh = u32::try_from(self.records.len()).unwrap_or(u32::MAX)..self.capacity;
        let gone = self.gone.values().copied();
        fresh.chain(gone.filter(move |id| {
            !self
                .record(*id)
                .is_some_and(|held| held.service == service && wanted.contains_key(&(held.address, held.port)))
        }))
    }

    fn record(&self, id: u32) -> Option<BackendRecord> {
        self.records.get(id as usize).copied().flatten()
    }

    fn endpoint(&self, id: u32) -> Option<Endpoint> {
        self.record(id).map(|record| (record.address, record.port))
    }

    /// The ids of a service port's endpoints.
    fn ids(&self, service: u32) -> impl Iterator<Item = u32> {
        self.by_service.get(&service).into_iter().flatten().copied()
    }

    fn id_of(&self, service: u32, endpoint: &Endpoint) -> Option<u32> {
        self.by_service.get(&service)?.find_by(by_endpoint(&self.records, *endpoint)).copied()
    }

    /// Enters a record that was written, or was found in the map.
    pub(super) fn applied(&mut self, id: u32, record: BackendRecord) {
        let slot = id as usize;
        if self.records.len() <= slot {
            // Ids that were skipped are free, as if they had gone before all others.
            for skipped in self.records.len()..slot {
                self.note_gone(skipped as u32);
            }
            self.records.resize(slot + 1, None);
        }
        if let Some(before) = self.records[slot] {
            self.in_use -= u32::from(before.state != BackendState::Gone);
            self.forget_endpoint(id, &before);
        }
        self.records[slot] = Some(record);
        let is_gone = |id: u32| self.record(id).is_none_or(|held| held.state == BackendState::Gone);
        let known = self.id_of(record.service, &(record.address, record.port));
        if record.state != BackendState::Gone || known.is_none_or(is_gone) {
            let place = by_endpoint(&self.records, (record.address, record.port));
            self.by_service.entry(record.service).or_default().insert_by(id, place);
        }
        if record.state == BackendState::Gone {
            self.note_gone(id);
        } else {
            self.in_use += 1;
            self.forget_gone(id);
        }
    }

    /// Takes `id` from those of the endpoint that its record is of, while that still stands.
    fn forget_endpoint(&mut self, id: u32, record: &BackendRecord) {
        let endpoint = (record.address, record.port);
        if self.id_of(record.service, &endpoint) == Some(id)
            && let Some(known) = self.by_service.get_mut(&record.service)
        {
            known.remove_by(by_endpoint(&self.records, endpoint));
            if known.is_empty() {
                self.by_service.remove(&record.service);
            }
        }
    }

    fn note_gone(&mut self, id: u32) {
        self.forget_gone(id);
        self.places += 1;
        self.gone_places.insert(id, self.places);
        self.gone.insert(self.places, id);
    }

    fn forget_gone(&mut self, id: u32) {
        if let Some(place) = self.gone_places.remove(&id) {
            self.gone.remove(&place);
        }
    }
}

/// How the endpoints of ids compare with `endpoint`.
fn by_endpoint(records: &[Option<BackendRecord>], endpoint: Endpoint) -> impl Fn(&u32) -> Ordering {
    move |id| {
        let record = records.get(*id as usize).copied().flatten();
        record.map(|record| (record.address, record.port)).cmp(&Some(endpoint))
    }
}

/// The record of an endpoint while frontends go from slots that name it as `held` to slots that name it as `wanted`: it takes
/// connections as either.
fn meanwhile(held: BackendRecord, wanted: BackendRecord) -> BackendRecord {
    if held.state != BackendState::Active {
        return wanted;
    }
    BackendRecord { state: BackendState::Active, flags: wanted.flags | held.flags & LISTS, ..wanted }
}

/// `record` once its endpoint has gone.
fn gone(record: BackendRecord) -> BackendRecord {
    BackendRecord { state: BackendState::Gone, flags: record.flags & !LISTS, ..record }
}
