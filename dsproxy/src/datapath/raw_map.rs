//! Maps as bytes: what is pinned may be of another version, whose types nobody here knows.
//!
//! The structures are those of `union bpf_attr` in the kernel's include/uapi/linux/bpf.h.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::Path,
};

use super::attach::bpf::{self, address_of, kernel_struct, open, raw, run};

mod command {
    pub(super) const MAP_CREATE: libc::c_long = 0;
    pub(super) const MAP_LOOKUP_ELEM: libc::c_long = 1;
    pub(super) const MAP_UPDATE_ELEM: libc::c_long = 2;
    pub(super) const MAP_DELETE_ELEM: libc::c_long = 3;
    pub(super) const MAP_GET_NEXT_KEY: libc::c_long = 4;
    pub(super) const MAP_LOOKUP_BATCH: libc::c_long = 24;
    pub(super) const MAP_UPDATE_BATCH: libc::c_long = 26;
}

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_PERCPU_HASH: u32 = 5;
const BPF_MAP_TYPE_PERCPU_ARRAY: u32 = 6;

/// The kernel's `BPF_ANY` and `BPF_NOEXIST`.
const ANY: u64 = 0;
const NOEXIST: u64 = 1;

/// Entries that are asked for at a time. A bucket of a hash has to fit; more is asked for if it does not.
const BATCH: u32 = 4096;

kernel_struct!(Create, 48, {
    kind: u32, key_size: u32, value_size: u32, max_entries: u32, flags: u32,
    inner_map: u32, numa_node: u32, name: [u8; 16], interface: u32,
});
kernel_struct!(Element, 32, { map: u32, unused: u32, key: u64, value: u64, flags: u64 });
kernel_struct!(Batch, 56, {
    from: u64, next: u64, keys: u64, values: u64, count: u32, map: u32, element_flags: u64, flags: u64,
});

/// Puts `count` values of the array `map` under as many keys. After a failure any part of them may have been written.
pub(super) fn update_batch(map: BorrowedFd<'_>, keys: &mut [u8], values: &mut [u8], count: u32) -> io::Result<()> {
    let mut attribute =
        Batch { keys: address_of(keys), values: address_of(values), count, map: raw(map), ..Batch::default() };
    run(command::MAP_UPDATE_BATCH, &mut attribute).map(drop)
}

/// A key and a value, as bytes.
pub(super) type RawEntry = (Vec<u8>, Vec<u8>);

/// A map.
#[derive(Debug)]
pub(super) struct RawMap {
    descriptor: OwnedFd,
    info: bpf::MapInfo,
}

impl RawMap {
    /// The map pinned at `path`; none if nothing is.
    pub(super) fn pinned(path: &Path) -> io::Result<Option<Self>> {
        match bpf::pinned(path) {
            Ok(descriptor) => Ok(Some(Self { info: bpf::map_info(descriptor.as_fd())?, descriptor })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The map that `descriptor` is of.
    pub(super) fn of(descriptor: BorrowedFd<'_>) -> io::Result<Self> {
        Ok(Self { info: bpf::map_info(descriptor)?, descriptor: descriptor.try_clone_to_owned()? })
    }

    /// A new array of one value, pinned at `path`.
    pub(super) fn single(name: &str, value: &[u8], path: &Path) -> io::Result<()> {
        let mut short = [0; 16];
        for (to, from) in short[..15].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        let mut attribute = Create {
            kind: BPF_MAP_TYPE_ARRAY,
            key_size: 4,
            value_size: value.len() as u32,
            max_entries: 1,
            name: short,
            ..Create::default()
        };
        let descriptor = open(command::MAP_CREATE, &mut attribute)?;
        let map = Self { info: bpf::map_info(descriptor.as_fd())?, descriptor };
        map.set(&[0; 4], value)?;
        bpf::pin(map.descriptor.as_fd(), path)
    }

    pub(super) fn key_size(&self) -> usize {
        self.info.key_size as usize
    }

    /// The size of a value; where each CPU has its own, of that of one CPU.
    pub(super) fn value_size(&self) -> usize {
        self.info.value_size as usize
    }

    fn is_array(&self) -> bool {
        matches!(self.info.kind, BPF_MAP_TYPE_ARRAY | BPF_MAP_TYPE_PERCPU_ARRAY)
    }

    /// Whether something stands where this value was found.
    fn is_entry(&self, value: &[u8]) -> bool {
        !self.is_array() || value.iter().any(|byte| *byte != 0)
    }

    /// The bytes that the kernel exchanges for a value.
    fn bytes_of_value(&self) -> io::Result<usize> {
        Ok(match self.info.kind {
            BPF_MAP_TYPE_PERCPU_HASH | BPF_MAP_TYPE_PERCPU_ARRAY => {
                let cpus = aya::util::nr_cpus().map_err(|(_, error)| error)?;
                self.value_size().next_multiple_of(8) * cpus
            }
            _ => self.value_size(),
        })
    }

    fn element<'a>(&self, key: &'a [u8], value: &'a mut [u8], flags: u64) -> Element {
        debug_assert_eq!(key.len(), self.key_size());
        Element { map: raw(&self.descriptor), key: key.as_ptr() as u64, value: address_of(value), flags, unused: 0 }
    }

    /// The value under `key`.
    pub(super) fn get(&self, key: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let mut value = vec![0; self.bytes_of_value()?];
        match run(command::MAP_LOOKUP_ELEM, &mut self.element(key, &mut value, 0)) {
            Ok(_) => Ok(Some(value)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Puts `value` under `key`.
    pub(super) fn set(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.put(key, value, ANY)
    }

    /// Puts `value` under `key` if nothing is there. False if something is.
    pub(super) fn add(&self, key: &[u8], value: &[u8]) -> io::Result<bool> {
        match self.put(key, value, NOEXIST) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn put(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        let mut value = value.to_vec();
        // The kernel reads as much as that.
        value.resize(self.bytes_of_value()?, 0);
        run(command::MAP_UPDATE_ELEM, &mut self.element(key, &mut value, flags)).map(drop)
    }

    /// Takes away what is under `key`, if anything is.
    pub(super) fn remove(&self, key: &[u8]) -> io::Result<()> {
        // The kernel minds what is set beyond the key.
        match run(command::MAP_DELETE_ELEM, &mut Element { value: 0, ..self.element(key, &mut [], 0) }) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Shows `look` each of the entries, in memory that is used again; of arrays, those that are not all zero. Of a map that changes
    /// meanwhile some may be missed, and some be met twice.
    pub(super) fn for_each(&self, mut look: impl FnMut(&[u8], &[u8])) -> io::Result<()> {
        // Of a million slots few are in use.
        let mut look = |key: &[u8], value: &[u8]| {
            if self.is_entry(value) {
                look(key, value);
            }
        };
        if self.batches(&mut look)? { Ok(()) } else { self.one_by_one(&mut look) }
    }

    /// False if the kernel has no batches for a map of this kind.
    fn batches(&self, look: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<bool> {
        let (key_size, value_size) = (self.key_size(), self.bytes_of_value()?);
        let mut size = BATCH;
        // Where the kernel goes on: a bucket's number or a key.
        let (mut from, mut next) = (vec![0u8; key_size.max(8)], vec![0u8; key_size.max(8)]);
        let mut is_first = true;
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        loop {
            keys.resize(key_size * size as usize, 0u8);
            values.resize(value_size * size as usize, 0u8);
            let mut attribute = Batch {
                from: if is_first { 0 } else { address_of(from.as_mut_slice()) },
                next: address_of(next.as_mut_slice()),
                keys: address_of(keys.as_mut_slice()),
                values: address_of(values.as_mut_slice()),
                count: size,
                map: raw(&self.descriptor),
                ..Batch::default()
            };
            let outcome = run(command::MAP_LOOKUP_BATCH, &mut attribute);
            let is_last = match outcome {
                Ok(_) => false,
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENOENT) => true,
                    Some(libc::ENOSPC) => {
                        size *= 2;
                        continue;
                    }
                    // Not every kind of map has batches in every kernel (`ENOTSUPP`, which has no name in user space).
                    Some(libc::EINVAL | libc::EOPNOTSUPP | 524) if is_first => return Ok(false),
                    _ => return Err(error),
                },
            };
            let found = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size)).take(attribute.count as usize);
            found.for_each(|(key, value)| look(key, value));
            if is_last {
                return Ok(true);
            }
            std::mem::swap(&mut from, &mut next);
            is_first = false;
        }
    }

    fn one_by_one(&self, look: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
        let mut key: Option<Vec<u8>> = None;
        loop {
            let mut next = vec![0; self.key_size()];
            let mut attribute = Element {
                map: raw(&self.descriptor),
                key: key.as_ref().map_or(0, |key| key.as_ptr() as u64),
                value: address_of(next.as_mut_slice()),
                ..Element::default()
            };
            match run(command::MAP_GET_NEXT_KEY, &mut attribute) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) => return Err(error),
            }
            if let Some(value) = self.get(&next)? {
                look(&next, &value);
            }
            key = Some(next);
        }
    }
}
