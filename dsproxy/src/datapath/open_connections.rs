//! How many connections each service port has open. The kernel hands the tables over in batches: a call for some thousand entries.

use std::{collections::HashMap, io};

use dsproxy_common::{
    IpFamily,
    flow::{FlowState, ForwardEntry, jiffies_since},
    layout::family_maps,
    record::Record,
    settings::Settings,
};

use super::{bpffs::Bpffs, load, raw_map::RawMap};

/// The connections by the id of their service port. Those that both sides have closed, or one has reset, are left out, and those that
/// have not been seen for longer than they count.
///
/// # Errors
///
/// When the tables cannot be read.
pub fn by_service(bpffs: &Bpffs, settings: &Settings, now: u32) -> io::Result<HashMap<u32, u64>> {
    let directory = load::map_directory(bpffs);
    let mut counts = HashMap::new();
    for names in IpFamily::ALL.map(family_maps) {
        for name in [names.forward, names.forward_brief] {
            let Some(map) = RawMap::pinned(&directory.join(name))? else { continue };
            map.for_each(|_, value| {
                if let Some(service) = service_of(value, settings, now) {
                    *counts.entry(service).or_default() += 1;
                }
            })?;
        }
    }
    Ok(counts)
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
