//! Maps of the kernel read and written many entries at a time, where a system call for each is what takes the time. And a table of which
//! entries give way meanwhile may begin again and again if it is asked for one key after the other.

use std::{io, os::fd::AsFd as _};

use aya::{
    Pod,
    maps::{Array, IterableMap as _, MapData, MapError},
    sys::SyscallError,
};

use super::raw_map::{RawMap, update_batch};

/// Shows `look` the entries of `map`; of an array, by their index, those that are not all zero. Of a map that changes meanwhile some may be
/// missed, and some be met twice.
///
/// # Errors
///
/// When the kernel refuses.
pub(crate) fn for_each<K: Pod, V: Pod>(map: &MapData, mut look: impl FnMut(K, V)) -> Result<(), MapError> {
    let mut read = || {
        RawMap::of(map.fd().as_fd())?.for_each(|key, value| {
            if let (Some(key), Some(value)) = (record(key), record(value)) {
                look(key, value);
            }
        })
    };
    read().map_err(|error| failed("bpf_map_lookup_batch", error))
}

/// What `bytes` are, if they are as many as the type has.
pub(super) fn record<T: Pod>(bytes: &[u8]) -> Option<T> {
    // SAFETY: as many bytes as the type has, of which any are valid (`Pod`).
    (bytes.len() == size_of::<T>()).then(|| unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Writes `values` from the index `first` on. After a failure any part of them may have been written.
///
/// # Errors
///
/// When the kernel refuses, or the array ends before they do.
pub(crate) fn write(array: &Array<MapData, u32>, first: u32, values: &[u32]) -> Result<(), MapError> {
    let past_end =
        || MapError::OutOfBounds { index: first.saturating_add(values.len() as u32), max_entries: array.len() };
    let end = u32::try_from(values.len()).ok().and_then(|count| first.checked_add(count)).ok_or_else(past_end)?;
    if end > array.len() {
        return Err(past_end());
    }
    let bytes = |words: &mut dyn Iterator<Item = u32>| words.flat_map(u32::to_ne_bytes).collect::<Vec<u8>>();
    let (mut keys, mut values) = (bytes(&mut (first..end)), bytes(&mut values.iter().copied()));
    update_batch(array.map().fd().as_fd(), &mut keys, &mut values, end - first)
        .map_err(|error| failed("bpf_map_update_batch", error))
}

fn failed(call: &'static str, io_error: io::Error) -> MapError {
    SyscallError { call, io_error }.into()
}
