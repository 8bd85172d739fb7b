//! How much memory maps take, in the kernel's own words: `memlock` in /proc/self/fdinfo of an open map.

use std::{
    collections::{BTreeMap, BTreeSet, btree_map},
    fs, io,
    os::fd::{AsFd, AsRawFd as _},
    path::{Path, PathBuf},
};

use aya::{maps::MapInfo, programs::loaded_programs};
use thiserror::Error;

use super::{attach::bpf, bpffs::Bpffs, load};

/// Why it cannot be found out.
#[derive(Debug, Error)]
#[error("{operation} {}: {source}", path.display())]
pub struct MemoryError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The bytes of each pinned map on `bpffs`, by its name.
///
/// # Errors
///
/// When the maps cannot be opened.
pub fn pinned(bpffs: &Bpffs) -> Result<BTreeMap<String, u64>, MemoryError> {
    let directory = load::map_directory(bpffs);
    let failed = |operation, path: &Path| {
        let path = path.to_owned();
        move |source| MemoryError { operation, path, source }
    };
    let mut bytes = BTreeMap::new();
    for entry in fs::read_dir(&directory).map_err(failed("list the maps in", &directory))? {
        let path = entry.map_err(failed("list the maps in", &directory))?.path();
        let Some(name) = path.file_name() else { continue };
        let map = bpf::pinned(&path).map_err(failed("open the map", &path))?;
        let taken = locked(&map).map_err(failed("find the memory of the map", &path))?;
        bytes.insert(name.to_string_lossy().into_owned(), taken);
    }
    Ok(bytes)
}

/// The bytes of all maps that `programs` use, whether pinned or not, by their names; none if the kernel keeps them from us, which
/// it does without `CAP_SYS_ADMIN`.
pub fn of_programs(programs: &BTreeSet<u32>) -> Option<BTreeMap<String, u64>> {
    let mut by_id = BTreeMap::new();
    for program in loaded_programs() {
        let program = program.ok()?;
        if !programs.contains(&program.id()) {
            continue;
        }
        for map in program.map_ids().ok()?? {
            if let btree_map::Entry::Vacant(entry) = by_id.entry(map) {
                let info = MapInfo::from_id(map).ok()?;
                let name = info.name_as_str()?.to_owned();
                entry.insert((name, locked(&info.fd().ok()?).ok()?));
            }
        }
    }
    let mut bytes = BTreeMap::new();
    for (name, taken) in by_id.into_values() {
        *bytes.entry(name).or_default() += taken;
    }
    Some(bytes)
}

fn locked(map: &impl AsFd) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_fd().as_raw_fd()))?;
    memlock(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn memlock(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("memlock:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_number_is_found() {
        let text = "pos:\t0\nflags:\t02000002\nmap_type:\t1\nmemlock:\t7340608\nmap_id:\t12\nfrozen:\t0\n";
        assert_eq!(memlock(text), Some(7_340_608));
        assert_eq!(memlock("pos:\t0\n"), None);
        assert_eq!(memlock("memlock:\tmuch\n"), None);
    }
}
