//! The connection table as tests want it: entries counted, read, removed and put in, in either direction.

use std::net::{IpAddr, SocketAddr};

use aya::{
    Pod,
    maps::{HashMap, Map, MapData, MapInfo},
    programs::ProgramInfo,
};
use dsproxy_common::{
    Addr4, Addr6, Address, IpFamily, Port, Protocol,
    flow::{EgressEntry, FlowKey, ForwardEntry, SnatEntry},
    fragment::{Fragment, FragmentKey},
    layout::family_maps,
    next_hop::NextHop,
    service::{Affinity, AffinityKey},
};

use super::ProgError;

/// All tables of both families.
pub struct Connections {
    v4: Tables<Addr4>,
    v6: Tables<Addr6>,
}

struct Tables<A: Address + Pod> {
    forward: Table<FlowKey<A>, ForwardEntry>,
    forward_brief: Table<FlowKey<A>, ForwardEntry>,
    egress: Table<FlowKey<A>, EgressEntry<A>>,
    egress_brief: Table<FlowKey<A>, EgressEntry<A>>,
    snat: Table<FlowKey<A>, SnatEntry<A>>,
    fragments: Table<FragmentKey<A>, Fragment>,
    affinity: Table<AffinityKey<A>, Affinity>,
}

struct Table<K: Pod, E: Pod> {
    name: &'static str,
    map: HashMap<MapData, K, E>,
}

/// One direction of a connection: whose packets it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The client's.
    Forward,
    /// The backend's.
    Reply,
}

impl Connections {
    /// The tables that `program` uses.
    pub(super) fn of(program: &ProgramInfo) -> Result<Self, ProgError> {
        let named = |source| ProgError::Program { name: "pod_ingress_ethernet", source };
        let ids = program.map_ids().map_err(named)?.unwrap_or_default();
        Ok(Self { v4: Tables::open(&ids)?, v6: Tables::open(&ids)? })
    }

    /// How many entries there are, in the main and the brief tables.
    ///
    /// # Errors
    ///
    /// When the table cannot be read.
    pub fn count(&self, family: IpFamily, entry: Entry) -> Result<usize, ProgError> {
        match family {
            IpFamily::V4 => self.v4.count(entry),
            IpFamily::V6 => self.v6.count(entry),
        }
    }

    /// How many entries the main tables alone have, of what enters from clients and of what leaves.
    ///
    /// # Errors
    ///
    /// When a table cannot be read.
    pub fn confirmed(&self, family: IpFamily) -> Result<[usize; 2], ProgError> {
        match family {
            IpFamily::V4 => self.v4.confirmed(),
            IpFamily::V6 => self.v6.confirmed(),
        }
    }

    /// Forgets every connection, and what was in fragments.
    ///
    /// # Errors
    ///
    /// When the table cannot be read or written.
    pub fn clear(&mut self) -> Result<(), ProgError> {
        self.v4.clear()?;
        self.v6.clear()
    }

    /// Forgets which endpoints clients stay with.
    ///
    /// # Errors
    ///
    /// When the table cannot be read or written.
    pub fn forget_affinities(&mut self) -> Result<(), ProgError> {
        self.v4.affinity.clear()?;
        self.v6.affinity.clear()
    }

    /// Makes everything that is remembered, clients' endpoints as well, so many jiffies older.
    ///
    /// # Errors
    ///
    /// When the table cannot be read or written.
    pub fn grow_older(&mut self, jiffies: u32) -> Result<(), ProgError> {
        self.v4.grow_older(jiffies)?;
        self.v6.grow_older(jiffies)
    }

    /// Removes the entry for packets like these, and says whether there was one.
    ///
    /// # Errors
    ///
    /// When the table cannot be written.
    pub fn remove(
        &mut self,
        entry: Entry,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Result<bool, ProgError> {
        match IpFamily::of(source.ip()) {
            IpFamily::V4 => self.v4.remove(entry, protocol, source, destination),
            IpFamily::V6 => self.v6.remove(entry, protocol, source, destination),
        }
    }

    /// Changes how the last of packets like these left, as far as their entry knows.
    ///
    /// # Errors
    ///
    /// When there is none, or the table cannot be read or written.
    pub fn change_next_hop(
        &mut self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        change: impl FnOnce(&mut NextHop),
    ) -> Result<(), ProgError> {
        match IpFamily::of(source.ip()) {
            IpFamily::V4 => self.v4.change_next_hop(protocol, source, destination, change),
            IpFamily::V6 => self.v6.change_next_hop(protocol, source, destination, change),
        }
    }
}

impl<A: Address + Pod> Tables<A> {
    fn confirmed(&self) -> Result<[usize; 2], ProgError> {
        Ok([self.forward.keys()?.len(), self.egress.keys()?.len()])
    }

    fn change_next_hop(
        &mut self,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
        change: impl FnOnce(&mut NextHop),
    ) -> Result<(), ProgError> {
        let Some(key) = flow_key::<A>(protocol, source, destination) else {
            return Err(ProgError::NoMap { name: "of both families" });
        };
        let table = if self.egress.map.get(&key, 0).is_ok() { &mut self.egress } else { &mut self.egress_brief };
        let name = table.name;
        let failed = |operation| move |source| ProgError::Connections { operation, name, source };
        let mut entry = table.map.get(&key, 0).map_err(failed("read"))?;
        change(&mut entry.next_hop);
        table.map.insert(key, entry, 0).map_err(failed("write"))
    }

    fn open(ids: &[u32]) -> Result<Self, ProgError> {
        let names = family_maps(A::FAMILY);
        Ok(Self {
            forward: Table::open(ids, names.forward)?,
            forward_brief: Table::open(ids, names.forward_brief)?,
            egress: Table::open(ids, names.egress)?,
            egress_brief: Table::open(ids, names.egress_brief)?,
            snat: Table::open(ids, names.snat)?,
            fragments: Table::open(ids, names.fragments)?,
            affinity: Table::open(ids, names.affinity)?,
        })
    }

    fn count(&self, entry: Entry) -> Result<usize, ProgError> {
        Ok(match entry {
            Entry::Forward => self.forward.keys()?.len() + self.forward_brief.keys()?.len(),
            Entry::Reply => self.egress.keys()?.len() + self.egress_brief.keys()?.len(),
        })
    }

    fn clear(&mut self) -> Result<(), ProgError> {
        let Self { forward, forward_brief, egress, egress_brief, snat, fragments, affinity: _ } = self;
        forward.clear()?;
        forward_brief.clear()?;
        egress.clear()?;
        egress_brief.clear()?;
        snat.clear()?;
        fragments.clear()
    }

    fn grow_older(&mut self, jiffies: u32) -> Result<(), ProgError> {
        let older = |time: &mut u32| *time = time.wrapping_sub(jiffies);
        self.forward.change(|entry| older(&mut entry.last_seen))?;
        self.forward_brief.change(|entry| older(&mut entry.last_seen))?;
        self.egress.change(|entry| older(&mut entry.last_seen))?;
        self.egress_brief.change(|entry| older(&mut entry.last_seen))?;
        self.snat.change(|entry| older(&mut entry.last_seen))?;
        self.fragments.change(|entry| older(&mut entry.seen))?;
        self.affinity.change(|entry| older(&mut entry.last_opened))
    }

    fn remove(
        &mut self,
        entry: Entry,
        protocol: Protocol,
        source: SocketAddr,
        destination: SocketAddr,
    ) -> Result<bool, ProgError> {
        let Some(key) = flow_key::<A>(protocol, source, destination) else { return Ok(false) };
        match entry {
            Entry::Forward => Ok(self.forward.remove(&key)? | self.forward_brief.remove(&key)?),
            Entry::Reply => Ok(self.egress.remove(&key)? | self.egress_brief.remove(&key)?),
        }
    }
}

impl<K: Pod, E: Pod> Table<K, E> {
    fn open(ids: &[u32], name: &'static str) -> Result<Self, ProgError> {
        let failed = |source| ProgError::Connections { operation: "open", name, source };
        for id in ids {
            let info = MapInfo::from_id(*id).map_err(failed)?;
            if info.name_as_str() == Some(name) {
                let map = Map::from_map_data(MapData::from_id(*id).map_err(failed)?).map_err(failed)?;
                return Ok(Self { name, map: map.try_into().map_err(failed)? });
            }
        }
        Err(ProgError::NoMap { name })
    }

    fn keys(&self) -> Result<Vec<K>, ProgError> {
        let failed = |source| ProgError::Connections { operation: "read", name: self.name, source };
        self.map.keys().collect::<Result<_, _>>().map_err(failed)
    }

    /// Changes every entry.
    fn change(&mut self, change: impl Fn(&mut E)) -> Result<(), ProgError> {
        let failed = |source| ProgError::Connections { operation: "change", name: self.name, source };
        let entries = self.map.iter().collect::<Result<Vec<_>, _>>().map_err(failed)?;
        for (key, mut entry) in entries {
            change(&mut entry);
            self.map.insert(key, entry, 0).map_err(failed)?;
        }
        Ok(())
    }

    fn clear(&mut self) -> Result<(), ProgError> {
        for key in self.keys()? {
            self.remove(&key)?;
        }
        Ok(())
    }

    fn remove(&mut self, key: &K) -> Result<bool, ProgError> {
        match self.map.remove(key) {
            Ok(()) => Ok(true),
            Err(aya::maps::MapError::KeyNotFound) => Ok(false),
            Err(aya::maps::MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(false)
            }
            Err(source) => Err(ProgError::Connections { operation: "remove from", name: self.name, source }),
        }
    }
}

/// The key of packets from `source` to `destination`, when both are of the family.
fn flow_key<A: Address>(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Option<FlowKey<A>> {
    Some(FlowKey {
        source: A::from_ip(source.ip())?,
        destination: A::from_ip(destination.ip())?,
        source_port: Port::new(source.port()),
        destination_port: Port::new(destination.port()),
        protocol: protocol.number().into(),
    })
}

/// Which of `count` slots the programs are to choose for packets from `source` to `destination`.
pub fn slot(protocol: Protocol, source: SocketAddr, destination: SocketAddr, count: u32) -> Option<u32> {
    let hash = match source.ip() {
        IpAddr::V4(_) => dsproxy_common::hash::flow_hash(&flow_key::<Addr4>(protocol, source, destination)?),
        IpAddr::V6(_) => dsproxy_common::hash::flow_hash(&flow_key::<Addr6>(protocol, source, destination)?),
    };
    Some(dsproxy_common::hash::slot(hash, count))
}
