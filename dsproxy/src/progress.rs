//! How far the maps have followed the source: what the reconciler tells health, metrics and the log.

use std::{
    collections::{BTreeMap, BTreeSet},
    iter::Sum,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use chrono::{DateTime, Utc};
use dsproxy_common::service::FrontendKind;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use tokio::sync::Notify;

use crate::{
    maps::MapKind,
    model::{IpFamily, ObjectName},
    resolve::ResolvedPort,
    sync_times::SyncTimes,
};

/// An update that is not taken up for longer than this makes the node unhealthy: twice kube-proxy's default
/// `syncPeriod`.
pub const STALE_AFTER: Duration = Duration::from_secs(60);

/// What the reconciler last found.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Whether the maps have once held everything that the source listed.
    pub synced: bool,
    /// Services of the source.
    pub services: usize,
    /// EndpointSlices of the source.
    pub slices: usize,
    /// Service ports in the maps.
    pub service_ports: usize,
    /// Entries in use, for each family.
    pub fill: [(IpFamily, [(MapKind, u32); 5]); 2],
    /// Services that are not served as they should be, with the reason.
    pub failed: BTreeMap<ObjectName, String>,
    /// Whether a write has failed that there was room for, so that the maps may stay behind.
    pub stuck: bool,
    /// Those among them of which nothing is in the maps.
    pub unserved: BTreeSet<ObjectName>,
    /// Why what is no Service's is not in the maps as it should be.
    pub host_failure: Option<String>,
    /// Frontends left out because another Service has them.
    pub conflicts: usize,
    /// Endpoints and NodePorts left out because they cannot be served.
    pub left_out: usize,
    /// Service ports without an endpoint on this node where one is asked for.
    pub no_local_endpoints: NoLocalEndpoints,
    /// Whether load balancers may send to this node, as far as its Node object says: it is not about to go.
    pub node_is_eligible: bool,
}

/// How many service ports there are, in each family, of which packets are dropped because a traffic policy keeps them to this
/// node and all endpoints are on others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocalEndpoints {
    internal: [usize; 2],
    external: [usize; 2],
}

impl NoLocalEndpoints {
    /// What there is of that among these service ports.
    pub fn of(ports: &[ResolvedPort]) -> Self {
        let mut found = Self::default();
        for family in ports.iter().flat_map(|port| &port.families) {
            let place = usize::from(family.family == IpFamily::V6);
            let internal = |kind| kind == FrontendKind::ClusterIp;
            found.internal[place] += usize::from(family.lacks_local_endpoints(internal));
            found.external[place] += usize::from(family.lacks_local_endpoints(|kind| !internal(kind)));
        }
        found
    }

    /// For want of an endpoint that `internalTrafficPolicy: Local` asks for.
    pub fn internal(&self, family: IpFamily) -> usize {
        self.internal[usize::from(family == IpFamily::V6)]
    }

    /// For want of an endpoint that `externalTrafficPolicy: Local` asks for.
    pub fn external(&self, family: IpFamily) -> usize {
        self.external[usize::from(family == IpFamily::V6)]
    }
}

impl Sum for NoLocalEndpoints {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            internal: std::array::from_fn(|place| sum.internal[place] + one.internal[place]),
            external: std::array::from_fn(|place| sum.external[place] + one.external[place]),
        })
    }
}

impl Default for Snapshot {
    fn default() -> Self {
        let unused = [MapKind::Frontends, MapKind::Backends, MapKind::Slots, MapKind::SourceRanges, MapKind::Networks]
            .map(|map| (map, 0));
        Self {
            synced: false,
            services: 0,
            slices: 0,
            service_ports: 0,
            fill: IpFamily::ALL.map(|family| (family, unused)),
            failed: BTreeMap::new(),
            unserved: BTreeSet::new(),
            stuck: false,
            host_failure: None,
            conflicts: 0,
            left_out: 0,
            no_local_endpoints: NoLocalEndpoints::default(),
            node_is_eligible: true,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    snapshot: Snapshot,
    /// Since when an update has waited.
    waiting_since: Option<Instant>,
    /// Since when events wait that nobody has looked at.
    queued_since: Option<Instant>,
    /// Since when the oldest change waits that was looked at and not tried yet.
    untried_since: Option<Instant>,
    /// Since when what was tried in vain waits, by Service; without one, what is no Service's.
    failing_since: BTreeMap<Option<ObjectName>, Instant>,
    /// When the reconciler was last done, and how long it took.
    synced: Option<(Instant, Duration)>,
    /// When that left nothing to be done.
    complete: Option<Instant>,
    updated: Option<DateTime<Utc>>,
}

/// When the maps last followed the source, and how far they are behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lag {
    /// When the reconciler was last done, and how long it took.
    pub synced: Option<(Instant, Duration)>,
    /// When that left nothing to be done.
    pub complete: Option<Instant>,
    /// Since when the oldest change waits that is not in the maps; a full map keeps it waiting as well.
    pub waiting_since: Option<Instant>,
}

/// Shared by the reconciler, which writes it, and whoever asks.
#[derive(Debug)]
pub struct Progress {
    state: Mutex<State>,
    passes: AtomicU64,
    writes: AtomicU64,
    failures: AtomicU64,
    full: Mutex<BTreeMap<MapKind, u64>>,
    sync_duration: Histogram,
    sync_times: SyncTimes,
    published: Notify,
}

impl Default for Progress {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            passes: AtomicU64::default(),
            writes: AtomicU64::default(),
            failures: AtomicU64::default(),
            full: Mutex::default(),
            // From 100 us, a change of one endpoint, to 13 s, a cold start of a very large cluster.
            sync_duration: Histogram::new(exponential_buckets(0.0001, 2.0, 18)),
            sync_times: SyncTimes::default(),
            published: Notify::new(),
        }
    }
}

impl Progress {
    /// An event has come in, and all others that did so far are looked at with it.
    pub fn received(&self, now: Instant) {
        let mut state = self.state();
        state.waiting_since.get_or_insert(now);
        let since = state.queued_since.take().unwrap_or(now);
        state.untried_since.get_or_insert(since);
    }

    /// Events have come in that nobody has looked at yet, `since` then at the earliest. For that they may wait for less, they are no
    /// reason to call the node unhealthy.
    pub fn queued(&self, since: Instant) {
        self.state().queued_since.get_or_insert(since);
    }

    /// So many writes were done.
    pub fn wrote(&self, count: usize) {
        self.writes.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// A Service could not be written; `full` is the map that had no room.
    pub fn failed(&self, full: Option<MapKind>) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        if let Some(map) = full {
            self.refused(map);
        }
    }

    /// A write was refused, for `map` had no room.
    pub fn refused(&self, map: MapKind) {
        *self.full.lock().unwrap_or_else(PoisonError::into_inner).entry(map).or_default() += 1;
    }

    /// The reconciler has done what it could.
    pub fn publish(&self, snapshot: Snapshot, now: Instant, took: Duration) {
        let mut state = self.state();
        if snapshot.stuck {
            state.waiting_since.get_or_insert(now);
        } else {
            // A map without room is no reason to be sent no traffic, on all nodes at once, or to be started again: what
            // fits is served, and will not be more for it.
            state.waiting_since = None;
        }
        let done = now + took;
        state.synced = Some((done, took));
        if snapshot.failed.is_empty() && !snapshot.stuck {
            state.complete = Some(done);
        }
        // What fails for the first time has waited no longer than the oldest of what was tried with it.
        let since = state.untried_since.take().unwrap_or(now);
        let failing = snapshot.failed.keys().cloned().map(Some).chain(snapshot.host_failure.is_some().then_some(None));
        let known = std::mem::take(&mut state.failing_since);
        state.failing_since = failing
            .map(|what| {
                let since = known.get(&what).copied().unwrap_or(since);
                (what, since)
            })
            .collect();
        if snapshot.failed.is_empty() {
            state.updated = Some(Utc::now());
        }
        let complete = snapshot.synced && snapshot.failed.is_empty();
        state.snapshot = snapshot;
        drop(state);
        self.sync_times.synced(took, complete, SystemTime::now());
        self.passes.fetch_add(1, Ordering::Relaxed);
        self.sync_duration.observe(took.as_secs_f64());
        self.published.notify_one();
    }

    /// Waits until the reconciler has done something since the last time. For one task alone.
    pub async fn published(&self) {
        self.published.notified().await;
    }

    /// How far the maps are behind the source.
    pub fn lag(&self) -> Lag {
        let state = self.state();
        let waiting_since =
            state.failing_since.values().copied().chain(state.untried_since).chain(state.queued_since).min();
        Lag { synced: state.synced, complete: state.complete, waiting_since }
    }

    /// What the reconciler last found.
    pub fn snapshot(&self) -> Snapshot {
        self.state().snapshot.clone()
    }

    /// Whether the maps have once held everything that the source listed.
    pub fn is_synced(&self) -> bool {
        self.state().snapshot.synced
    }

    /// Whether nothing of this Service could be written.
    pub fn is_unserved(&self, service: &ObjectName) -> bool {
        self.state().snapshot.unserved.contains(service)
    }

    /// When the maps last followed the source.
    pub fn updated(&self) -> Option<DateTime<Utc>> {
        self.state().updated
    }

    /// Whether updates are waiting for longer than they should. Before everything was listed once they have to.
    pub fn is_stale(&self, now: Instant) -> bool {
        let state = self.state();
        let waits_long = |since| now.saturating_duration_since(since) > STALE_AFTER;
        state.snapshot.synced && state.waiting_since.is_some_and(waits_long)
    }

    /// How long taking up changes took each time, in seconds.
    pub fn sync_duration(&self) -> Histogram {
        self.sync_duration.clone()
    }

    /// The same and more, in kube-proxy's terms.
    pub fn sync_times(&self) -> &SyncTimes {
        &self.sync_times
    }

    /// How often the reconciler has done what it could.
    pub fn passes(&self) -> u64 {
        self.passes.load(Ordering::Relaxed)
    }

    /// Writes done and Services failed since the start.
    pub fn totals(&self) -> (u64, u64) {
        (self.writes.load(Ordering::Relaxed), self.failures.load(Ordering::Relaxed))
    }

    /// How often each map had no room.
    pub fn full(&self) -> BTreeMap<MapKind, u64> {
        self.full.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(stuck: bool) -> Snapshot {
        let failed = BTreeMap::from([(ObjectName::new("default", "web"), "a reason".to_owned())]);
        Snapshot { synced: true, failed, stuck, ..Snapshot::default() }
    }

    #[test]
    fn an_update_that_waits_too_long_is_stale() {
        let (progress, start) = (Progress::default(), Instant::now());
        progress.publish(Snapshot { synced: true, ..Snapshot::default() }, start, Duration::ZERO);
        progress.received(start);
        assert!(!progress.is_stale(start + STALE_AFTER));
        assert!(progress.is_stale(start + STALE_AFTER + Duration::from_secs(1)));
        progress.publish(failed(true), start + STALE_AFTER, Duration::ZERO);
        assert!(progress.is_stale(start + STALE_AFTER + Duration::from_secs(1)), "a failed attempt is none");
        progress.publish(Snapshot { synced: true, ..Snapshot::default() }, start, Duration::ZERO);
        assert!(!progress.is_stale(start + 10 * STALE_AFTER), "nothing waits");
    }

    #[test]
    fn a_full_map_makes_no_node_unhealthy() {
        let (progress, start) = (Progress::default(), Instant::now());
        progress.received(start);
        progress.publish(failed(false), start, Duration::ZERO);
        assert!(!progress.is_stale(start + 10 * STALE_AFTER));
        assert_eq!(progress.updated(), None, "the maps do not hold everything");
    }

    #[test]
    fn what_failed_waits_from_when_it_came() {
        let (progress, start) = (Progress::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(progress.lag(), Lag::default());
        progress.received(at(1));
        assert_eq!(progress.lag().waiting_since, Some(at(1)));
        progress.publish(Snapshot { synced: true, ..Snapshot::default() }, at(2), Duration::from_secs(1));
        let done = Some((at(3), Duration::from_secs(1)));
        assert_eq!(progress.lag(), Lag { synced: done, complete: Some(at(3)), waiting_since: None });
        progress.received(at(5));
        progress.publish(failed(false), at(6), Duration::ZERO);
        progress.received(at(7));
        progress.publish(failed(false), at(8), Duration::ZERO);
        let lag = Lag { synced: Some((at(8), Duration::ZERO)), complete: Some(at(3)), waiting_since: Some(at(5)) };
        assert_eq!(progress.lag(), lag, "no room is no reason not to tell of it");
    }

    fn without_room(services: &[&str]) -> Snapshot {
        let failed = services.iter().map(|name| (ObjectName::new("default", name), "a reason".to_owned()));
        Snapshot { synced: true, failed: failed.collect(), ..Snapshot::default() }
    }

    #[test]
    fn what_is_in_the_maps_after_all_waits_no_longer_although_something_else_does() {
        let (progress, start) = (Progress::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let publish = |snapshot, seconds| progress.publish(snapshot, at(seconds), Duration::ZERO);
        progress.received(at(1));
        publish(without_room(&["a"]), 2);
        progress.received(at(3));
        publish(without_room(&["a", "b"]), 4);
        assert_eq!(progress.lag().waiting_since, Some(at(1)));
        publish(without_room(&["b"]), 50);
        assert_eq!(progress.lag().waiting_since, Some(at(3)), "there was room for the first");
        publish(without_room(&["a", "b"]), 60);
        publish(without_room(&["a"]), 61);
        assert_eq!(progress.lag().waiting_since, Some(at(60)), "it has failed anew");
        publish(Snapshot { stuck: true, host_failure: Some("a reason".to_owned()), ..without_room(&[]) }, 70);
        publish(Snapshot { stuck: true, host_failure: Some("a reason".to_owned()), ..without_room(&[]) }, 71);
        assert_eq!(progress.lag().waiting_since, Some(at(70)), "what is no Service's");
        publish(without_room(&[]), 72);
        assert_eq!(progress.lag().waiting_since, None);
    }

    #[test]
    fn what_comes_while_something_is_taken_up_waits_on() {
        let (progress, start) = (Progress::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        progress.received(at(1));
        progress.publish(without_room(&[]), at(2), Duration::from_secs(9));
        progress.queued(at(2));
        progress.publish(without_room(&[]), at(11), Duration::ZERO);
        progress.queued(at(11));
        assert_eq!(progress.lag().waiting_since, Some(at(2)), "another attempt at what had failed does not take it up");
        progress.received(at(12));
        assert_eq!(progress.lag().waiting_since, Some(at(2)));
        assert!(!progress.is_stale(at(12) + STALE_AFTER), "nobody knows that it waits since then");
        assert!(progress.is_stale(at(12) + STALE_AFTER + Duration::from_secs(1)));
        progress.publish(without_room(&[]), at(13), Duration::ZERO);
        assert_eq!(progress.lag().waiting_since, None);
    }

    #[test]
    fn nothing_is_stale_before_everything_was_listed() {
        let (progress, start) = (Progress::default(), Instant::now());
        progress.received(start);
        assert!(!progress.is_stale(start + 10 * STALE_AFTER));
    }
}
