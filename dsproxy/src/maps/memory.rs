//! The maps in memory, for tests: what was written can be looked at, and writes fail on demand.

use std::{collections::BTreeMap, net::IpAddr};

use dsproxy_common::{
    IpFamily,
    filter::FilterBit,
    service::{BackendState, Frontend},
};

use super::{BackendRecord, Capacities, Contents, FrontendAddress, MapError, MapKind, MapStore, Write};
use crate::diff::filter::filter_bit;

/// What stands behind a frontend: the name of its service port, and its endpoints, sorted.
pub type Served = (String, Vec<(IpAddr, u16)>);

/// Maps that exist in memory only.
#[derive(Clone, Debug)]
pub struct MemoryMaps {
    capacities: Capacities,
    names: BTreeMap<u32, String>,
    frontends: BTreeMap<FrontendAddress, Frontend>,
    backends: BTreeMap<(IpFamily, u32), BackendRecord>,
    slots: BTreeMap<(IpFamily, u32), u32>,
    filter: BTreeMap<(IpFamily, u32), u64>,
    written: usize,
    fail_at: Option<usize>,
}

impl MemoryMaps {
    /// Empty maps of these sizes.
    pub fn new(capacities: Capacities) -> Self {
        Self {
            capacities,
            names: BTreeMap::new(),
            frontends: BTreeMap::new(),
            backends: BTreeMap::new(),
            slots: BTreeMap::new(),
            filter: BTreeMap::new(),
            written: 0,
            fail_at: None,
        }
    }

    /// Lets the write after `count` more fail, once; with none, no write.
    pub fn fail_after(&mut self, count: Option<usize>) {
        self.fail_at = count.map(|count| self.written + count);
    }

    /// How many writes were applied.
    pub fn written(&self) -> usize {
        self.written
    }

    /// What a daemon would read back at start.
    pub fn contents(&self) -> Contents {
        Contents {
            names: self.names.iter().map(|(id, name)| (*id, name.clone())).collect(),
            frontends: self.frontends.iter().map(|(address, frontend)| (*address, *frontend)).collect(),
            backends: self.backends.iter().map(|((family, id), record)| (*family, *id, *record)).collect(),
            runs: self
                .frontends
                .iter()
                .filter(|(_, frontend)| frontend.slot_count > 1)
                .map(|(address, frontend)| {
                    let (family, first) = (address.family(), frontend.slots);
                    let slots = (first..first + frontend.slot_count).filter_map(|slot| self.slots.get(&(family, slot)));
                    ((family, first), slots.copied().collect())
                })
                .collect(),
            filter: self.filter.iter().map(|((family, index), value)| (*family, *index, *value)).collect(),
        }
    }

    /// Every frontend with the name of its service port and the endpoints a new connection may go to, as the
    /// kernel programs would find them; slots that name nothing usable are an error.
    pub fn served(&self) -> Result<BTreeMap<FrontendAddress, Served>, String> {
        self.frontends.iter().map(|(address, frontend)| Ok((*address, self.endpoints(*address, frontend)?))).collect()
    }

    fn endpoints(&self, address: FrontendAddress, frontend: &Frontend) -> Result<Served, String> {
        let family = address.family();
        let bit = filter_bit(&address);
        if self.filter.get(&(family, bit.word())).is_none_or(|word| word & bit.mask() == 0) {
            return Err(format!("{address} is not in the filter"));
        }
        let name =
            self.names.get(&frontend.service).ok_or(format!("{address}: service {} has no name", frontend.service))?;
        let ids: Vec<u32> = match frontend.slot_count {
            1 => vec![frontend.slots],
            count => (frontend.slots..frontend.slots + count)
                .map(|slot| self.slots.get(&(family, slot)).copied().ok_or(format!("{address}: slot {slot} is empty")))
                .collect::<Result<_, _>>()?,
        };
        let mut endpoints = ids
            .into_iter()
            .map(|id| {
                let record = self.backends.get(&(family, id)).ok_or(format!("{address}: no backend {id}"))?;
                if record.state != BackendState::Active || record.service != frontend.service {
                    return Err(format!("{address}: backend {id} is {record:?}"));
                }
                Ok((record.address, record.port))
            })
            .collect::<Result<Vec<_>, String>>()?;
        endpoints.sort_unstable();
        endpoints.dedup();
        Ok((name.clone(), endpoints))
    }

    /// The records of backends in `state`, with their ids.
    pub fn backends(&self, state: BackendState) -> BTreeMap<(IpFamily, u32), BackendRecord> {
        self.backends.iter().filter(|(_, record)| record.state == state).map(|(key, record)| (*key, *record)).collect()
    }

    /// Whether the filter lets packets to `address` through to the lookup.
    pub fn filter_has(&self, address: &FrontendAddress) -> bool {
        let bit: FilterBit = filter_bit(address);
        self.filter.get(&(address.family(), bit.word())).is_some_and(|word| word & bit.mask() != 0)
    }
}

impl MapStore for MemoryMaps {
    fn write(&mut self, write: &Write) -> Result<(), MapError> {
        if self.fail_at == Some(self.written) {
            self.fail_at = None;
            return Err(MapError::OnDemand);
        }
        let full = |map, capacity| Err(MapError::Full { map, capacity });
        match write {
            Write::Name { service, name: Some(name) } => {
                if *service >= self.capacities.services {
                    return full(MapKind::Services, self.capacities.services);
                }
                self.names.insert(*service, name.clone());
            }
            Write::Name { service, name: None } => {
                self.names.remove(service);
            }
            Write::ResetCounters { .. } => {}
            Write::Backend { family, id, record } => {
                if *id >= self.capacities.backends {
                    return full(MapKind::Backends, self.capacities.backends);
                }
                self.backends.insert((*family, *id), *record);
            }
            Write::Slots { family, first, service: _, backends } => {
                if *first as usize + backends.len() > self.capacities.slots as usize {
                    return full(MapKind::Slots, self.capacities.slots);
                }
                for (slot, backend) in (*first..).zip(backends) {
                    self.slots.insert((*family, slot), *backend);
                }
            }
            Write::FilterWord { family, index, value } => {
                self.filter.insert((*family, *index), *value);
            }
            Write::Frontend { address, frontend } => {
                let count = self.frontends.keys().filter(|other| other.family() == address.family()).count();
                if count >= self.capacities.frontends as usize && !self.frontends.contains_key(address) {
                    return full(MapKind::Frontends, self.capacities.frontends);
                }
                self.frontends.insert(*address, *frontend);
            }
            Write::RemoveFrontend { address } => {
                self.frontends.remove(address);
            }
        }
        self.written += 1;
        Ok(())
    }

    fn capacities(&self) -> Capacities {
        self.capacities
    }
}
