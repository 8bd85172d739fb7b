//! How full the maps are, and how much memory they take.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context as _;
use dsproxy_common::{
    IpFamily,
    service::{BackendState, Frontend},
};
use serde::Serialize;

use super::{Live, columns::Columns, human};
use crate::{
    datapath::{bpffs::Bpffs, map_entries, map_memory},
    maps::{FrontendAddress, MapError, MapKind, MapStore as _, kernel::KernelMaps},
};

/// A map, or the maps that together hold one kind of thing.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MapFill {
    /// What it holds.
    pub(super) map: &'static str,
    /// Whose it is; none: both families'.
    pub(super) family: Option<String>,
    /// How many there are; none where nobody counts them.
    pub(super) entries: Option<usize>,
    /// How many there may be.
    pub(super) capacity: Option<u32>,
    /// The memory, as the kernel has it.
    pub(super) bytes: u64,
}

impl MapFill {
    /// The part that is taken, of maps that can be full.
    pub(super) fn share(&self) -> Option<f64> {
        let capacity = self.capacity.filter(|capacity| *capacity > 0)?;
        Some(self.entries? as f64 / f64::from(capacity))
    }
}

/// The maps that programs use and nobody pins.
const UNPINNED: &str = "the programs' own";

/// All maps. Those of `programs` that are not pinned come last, where the kernel lets us see them.
///
/// # Errors
///
/// When maps cannot be read.
pub(super) fn fill(live: &Live, programs: &BTreeSet<u32>) -> anyhow::Result<Vec<MapFill>> {
    let memory = map_memory::pinned(&live.bpffs)?;
    let mut rows = Vec::new();
    let (contents, capacities) = (Contents::read(&live.maps)?, live.maps.capacities());
    for kind in MapKind::ALL {
        for family in [None, Some(IpFamily::V4), Some(IpFamily::V6)] {
            let maps = kind.kernel_maps(family);
            if maps.is_empty() {
                continue;
            }
            let entries = contents.count(&live.bpffs, kind, family)?;
            let capacity = entries.and_then(|_| capacities.of(kind));
            rows.push(MapFill {
                map: kind.name(),
                family: family.map(|family| family.to_string()),
                entries,
                capacity,
                bytes: maps.iter().filter_map(|name| memory.get(*name)).sum(),
            });
        }
    }
    if let Some(used) = map_memory::of_programs(programs) {
        rows.push(MapFill {
            map: UNPINNED,
            family: None,
            entries: None,
            capacity: None,
            bytes: unpinned(&used, &memory),
        });
    }
    Ok(rows)
}

fn unpinned(used: &BTreeMap<String, u64>, pinned: &BTreeMap<String, u64>) -> u64 {
    /// The kernel keeps no more of a map's name (`BPF_OBJ_NAME_LEN`, less the end of the text).
    const NAME: usize = 15;
    let pinned: BTreeSet<&str> = pinned.keys().map(|pin| pin.get(..NAME).unwrap_or(pin)).collect();
    used.iter().filter(|(name, _)| !pinned.contains(name.as_str())).map(|(_, bytes)| bytes).sum()
}

/// What user space has written, read once.
struct Contents {
    services: usize,
    frontends: Vec<(FrontendAddress, Frontend)>,
    backends: BTreeMap<IpFamily, usize>,
    source_ranges: BTreeMap<IpFamily, usize>,
    networks: BTreeMap<IpFamily, usize>,
}

impl Contents {
    fn read(maps: &KernelMaps) -> Result<Self, MapError> {
        let by_family = |families: &mut dyn Iterator<Item = IpFamily>| {
            let mut counts = BTreeMap::new();
            for family in families {
                *counts.entry(family).or_default() += 1;
            }
            counts
        };
        let in_use = maps.backends()?.into_iter().filter(|(.., record)| record.state != BackendState::Gone);
        Ok(Self {
            services: maps.names()?.len(),
            frontends: maps.frontends()?,
            backends: by_family(&mut in_use.map(|(family, ..)| family)),
            source_ranges: by_family(&mut maps.source_ranges()?.iter().map(|(_, range)| IpFamily::of(range.addr()))),
            networks: by_family(&mut maps.networks()?.iter().map(|(network, _)| IpFamily::of(network.addr()))),
        })
    }

    /// How many there are, of what is counted.
    fn count(&self, bpffs: &Bpffs, kind: MapKind, family: Option<IpFamily>) -> anyhow::Result<Option<usize>> {
        let Some(family) = family else {
            return Ok((kind == MapKind::Services).then_some(self.services));
        };
        let of = |counts: &BTreeMap<IpFamily, usize>| counts.get(&family).copied().unwrap_or_default();
        let own = || self.frontends.iter().filter(move |(address, _)| address.family() == family);
        Ok(match kind {
            MapKind::Frontends => Some(own().count()),
            MapKind::Slots => Some(slots(own().map(|(_, frontend)| frontend))),
            MapKind::Backends => Some(of(&self.backends)),
            MapKind::SourceRanges => Some(of(&self.source_ranges)),
            MapKind::Networks => Some(of(&self.networks)),
            _ => {
                map_entries::made_by_programs(bpffs, kind, family).with_context(|| format!("count {}", kind.name()))?
            }
        })
    }
}

/// The slots of runs, of which several frontends may have the same. A run of one has none: it is the backend itself.
fn slots<'a>(frontends: impl Iterator<Item = &'a Frontend>) -> usize {
    let runs = frontends.flat_map(|frontend| [frontend.inside, frontend.outside]).filter(|run| run.count > 1);
    let runs: BTreeSet<(u32, u32)> = runs.map(|run| (run.first, run.count)).collect();
    runs.into_iter().map(|(_, count)| count as usize).sum()
}

/// The table, with the sum of all memory.
pub(super) fn table(rows: &[MapFill]) -> String {
    let mut columns = Columns::new(&["MAP", "FAMILY", "ENTRIES", "CAPACITY", "MEMORY"]);
    for MapFill { map, family, entries, capacity, bytes } in rows {
        let number = |number: Option<String>| number.unwrap_or_else(|| "-".to_owned());
        columns.row([
            (*map).to_owned(),
            family.clone().unwrap_or_default(),
            number(entries.map(|entries| entries.to_string())),
            number(capacity.map(|capacity| capacity.to_string())),
            human::bytes(*bytes),
        ]);
    }
    let all: u64 = rows.iter().map(|row| row.bytes).sum();
    columns.row(["all", "", "", "", &human::bytes(all)].map(str::to_owned));
    columns.text()
}

#[cfg(test)]
mod tests {
    use dsproxy_common::service::Slots;

    use super::*;

    #[test]
    fn a_run_of_slots_counts_once() {
        let frontend = |inside: (u32, u32), outside: (u32, u32)| {
            let run = |(first, count)| Slots { first, count };
            Frontend { inside: run(inside), outside: run(outside), ..Frontend::default() }
        };
        let frontends = [frontend((10, 3), (20, 101)), frontend((10, 3), (10, 3)), frontend((7, 1), (0, 0))];
        assert_eq!(slots(frontends.iter()), 104);
    }

    #[test]
    fn what_is_pinned_is_not_counted_again() {
        let maps = |all: &[(&str, u64)]| all.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).collect();
        assert_eq!(unpinned(&maps(&[("SETTINGS", 4096), ("FLOWS_V4", 7)]), &maps(&[("SETTINGS", 4096)])), 7);
        let used = maps(&[("SERVICE_COUNTER", 4096), ("FLOWS_V4", 7)]);
        assert_eq!(unpinned(&used, &maps(&[("SERVICE_COUNTERS", 4096)])), 7, "the kernel keeps the name short");
    }
}
