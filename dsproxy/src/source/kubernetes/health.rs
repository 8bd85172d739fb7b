//! One verdict over the watches of all kinds.
//!
//! It knows nothing of requests: each watch says how it fares, and the source works when all of them do.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use tracing::{info, warn};

use super::{
    super::{SourceStatus, Trouble, WatchStatus, convert::Kind},
    error::RequestError,
};

/// How each watch fares.
#[derive(Debug)]
pub(super) struct Health {
    status: Arc<SourceStatus>,
    watches: Mutex<[Watch; Kind::ALL.len()]>,
}

#[derive(Debug)]
struct Watch {
    state: State,
    /// Since when it has been well, or not.
    since: SystemTime,
    /// How many objects are kept that the last list lacks.
    held_back: usize,
    failures: BTreeMap<Trouble, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Working,
    Failing(Trouble, String),
    /// There is nothing to be watched, which is no failure.
    Withheld,
}

impl Watch {
    fn new() -> Self {
        Self { state: State::Starting, since: SystemTime::now(), held_back: 0, failures: BTreeMap::new() }
    }

    fn trouble(&self) -> Option<Trouble> {
        match &self.state {
            State::Starting => Some(Trouble::Starting),
            State::Failing(trouble, _) => Some(*trouble),
            State::Working | State::Withheld => (self.held_back > 0).then_some(Trouble::ObjectsMissing),
        }
    }

    fn works(&self) -> bool {
        matches!(self.state, State::Working | State::Withheld)
    }

    /// Changes it, and says what it was. How long it has been well, or not, goes on where that is the same.
    fn change(&mut self, state: State, held_back: usize) -> State {
        let was_well = self.trouble().is_none();
        let before = std::mem::replace(&mut self.state, state);
        self.held_back = held_back;
        if was_well != self.trouble().is_none() {
            self.since = SystemTime::now();
        }
        before
    }
}

impl Health {
    pub(super) fn new(status: Arc<SourceStatus>) -> Arc<Self> {
        let health = Self { status, watches: Mutex::new(Kind::ALL.map(|_| Watch::new())) };
        health.tell(&*health.watches());
        Arc::new(health)
    }

    fn watches(&self) -> MutexGuard<'_, [Watch; Kind::ALL.len()]> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watch of `kind` is established.
    pub(super) fn working(&self, kind: Kind) {
        let mut watches = self.watches();
        let watch = &mut watches[kind as usize];
        if watch.state == State::Working {
            // With every object that a watch brings.
            return;
        }
        match watch.change(State::Working, watch.held_back) {
            State::Failing(..) | State::Withheld => info!(%kind, "the API server is watched again"),
            State::Starting | State::Working => {}
        }
        self.judge(&*watches);
    }

    /// There are no objects of `kind` to be had. Says whether that is news, which is logged.
    pub(super) fn withheld(&self, kind: Kind, reason: &RequestError) -> bool {
        let mut watches = self.watches();
        let news = watches[kind as usize].change(State::Withheld, 0) != State::Withheld;
        if news {
            warn!(%kind, %reason, "API server");
        }
        self.judge(&*watches);
        news
    }

    /// So many objects of `kind` are kept that the last list lacks.
    pub(super) fn holding_back(&self, kind: Kind, objects: usize) {
        let mut watches = self.watches();
        let watch = &mut watches[kind as usize];
        let state = watch.state.clone();
        watch.change(state, objects);
        self.tell(&*watches);
    }

    /// The list or watch of `kind` failed. It is logged when it is not what was the matter already.
    pub(super) fn failing(&self, kind: Kind, error: &RequestError) {
        let mut watches = self.watches();
        let (watch, trouble, reason) = (&mut watches[kind as usize], error.trouble(), error.to_string());
        *watch.failures.entry(trouble).or_default() += 1;
        let failing = State::Failing(trouble, reason.clone());
        if watch.change(failing.clone(), watch.held_back) != failing {
            warn!(%kind, reason, "API server");
        }
        self.status.count_failure(reason);
        self.tell(&*watches);
    }

    fn judge(&self, watches: &[Watch]) {
        let failing = watches.iter().find_map(|watch| match &watch.state {
            State::Failing(_, reason) => Some(reason.clone()),
            State::Starting | State::Working | State::Withheld => None,
        });
        match failing {
            Some(reason) => self.status.still_failing(reason),
            None if watches.iter().all(Watch::works) => self.status.set_connected(),
            None => {}
        }
        self.tell(watches);
    }

    fn tell(&self, watches: &[Watch]) {
        let status = Kind::ALL.into_iter().zip(watches).map(|(kind, watch)| WatchStatus {
            resource: kind.plural(),
            works: watch.works(),
            trouble: watch.trouble(),
            since: watch.since,
            held_back: watch.held_back,
            failures: watch.failures.clone(),
        });
        self.status.set_watches(status.collect());
    }
}

#[cfg(test)]
mod tests {
    use super::{super::error::Operation, *};

    fn health() -> (Arc<SourceStatus>, Arc<Health>) {
        let status = SourceStatus::new();
        (Arc::clone(&status), Health::new(status))
    }

    fn cut_short(kind: Kind) -> RequestError {
        RequestError::CutShort { operation: Operation { verb: super::super::error::Verb::Watch, kind } }
    }

    #[test]
    fn the_source_works_when_every_watch_does() {
        let (status, health) = health();
        for kind in Kind::ALL {
            assert!(!status.connected());
            assert_eq!(status.watches()[kind as usize].trouble, Some(Trouble::Starting));
            health.working(kind);
            assert_eq!(status.watches()[kind as usize].trouble, None);
        }
        assert!(status.connected());
    }

    #[test]
    fn what_is_left_to_be_told_is_the_failure_that_still_stands() {
        let (status, health) = health();
        Kind::ALL.into_iter().for_each(|kind| health.working(kind));
        health.failing(Kind::Service, &cut_short(Kind::Service));
        health.failing(Kind::EndpointSlice, &cut_short(Kind::EndpointSlice));
        health.working(Kind::EndpointSlice);
        assert!(!status.connected());
        assert!(status.last_error().is_some_and(|error| error.contains("watch services")), "{:?}", status.last_error());
        health.working(Kind::Service);
        assert!(status.connected());
        assert_eq!(status.last_error(), None);
        assert_eq!(status.failures(), 2);
    }

    #[test]
    fn a_watch_tells_what_is_the_matter_since_when_and_how_often() {
        let (status, health) = health();
        health.working(Kind::Service);
        let of_services = || status.watches().swap_remove(Kind::Service as usize);
        let well = of_services();
        assert_eq!((well.resource, well.works, well.trouble, well.held_back), ("services", true, None, 0));
        health.failing(Kind::Service, &cut_short(Kind::Service));
        let first = of_services();
        assert_eq!((first.works, first.trouble), (false, Some(Trouble::CutShort)));
        assert!(first.since >= well.since);
        health.failing(Kind::Service, &RequestError::NoVersion { kind: Kind::Service });
        let second = of_services();
        assert_eq!(
            (second.trouble, second.since),
            (Some(Trouble::Unreadable), first.since),
            "it has not been well since"
        );
        assert_eq!(second.failures, BTreeMap::from([(Trouble::CutShort, 1), (Trouble::Unreadable, 1)]));

        health.holding_back(Kind::Service, 7);
        health.working(Kind::Service);
        let held_back = of_services();
        assert_eq!((held_back.works, held_back.trouble), (true, Some(Trouble::ObjectsMissing)));
        assert_eq!((held_back.held_back, held_back.since), (7, first.since));
        health.holding_back(Kind::Service, 0);
        assert_eq!(of_services().trouble, None);
        assert!(of_services().since >= first.since);
    }

    #[test]
    fn what_is_withheld_is_no_failure_and_news_once() {
        let (status, health) = health();
        [Kind::Service, Kind::EndpointSlice, Kind::Node].into_iter().for_each(|kind| health.working(kind));
        let reason = RequestError::NoVersion { kind: Kind::ServiceCidr };
        assert!(health.withheld(Kind::ServiceCidr, &reason));
        assert!(!health.withheld(Kind::ServiceCidr, &reason));
        assert!(status.connected());
        assert_eq!((status.failures(), status.last_error()), (0, None));
        assert_eq!(status.watches()[Kind::ServiceCidr as usize].trouble, None);
    }
}
