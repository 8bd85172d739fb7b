//! When changes came and when they were in the maps, in kube-proxy's terms: what its metrics of the same names tell.
//!
//! Everything is told for each family, as kube-proxy's two proxiers do, although here one pass serves both.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

use crate::model::IpFamily;

/// Times that wait while something cannot be written; those beyond are not told.
const MOST_TRIGGERS: usize = 1024;

/// Changes of one kind of object.
#[derive(Debug, Default)]
pub struct Changes {
    total: AtomicU64,
    pending: AtomicU64,
}

impl Changes {
    fn add(&self, count: u64) {
        self.total.fetch_add(count, Ordering::Relaxed);
        self.pending.fetch_add(count, Ordering::Relaxed);
    }

    /// All since the start.
    pub fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }

    /// Those that are not in the maps yet.
    pub fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }
}

/// One of the two questions that the health server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Question {
    /// `/healthz`.
    Healthz,
    /// `/livez`.
    Livez,
}

/// The times and counts.
#[derive(Debug)]
pub struct SyncTimes {
    /// Of Services. Both families look at all of them.
    services: Changes,
    /// Of EndpointSlices, by family.
    endpoints: [Changes; 2],
    /// Milliseconds since 1970; 0: never.
    queued: AtomicU64,
    synced: AtomicU64,
    duration: Histogram,
    /// Since when the daemon runs. What happened before was not its to follow.
    started: SystemTime,
    /// When what is pending happened, by family.
    triggers: [Mutex<Vec<SystemTime>>; 2],
    programming: [Histogram; 2],
    answers: Mutex<BTreeMap<(Question, u16), u64>>,
}

impl Default for SyncTimes {
    fn default() -> Self {
        Self {
            services: Changes::default(),
            endpoints: <[Changes; 2]>::default(),
            queued: AtomicU64::default(),
            synced: AtomicU64::default(),
            // kube-proxy's: from 1 ms to 16 s.
            duration: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            started: SystemTime::now(),
            triggers: Default::default(),
            programming: [programming_histogram(), programming_histogram()],
            answers: Mutex::default(),
        }
    }
}

/// kube-proxy's buckets: up to a minute in steps of a second, up to two of 5, up to five of 30.
fn programming_histogram() -> Histogram {
    let minutes = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    Histogram::new([0.25, 0.5].into_iter().chain(minutes.map(f64::from)))
}

impl SyncTimes {
    /// So many Services have changed.
    pub fn services_changed(&self, count: u64, now: SystemTime) {
        self.services.add(count);
        self.queued.store(milliseconds(now), Ordering::Relaxed);
    }

    /// An EndpointSlice of a family has changed, for what happened when its controller says that it was triggered.
    pub fn slice_changed(&self, family: IpFamily, triggered: Option<SystemTime>, now: SystemTime) {
        self.endpoints(family).add(1);
        self.queued.store(milliseconds(now), Ordering::Relaxed);
        if let Some(at) = triggered.filter(|at| *at > self.started) {
            let mut triggers = of(&self.triggers, family).lock().unwrap_or_else(PoisonError::into_inner);
            if triggers.len() < MOST_TRIGGERS {
                triggers.push(at);
            }
        }
    }

    /// All changes have been taken up, which took so long; `complete` when all of them are in the maps.
    pub fn synced(&self, took: Duration, complete: bool, now: SystemTime) {
        self.duration.observe(took.as_secs_f64());
        if complete {
            self.synced.store(milliseconds(now), Ordering::Relaxed);
            for changes in [&self.services].into_iter().chain(&self.endpoints) {
                changes.pending.store(0, Ordering::Relaxed);
            }
            for (triggers, programming) in self.triggers.iter().zip(&self.programming) {
                for at in triggers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                    // Clocks of two machines: what seems to come from the future took no time.
                    programming.observe(now.duration_since(at).unwrap_or_default().as_secs_f64());
                }
            }
        }
    }

    /// The health server has answered with this status.
    pub fn answered(&self, question: Question, status: u16) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        *answers.entry((question, status)).or_default() += 1;
    }

    /// Changes of Services.
    pub fn services(&self) -> &Changes {
        &self.services
    }

    /// Changes of EndpointSlices of a family.
    pub fn endpoints(&self, family: IpFamily) -> &Changes {
        of(&self.endpoints, family)
    }

    /// The time from what happened to an endpoint until the maps had it, in seconds, by family.
    pub fn programming(&self, family: IpFamily) -> &Histogram {
        of(&self.programming, family)
    }

    /// When a change last came, in seconds since 1970; 0 if never.
    pub fn last_queued(&self) -> f64 {
        seconds(&self.queued)
    }

    /// When the maps last had everything, in seconds since 1970; 0 if never.
    pub fn last_synced(&self) -> f64 {
        seconds(&self.synced)
    }

    /// How long taking up changes took each time, in seconds.
    pub fn duration(&self) -> &Histogram {
        &self.duration
    }

    /// How often a question was answered with which status.
    pub fn answers(&self) -> BTreeMap<(Question, u16), u64> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn of<T>(both: &[T; 2], family: IpFamily) -> &T {
    let [v4, v6] = both;
    match family {
        IpFamily::V4 => v4,
        IpFamily::V6 => v6,
    }
}

fn milliseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn seconds(milliseconds: &AtomicU64) -> f64 {
    Duration::from_millis(milliseconds.load(Ordering::Relaxed)).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_pending_until_all_is_in_the_maps() {
        let times = SyncTimes::default();
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!((times.last_queued(), times.last_synced()), (0.0, 0.0));
        times.services_changed(3, at(10));
        times.slice_changed(IpFamily::V6, None, at(10));
        times.slice_changed(IpFamily::V6, None, at(11));
        let counts = || {
            let of = |changes: &Changes| (changes.total(), changes.pending());
            (of(times.services()), of(times.endpoints(IpFamily::V4)), of(times.endpoints(IpFamily::V6)))
        };
        assert_eq!(counts(), ((3, 3), (0, 0), (2, 2)));
        times.synced(Duration::from_millis(5), false, at(12));
        assert_eq!(counts(), ((3, 3), (0, 0), (2, 2)), "something has failed");
        assert_eq!((times.last_queued(), times.last_synced()), (11.0, 0.0));
        times.synced(Duration::from_millis(5), true, at(13));
        assert_eq!(counts(), ((3, 0), (0, 0), (2, 0)));
        assert_eq!(times.last_synced(), 13.0);
    }

    #[test]
    fn what_happened_is_timed_once_the_maps_have_it() {
        let times = SyncTimes::default();
        let after = |seconds| times.started + Duration::from_secs(seconds);
        times.slice_changed(IpFamily::V6, Some(after(10)), after(20));
        times.slice_changed(IpFamily::V6, Some(after(20)), after(20));
        times.slice_changed(IpFamily::V6, Some(times.started - Duration::from_secs(1)), after(20));
        times.slice_changed(IpFamily::V4, Some(after(99)), after(20));
        times.synced(Duration::ZERO, false, after(21));
        for (now, expected) in [(22, "sum 14 count 2"), (40, "sum 14 count 2")] {
            times.synced(Duration::ZERO, true, after(now));
            assert_eq!(told(times.programming(IpFamily::V6)), expected);
            assert_eq!(told(times.programming(IpFamily::V4)), "sum 0 count 1", "from the future");
        }
    }

    /// Sum and count of a histogram, which shows them to a scrape alone.
    fn told(histogram: &Histogram) -> String {
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register("h", "help", histogram.clone());
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encoded");
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("there").trim();
            line.parse::<f64>().expect("a number")
        };
        format!("sum {} count {}", value("h_sum"), value("h_count"))
    }

    #[test]
    fn answers_are_counted_by_status() {
        let times = SyncTimes::default();
        for (question, status) in
            [(Question::Healthz, 503), (Question::Healthz, 200), (Question::Healthz, 200), (Question::Livez, 200)]
        {
            times.answered(question, status);
        }
        let expected = [((Question::Healthz, 200), 2), ((Question::Healthz, 503), 1), ((Question::Livez, 200), 1)];
        assert_eq!(times.answers(), expected.into());
    }
}
