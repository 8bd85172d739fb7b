//! List, then watch, for ever: the loop for the objects of one kind.
//!
//! It does not know what an object holds.

use std::{sync::Arc, time::Instant};

use kube::Client;
use tracing::{debug, info, warn};

use super::{
    super::{
        EventSender, SourceStatus,
        convert::FromObject,
        intake::{self, Taken},
    },
    Pace,
    backoff::{Backoff, Jitter},
    error::{Operation, RequestError, Verb},
    health::Health,
    known::Known,
    request::Requests,
    wire::WatchEvent,
};
use crate::source::Delta;

/// The list and the watch of the objects of one kind.
pub(super) struct ListWatch<'a, T> {
    requests: Requests,
    events: EventSender,
    status: &'a Arc<SourceStatus>,
    health: &'a Health,
    pace: &'a Pace,
    known: Known,
    backoff: Backoff,
    jitter: Jitter,
    /// Whether lists come in pages. After a page was no longer to be had, the next list comes whole, as
    /// otherwise a server that forgets fast would never let a list end.
    paged: bool,
    model: std::marker::PhantomData<fn() -> T>,
}

/// Why the loop was left.
enum Stop {
    Failed(RequestError),
    NobodyListens,
}

impl From<RequestError> for Stop {
    fn from(error: RequestError) -> Self {
        Self::Failed(error)
    }
}

impl<'a, T: FromObject> ListWatch<'a, T> {
    pub(super) fn new(
        client: Client,
        events: EventSender,
        status: &'a Arc<SourceStatus>,
        health: &'a Health,
        pace: &'a Pace,
    ) -> Self {
        Self {
            requests: Requests::new(client, pace.clone()),
            events,
            status,
            health,
            pace,
            known: Known::default(),
            backoff: Backoff::new(pace.first_retry),
            jitter: Jitter::new(),
            paged: true,
            model: std::marker::PhantomData,
        }
    }

    /// Goes on until nobody listens to the events any more.
    pub(super) async fn run(mut self) {
        let events = self.events.clone();
        tokio::select! {
            () = events.closed() => {}
            () = self.list_and_watch() => {}
        }
    }

    async fn list_and_watch(&mut self) {
        // Where to watch from; nowhere before the first list and after the server's history was lost.
        let mut version = None;
        loop {
            let step = match &mut version {
                None => self.list().await.map(|listed| version = Some(listed)),
                Some(version) => self.watch(version).await,
            };
            match step {
                Ok(()) => {}
                Err(Stop::NobodyListens) => return,
                Err(Stop::Failed(error)) => {
                    let longest = if error.reached_server() {
                        self.pace.longest_retry_refused
                    } else {
                        self.pace.longest_retry_unreachable
                    };
                    let delay = self.backoff.next(longest, error.asked_for());
                    warn!(kind = %T::KIND, %error, retry_in = ?delay, "API server");
                    self.health.failing(T::KIND, error.to_string());
                    if error.needs_list() {
                        version = None;
                    }
                    tokio::time::sleep(delay).await;
                }
            }
        }
    }

    /// Lists all objects and returns the version of the list.
    async fn list(&mut self) -> Result<String, Stop> {
        let mut objects = Vec::new();
        let mut continue_token = None;
        let version = loop {
            let page = self.requests.list::<T>(self.paged, continue_token.take()).await;
            let page = page.inspect_err(|error| {
                if matches!(error, RequestError::Gone { .. }) {
                    self.paged = false;
                }
            })?;
            let metadata = page.metadata.clone();
            objects.extend(page.into_objects().map(|object| intake::take(object, self.status)));
            match metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => continue_token = Some(token),
                None => {
                    break metadata.resource_version.filter(|version| !version.is_empty());
                }
            }
        };
        let operation = Operation { verb: Verb::List, kind: T::KIND };
        let version = version.ok_or(RequestError::NoVersion { operation })?;
        self.paged = true;
        info!(kind = %T::KIND, objects = objects.len(), version, "listed");
        for delta in self.known.listed(objects) {
            self.send(delta).await?;
        }
        Ok(version)
    }

    /// Watches from `version` on and moves it along.
    async fn watch(&mut self, version: &mut String) -> Result<(), Stop> {
        // The watches of many nodes that were started together shall not end together.
        let duration = self.jitter.between(self.pace.watch.mul_f64(0.8), self.pace.watch);
        let mut stream = self.requests.watch::<T>(version, duration).await?;
        debug!(kind = %T::KIND, version, "watching");
        self.health.working(T::KIND);
        let started = Instant::now();
        let mut heard = false;
        while let Some(event) = stream.next::<T>().await? {
            if let Some(got) = event.version() {
                ensure_same_history::<T>(version, got)?;
                got.clone_into(version);
            }
            match event {
                WatchEvent::Changed { object, .. } => {
                    let object = intake::take(object, self.status);
                    if let Some(delta) = self.known.changed(object) {
                        self.send(delta).await?;
                    }
                }
                WatchEvent::Deleted { name, .. } => {
                    let deleted = name.and_then(|name| self.known.changed::<T>(Taken::NotOurs(name)));
                    if let Some(delta) = deleted {
                        self.send(delta).await?;
                    }
                }
                WatchEvent::Bookmark { .. } => {}
                WatchEvent::Error(status) => {
                    let operation = Operation { verb: Verb::Watch, kind: T::KIND };
                    return Err(RequestError::refused(operation, status, None).into());
                }
            }
            heard = true;
            self.backoff.reset();
        }
        if !heard && started.elapsed() < self.pace.shortest_watch {
            let operation = Operation { verb: Verb::Watch, kind: T::KIND };
            return Err(RequestError::CutShort { operation }.into());
        }
        self.backoff.reset();
        Ok(())
    }

    async fn send(&self, delta: Delta<T>) -> Result<(), Stop> {
        self.events.send(T::event(delta)).await.map_err(|_| Stop::NobodyListens)
    }
}

/// A watch goes forward. A version that goes back, where versions can be compared at all, comes from a server
/// that was restored from a backup, and what was seen of it may never have happened there.
fn ensure_same_history<T: FromObject>(seen: &str, got: &str) -> Result<(), RequestError> {
    match (seen.parse::<u64>(), got.parse::<u64>()) {
        (Ok(seen), Ok(got)) if got < seen => {
            Err(RequestError::OtherHistory { operation: Operation { verb: Verb::Watch, kind: T::KIND }, seen, got })
        }
        _ => Ok(()),
    }
}
