//! One verdict over the watches of all kinds.
//!
//! It knows nothing of requests: each watch says how it fares, and the source works when all of them do.

use std::sync::{Arc, Mutex, PoisonError};

use tracing::{info, warn};

use super::super::{SourceStatus, convert::Kind};

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
}

impl Health {
    pub(super) fn new(status: Arc<SourceStatus>) -> Arc<Self> {
        Arc::new(Self { status, watches: Mutex::default() })
    }

    /// The watch of `kind` is established.
    pub(super) fn working(&self, kind: Kind) {
        let mut watches = self.watches.lock().unwrap_or_else(PoisonError::into_inner);
        if let Watch::Failing(_) = std::mem::replace(&mut watches[kind as usize], Watch::Working) {
            info!(%kind, "the API server is watched again");
        }
        let failing = watches.iter().find_map(|watch| match watch {
            Watch::Failing(reason) => Some(reason.clone()),
            Watch::Starting | Watch::Working => None,
        });
        match failing {
            Some(reason) => self.status.still_failing(reason),
            None if watches.iter().all(|watch| *watch == Watch::Working) => {
                self.status.set_connected();
            }
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

    #[test]
    fn the_source_works_when_every_watch_does() {
        let status = SourceStatus::new();
        let health = Health::new(Arc::clone(&status));
        health.working(Kind::Service);
        assert!(!status.connected());
        health.working(Kind::EndpointSlice);
        assert!(status.connected());
    }

    #[test]
    fn what_is_left_to_be_told_is_the_failure_that_still_stands() {
        let status = SourceStatus::new();
        let health = Health::new(Arc::clone(&status));
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
}
