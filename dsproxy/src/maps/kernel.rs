//! The maps in the kernel, through aya. Only this module and `next_hops` know aya's maps.

mod leaving;

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
};

use aya::{
    Pod,
    maps::{
        Array, HashMap, IterableMap, Map, MapData, MapError as AyaError, PerCpuArray, PerCpuHashMap, PerCpuValues,
        lpm_trie::{Key, LpmTrie},
    },
};
use dsproxy_common::{
    Addr4, Addr6, Address, IpFamily, Port, Protocol,
    count::{COUNTERS, Reason, ServiceCounters, ServiceDrops, counter_index},
    flow::{EgressEntry, EgressKind, FlowKey, FlowState, ForwardEntry},
    layout::{self, family_maps},
    service::{Affinity, AffinityKey, Backend, BackendState, Frontend, FrontendKey, ServiceName, Slots, SourceRange},
    settings::{Network, Settings},
    socket::{SocketEntry, SocketKey},
};
use ipnet::IpNet;
use thiserror::Error;

use super::{
    BackendRecord, Capacities, Contents, FilterOf, FrontendAddress, MapError, MapKind, MapStore, Write,
    settings::SettingsMap,
};
use crate::datapath::batches;

/// All maps of the data path.
pub struct KernelMaps {
    settings: SettingsMap,
    counters: PerCpuArray<MapData, u64>,
    service_counters: PerCpuArray<MapData, ServiceCounters>,
    service_drops: PerCpuHashMap<MapData, u32, ServiceDrops>,
    names: HashMap<MapData, u32, ServiceName>,
    v4: FamilyMaps<Addr4>,
    v6: FamilyMaps<Addr6>,
    capacities: Capacities,
}

struct FamilyMaps<A: Address + Pod> {
    frontends: HashMap<MapData, FrontendKey<A>, Frontend>,
    filter: Array<MapData, u64>,
    egress_filter: Array<MapData, u64>,
    leaving_filter: Array<MapData, u32>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, Backend<A>>,
    forward: HashMap<MapData, FlowKey<A>, ForwardEntry>,
    forward_brief: HashMap<MapData, FlowKey<A>, ForwardEntry>,
    egress: HashMap<MapData, FlowKey<A>, EgressEntry<A>>,
    egress_brief: HashMap<MapData, FlowKey<A>, EgressEntry<A>>,
    affinity: HashMap<MapData, AffinityKey<A>, Affinity>,
    ranges: LpmTrie<MapData, SourceRange<A>, u32>,
    networks: LpmTrie<MapData, A, u32>,
    masquerade: HashMap<MapData, u32, A>,
    sockets: HashMap<MapData, SocketKey<A>, SocketEntry<A>>,
}

/// Why the maps cannot be used as they are.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The map is not there.
    #[error("the map {name} is missing")]
    Missing {
        /// Its name.
        name: &'static str,
    },
    /// The map is of another kind, or its keys or values have another size.
    #[error("the map {name} is not what this version of dsproxy expects: {source}")]
    Layout {
        /// Its name.
        name: &'static str,
        /// What differs.
        source: AyaError,
    },
}

/// A connection, as both of its entries tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionRecord {
    /// The client.
    pub client: (IpAddr, u16),
    /// Where the client sends to.
    pub frontend: FrontendAddress,
    /// The id of the service port.
    pub service: u32,
    /// The id of the backend.
    pub backend: u32,
    /// The backend's record, while the id still means the same endpoint.
    pub endpoint: Option<BackendRecord>,
    /// The address and port of the node that it is masqueraded with.
    pub masquerade: Option<(IpAddr, u16)>,
    /// Whether the backend's node answers the client directly.
    pub is_direct: bool,
    /// Where the connection stands.
    pub state: FlowState,
    /// The jiffies when a packet was last seen.
    pub last_seen: u32,
}

/// A socket that was led to a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketRecord {
    /// The socket's cookie.
    pub cookie: u64,
    /// Where its packets go; the VIP where that is what the socket's datagrams are looked up by.
    pub peer: SocketAddr,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The id of the backend.
    pub backend: u32,
    /// Whether the id still means the same endpoint, and that is not gone.
    pub is_served: bool,
}

impl KernelMaps {
    /// The maps that `take` gives by name.
    ///
    /// # Errors
    ///
    /// When one is missing or has another layout.
    pub fn open(mut take: impl FnMut(&'static str) -> Option<Map>) -> Result<Self, OpenError> {
        let settings = SettingsMap::new(typed(&mut take, layout::SETTINGS)?);
        let counters = typed(&mut take, layout::COUNTERS)?;
        let service_counters: PerCpuArray<_, _> = typed(&mut take, layout::SERVICE_COUNTERS)?;
        let service_drops = typed(&mut take, layout::SERVICE_DROPS)?;
        let names = typed(&mut take, layout::SERVICE_NAMES)?;
        let v4 = FamilyMaps::<Addr4>::open(&mut take)?;
        let v6 = FamilyMaps::<Addr6>::open(&mut take)?;
        let names_v4 = family_maps(IpFamily::V4);
        let capacities = Capacities {
            services: service_counters.len(),
            frontends: max_entries(v4.frontends.map(), names_v4.frontends)?,
            backends: v4.backends.len(),
            slots: v4.slots.len(),
            connections: max_entries(v4.forward.map(), names_v4.forward)?,
            brief_connections: max_entries(v4.forward_brief.map(), names_v4.forward_brief)?,
            affinities: max_entries(v4.affinity.map(), names_v4.affinity)?,
            source_ranges: max_entries(v4.ranges.map(), names_v4.ranges)?,
        };
        Ok(Self { settings, counters, service_counters, service_drops, names, v4, v6, capacities })
    }

    /// What the programs are told, for others who change a part of it.
    pub fn settings_map(&self) -> SettingsMap {
        self.settings.clone()
    }

    /// Tells the programs `settings`.
    pub fn set_settings(&mut self, settings: &Settings) -> Result<(), MapError> {
        self.settings.set(settings)
    }

    /// What the programs were told.
    pub fn settings(&self) -> Result<Settings, MapError> {
        self.settings.get()
    }

    /// The counters of packets, all CPUs together: by family, but for packets that are of none.
    pub fn counters(&self) -> Result<Vec<(Reason, Option<IpFamily>, u64)>, MapError> {
        debug_assert_eq!(self.counters.len(), COUNTERS);
        let mut counters = Vec::new();
        for reason in Reason::ALL {
            let families: &[Option<IpFamily>] = match reason {
                Reason::NotIp => &[None],
                _ => &[Some(IpFamily::V4), Some(IpFamily::V6)],
            };
            for family in families {
                let values = self
                    .counters
                    .get(&counter_index(*reason, *family), 0)
                    .map_err(kernel("read", MapKind::Counters))?;
                counters.push((*reason, *family, values.iter().sum()));
            }
        }
        Ok(counters)
    }

    /// The counters of a service port, all CPUs together.
    pub fn service_counters(&self, service: u32) -> Result<ServiceCounters, MapError> {
        let values = self.service_counters.get(&service, 0).map_err(kernel("read", MapKind::Services))?;
        Ok(values.iter().fold(ServiceCounters::default(), |sum, cpu| sum.each(*cpu, |sum, cpu| sum + cpu)))
    }

    /// What was dropped of a service port, all CPUs together.
    pub fn service_drops(&self, service: u32) -> Result<ServiceDrops, MapError> {
        // The programs make the entry with the first drop.
        let values = present(self.service_drops.get(&service, 0)).map_err(kernel("read", MapKind::Services))?;
        Ok(values.map_or_else(ServiceDrops::default, |values| of_all_cpus(&values)))
    }

    /// The same of each service port of which something was dropped, by id. Some may be missed while the programs enter others.
    pub fn drops(&self) -> Result<Vec<(u32, ServiceDrops)>, MapError> {
        let entries = self.service_drops.iter().map(|entry| entry.map(|(id, values)| (id, of_all_cpus(&values))));
        entries.collect::<Result<_, _>>().map_err(kernel("read", MapKind::Services))
    }

    /// The name of a service port, if it has one.
    pub fn name(&self, service: u32) -> Result<Option<String>, MapError> {
        let name = present(self.names.get(&service, 0)).map_err(kernel("read", MapKind::Services))?;
        Ok(name.map(|name| name.as_str().to_owned()))
    }

    /// The names of service ports, by id.
    pub fn names(&self) -> Result<Vec<(u32, String)>, MapError> {
        self.names
            .iter()
            .map(|entry| entry.map(|(id, name)| (id, name.as_str().to_owned())))
            .collect::<Result<_, _>>()
            .map_err(kernel("read", MapKind::Services))
    }

    /// The frontends of both families.
    pub fn frontends(&self) -> Result<Vec<(FrontendAddress, Frontend)>, MapError> {
        let mut frontends = self.v4.frontends()?;
        frontends.extend(self.v6.frontends()?);
        Ok(frontends)
    }

    /// The ids on `slots`.
    pub fn slots(&self, family: IpFamily, slots: Slots) -> Result<Vec<u32>, MapError> {
        let array = match family {
            IpFamily::V4 => &self.v4.slots,
            IpFamily::V6 => &self.v6.slots,
        };
        let Slots { first, count } = slots;
        if count == 1 {
            return Ok(vec![first]);
        }
        (first..first.saturating_add(count))
            .map(|slot| array.get(&slot, 0).map_err(kernel("read", MapKind::Slots)))
            .collect()
    }

    /// The backend records of both families that were ever written.
    pub fn backends(&self) -> Result<Vec<(IpFamily, u32, BackendRecord)>, MapError> {
        let mut backends = self.v4.backends()?;
        backends.extend(self.v6.backends()?);
        Ok(backends)
    }

    /// The sockets of both families that were led to backends. Some may be closed, and some may be missed while the table
    /// changes.
    pub fn sockets(&self) -> Result<Vec<SocketRecord>, MapError> {
        let mut sockets = self.v4.sockets()?;
        sockets.extend(self.v6.sockets()?);
        Ok(sockets)
    }

    /// The connections of both families, in turn as long as there are of both. Some may be over, and some may be missed while the table
    /// changes. They are read as they are taken, for there may be a great many.
    pub fn connections(&self) -> impl Iterator<Item = Result<ConnectionRecord, MapError>> {
        in_turn(self.v4.connections(), self.v6.connections())
    }

    /// The source ranges of both families, by service port.
    pub fn source_ranges(&self) -> Result<Vec<(u32, IpNet)>, MapError> {
        let mut ranges = self.v4.source_ranges()?;
        ranges.extend(self.v6.source_ranges()?);
        Ok(ranges)
    }

    /// The networks of both families, with their `NetworkFlags`.
    pub fn networks(&self) -> Result<Vec<(IpNet, u32)>, MapError> {
        let mut networks = self.v4.networks()?;
        networks.extend(self.v6.networks()?);
        Ok(networks)
    }

    /// The addresses that masqueraded packets leave with, by device; zero stands for all other devices.
    pub fn masquerade(&self) -> Result<Vec<(u32, IpAddr)>, MapError> {
        let mut addresses = self.v4.masquerade()?;
        addresses.extend(self.v6.masquerade()?);
        Ok(addresses)
    }

    /// Where `client` of the service port was last sent: the backend's id and generation, and the jiffies then.
    pub fn affinity(&self, service: u32, client: IpAddr) -> Result<Option<Affinity>, MapError> {
        match IpFamily::of(client) {
            IpFamily::V4 => self.v4.affinity(service, client),
            IpFamily::V6 => self.v6.affinity(service, client),
        }
    }

    /// Everything the diff needs to know.
    pub fn contents(&self) -> Result<Contents, MapError> {
        let frontends = self.frontends()?;
        let mut runs = BTreeMap::new();
        let [v4, v6] = [self.v4.all_slots()?, self.v6.all_slots()?];
        for (address, frontend) in &frontends {
            let family = address.family();
            let all = match family {
                IpFamily::V4 => &v4,
                IpFamily::V6 => &v6,
            };
            for Slots { first, count } in
                [frontend.inside, frontend.outside].into_iter().filter(|slots| slots.count > 1)
            {
                let of_run = || all.iter().skip(first as usize).take(count as usize).copied().collect();
                runs.entry((family, first)).or_insert_with(of_run);
            }
        }
        let mut filter = Vec::new();
        for of in FilterOf::ALL {
            filter.extend(self.v4.filter(of)?);
            filter.extend(self.v6.filter(of)?);
        }
        let Settings { services_v4, services_v6, .. } = self.settings()?;
        Ok(Contents {
            names: self.names()?,
            frontends,
            backends: self.backends()?,
            runs,
            filter,
            source_ranges: self.source_ranges()?,
            networks: self.networks()?,
            service_networks: vec![(IpFamily::V4, network_of(&services_v4)), (IpFamily::V6, network_of(&services_v6))],
            masquerade: self.masquerade()?,
        })
    }

    fn write_family(&mut self, family: IpFamily, write: &Write) -> Result<(), MapError> {
        match family {
            IpFamily::V4 => self.v4.write(write, self.capacities),
            IpFamily::V6 => self.v6.write(write, self.capacities),
        }
    }

    fn write_service_network(&mut self, family: IpFamily, network: Option<IpNet>) -> Result<(), MapError> {
        self.settings.change(|settings| match family {
            IpFamily::V4 => settings.services_v4 = network_record(network),
            IpFamily::V6 => settings.services_v6 = network_record(network),
        })
    }
}

/// `network` as the programs compare with it; none holds nobody of interest.
pub fn network_record<A: Address>(network: Option<IpNet>) -> Network<A> {
    let nobody = || IpNet::from(A::default().into());
    let network = network.unwrap_or_else(nobody).trunc();
    let of_family = |address| A::from_ip(address).unwrap_or_default();
    Network { address: of_family(network.addr()), mask: of_family(network.netmask()) }
}

/// The network that [`network_record`] made a record of.
fn network_of<A: Address>(record: &Network<A>) -> Option<IpNet> {
    let network = IpNet::with_netmask(record.address.into(), record.mask.into()).ok()?;
    (network != IpNet::from(A::default().into())).then_some(network)
}

impl MapStore for KernelMaps {
    fn write(&mut self, write: &Write) -> Result<(), MapError> {
        let capacities = self.capacities;
        match write {
            Write::Name { service, name: Some(name) } => self
                .names
                .insert(service, ServiceName::new(name), 0)
                .map_err(full("write", MapKind::Services, capacities.services)),
            Write::Name { service, name: None } => {
                absent_is_fine(self.names.remove(service)).map_err(kernel("remove from", MapKind::Services))
            }
            Write::ResetCounters { service } => {
                let cpus = aya::util::nr_cpus().map_err(|(_, error)| MapError::Kernel {
                    operation: "count the CPUs for",
                    map: MapKind::Services,
                    source: AyaError::IoError(error),
                })?;
                let zero = PerCpuValues::try_from(vec![ServiceCounters::default(); cpus])
                    .map_err(|error| kernel("write", MapKind::Services)(AyaError::IoError(error)))?;
                self.service_counters.set(*service, zero, 0).map_err(kernel("write", MapKind::Services))?;
                absent_is_fine(self.service_drops.remove(service)).map_err(kernel("remove from", MapKind::Services))
            }
            Write::ServiceNetwork { family, network } => self.write_service_network(*family, *network),
            Write::Backend { family, .. }
            | Write::Slots { family, .. }
            | Write::FilterWord { family, .. }
            | Write::RemoveMasquerade { family, .. } => self.write_family(*family, write),
            Write::Frontend { address, .. } | Write::RemoveFrontend { address } => {
                self.write_family(address.family(), write)
            }
            Write::SourceRange { range, .. } | Write::RemoveSourceRange { range, .. } => {
                self.write_family(IpFamily::of(range.addr()), write)
            }
            Write::Network { network, .. } | Write::RemoveNetwork { network } => {
                self.write_family(IpFamily::of(network.addr()), write)
            }
            Write::Masquerade { address, .. } => self.write_family(IpFamily::of(*address), write),
        }
    }

    fn capacities(&self) -> Capacities {
        self.capacities
    }
}

impl<A: Address + Pod> FamilyMaps<A> {
    fn affinity(&self, service: u32, client: IpAddr) -> Result<Option<Affinity>, MapError> {
        let Some(client) = A::from_ip(client) else { return Ok(None) };
        present(self.affinity.get(&AffinityKey { client, service }, 0)).map_err(kernel("read", MapKind::Affinities))
    }

    fn open(take: &mut impl FnMut(&'static str) -> Option<Map>) -> Result<Self, OpenError> {
        let names = family_maps(A::FAMILY);
        Ok(Self {
            frontends: typed(take, names.frontends)?,
            filter: typed(take, names.filter)?,
            egress_filter: typed(take, names.egress_filter)?,
            leaving_filter: typed(take, names.leaving_filter)?,
            slots: typed(take, names.slots)?,
            backends: typed(take, names.backends)?,
            forward: typed(take, names.forward)?,
            forward_brief: typed(take, names.forward_brief)?,
            egress: typed(take, names.egress)?,
            egress_brief: typed(take, names.egress_brief)?,
            affinity: typed(take, names.affinity)?,
            ranges: typed(take, names.ranges)?,
            networks: typed(take, names.networks)?,
            masquerade: typed(take, names.masquerade)?,
            sockets: typed(take, names.sockets)?,
        })
    }

    fn key(address: &FrontendAddress) -> Option<FrontendKey<A>> {
        let vip = A::from_ip(address.address)?;
        Some(FrontendKey::new(vip, Port::new(address.port), address.protocol.number()))
    }

    /// Applies a write that is for this family; one with an address of the other has no effect, and none is made.
    fn write(&mut self, write: &Write, capacities: Capacities) -> Result<(), MapError> {
        match write {
            Write::Name { .. } | Write::ResetCounters { .. } | Write::ServiceNetwork { .. } => Ok(()),
            Write::Backend { family: _, id, record } => {
                let BackendRecord { address, port, generation, service, state, flags } = *record;
                let Some(address) = A::from_ip(address) else { return Ok(()) };
                let port = Port::new(port);
                let backend = Backend { address, generation, service, port, state: state.number(), flags };
                self.backends.set(*id, backend, 0).map_err(full("write", MapKind::Backends, capacities.backends))
            }
            Write::Slots { family: _, first, service: _, backends } => {
                batches::write(&self.slots, *first, backends).map_err(full("write", MapKind::Slots, capacities.slots))
            }
            Write::FilterWord { family: _, filter, index, value } => {
                let array = match filter {
                    FilterOf::Frontends => &mut self.filter,
                    FilterOf::Backends => &mut self.egress_filter,
                };
                array.set(*index, value, 0).map_err(kernel("write", MapKind::Filter))
            }
            Write::Frontend { address, frontend } => {
                let Some(key) = Self::key(address) else { return Ok(()) };
                self.frontends.insert(key, frontend, 0).map_err(full("write", MapKind::Frontends, capacities.frontends))
            }
            Write::RemoveFrontend { address } => {
                let Some(key) = Self::key(address) else { return Ok(()) };
                absent_is_fine(self.frontends.remove(&key)).map_err(kernel("remove from", MapKind::Frontends))
            }
            Write::SourceRange { service, range } => {
                let Some(key) = range_key::<A>(*service, range) else { return Ok(()) };
                let full = full("write", MapKind::SourceRanges, capacities.source_ranges);
                self.ranges.insert(&key, 1, 0).map_err(full)
            }
            Write::RemoveSourceRange { service, range } => {
                let Some(key) = range_key::<A>(*service, range) else { return Ok(()) };
                absent_is_fine(self.ranges.remove(&key)).map_err(kernel("remove from", MapKind::SourceRanges))
            }
            Write::Network { network, flags } => {
                let Some(key) = network_key::<A>(network) else { return Ok(()) };
                let full = full("write", MapKind::Networks, capacities.networks());
                self.networks.insert(&key, flags, 0).map_err(full)
            }
            Write::RemoveNetwork { network } => {
                let Some(key) = network_key::<A>(network) else { return Ok(()) };
                absent_is_fine(self.networks.remove(&key)).map_err(kernel("remove from", MapKind::Networks))
            }
            Write::Masquerade { device, address } => {
                let Some(address) = A::from_ip(*address) else { return Ok(()) };
                let full = full("write", MapKind::NodeAddresses, layout::capacity::DEVICES);
                self.masquerade.insert(device, address, 0).map_err(full)
            }
            Write::RemoveMasquerade { family: _, device } => {
                absent_is_fine(self.masquerade.remove(device)).map_err(kernel("remove from", MapKind::NodeAddresses))
            }
        }
    }

    fn frontends(&self) -> Result<Vec<(FrontendAddress, Frontend)>, MapError> {
        let mut frontends = Vec::new();
        for entry in self.frontends.iter() {
            let (FrontendKey { address, port, protocol, reserved: _ }, frontend) =
                entry.map_err(kernel("read", MapKind::Frontends))?;
            // Another protocol would be a later version's.
            if let Some(protocol) = Protocol::from_number(protocol) {
                frontends.push((FrontendAddress { address: address.into(), port: port.number(), protocol }, frontend));
            }
        }
        Ok(frontends)
    }

    fn backends(&self) -> Result<Vec<(IpFamily, u32, BackendRecord)>, MapError> {
        let mut backends = Vec::new();
        let look = |id: u32, backend: Backend<A>| {
            if backend.generation != 0 {
                backends.push((A::FAMILY, id, record(&backend)));
            }
        };
        batches::for_each(self.backends.map(), look).map_err(kernel("read", MapKind::Backends))?;
        Ok(backends)
    }

    /// What stands in every slot, used or not.
    fn all_slots(&self) -> Result<Vec<u32>, MapError> {
        let mut slots = vec![0; self.slots.len() as usize];
        let look = |index: u32, backend: u32| {
            if let Some(slot) = slots.get_mut(index as usize) {
                *slot = backend;
            }
        };
        batches::for_each(self.slots.map(), look).map_err(kernel("read", MapKind::Slots))?;
        Ok(slots)
    }

    fn filter(&self, of: FilterOf) -> Result<Vec<(IpFamily, FilterOf, u32, u64)>, MapError> {
        let array = match of {
            FilterOf::Frontends => &self.filter,
            FilterOf::Backends => &self.egress_filter,
        };
        let mut words = Vec::new();
        batches::for_each(array.map(), |index, word| words.push((A::FAMILY, of, index, word)))
            .map_err(kernel("read", MapKind::Filter))?;
        Ok(words)
    }

    fn source_ranges(&self) -> Result<Vec<(u32, IpNet)>, MapError> {
        let mut ranges = Vec::new();
        for key in self.ranges.keys() {
            let key = key.map_err(kernel("read", MapKind::SourceRanges))?;
            let SourceRange { service, client } = key.data();
            let bits = key.prefix_len().saturating_sub(u32::BITS);
            // Longer than its address would be another version's.
            if let Some(range) = network(client, bits) {
                ranges.push((service, range));
            }
        }
        Ok(ranges)
    }

    fn networks(&self) -> Result<Vec<(IpNet, u32)>, MapError> {
        let mut networks = Vec::new();
        for entry in self.networks.iter() {
            let (key, flags) = entry.map_err(kernel("read", MapKind::Networks))?;
            networks.extend(network(key.data(), key.prefix_len()).map(|network| (network, flags)));
        }
        Ok(networks)
    }

    fn masquerade(&self) -> Result<Vec<(u32, IpAddr)>, MapError> {
        let entries = self.masquerade.iter().map(|entry| entry.map(|(device, address)| (device, address.into())));
        entries.collect::<Result<_, _>>().map_err(kernel("read", MapKind::NodeAddresses))
    }

    fn sockets(&self) -> Result<Vec<SocketRecord>, MapError> {
        let mut read = Vec::new();
        let look = |key: SocketKey<A>, entry: SocketEntry<A>| read.push((key, entry));
        batches::for_each(self.sockets.map(), look).map_err(kernel("read", MapKind::Sockets))?;
        let mut sockets = Vec::new();
        for (SocketKey { cookie: [low, high], address, port, protocol }, SocketEntry { backend, generation, .. }) in
            read
        {
            let Some(protocol) = u8::try_from(protocol).ok().and_then(Protocol::from_number) else { continue };
            let held = self.backends.get(&backend, 0).map_err(kernel("read", MapKind::Backends))?;
            sockets.push(SocketRecord {
                cookie: u64::from(low) | u64::from(high) << 32,
                peer: SocketAddr::new(address.into(), port.number()),
                protocol,
                backend,
                is_served: held.generation == generation && BackendState::from_number(held.state) != BackendState::Gone,
            });
        }
        Ok(sockets)
    }

    fn connections(&self) -> impl Iterator<Item = Result<ConnectionRecord, MapError>> {
        let confirmed = self.forward.iter().map(|entry| entry.map_err(kernel("read", MapKind::Connections)));
        let brief = self.forward_brief.iter().map(|entry| entry.map_err(kernel("read", MapKind::BriefConnections)));
        confirmed
            .chain(brief)
            .filter_map(|entry| entry.and_then(|(key, entry)| self.connection(key, entry)).transpose())
    }

    /// The connection of an entry; none of a protocol that is a later version's.
    fn connection(&self, key: FlowKey<A>, entry: ForwardEntry) -> Result<Option<ConnectionRecord>, MapError> {
        let ForwardEntry { backend, generation, service, last_seen, state, source_port } = entry;
        let FlowKey { source, destination, source_port: client_port, destination_port, protocol } = key;
        let Some(protocol) = u8::try_from(protocol).ok().and_then(Protocol::from_number) else { return Ok(None) };
        let held = self.backends.get(&backend, 0).map_err(kernel("read", MapKind::Backends))?;
        let endpoint = (held.generation == generation).then_some(held);
        let leaving = endpoint.map(|endpoint| FlowKey {
            destination: endpoint.address,
            destination_port: endpoint.port,
            source_port: if source_port == Port::default() { client_port } else { source_port },
            ..key
        });
        let leaves = leaving.and_then(|key| self.leaves(&key));
        Ok(Some(ConnectionRecord {
            client: (source.into(), client_port.number()),
            frontend: FrontendAddress { address: destination.into(), port: destination_port.number(), protocol },
            service,
            backend,
            endpoint: endpoint.as_ref().map(record),
            masquerade: leaves
                .filter(|entry| entry.kind == EgressKind::Masquerade.number())
                .map(|entry| (entry.address.into(), entry.port.number())),
            is_direct: leaves.is_some_and(|entry| entry.kind == EgressKind::Direct.number()),
            state: FlowState::from_number(state),
            last_seen,
        }))
    }

    /// What becomes of packets of `key` that leave. An entry that cannot be read is as good as none: the table changes while it is
    /// looked at.
    fn leaves(&self, key: &FlowKey<A>) -> Option<EgressEntry<A>> {
        self.egress.get(key, 0).or_else(|_| self.egress_brief.get(key, 0)).ok()
    }
}

fn of_all_cpus(values: &PerCpuValues<ServiceDrops>) -> ServiceDrops {
    values.iter().fold(ServiceDrops::default(), |sum, cpu| sum.each(*cpu, |sum, cpu| sum + cpu))
}

fn network<A: Address>(address: A, bits: u32) -> Option<IpNet> {
    IpNet::new(address.into(), u8::try_from(bits).ok()?).ok()
}

fn network_key<A: Address + Pod>(network: &IpNet) -> Option<Key<A>> {
    Some(Key::new(network.prefix_len().into(), A::from_ip(network.network())?))
}

fn range_key<A: Address + Pod>(service: u32, range: &IpNet) -> Option<Key<SourceRange<A>>> {
    let client = A::from_ip(range.network())?;
    Some(Key::new(u32::BITS + u32::from(range.prefix_len()), SourceRange { service, client }))
}

/// One of each by turns, and all that one has more than the other.
fn in_turn<T>(one: impl Iterator<Item = T>, other: impl Iterator<Item = T>) -> impl Iterator<Item = T> {
    let (mut one, mut other) = (one.fuse(), other.fuse());
    let mut is_ones = false;
    std::iter::from_fn(move || {
        is_ones = !is_ones;
        if is_ones { one.next().or_else(|| other.next()) } else { other.next().or_else(|| one.next()) }
    })
}

/// What stands under a key, if anything does.
fn present<T>(result: Result<T, AyaError>) -> Result<Option<T>, AyaError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(AyaError::KeyNotFound) => Ok(None),
        Err(other) => Err(other),
    }
}

fn record<A: Address>(backend: &Backend<A>) -> BackendRecord {
    let Backend { address, generation, service, port, state, flags } = *backend;
    BackendRecord {
        address: address.into(),
        port: port.number(),
        generation,
        service,
        state: BackendState::from_number(state),
        flags,
    }
}

pub(super) fn typed<T: TryFrom<Map, Error = AyaError>>(
    take: &mut impl FnMut(&'static str) -> Option<Map>,
    name: &'static str,
) -> Result<T, OpenError> {
    let map = take(name).ok_or(OpenError::Missing { name })?;
    T::try_from(map).map_err(|source| OpenError::Layout { name, source })
}

fn max_entries(map: &MapData, name: &'static str) -> Result<u32, OpenError> {
    Ok(map.info().map_err(|source| OpenError::Layout { name, source })?.max_entries())
}

pub(super) fn kernel(operation: &'static str, map: MapKind) -> impl Fn(AyaError) -> MapError {
    move |source| MapError::Kernel { operation, map, source }
}

/// As `kernel`, where the kernel's way to say "no room" (E2BIG for hashes and arrays, ENOSPC for tries) becomes an error of its own. That
/// there is no memory for what grows (ENOMEM) is none: another flag would not help.
pub(super) fn full(operation: &'static str, map: MapKind, capacity: u32) -> impl Fn(AyaError) -> MapError {
    move |source| match &source {
        AyaError::OutOfBounds { .. } => MapError::Full { map, capacity },
        AyaError::SyscallError(error) if matches!(error.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) => {
            MapError::Full { map, capacity }
        }
        _ => MapError::Kernel { operation, map, source },
    }
}

pub(super) fn absent_is_fine(result: Result<(), AyaError>) -> Result<(), AyaError> {
    match result {
        Err(AyaError::KeyNotFound) => Ok(()),
        Err(AyaError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_come_in_turn_and_none_is_left_out() {
        let all = |one: &[u8], other: &[u8]| in_turn(one.iter().copied(), other.iter().copied()).collect::<Vec<_>>();
        assert_eq!(all(&[1, 2], &[11, 12]), [1, 11, 2, 12]);
        assert_eq!(all(&[1], &[11, 12, 13, 14]), [1, 11, 12, 13, 14]);
        assert_eq!(all(&[1, 2, 3, 4], &[11]), [1, 11, 2, 3, 4]);
        assert_eq!(all(&[], &[]), [0u8; 0]);
    }
}
