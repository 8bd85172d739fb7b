//! The maps in the kernel, through aya. The only file that knows aya's maps.

use std::net::IpAddr;

use aya::{
    Pod,
    maps::{Array, HashMap, IterableMap, Map, MapData, MapError as AyaError, PerCpuArray, PerCpuValues},
};
use dsproxy_common::{
    Addr4, Addr6, Address, IpFamily, Port, Protocol,
    count::{COUNTERS, Reason, ServiceCounters, counter_index},
    filter,
    flow::{FlowKey, FlowState, ForwardEntry, ReplyEntry},
    layout::{self, FamilyMapNames, family_maps},
    service::{Backend, BackendState, Frontend, FrontendKey, ServiceName},
    settings::Settings,
};
use thiserror::Error;

use super::{BackendRecord, Capacities, Contents, FrontendAddress, MapError, MapKind, MapStore, Write};

/// All maps of the data path.
pub struct KernelMaps {
    settings: Array<MapData, Settings>,
    counters: PerCpuArray<MapData, u64>,
    service_counters: PerCpuArray<MapData, ServiceCounters>,
    names: HashMap<MapData, u32, ServiceName>,
    v4: FamilyMaps<Addr4>,
    v6: FamilyMaps<Addr6>,
    capacities: Capacities,
}

struct FamilyMaps<A: Address + Pod> {
    frontends: HashMap<MapData, FrontendKey<A>, Frontend>,
    filter: Array<MapData, u64>,
    slots: Array<MapData, u32>,
    backends: Array<MapData, Backend<A>>,
    forward: HashMap<MapData, FlowKey<A>, ForwardEntry>,
    reply: HashMap<MapData, FlowKey<A>, ReplyEntry<A>>,
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
    /// Where the connection stands.
    pub state: FlowState,
    /// The jiffies when a packet was last seen.
    pub last_seen: u32,
}

impl KernelMaps {
    /// The maps that `take` gives by name.
    ///
    /// # Errors
    ///
    /// When one is missing or has another layout.
    pub fn open(mut take: impl FnMut(&'static str) -> Option<Map>) -> Result<Self, OpenError> {
        let settings = typed(&mut take, layout::SETTINGS)?;
        let counters = typed(&mut take, layout::COUNTERS)?;
        let service_counters: PerCpuArray<_, _> = typed(&mut take, layout::SERVICE_COUNTERS)?;
        let names = typed(&mut take, layout::SERVICE_NAMES)?;
        let v4 = FamilyMaps::<Addr4>::open(&mut take)?;
        let v6 = FamilyMaps::<Addr6>::open(&mut take)?;
        let capacities = Capacities {
            services: service_counters.len(),
            frontends: max_entries(v4.frontends.map(), layout::family_maps(IpFamily::V4).frontends)?,
            backends: v4.backends.len(),
            slots: v4.slots.len(),
            connections: max_entries(v4.forward.map(), layout::family_maps(IpFamily::V4).forward)?,
        };
        Ok(Self { settings, counters, service_counters, names, v4, v6, capacities })
    }

    /// Tells the programs `settings`.
    pub fn set_settings(&mut self, settings: &Settings) -> Result<(), MapError> {
        self.settings.set(0, settings, 0).map_err(kernel("write", MapKind::Settings))
    }

    /// What the programs were told.
    pub fn settings(&self) -> Result<Settings, MapError> {
        self.settings.get(&0, 0).map_err(kernel("read", MapKind::Settings))
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
        Ok(values.iter().fold(ServiceCounters::default(), |sum, cpu| {
            let ServiceCounters { connections, packets, bytes, reply_packets, reply_bytes } = *cpu;
            ServiceCounters {
                connections: sum.connections + connections,
                packets: sum.packets + packets,
                bytes: sum.bytes + bytes,
                reply_packets: sum.reply_packets + reply_packets,
                reply_bytes: sum.reply_bytes + reply_bytes,
            }
        }))
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

    /// The ids on the slots of `frontend`.
    pub fn slots(&self, family: IpFamily, frontend: &Frontend) -> Result<Vec<u32>, MapError> {
        let slots = match family {
            IpFamily::V4 => &self.v4.slots,
            IpFamily::V6 => &self.v6.slots,
        };
        if frontend.slot_count == 1 {
            return Ok(vec![frontend.slots]);
        }
        (frontend.slots..frontend.slots.saturating_add(frontend.slot_count))
            .map(|slot| slots.get(&slot, 0).map_err(kernel("read", MapKind::Slots)))
            .collect()
    }

    /// The backend records of both families that were ever written.
    pub fn backends(&self) -> Result<Vec<(IpFamily, u32, BackendRecord)>, MapError> {
        let mut backends = self.v4.backends()?;
        backends.extend(self.v6.backends()?);
        Ok(backends)
    }

    /// The connections of both families. Some may be over, and some may be missed while the table changes.
    pub fn connections(&self) -> Result<Vec<ConnectionRecord>, MapError> {
        let mut connections = self.v4.connections()?;
        connections.extend(self.v6.connections()?);
        Ok(connections)
    }

    /// How many reply entries there are for connections of `family`.
    pub fn reply_count(&self, family: IpFamily) -> Result<usize, MapError> {
        match family {
            IpFamily::V4 => self.v4.reply_count(),
            IpFamily::V6 => self.v6.reply_count(),
        }
    }

    /// Everything the diff needs to know.
    pub fn contents(&self) -> Result<Contents, MapError> {
        let frontends = self.frontends()?;
        let mut runs = std::collections::BTreeMap::new();
        for (address, frontend) in frontends.iter().filter(|(_, frontend)| frontend.slot_count > 1) {
            let family = address.family();
            if let std::collections::btree_map::Entry::Vacant(run) = runs.entry((family, frontend.slots)) {
                run.insert(self.slots(family, frontend)?);
            }
        }
        let mut filter = self.v4.filter()?;
        filter.extend(self.v6.filter()?);
        Ok(Contents { names: self.names()?, frontends, backends: self.backends()?, runs, filter })
    }
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
                self.service_counters.set(*service, zero, 0).map_err(kernel("write", MapKind::Services))
            }
            Write::Backend { family, .. } | Write::Slots { family, .. } | Write::FilterWord { family, .. } => {
                match family {
                    IpFamily::V4 => self.v4.write(write, capacities),
                    IpFamily::V6 => self.v6.write(write, capacities),
                }
            }
            Write::Frontend { address, .. } | Write::RemoveFrontend { address } => match address.family() {
                IpFamily::V4 => self.v4.write(write, capacities),
                IpFamily::V6 => self.v6.write(write, capacities),
            },
        }
    }

    fn capacities(&self) -> Capacities {
        self.capacities
    }
}

impl<A: Address + Pod> FamilyMaps<A> {
    fn open(take: &mut impl FnMut(&'static str) -> Option<Map>) -> Result<Self, OpenError> {
        let FamilyMapNames { frontends, filter, slots, backends, forward, reply } = family_maps(A::FAMILY);
        Ok(Self {
            frontends: typed(take, frontends)?,
            filter: typed(take, filter)?,
            slots: typed(take, slots)?,
            backends: typed(take, backends)?,
            forward: typed(take, forward)?,
            reply: typed(take, reply)?,
        })
    }

    fn key(address: &FrontendAddress) -> Option<FrontendKey<A>> {
        let vip = A::from_ip(address.address)?;
        Some(FrontendKey::new(vip, Port::new(address.port), address.protocol.number()))
    }

    /// Applies a write that is for this family; one with an address of the other has no effect, and none is made.
    fn write(&mut self, write: &Write, capacities: Capacities) -> Result<(), MapError> {
        match write {
            Write::Name { .. } | Write::ResetCounters { .. } => Ok(()),
            Write::Backend { family: _, id, record } => {
                let BackendRecord { address, port, generation, service, state } = *record;
                let Some(address) = A::from_ip(address) else { return Ok(()) };
                let port = Port::new(port);
                let backend = Backend { address, generation, service, port, state: state.number(), reserved: 0 };
                self.backends.set(*id, backend, 0).map_err(full("write", MapKind::Backends, capacities.backends))
            }
            Write::Slots { family: _, first, service: _, backends } => {
                for (slot, backend) in (*first..).zip(backends) {
                    self.slots.set(slot, backend, 0).map_err(full("write", MapKind::Slots, capacities.slots))?;
                }
                Ok(())
            }
            Write::FilterWord { family: _, index, value } => {
                self.filter.set(*index, value, 0).map_err(kernel("write", MapKind::Filter))
            }
            Write::Frontend { address, frontend } => {
                let Some(key) = Self::key(address) else { return Ok(()) };
                self.frontends.insert(key, frontend, 0).map_err(full("write", MapKind::Frontends, capacities.frontends))
            }
            Write::RemoveFrontend { address } => {
                let Some(key) = Self::key(address) else { return Ok(()) };
                absent_is_fine(self.frontends.remove(&key)).map_err(kernel("remove from", MapKind::Frontends))
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
        for (id, backend) in (0..).zip(self.backends.iter()) {
            let backend = backend.map_err(kernel("read", MapKind::Backends))?;
            if backend.generation != 0 {
                backends.push((A::FAMILY, id, record(&backend)));
            }
        }
        Ok(backends)
    }

    fn filter(&self) -> Result<Vec<(IpFamily, u32, u64)>, MapError> {
        let mut words = Vec::new();
        for index in 0..filter::WORDS {
            let word = self.filter.get(&index, 0).map_err(kernel("read", MapKind::Filter))?;
            if word != 0 {
                words.push((A::FAMILY, index, word));
            }
        }
        Ok(words)
    }

    fn reply_count(&self) -> Result<usize, MapError> {
        self.reply.keys().try_fold(0, |count, key| key.map(|_| count + 1)).map_err(kernel("read", MapKind::Connections))
    }

    fn connections(&self) -> Result<Vec<ConnectionRecord>, MapError> {
        let mut connections = Vec::new();
        for entry in self.forward.iter() {
            let (key, ForwardEntry { backend, generation, service, last_seen, state }) =
                entry.map_err(kernel("read", MapKind::Connections))?;
            let FlowKey { source, destination, source_port, destination_port, protocol } = key;
            let Some(protocol) = u8::try_from(protocol).ok().and_then(Protocol::from_number) else { continue };
            let endpoint = self.backends.get(&backend, 0).map_err(kernel("read", MapKind::Backends))?;
            connections.push(ConnectionRecord {
                client: (source.into(), source_port.number()),
                frontend: FrontendAddress { address: destination.into(), port: destination_port.number(), protocol },
                service,
                backend,
                endpoint: (endpoint.generation == generation).then(|| record(&endpoint)),
                state: FlowState::from_number(u16::try_from(state).unwrap_or(u16::MAX)),
                last_seen,
            });
        }
        Ok(connections)
    }
}

fn record<A: Address>(backend: &Backend<A>) -> BackendRecord {
    let Backend { address, generation, service, port, state, reserved: _ } = *backend;
    BackendRecord {
        address: address.into(),
        port: port.number(),
        generation,
        service,
        state: BackendState::from_number(state),
    }
}

fn typed<T: TryFrom<Map, Error = AyaError>>(
    take: &mut impl FnMut(&'static str) -> Option<Map>,
    name: &'static str,
) -> Result<T, OpenError> {
    let map = take(name).ok_or(OpenError::Missing { name })?;
    T::try_from(map).map_err(|source| OpenError::Layout { name, source })
}

fn max_entries(map: &MapData, name: &'static str) -> Result<u32, OpenError> {
    Ok(map.info().map_err(|source| OpenError::Layout { name, source })?.max_entries())
}

fn kernel(operation: &'static str, map: MapKind) -> impl Fn(AyaError) -> MapError {
    move |source| MapError::Kernel { operation, map, source }
}

/// As `kernel`, where the kernel's way to say "no room" (E2BIG for hashes and arrays, ENOMEM and ENOSPC for what grows)
/// becomes an error of its own.
fn full(operation: &'static str, map: MapKind, capacity: u32) -> impl Fn(AyaError) -> MapError {
    move |source| match &source {
        AyaError::OutOfBounds { .. } => MapError::Full { map, capacity },
        AyaError::SyscallError(error) if matches!(error.io_error.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC)) => {
            MapError::Full { map, capacity }
        }
        _ => MapError::Kernel { operation, map, source },
    }
}

fn absent_is_fine(result: Result<(), AyaError>) -> Result<(), AyaError> {
    match result {
        Err(AyaError::KeyNotFound) => Ok(()),
        Err(AyaError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        other => other,
    }
}
