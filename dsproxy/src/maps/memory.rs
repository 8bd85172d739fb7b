//! The maps in memory, for tests: what was written can be looked at, and writes fail on demand.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use dsproxy_common::{
    IpFamily,
    service::{BackendFlags, BackendState, Frontend, FrontendFlags, Slots},
};
use ipnet::IpNet;

use super::{BackendRecord, Capacities, Contents, FilterOf, FrontendAddress, MapError, MapKind, MapStore, Write};
use crate::diff::filter::{backend_bit, filter_bit};

/// What stands behind a frontend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// The name of its service port.
    pub name: String,
    /// Where new connections of clients inside the cluster may go, sorted.
    pub inside: Vec<(IpAddr, u16)>,
    /// Where those of other clients may go, sorted.
    pub outside: Vec<(IpAddr, u16)>,
    /// The seconds of its affinity.
    pub affinity: u32,
    /// Its kind and `FrontendFlags`.
    pub flags: u32,
    /// The clients that are let through, sorted; none when everybody is.
    pub sources: Option<Vec<IpNet>>,
}

/// Maps that exist in memory only.
#[derive(Clone, Debug)]
pub struct MemoryMaps {
    capacities: Capacities,
    names: BTreeMap<u32, String>,
    frontends: BTreeMap<FrontendAddress, Frontend>,
    backends: BTreeMap<(IpFamily, u32), BackendRecord>,
    slots: BTreeMap<(IpFamily, u32), u32>,
    filters: BTreeMap<(IpFamily, FilterOf, u32), u64>,
    source_ranges: BTreeSet<(u32, IpNet)>,
    networks: BTreeMap<IpNet, u32>,
    service_networks: BTreeMap<IpFamily, Option<IpNet>>,
    masquerade: BTreeMap<(IpFamily, u32), IpAddr>,
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
            filters: BTreeMap::new(),
            source_ranges: BTreeSet::new(),
            networks: BTreeMap::new(),
            service_networks: IpFamily::ALL.into_iter().map(|family| (family, None)).collect(),
            masquerade: BTreeMap::new(),
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
        let runs = self
            .frontends
            .iter()
            .flat_map(|(address, frontend)| [frontend.inside, frontend.outside].map(|slots| (address.family(), slots)));
        let content = |family, Slots { first, count }| {
            let slots = (first..first + count).filter_map(|slot| self.slots.get(&(family, slot)));
            slots.copied().collect::<Vec<_>>()
        };
        Contents {
            names: self.names.iter().map(|(id, name)| (*id, name.clone())).collect(),
            frontends: self.frontends.iter().map(|(address, frontend)| (*address, *frontend)).collect(),
            backends: self.backends.iter().map(|((family, id), record)| (*family, *id, *record)).collect(),
            runs: runs
                .filter(|(_, slots)| slots.count > 1)
                .map(|(family, slots)| ((family, slots.first), content(family, slots)))
                .collect(),
            filter: self.filters.iter().map(|((family, of, index), value)| (*family, *of, *index, *value)).collect(),
            source_ranges: self.source_ranges.iter().copied().collect(),
            networks: self.networks.iter().map(|(network, flags)| (*network, *flags)).collect(),
            service_networks: self.service_networks.iter().map(|(family, network)| (*family, *network)).collect(),
            masquerade: self.masquerade.iter().map(|((_, device), address)| (*device, *address)).collect(),
        }
    }

    /// Every frontend with what stands behind it, as the kernel programs would find it; slots that name nothing usable are an
    /// error.
    pub fn served(&self) -> Result<BTreeMap<FrontendAddress, Served>, String> {
        self.frontends.iter().map(|(address, frontend)| Ok((*address, self.behind(*address, frontend)?))).collect()
    }

    fn behind(&self, address: FrontendAddress, frontend: &Frontend) -> Result<Served, String> {
        if !self.filter_has(&address) {
            return Err(format!("{address} is not in the filter"));
        }
        let name =
            self.names.get(&frontend.service).ok_or(format!("{address}: service {} has no name", frontend.service))?;
        let list = |flag| {
            if frontend.has(flag) { BackendFlags::IN_LOCAL_LIST } else { BackendFlags::IN_CLUSTER_LIST }
        };
        let ranges = || {
            let ranges = self.source_ranges.iter().filter(|(service, _)| *service == frontend.service);
            let of_family = ranges.map(|(_, range)| *range);
            of_family.filter(|range| IpFamily::of(range.addr()) == address.family()).collect()
        };
        Ok(Served {
            name: name.clone(),
            inside: self.endpoints(address, frontend, frontend.inside, list(FrontendFlags::INSIDE_LOCAL))?,
            outside: self.endpoints(address, frontend, frontend.outside, list(FrontendFlags::OUTSIDE_LOCAL))?,
            affinity: frontend.affinity,
            flags: frontend.flags,
            sources: frontend.has(FrontendFlags::SOURCE_RANGES).then(ranges),
        })
    }

    fn endpoints(
        &self,
        address: FrontendAddress,
        frontend: &Frontend,
        Slots { first, count }: Slots,
        list: u8,
    ) -> Result<Vec<(IpAddr, u16)>, String> {
        let family = address.family();
        let ids: Vec<u32> = match count {
            1 => vec![first],
            count => (first..first + count)
                .map(|slot| self.slots.get(&(family, slot)).copied().ok_or(format!("{address}: slot {slot} is empty")))
                .collect::<Result<_, _>>()?,
        };
        let mut endpoints = ids
            .into_iter()
            .map(|id| {
                let record = self.backends.get(&(family, id)).ok_or(format!("{address}: no backend {id}"))?;
                let is_usable = record.state == BackendState::Active && record.flags & list != 0;
                if !is_usable || record.service != frontend.service {
                    return Err(format!("{address}: backend {id} is {record:?}, not in list {list}"));
                }
                let bit = backend_bit(record.address, record.port, address.protocol);
                let word = self.filters.get(&(family, FilterOf::Backends, bit.word()));
                if word.is_none_or(|word| word & bit.mask() == 0) {
                    return Err(format!("{address}: backend {id} is not in the filter"));
                }
                Ok((record.address, record.port))
            })
            .collect::<Result<Vec<_>, String>>()?;
        endpoints.sort_unstable();
        endpoints.dedup();
        Ok(endpoints)
    }

    /// The records of backends in `state`, with their ids.
    pub fn backends(&self, state: BackendState) -> BTreeMap<(IpFamily, u32), BackendRecord> {
        self.backends.iter().filter(|(_, record)| record.state == state).map(|(key, record)| (*key, *record)).collect()
    }

    /// Whether the filter lets packets to `address` through to the lookup.
    pub fn filter_has(&self, address: &FrontendAddress) -> bool {
        let bit = filter_bit(address);
        let word = self.filters.get(&(address.family(), FilterOf::Frontends, bit.word()));
        word.is_some_and(|word| word & bit.mask() != 0)
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
            Write::FilterWord { family, filter, index, value } => {
                self.filters.insert((*family, *filter, *index), *value);
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
            Write::SourceRange { service, range } => {
                let family = IpFamily::of(range.addr());
                let count = self.source_ranges.iter().filter(|(_, held)| IpFamily::of(held.addr()) == family).count();
                let is_new = !self.source_ranges.contains(&(*service, *range));
                if is_new && count >= self.capacities.source_ranges as usize {
                    return full(MapKind::SourceRanges, self.capacities.source_ranges);
                }
                self.source_ranges.insert((*service, *range));
            }
            Write::RemoveSourceRange { service, range } => {
                self.source_ranges.remove(&(*service, *range));
            }
            Write::Network { network, flags } => {
                let family = IpFamily::of(network.addr());
                let count = self.networks.keys().filter(|held| IpFamily::of(held.addr()) == family).count();
                if !self.networks.contains_key(network) && count >= self.capacities.networks() as usize {
                    return full(MapKind::Networks, self.capacities.networks());
                }
                self.networks.insert(*network, *flags);
            }
            Write::RemoveNetwork { network } => {
                self.networks.remove(network);
            }
            Write::ServiceNetwork { family, network } => {
                self.service_networks.insert(*family, *network);
            }
            Write::Masquerade { device, address } => {
                self.masquerade.insert((IpFamily::of(*address), *device), *address);
            }
            Write::RemoveMasquerade { family, device } => {
                self.masquerade.remove(&(*family, *device));
            }
        }
        self.written += 1;
        Ok(())
    }

    fn capacities(&self) -> Capacities {
        self.capacities
    }
}
