//! How many connections are open, of each service port and in each table. The kernel hands the tables over in batches: a call for some thousand entries.

use std::{collections::HashMap, io};

use anyhow::Context as _;
use dsproxy_common::{
    IpFamily,
    flow::{FlowState, ForwardEntry, jiffies_since},
    layout::family_maps,
    record::Record,
    settings::Settings,
};

use super::{bpffs::Bpffs, load, raw_map::RawMap};
use crate::{
    jiffies,
    maps::{MapKind, kernel::KernelMaps},
};

/// A table of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    /// `Connections` or `BriefConnections`.
    pub kind: MapKind,
    /// Whose connections.
    pub family: IpFamily,
    /// Entries, those of connections that are over included.
    pub entries: usize,
    /// Those of open connections.
    pub open: usize,
}

/// The connections by the id of their service port. Those that both sides have closed, or one has reset, are left out, and those that
/// have not been seen for longer than they count.
///
/// # Errors
///
/// When the tables cannot be read.
pub fn by_service(bpffs: &Bpffs, settings: &Settings, now: u32) -> io::Result<HashMap<u32, u64>> {
    let mut counts = HashMap::new();
    for_each(bpffs, |_, _, value| {
        if let Some(service) = service_of(value, settings, now) {
            *counts.entry(service).or_default() += 1;
        }
    })?;
    Ok(counts)
}

/// The tables.
///
/// # Errors
///
/// As `by_service`.
fn tables(bpffs: &Bpffs, settings: &Settings, now: u32) -> io::Result<Vec<Table>> {
    let empty = |family| TABLES.map(|kind| Table { kind, family, entries: 0, open: 0 });
    let mut tables: Vec<Table> = IpFamily::ALL.into_iter().flat_map(empty).collect();
    for_each(bpffs, |kind, family, value| {
        if let Some(table) = tables.iter_mut().find(|table| (table.kind, table.family) == (kind, family)) {
            table.entries += 1;
            table.open += usize::from(service_of(value, settings, now).is_some());
        }
    })?;
    Ok(tables)
}

/// The same, by the settings and the clock as they are.
///
/// # Errors
///
/// Also when those cannot be read.
pub fn read_tables(bpffs: &Bpffs, maps: &KernelMaps) -> anyhow::Result<Vec<Table>> {
    let settings = maps.settings()?;
    let now = jiffies::now(settings.jiffies_per_second).context("read the clock")?;
    tables(bpffs, &settings, now).context("read the connections")
}

const TABLES: [MapKind; 2] = [MapKind::Connections, MapKind::BriefConnections];

/// Shows all connections, each as a `ForwardEntry`.
fn for_each(bpffs: &Bpffs, mut see: impl FnMut(MapKind, IpFamily, &[u8])) -> io::Result<()> {
    let directory = load::map_directory(bpffs);
    for family in IpFamily::ALL {
        let names = family_maps(family);
        for (kind, name) in TABLES.into_iter().zip([names.forward, names.forward_brief]) {
            let Some(map) = RawMap::pinned(&directory.join(name))? else { continue };
            map.for_each(|_, value| see(kind, family, value))?;
        }
    }
    Ok(())
}

/// The service port of a `ForwardEntry` of an open connection.
fn service_of(entry: &[u8], settings: &Settings, now: u32) -> Option<u32> {
    let bytes = |name: &str| {
        let field = ForwardEntry::FIELDS.iter().find(|field| field.name == name)?;
        entry.get(field.offset..field.offset + field.size)
    };
    let number = |name: &str| Some(u32::from_ne_bytes(bytes(name)?.try_into().ok()?));
    let state = u16::from_ne_bytes(bytes("state")?.try_into().ok()?);
    let state = FlowState::from_number(state);
    let lifetime = settings.lifetimes[usize::from(state.number())];
    let is_open = !matches!(state, FlowState::Closing | FlowState::Reset);
    (is_open && jiffies_since(number("last_seen")?, now) <= lifetime).then_some(number("service")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_not_been_seen_for_too_long_is_over() {
        let mut settings = Settings::default();
        settings.lifetimes[usize::from(FlowState::Established.number())] = 100;
        let mut entry = vec![0; size_of::<ForwardEntry>()];
        let put = |entry: &mut [u8], name: &str, bytes: &[u8]| {
            let field = ForwardEntry::FIELDS.iter().find(|field| field.name == name).expect("the field");
            entry[field.offset..field.offset + field.size].copy_from_slice(bytes);
        };
        put(&mut entry, "service", &7u32.to_ne_bytes());
        put(&mut entry, "last_seen", &1000u32.to_ne_bytes());
        put(&mut entry, "state", &FlowState::Established.number().to_ne_bytes());
        assert_eq!(service_of(&entry, &settings, 1100), Some(7));
        assert_eq!(service_of(&entry, &settings, 1101), None);
        assert_eq!(service_of(&entry, &settings, 999), Some(7), "written since the clock was read");
        assert_eq!(service_of(&entry[..4], &settings, 1100), None, "another version's");
        put(&mut entry, "state", &FlowState::Closing.number().to_ne_bytes());
        settings.lifetimes = [100; FlowState::COUNT];
        assert_eq!(service_of(&entry, &settings, 1000), None, "both sides have closed it");
    }
}
