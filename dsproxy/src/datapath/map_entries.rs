//! How full the maps are that the programs themselves write. The kernel hands them over in batches; asked for one key after the other, a
//! table of which entries give way meanwhile may begin again and again.

use std::io;

use dsproxy_common::IpFamily;

use super::{bpffs::Bpffs, load, raw_map::RawMap};
use crate::maps::MapKind;

/// How many entries of `family` the programs have made in maps of this kind; none if they only read them.
///
/// # Errors
///
/// When the map cannot be read.
pub fn made_by_programs(bpffs: &Bpffs, kind: MapKind, family: IpFamily) -> io::Result<Option<usize>> {
    let name = match (kind.is_made_by_programs(), kind.kernel_maps(Some(family)).first()) {
        (true, Some(name)) => name,
        _ => return Ok(None),
    };
    let map = RawMap::pinned(&load::map_directory(bpffs).join(name))?.ok_or(io::ErrorKind::NotFound)?;
    let mut count = 0;
    map.for_each(|_, _| count += 1)?;
    Ok(Some(count))
}
