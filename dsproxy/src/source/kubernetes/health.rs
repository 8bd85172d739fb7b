//! One verdict over the watches of all kinds.
//!
//! It knows nothing of requests: each watch says how it fares, and the source works when all of them do.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::{info, warn};

use super::{
    super::{SourceStatus, convert::Kind},
    error::RequestError,
};

/// How each watch fares.
#[derive(Debug)]
pub(super) struct Health {
    status: Arc<SourceStatus>,
    watches: Mutex<[Watch; Kind::ALL.len()]>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum Watch {
    #[default]
    Starting,
    Working,
    Failing(String),
    /// There is nothing to be watched, which is no failure.
    Withheld,
}

impl Watch {
    fn is_well(&self) -> bool {
        match self {
            Self::Working | Self::Withheld => true,
            Self::Starting | Self::Failing(_) => false,
        }
    }
}

impl Health {
    pub(super) fn new(status: Arc<SourceStatus>) -> Arc<Self> {
        Arc::new(Self { status, watches: Mutex::default() })
    }

    /// The watch of `kind` is established.
    pub(super) fn working(&self, kind: Kind) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        match std::mem::replace(&mut watches[kind as usize], Watch::Working) {
            Watch::Failing(_) | Watch::Withheld => info!(%kind, "the API server is watched again"),
            Watch::Starting | Watch::Working => {}
        }
        self.tell(&*watches);
    }

    /// There are no objects of `kind` to be had. Says whether that is news, which is logged.
    pub(super) fn withheld(&self, kind: Kind, reason: &RequestError) -> bool {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let news = std::mem::replace(&mut watches[kind as usize], Watch::Withheld) != Watch::Withheld;
        if news {
            warn!(%kind, %reason, "API server");
        }
        self.tell(&*watches);
        news
    }

    fn tell(&self, watches: &[Watch]) {
        let failing = watches.iter().find_map(|watch| match watch {
            Watch::Failing(reason) => Some(reason.clone()),
            Watch::Starting | Watch::Working | Watch::Withheld => None,
        });
        match failing {
            Some(reason) => self.status.still_failing(reason),
            None if watches.iter().all(Watch::is_well) => self.status.set_connected(),
            None => {}
        }
    }

    /// The list or watch of `kind` failed. It is logged when it is not what was the matter already.
    pub(super) fn failing(&self, kind: Kind, reason: String) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        let failing = Watch::Failing(reason.clone());
        if watches[kind as usize] != failing {
            warn!(%kind, reason, "API server");
            watches[kind as usize] = failing;
        }
        self.status.count_failure(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> (Arc<SourceStatus>, Arc<Health>) {
        let status = SourceStatus::new();
        (Arc::clone(&status), Health::new(status))
    }

    #[test]
    fn the_source_works_when_every_watch_does() {
        let (status, health) = health();
        for kind in Kind::ALL {
            assert!(!status.connected());
            health.working(kind);
        }
        assert!(status.connected());
    }

    #[test]
    fn what_is_left_to_be_told_is_the_failure_that_still_stands() {
        let (status, health) = health();
        Kind::ALL.into_iter().for_each(|kind| health.working(kind));
        health.failing(Kind::Service, "services".to_owned());
        health.failing(Kind::EndpointSlice, "slices".to_owned());
        health.working(Kind::EndpointSlice);
        assert!(!status.connected());
        assert_eq!(status.last_error().as_deref(), Some("services"));
        health.working(Kind::Service);
        assert!(status.connected());
        assert_eq!(status.last_error(), None);
        assert_eq!(status.failures(), 2);
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
    }
}
