//! The maps by which the programs tell of packets, and are told of which. Apart from all others, for it is no daemon that listens.

use aya::maps::{Array, Map, MapData, PerCpuArray, RingBuf};
use dsproxy_common::{
    event::{Event, EventFilter},
    layout,
};
use thiserror::Error;

use super::{
    MapError, MapKind,
    kernel::{OpenError, kernel, typed},
};

/// An event that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("an event has {length} bytes and not {}: the programs in the kernel are another version's; use the dsproxy that is in charge", size_of::<Event>())]
pub struct OtherEvent {
    length: usize,
}

/// The maps.
pub struct EventMaps {
    filter: Array<MapData, EventFilter>,
    events: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
}

impl EventMaps {
    /// The maps that `take` gives by name.
    ///
    /// # Errors
    ///
    /// When one is missing or has another layout.
    pub fn open(mut take: impl FnMut(&'static str) -> Option<Map>) -> Result<Self, OpenError> {
        Ok(Self {
            filter: typed(&mut take, layout::EVENT_FILTER)?,
            events: typed(&mut take, layout::EVENTS)?,
            lost: typed(&mut take, layout::EVENTS_LOST)?,
        })
    }

    /// What is listened for; all zero: nothing.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn filter(&self) -> Result<EventFilter, MapError> {
        self.filter.get(&0, 0).map_err(kernel("read", MapKind::Events))
    }

    /// Asks for packets that `filter` takes, and for no others any more.
    ///
    /// # Errors
    ///
    /// When the map cannot be written.
    pub fn ask_for(&mut self, filter: &EventFilter) -> Result<(), MapError> {
        self.filter.set(0, filter, 0).map_err(kernel("write", MapKind::Events))
    }

    /// The next event; none if none waits.
    ///
    /// # Errors
    ///
    /// When it is one of another version's programs.
    pub fn pop(&mut self) -> Result<Option<Event>, OtherEvent> {
        let Some(record) = self.events.next() else { return Ok(None) };
        Event::from_bytes(&record).map(Some).ok_or(OtherEvent { length: record.len() })
    }

    /// For how many events there was no room, since the map was made.
    ///
    /// # Errors
    ///
    /// When the map cannot be read.
    pub fn lost(&self) -> Result<u64, MapError> {
        let counts = self.lost.get(&0, 0).map_err(kernel("read", MapKind::Events))?;
        Ok(counts.iter().sum())
    }
}
