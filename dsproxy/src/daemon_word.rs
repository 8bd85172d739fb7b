//! The task that keeps the daemon's word of itself in a map up to date: after each sync, and every few seconds, so that whoever
//! reads it can tell a daemon that hangs from one with nothing to do.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use dsproxy_common::daemon::{DaemonFlags, DaemonRecord, DaemonVersion};
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use crate::{
    attachments::Report,
    boot_clock,
    maps::daemon::DaemonMap,
    progress::{Lag, Progress, Snapshot},
    source::SourceStatus,
};

/// How often the daemon speaks, if there is nothing to say.
pub const HEARTBEAT: Duration = Duration::from_secs(5);

/// A word older than this is not to be relied on.
pub const STALE_AFTER: Duration = Duration::from_secs(20);

/// What the daemon knows of itself.
pub struct Speaker {
    /// When it began.
    pub begun: Instant,
    /// How far the maps are.
    pub progress: Arc<Progress>,
    /// How the source fares.
    pub source: Arc<SourceStatus>,
    /// What is attached.
    pub attached: Arc<Report>,
    /// Where metrics are served.
    pub metrics: Option<SocketAddr>,
}

/// The two clocks at one moment.
#[derive(Clone, Copy, Debug)]
struct Now {
    boot: Duration,
    instant: Instant,
    wall: SystemTime,
}

impl Now {
    fn read() -> Result<Self, nix::Error> {
        Ok(Self { boot: boot_clock::now()?, instant: Instant::now(), wall: SystemTime::now() })
    }

    /// What was `ago`, as the record has it.
    fn before(&self, ago: Duration) -> u64 {
        // Zero is never.
        milliseconds(self.boot.saturating_sub(ago)).max(1)
    }

    fn at(&self, instant: Instant) -> u64 {
        self.before(self.instant.saturating_duration_since(instant))
    }
}

/// Speaks, for ever.
pub async fn speak(mut map: DaemonMap, speaker: Speaker) {
    let mut ticks = interval(HEARTBEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut fails = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = speaker.progress.published() => {}
        }
        let outcome = match Now::read() {
            Ok(now) => map.set(&speaker.word(now)).map_err(|error| error.to_string()),
            Err(errno) => Err(format!("read the clock: {errno}")),
        };
        match outcome {
            Ok(()) => fails = false,
            Err(error) if !std::mem::replace(&mut fails, true) => {
                warn!(%error, "`dsproxy status` will not see this daemon; it is tried again");
            }
            Err(_) => {}
        }
    }
}

impl Speaker {
    fn word(&self, now: Now) -> DaemonRecord {
        let troubles = self.source.watches().into_iter().filter(|watch| watch.trouble.is_some());
        let trouble_since = troubles.map(|watch| watch.since).min();
        let mut record = word(&self.progress.snapshot(), self.progress.lag(), self.progress.passes(), now);
        record.started = now.at(self.begun);
        record.trouble_since =
            trouble_since.map_or(0, |since| now.before(now.wall.duration_since(since).unwrap_or_default()));
        record.interfaces_failed = count(self.attached.failures().0);
        if self.source.connected() {
            record.flags |= DaemonFlags::CONNECTED;
        }
        if let Some(address) = self.metrics {
            record.metrics_address = octets(address.ip());
            record.metrics_port = address.port().into();
        }
        record
    }
}

/// An address of either family, as an IPv6 address.
fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn word(snapshot: &Snapshot, lag: Lag, passes: u64, now: Now) -> DaemonRecord {
    let Lag { synced, complete, waiting_since } = lag;
    let at = |instant: Option<Instant>| instant.map_or(0, |instant| now.at(instant));
    DaemonRecord {
        said: now.before(Duration::ZERO),
        synced: at(synced.map(|(at, _)| at)),
        complete: at(complete),
        waiting_since: at(waiting_since),
        took: synced.map_or(0, |(_, took)| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
        passes,
        flags: if snapshot.synced { DaemonFlags::SYNCED } else { 0 },
        services: count(snapshot.services),
        endpoint_slices: count(snapshot.slices),
        service_ports: count(snapshot.service_ports),
        services_failed: count(snapshot.failed.len()),
        conflicts: count(snapshot.conflicts),
        left_out: count(snapshot.left_out),
        version: DaemonVersion::new(env!("CARGO_PKG_VERSION")),
        ..DaemonRecord::default()
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_told_by_the_clock_that_nobody_sets() {
        let now = Now { boot: Duration::from_secs(100), instant: Instant::now(), wall: SystemTime::now() };
        let ago = |seconds| now.instant.checked_sub(Duration::from_secs(seconds)).expect("the machine runs for longer");
        let lag = Lag {
            synced: Some((ago(1), Duration::from_micros(350))),
            complete: Some(ago(3)),
            waiting_since: Some(ago(2)),
        };
        let told = word(&Snapshot { synced: true, services: 7, ..Snapshot::default() }, lag, 9, now);
        assert_eq!((told.said, told.synced, told.complete), (100_000, 99_000, 97_000));
        assert_eq!((told.waiting_since, told.took, told.passes), (98_000, 350, 9));
        assert_eq!((told.flags, told.services), (DaemonFlags::SYNCED, 7));
        let nothing = word(&Snapshot::default(), Lag::default(), 0, now);
        assert_eq!((nothing.synced, nothing.complete, nothing.waiting_since, nothing.flags), (0, 0, 0, 0));
    }
}
