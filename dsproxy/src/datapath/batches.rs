//! Arrays of the kernel read and written many entries at a time, where a system call for each is what takes the time.

use std::{
    io,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{
    Pod,
    maps::{Array, IterableMap as _, MapData, MapError},
    sys::SyscallError,
};

use super::raw_map::{RawMap, update_batch};

/// Shows `look` those entries of `array` that are not all zero, by their index.
///
/// # Errors
///
/// When the kernel refuses.
pub(crate) fn for_each<T: Pod>(array: &Array<MapData, T>, mut look: impl FnMut(u32, T)) -> Result<(), MapError> {
    let mut read = || {
        RawMap::of(descriptor(array))?.for_each(|key, bytes| {
            if let (Ok(index), true) = (key.try_into(), bytes.len() == size_of::<T>()) {
                // SAFETY: as many bytes as the type has, of which any are valid (`Pod`).
                look(u32::from_ne_bytes(index), unsafe { bytes.as_ptr().cast::<T>().read_unaligned() });
            }
        })
    };
    read().map_err(|error| failed("bpf_map_lookup_batch", error))
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
    update_batch(descriptor(array), &mut keys, &mut values, end - first)
        .map_err(|error| failed("bpf_map_update_batch", error))
}

fn descriptor<T: Pod>(array: &Array<MapData, T>) -> BorrowedFd<'_> {
    array.map().fd().as_fd()
}

fn failed(call: &'static str, io_error: io::Error) -> MapError {
    SyscallError { call, io_error }.into()
}
