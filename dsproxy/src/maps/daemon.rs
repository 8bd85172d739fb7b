//! The map in which the daemon tells of itself. Apart from all others, for another task writes to it.

use aya::maps::{Array, Map, MapData};
use dsproxy_common::{daemon::DaemonRecord, layout};

use super::{
    MapError, MapKind,
    kernel::{OpenError, kernel, typed},
};

/// The map.
pub struct DaemonMap {
    record: Array<MapData, DaemonRecord>,
}

impl DaemonMap {
    /// The map that `take` gives by name.
    ///
    /// # Errors
    ///
    /// When it is missing or has another layout.
    pub fn open(mut take: impl FnMut(&'static str) -> Option<Map>) -> Result<Self, OpenError> {
        Ok(Self { record: typed(&mut take, layout::DAEMON)? })
    }

    /// What a daemon has said last; none if none ever has.
    pub fn record(&self) -> Result<Option<DaemonRecord>, MapError> {
        let record = self.record.get(&0, 0).map_err(kernel("read", MapKind::Daemon))?;
        Ok((record.said != 0).then_some(record))
    }

    /// Says `record`.
    pub fn set(&mut self, record: &DaemonRecord) -> Result<(), MapError> {
        self.record.set(0, record, 0).map_err(kernel("write", MapKind::Daemon))
    }
}
