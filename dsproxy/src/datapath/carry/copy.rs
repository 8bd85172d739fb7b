//! What one version's maps hold, put into another's.

use std::{
    collections::HashSet,
    io,
    ops::Range,
    path::{Path, PathBuf},
};

use dsproxy_common::{
    IpFamily,
    flow::{EgressKind, FOREIGN, jiffies_since},
    layout::family_maps,
};
use tracing::{debug, warn};

use super::{
    CarryError,
    convert::{Conversion, Misfit},
    description::{Content, Description, Held, maps},
};
use crate::datapath::raw_map::{RawEntry, RawMap};

/// A map of another version, how it is read, and the one of this version that takes its content.
pub(super) struct Pair {
    pub(super) held: Held,
    pub(super) from: RawMap,
    pub(super) to: RawMap,
    /// This version's map in which an entry of the same connection may stand instead: what is opening is kept apart from what is confirmed.
    twin: Option<RawMap>,
    keys: Conversion,
    values: Conversion,
    path: PathBuf,
}

/// The maps of `from` that can be read, each with the one of this version in `to`. What cannot be carried over is said.
pub(super) fn pairs(from: &Path, to: &Path) -> Result<Vec<Pair>, CarryError> {
    let Some(description) =
        Description::pinned(from).map_err(CarryError::on("read the description of the maps in", from))?
    else {
        return Ok(Vec::new());
    };
    let mut pairs = Vec::new();
    for held in maps() {
        if held.content == Content::Anew {
            continue;
        }
        let path = from.join(held.name);
        let open = |directory: &Path| {
            let path = directory.join(held.name);
            RawMap::pinned(&path).map_err(CarryError::on("open the map", &path))
        };
        let (Some(old), Some(new), Some(entry)) = (open(from)?, open(to)?, description.maps.get(held.name)) else {
            // A map that another version does not have is empty there.
            debug!(map = held.name, "not in the other layout");
            continue;
        };
        let conversion = || -> Result<(Conversion, Conversion), Misfit> {
            Ok((
                Conversion::of_keys((&entry.key, old.key_size()), (&held.entry.key, new.key_size()))?,
                Conversion::of_values((&entry.value, old.value_size()), (&held.entry.value, new.value_size()))?,
            ))
        };
        match conversion() {
            Ok((keys, values)) => {
                let twin = twin(held.name).map(|name| {
                    let path = to.join(name);
                    RawMap::pinned(&path).map_err(CarryError::on("open the map", &path))
                });
                let twin = twin.transpose()?.flatten();
                pairs.push(Pair { held, from: old, to: new, twin, keys, values, path });
            }
            Err(why) => {
                warn!(map = held.name, layout = description.layout, %why, "a map cannot be carried over, and begins empty");
            }
        }
    }
    Ok(pairs)
}

/// The map in which an entry of `name` may stand as well.
fn twin(name: &str) -> Option<&'static str> {
    IpFamily::ALL.map(family_maps).into_iter().find_map(|maps| {
        let twins = [(maps.forward, maps.forward_brief), (maps.egress, maps.egress_brief)];
        twins.into_iter().find_map(|(main, brief)| match name {
            name if name == main => Some(brief),
            name if name == brief => Some(main),
            _ => None,
        })
    })
}

impl Pair {
    /// What the other version's map holds, as this version has it. What was seen longest ago comes first: of what is entered so, the kernel
    /// takes the first for the least recently used, and has it give way to others.
    pub(super) fn converted(&self) -> Result<Vec<RawEntry>, CarryError> {
        let mut entries = Vec::new();
        self.from
            .for_each(|key, value| entries.push((self.keys.convert(key), self.values.convert(value))))
            .map_err(CarryError::on("read the map", &self.path))?;
        let last_seen = self.last_seen();
        if let Some(reference) = entries.first().and_then(|(_, value)| last_seen(value)) {
            // The clock begins anew at times.
            let order = |time: u32| time.wrapping_sub(reference).cast_signed();
            entries.sort_by_cached_key(|(_, value)| last_seen(value).map(order));
        }
        Ok(entries)
    }

    /// Tells when what a value is of was last seen, of values that say so.
    fn last_seen(&self) -> impl Fn(&[u8]) -> Option<u32> + use<> {
        let field = self.field("last_seen");
        move |value| Some(u32::from_ne_bytes(*value.get(field.clone()?)?.first_chunk()?))
    }

    fn failed(&self) -> impl Fn(io::Error) -> CarryError {
        CarryError::on("carry over the map", &self.path)
    }

    /// Puts everything there, and returns it.
    pub(super) fn fill(&self) -> Result<Vec<RawEntry>, CarryError> {
        let entries = self.converted()?;
        for (key, value) in &entries {
            self.to.set(key, value).map_err(self.failed())?;
        }
        Ok(entries)
    }

    /// Makes this version's map equal to the other's, while nothing but this writes to it. Returns how many entries those are.
    ///
    /// What masqueraded packets are answered by stays the other's to go by: its programs give ports to new connections until these
    /// are merged. A connection that is just about to get a port is the other's alone: this version's programs would give it one as well.
    pub(super) fn mirror(&self) -> Result<usize, CarryError> {
        let mut entries = self.converted()?;
        entries.retain(|(_, value)| !self.is_unsettled(value));
        for (key, value) in &mut entries {
            self.make_foreign(value);
            self.to.set(key, value).map_err(self.failed())?;
        }
        let wanted: HashSet<&[u8]> = entries.iter().map(|(key, _)| key.as_slice()).collect();
        let mut unwanted = Vec::new();
        let look = |key: &[u8], _: &[u8]| unwanted.extend((!wanted.contains(key)).then(|| key.to_vec()));
        self.to.for_each(look).map_err(self.failed())?;
        for key in unwanted {
            self.to.remove(&key).map_err(self.failed())?;
        }
        Ok(entries.len())
    }

    /// Whether these are SNAT entries.
    pub(super) fn is_of_ports(&self) -> bool {
        IpFamily::ALL.map(|family| family_maps(family).snat).contains(&self.held.name)
    }

    /// Where the state stands in a SNAT entry; none of other maps.
    fn snat_state(&self) -> Option<Range<usize>> {
        self.is_of_ports().then(|| self.field("state")).flatten()
    }

    fn make_foreign(&self, value: &mut [u8]) {
        if let Some(state) = self.snat_state().and_then(|state| value.get_mut(state)?.first_chunk_mut::<2>()) {
            *state = (u16::from_ne_bytes(*state) | FOREIGN).to_ne_bytes();
        }
    }

    fn is_foreign(&self, value: &[u8]) -> bool {
        let state = self.snat_state().and_then(|state| value.get(state)?.first_chunk::<2>());
        state.is_some_and(|state| u16::from_ne_bytes(*state) & FOREIGN != 0)
    }

    /// Whether this is the egress entry of a connection that is to be masqueraded, and has no port yet.
    fn is_unsettled(&self, value: &[u8]) -> bool {
        let kind = self.field("kind").and_then(|kind| value.get(kind)?.first());
        kind == Some(&EgressKind::Unsettled.number())
    }

    fn field(&self, name: &str) -> Option<Range<usize>> {
        let field = self.held.entry.value.iter().find(|field| field.name == name)?;
        Some(field.offset..field.offset + field.size)
    }

    /// Adds what this version's map, which its own programs write to as well, does not know, or knows less well.
    /// Before the other's programs have ended (`serving`) what masqueraded packets are answered by stays theirs to go by.
    pub(super) fn merge(&self, serving: bool) -> Result<usize, CarryError> {
        let last_seen = self.last_seen();
        let is_newer = |value: &[u8], held: &[u8]| {
            last_seen(value).zip(last_seen(held)).is_some_and(|(theirs, ours)| is_later(theirs, ours))
        };
        let mut merged = 0;
        for (key, mut value) in self.converted()? {
            let is_anothers = self.is_foreign(&value);
            if serving {
                if self.is_unsettled(&value) {
                    continue;
                }
                self.make_foreign(&mut value);
            } else if is_anothers {
                continue;
            }
            if let Some(twin) = &self.twin
                && let Some(held) = twin.get(&key).map_err(self.failed())?
            {
                // Of two the confirmed one is found first, though a client may have used its port again since.
                if !is_newer(&value, &held) {
                    continue;
                }
                twin.remove(&key).map_err(self.failed())?;
            }
            if self.to.add(&key, &value).map_err(self.failed())? {
                merged += 1;
                continue;
            }
            let Some(held) = self.to.get(&key).map_err(self.failed())? else { continue };
            // What has an address and port already goes before what is still to get one, and what these programs go by before what they
            // leave to others.
            let is_better = is_newer(&value, &held) || self.is_unsettled(&held) || (self.is_foreign(&held) && !serving);
            if is_better && !self.is_unsettled(&value) && !is_anothers && held != value {
                self.to.set(&key, &value).map_err(self.failed())?;
                merged += 1;
            }
        }
        Ok(merged)
    }
}

/// Whether `time` is later than `than`, of the low half of the jiffies.
fn is_later(time: u32, than: u32) -> bool {
    jiffies_since(than, time) > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_stands_in_one_of_two_maps() {
        for maps in IpFamily::ALL.map(family_maps) {
            assert_eq!((twin(maps.forward), twin(maps.forward_brief)), (Some(maps.forward_brief), Some(maps.forward)));
            assert_eq!((twin(maps.egress), twin(maps.egress_brief)), (Some(maps.egress_brief), Some(maps.egress)));
            assert_eq!((twin(maps.snat), twin(maps.backends)), (None, None));
        }
    }

    #[test]
    fn times_are_compared_across_the_end_of_the_clock() {
        assert!(is_later(5, 4) && !is_later(4, 5) && !is_later(4, 4));
        assert!(is_later(3, u32::MAX) && !is_later(u32::MAX, 3));
    }
}
