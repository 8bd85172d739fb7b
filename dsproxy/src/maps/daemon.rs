//! The map in which the daemon tells of itself. Apart from all others, for another task writes to it.

use aya::maps::{Array, Map, MapData};
use dsproxy_common::{daemon::DaemonRecord, layout};

use super::{
    MapError, MapKind,
    kernel::{OpenError, kernel, typed},
};

/// How often the record is read for two reads that agree.
const READS: usize = 16;

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
        let record = settled(|| self.record.get(&0, 0).map_err(kernel("read", MapKind::Daemon)))?;
        Ok((record.said != 0).then_some(record))
    }

    /// Says `record`.
    pub fn set(&mut self, record: &DaemonRecord) -> Result<(), MapError> {
        self.record.set(0, record, 0).map_err(kernel("write", MapKind::Daemon))
    }
}

/// What `read` gives twice in a row: the kernel copies the value of an array without a lock, so that a read may have a part of
/// what was said before and a part of what is being said. Whoever is never twice given the same has the last.
fn settled<T: PartialEq, E>(mut read: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let mut last = read()?;
    for _ in 1..READS {
        let next = read()?;
        if next == last {
            break;
        }
        last = next;
    }
    Ok(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_until_two_reads_agree() {
        let outcome = |reads: &[Result<u32, &'static str>]| {
            let mut left = reads.iter().copied();
            let read = settled(|| left.next().expect("no more reads than needed"));
            (read, left.count())
        };
        assert_eq!(outcome(&[Ok(1), Ok(1)]), (Ok(1), 0));
        assert_eq!(outcome(&[Ok(1), Ok(12), Ok(2), Ok(2), Ok(9)]), (Ok(2), 1));
        assert_eq!(outcome(&[Ok(1), Err("gone")]), (Err("gone"), 0));
        let restless: Vec<_> = (0..99).map(Ok).collect();
        assert_eq!(outcome(&restless), (Ok(READS as u32 - 1), 99 - READS), "it has an end");
    }
}
