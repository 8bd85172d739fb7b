//! What a version's maps hold: every field of every key and value, by name. Pinned beside the maps, so that another version, older
//! or newer, can read them.

use std::{collections::BTreeMap, io, path::Path};

use dsproxy_common::{
    Addr4, Addr6, Address, IpFamily,
    count::{ServiceCounters, ServiceDrops},
    daemon::DaemonRecord,
    event::EventFilter,
    flow::{EgressEntry, FlowKey, ForwardEntry, SnatEntry},
    fragment::{Fragment, FragmentKey},
    layout::{self, FamilyMapNames, LAYOUT_VERSION, family_maps},
    next_hop::{Routing, XdpDevice},
    record::Record,
    service::{Affinity, AffinityKey, Backend, Frontend, FrontendKey, ServiceName, SourceRange},
    settings::Settings,
    socket::{SocketEntry, SocketKey},
};
use serde::{Deserialize, Serialize};

use super::convert::Field;
use crate::datapath::raw_map::RawMap;

/// The name of the pin.
pub(super) const PIN: &str = "LAYOUT";

/// How a version's maps are to be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Description {
    /// `LAYOUT_VERSION`.
    pub(super) layout: u32,
    /// By name.
    pub(super) maps: BTreeMap<String, Entry>,
}

/// The entries of a map.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    pub(super) key: Vec<Field>,
    pub(super) value: Vec<Field>,
}

/// What becomes of a map's content when another version takes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// What user space writes: it goes over before the new programs do anything, ids and generations as they are.
    Table,
    /// What opens the programs' eyes to packets: it goes over last.
    Filter,
    /// What the programs write: it goes over while the old ones go on writing, and again when they no longer do.
    Connections,
    /// As `Connections`, of what was confirmed: found before what is not.
    Confirmed,
    /// It is made anew.
    Anew,
}

/// A map of this version.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) name: &'static str,
    pub(super) content: Content,
    pub(super) entry: Entry,
}

fn fields<T: Record>(from: usize) -> Vec<Field> {
    let field = |field: &dsproxy_common::record::Field| Field {
        name: field.name.to_owned(),
        offset: from + field.offset,
        size: field.size,
    };
    T::FIELDS.iter().map(field).collect()
}

fn entry<K: Record, V: Record>() -> Entry {
    Entry { key: fields::<K>(0), value: fields::<V>(0) }
}

/// The key of a trie is preceded by the number of bits that count.
fn trie_entry<K: Record>() -> Entry {
    let mut key = vec![Field { name: "prefix_length".to_owned(), offset: 0, size: 4 }];
    key.extend(fields::<K>(4));
    Entry { key, value: fields::<u32>(0) }
}

fn of_family<A: Address + Record>(names: FamilyMapNames) -> [Held; 18] {
    let FamilyMapNames {
        frontends,
        filter,
        egress_filter,
        leaving_filter,
        slots,
        backends,
        forward,
        egress,
        forward_brief,
        egress_brief,
        snat,
        affinity,
        ranges,
        networks,
        masquerade,
        fragments,
        sockets,
        tcp_sockets,
    } = names;
    let held = |name, content, entry| Held { name, content, entry };
    [
        held(frontends, Content::Table, entry::<FrontendKey<A>, Frontend>()),
        held(filter, Content::Filter, entry::<u32, u64>()),
        held(egress_filter, Content::Filter, entry::<u32, u64>()),
        // It follows from the connections.
        held(leaving_filter, Content::Anew, entry::<u32, u32>()),
        held(slots, Content::Table, entry::<u32, u32>()),
        held(backends, Content::Table, entry::<u32, Backend<A>>()),
        held(forward, Content::Confirmed, entry::<FlowKey<A>, ForwardEntry>()),
        held(egress, Content::Confirmed, entry::<FlowKey<A>, EgressEntry<A>>()),
        held(forward_brief, Content::Connections, entry::<FlowKey<A>, ForwardEntry>()),
        held(egress_brief, Content::Connections, entry::<FlowKey<A>, EgressEntry<A>>()),
        held(snat, Content::Connections, entry::<FlowKey<A>, SnatEntry<A>>()),
        held(affinity, Content::Connections, entry::<AffinityKey<A>, Affinity>()),
        held(ranges, Content::Table, trie_entry::<SourceRange<A>>()),
        held(networks, Content::Table, trie_entry::<A>()),
        held(masquerade, Content::Table, entry::<u32, A>()),
        held(fragments, Content::Connections, entry::<FragmentKey<A>, Fragment>()),
        held(sockets, Content::Connections, entry::<SocketKey<A>, SocketEntry<A>>()),
        held(tcp_sockets, Content::Connections, entry::<SocketKey<A>, SocketEntry<A>>()),
    ]
}

/// All maps that are pinned, with what becomes of them.
pub(super) fn maps() -> Vec<Held> {
    let held = |name, content, entry| Held { name, content, entry };
    let mut maps = vec![
        held(layout::SETTINGS, Content::Table, entry::<u32, Settings>()),
        // What a number counts is another in every version.
        held(layout::COUNTERS, Content::Anew, entry::<u32, u64>()),
        held(layout::SERVICE_COUNTERS, Content::Table, entry::<u32, ServiceCounters>()),
        held(layout::SERVICE_DROPS, Content::Table, entry::<u32, ServiceDrops>()),
        held(layout::SERVICE_NAMES, Content::Table, entry::<u32, ServiceName>()),
        // The count of changes goes on, so that what connections have noted of earlier ones is not taken for true.
        held(layout::ROUTING, Content::Table, entry::<u32, Routing>()),
        held(layout::XDP_DEVICES, Content::Anew, entry::<u32, XdpDevice>()),
        held(layout::DAEMON, Content::Anew, entry::<u32, DaemonRecord>()),
        // What else belongs to events has no entries that could be read: a ring, and arrays of programs.
        held(layout::EVENT_FILTER, Content::Anew, entry::<u32, EventFilter>()),
        held(layout::EVENTS_LOST, Content::Anew, entry::<u32, u64>()),
    ];
    maps.extend(of_family::<Addr4>(family_maps(IpFamily::V4)));
    maps.extend(of_family::<Addr6>(family_maps(IpFamily::V6)));
    maps
}

impl Description {
    /// Of this version.
    pub(super) fn own() -> Self {
        let maps = maps().into_iter().map(|held| (held.name.to_owned(), held.entry)).collect();
        Self { layout: LAYOUT_VERSION, maps }
    }

    /// The one that is pinned beside the maps in `directory`; none if there is none, or it cannot be read.
    pub(super) fn pinned(directory: &Path) -> io::Result<Option<Self>> {
        let Some(map) = RawMap::pinned(&directory.join(PIN))? else { return Ok(None) };
        let text = map.get(&[0; 4])?.unwrap_or_default();
        let length = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        Ok(serde_json::from_slice(&text[..length]).ok())
    }

    /// Pins it beside the maps in `directory`.
    pub(super) fn pin(&self, directory: &Path) -> io::Result<()> {
        RawMap::single(PIN, &serde_json::to_vec(self)?, &directory.join(PIN))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the description of this layout comes to. Whoever changes a record, or a map, gives the layout a new number, and this one
    /// with it: an older version knows by the number that there is something to carry over.
    const EXPECTED: (u32, u64) = (10, 13_745_696_983_267_956_371);

    /// FNV-1a: the same on every machine and in every version of Rust.
    fn digest(text: &str) -> u64 {
        text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    }

    #[test]
    fn a_changed_record_takes_another_layout() {
        let description = Description::own();
        let nested = [
            // What stands in a ring is described nowhere else.
            ("Event", fields::<dsproxy_common::event::Event>(0)),
            ("Ends", fields::<dsproxy_common::event::Ends>(0)),
            ("DaemonVersion", fields::<dsproxy_common::daemon::DaemonVersion>(0)),
            ("NextHop", fields::<dsproxy_common::next_hop::NextHop>(0)),
            ("Slots", fields::<dsproxy_common::service::Slots>(0)),
        ];
        let text = format!("{:?} {nested:?}", description.maps);
        assert_eq!(
            (description.layout, digest(&text)),
            EXPECTED,
            "records or maps have changed: raise LAYOUT_VERSION, enter what stands on the left here, and give a field whose \
             meaning or inner type is another a new name"
        );
    }

    #[test]
    fn every_pinned_map_is_described_once() {
        let maps = maps();
        let names: std::collections::BTreeSet<&str> = maps.iter().map(|held| held.name).collect();
        assert_eq!(names.len(), maps.len());
        for held in maps {
            for fields in [&held.entry.key, &held.entry.value] {
                let size: usize = fields.iter().map(|field| field.size).sum();
                let end = fields.iter().map(|field| field.offset + field.size).max();
                assert_eq!(end, Some(size), "{}: no gaps", held.name);
                let named: std::collections::BTreeSet<&str> = fields.iter().map(|field| field.name.as_str()).collect();
                assert_eq!(named.len(), fields.len(), "{}: each name once", held.name);
            }
        }
    }

    #[test]
    fn a_description_survives_being_written() {
        let text = serde_json::to_vec(&Description::own()).expect("written");
        // More would not fit into one value of a map.
        assert!(text.len() < 32 << 10, "{} bytes", text.len());
        assert_eq!(serde_json::from_slice::<Description>(&text).expect("read"), Description::own());
    }
}
