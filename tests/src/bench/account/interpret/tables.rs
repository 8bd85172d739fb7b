//! The maps of a program that is followed: the kernel's own, by system calls. What the kernel keeps for each CPU is kept here instead.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _, RawFd},
};

use aya::maps::{MapFd, MapInfo, MapType};
use dsproxy_common::{IpFamily, layout::cached_flows};

use super::{Fault, memory::Memory};

/// Commands of bpf(2) (`enum bpf_cmd` in include/uapi/linux/bpf.h).
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;

/// `BPF_EXIST`: only what is there is written.
const BPF_EXIST: u64 = 2;

/// The member of `union bpf_attr` for elements of maps.
#[repr(C)]
struct Attributes {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// What a map is, as far as its price goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Array,
    PerCpuArray,
    /// The flows that XDP remembers, each CPU its own: too large for the caches nearest to the processor.
    Flows,
    Hash,
    Trie,
    Other,
}

/// One map.
pub(super) struct Table {
    pub(super) name: String,
    pub(super) kind: Kind,
    fd: MapFd,
    key: usize,
    value: usize,
    entries: u32,
}

/// The maps, and their values as far as the program has seen them.
pub(super) struct Tables {
    tables: Vec<Table>,
    /// Where a value stands by the map's place and the key.
    seen: HashMap<(usize, Vec<u8>), u64>,
}

/// The maps of the flows that XDP remembers.
const FLOWS: [&str; 2] = [cached_flows(IpFamily::V4), cached_flows(IpFamily::V6)];

impl Table {
    /// Whether no other CPU sees what the program writes there.
    fn is_this_cpus(&self) -> bool {
        matches!(self.kind, Kind::PerCpuArray | Kind::Flows)
    }

    /// The map with this `id`.
    pub(super) fn open(id: u32) -> Result<Self, Fault> {
        let failed =
            |error: aya::maps::MapError| Fault::Map { name: format!("number {id}"), reason: error.to_string() };
        let info = MapInfo::from_id(id).map_err(failed)?;
        let name = String::from_utf8_lossy(info.name()).into_owned();
        let kind = match info.map_type().map_err(failed)? {
            MapType::Array if FLOWS.contains(&name.as_str()) => Kind::Flows,
            MapType::Array => Kind::Array,
            MapType::PerCpuArray => Kind::PerCpuArray,
            MapType::Hash | MapType::LruHash => Kind::Hash,
            MapType::LpmTrie => Kind::Trie,
            _ => Kind::Other,
        };
        Ok(Self {
            name,
            kind,
            fd: info.fd().map_err(failed)?,
            key: info.key_size() as usize,
            value: info.value_size() as usize,
            entries: info.max_entries(),
        })
    }

    fn call(&self, command: libc::c_long, key: &[u8], value: *mut u8, flags: u64) -> io::Result<()> {
        let fd: RawFd = self.fd.as_fd().as_raw_fd();
        let mut attributes =
            Attributes { map_fd: fd.cast_unsigned(), padding: 0, key: key.as_ptr() as u64, value: value as u64, flags };
        // SAFETY: laid out as the kernel defines it; the key is as long as the map's, and `value` is null or the address of as many
        // bytes as the map's values have, as the callers see to.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, command, &raw mut attributes, size_of::<Attributes>() as libc::c_ulong)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn failed(&self, error: &io::Error) -> Fault {
        Fault::Map { name: self.name.clone(), reason: error.to_string() }
    }

    /// The value of `key`, which is as long as the map's keys.
    fn read(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let mut value = vec![0; self.value];
        match self.call(BPF_MAP_LOOKUP_ELEM, key, value.as_mut_ptr(), 0) {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(self.failed(&error)),
        }
    }
}

impl Tables {
    pub(super) fn of(tables: Vec<Table>) -> Self {
        Self { tables, seen: HashMap::new() }
    }

    /// The map at `place`.
    pub(super) fn get(&self, place: usize) -> Result<&Table, Fault> {
        self.tables.get(place).ok_or(Fault::NoMap { place })
    }

    fn key(&self, memory: &Memory, place: usize, address: u64) -> Result<Vec<u8>, Fault> {
        Ok(memory.bytes(address, self.get(place)?.key)?.to_vec())
    }

    /// Where the value of the key at `address` stands, or zero.
    pub(super) fn look_up(&mut self, memory: &mut Memory, place: usize, address: u64) -> Result<u64, Fault> {
        let key = self.key(memory, place, address)?;
        let table = self.get(place)?;
        if let Some(known) = self.seen.get(&(place, key.clone())) {
            return Ok(*known);
        }
        let is_array = matches!(table.kind, Kind::Array | Kind::PerCpuArray | Kind::Flows);
        if is_array && memory.load(address, 4)? >= u64::from(table.entries) {
            return Ok(0);
        }
        let value = match table.kind {
            Kind::PerCpuArray | Kind::Flows => Some(vec![0; table.value]),
            Kind::Array | Kind::Hash | Kind::Trie => table.read(&key)?,
            Kind::Other => return Err(Fault::Map { name: table.name.clone(), reason: "of no known kind".to_owned() }),
        };
        let Some(value) = value else { return Ok(0) };
        let found = memory.add(value)?;
        self.seen.insert((place, key), found);
        Ok(found)
    }

    /// Enters the value at `value`; the result is the helper's, and whether the key was there before.
    pub(super) fn update(
        &mut self,
        memory: &Memory,
        place: usize,
        [key, value, flags]: [u64; 3],
    ) -> Result<(i64, bool), Fault> {
        let key = self.key(memory, place, key)?;
        let table = self.get(place)?;
        let was_there = table.read(&key)?.is_some();
        let mut value = memory.bytes(value, table.value)?.to_vec();
        let result = table.call(BPF_MAP_UPDATE_ELEM, &key, value.as_mut_ptr(), flags);
        // What was found before is no longer what stands there.
        self.seen.remove(&(place, key));
        Ok((result.map_or_else(|error| -i64::from(error.raw_os_error().unwrap_or_default()), |()| 0), was_there))
    }

    /// Removes the key at `key`; the result is the helper's.
    pub(super) fn remove(&mut self, memory: &Memory, place: usize, key: u64) -> Result<i64, Fault> {
        let key = self.key(memory, place, key)?;
        let result = self.get(place)?.call(BPF_MAP_DELETE_ELEM, &key, std::ptr::null_mut(), 0);
        self.seen.remove(&(place, key));
        Ok(result.map_or_else(|error| -i64::from(error.raw_os_error().unwrap_or_default()), |()| 0))
    }

    /// Writes what the program has changed in place to the kernel's maps, and forgets all but what is this CPU's own.
    pub(super) fn settle(&mut self, memory: &Memory) -> Result<(), Fault> {
        let Self { tables, seen } = self;
        let is_own = |place: usize| tables.get(place).is_some_and(Table::is_this_cpus);
        for ((place, key), address) in seen.iter().filter(|((place, _), _)| !is_own(*place)) {
            let table = tables.get(*place).ok_or(Fault::NoMap { place: *place })?;
            let mut value = memory.bytes(*address, table.value)?.to_vec();
            if table.kind == Kind::Hash && table.read(key)?.is_some_and(|held| held != value) {
                table
                    .call(BPF_MAP_UPDATE_ELEM, key, value.as_mut_ptr(), BPF_EXIST)
                    .map_err(|error| table.failed(&error))?;
            }
        }
        seen.retain(|(place, _), _| is_own(*place));
        Ok(())
    }
}
