//! kube's watcher for the objects of one kind, kept going for ever.
//!
//! It does not know what an object holds.

use std::{
    collections::hash_map::RandomState,
    future::pending,
    hash::BuildHasher,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use backon::ExponentialBuilder;
use futures::StreamExt;
use kube::{
    Api,
    runtime::{
        utils::Backoff,
        watcher::{self, Event, ExponentialBackoff, watcher},
    },
};
use tracing::{debug, info, warn};

use super::{
    super::{
        Delta, EventSender, SourceStatus,
        convert::Selectors,
        intake::{self, Taken},
    },
    Connection, EarlierRun, Pace,
    answers::Answers,
    doubt::Doubt,
    error::{Operation, RequestError, Verb},
    health::Health,
    known::{Known, Lacking},
    object::{Carried, Served},
};

/// The watch of the objects of one kind.
pub(super) struct Watch<'a, T> {
    events: &'a EventSender,
    status: &'a SourceStatus,
    health: Arc<Health>,
    pace: &'a Pace,
    answers: Arc<Answers>,
    api: Api<Carried<T>>,
    selectors: Selectors,
    known: Known,
    doubt: Doubt,
    /// What the list that is under way brought.
    listed: Vec<Taken<T>>,
    /// Whether a list was received in full.
    complete: bool,
    /// Since when the server has said no other than that a Role keeps the kind from us.
    forbidden_since: Option<Instant>,
    /// The highest version that was seen since the list began.
    version: Option<u64>,
    unreachable: ExponentialBackoff,
    refused: ExponentialBackoff,
    /// Whether lists come in pages. After a page was no longer to be had, the next list comes whole, as
    /// otherwise a server that forgets fast would never let a list end. When that fails as well, the next one comes in pages again.
    paged: bool,
}

impl<'a, T: Served> Watch<'a, T> {
    pub(super) fn new(
        connection: &Arc<Connection>,
        node: &str,
        earlier: &EarlierRun,
        events: &'a EventSender,
        status: &'a SourceStatus,
        health: &Arc<Health>,
        pace: &'a Pace,
    ) -> Self {
        let answers = Answers::new(T::KIND, pace.clone(), Arc::clone(health));
        Self {
            events,
            status,
            health: Arc::clone(health),
            pace,
            api: Api::all(answers.client(connection)),
            answers,
            selectors: T::selectors(node),
            known: Known::after(earlier.of_kind(T::KIND)),
            doubt: Doubt::new(pace.doubt),
            listed: Vec::new(),
            complete: false,
            forbidden_since: None,
            version: None,
            unreachable: delays(pace.first_retry, pace.longest_retry_unreachable),
            refused: delays(pace.first_retry, pace.longest_retry_refused),
            paged: true,
        }
    }

    /// Goes on until nobody listens to the events any more.
    pub(super) async fn run(mut self) {
        let events = self.events;
        tokio::select! {
            () = events.closed() => {}
            () = self.watch() => {}
        }
    }

    async fn watch(&mut self) {
        loop {
            let mut watcher = pin!(watcher(self.api.clone(), self.config()));
            loop {
                let event = tokio::select! {
                    Some(event) = watcher.next() => event,
                    () = sleep_until(self.doubt.due()) => {
                        self.doubt.ask();
                        break;
                    }
                    else => break,
                };
                let taken = match event {
                    Ok(event) => self.take(event).await,
                    Err(error) => Err(RequestError::of_watcher(T::KIND, error)),
                };
                if let Err(error) = taken {
                    let was_paged = self.paged;
                    self.back_off(&error).await;
                    if error.needs_list() || was_paged != self.paged {
                        // The watcher may hold on to a version that leads nowhere, and does hold on to the size of pages. A
                        // new one lists first, by its own size.
                        break;
                    }
                }
            }
        }
    }

    fn config(&self) -> watcher::Config {
        // The watches of many nodes that were started together shall not end together.
        let share = f64::from((RandomState::new().hash_one(T::KIND) >> 32) as u32) / f64::from(u32::MAX);
        let duration = self.pace.watch.mul_f64(0.8 + 0.2 * share);
        watcher::Config {
            label_selector: self.selectors.labels.clone(),
            field_selector: self.selectors.fields.clone(),
            timeout: Some(u32::try_from(duration.as_secs().max(1)).unwrap_or(u32::MAX)),
            page_size: self.paged.then_some(self.pace.page_size),
            ..watcher::Config::default()
        }
    }

    async fn take(&mut self, event: Event<Carried<T>>) -> Result<(), RequestError> {
        match event {
            // Also when a list broke off and begins anew.
            Event::Init => {
                self.listed.clear();
                self.version = None;
            }
            Event::InitApply(carried) => {
                self.version = self.version.max(carried.version());
                self.listed.push(intake::take(carried.object, self.status));
            }
            Event::InitDone => {
                info!(kind = %T::KIND, objects = self.listed.len(), "listed");
                self.paged = true;
                let lacking = self.judge();
                self.complete |= lacking == Lacking::Gone;
                self.forbidden_since = None;
                for delta in self.known.listed(std::mem::take(&mut self.listed), lacking) {
                    self.send(delta).await;
                }
            }
            Event::Apply(carried) => {
                self.heard(&carried)?;
                if let Some(delta) = self.known.changed(intake::take(carried.object, self.status)) {
                    self.send(delta).await;
                }
            }
            Event::Delete(carried) => {
                self.heard(&carried)?;
                let name = carried.object.object_name().cloned();
                if let Some(delta) = name.and_then(|name| self.known.deleted(name)) {
                    self.send(delta).await;
                }
            }
        }
        Ok(())
    }

    /// What becomes of what the list lacks. A list that lacks everything is what a server says that has lost its store, or has not
    /// read it yet, and what any server says that is not the right one.
    fn judge(&mut self) -> Lacking {
        let Some(missing) = self.known.missing(&self.listed) else {
            self.doubt.settle();
            self.health.holding_back(T::KIND, 0);
            return Lacking::Gone;
        };
        if self.doubt.believes(Instant::now()) {
            warn!(kind = %T::KIND, missing, "the API server has confirmed that these are gone, and they are taken away");
            self.health.holding_back(T::KIND, 0);
            return Lacking::Gone;
        }
        warn!(
            kind = %T::KIND, missing, listed = self.listed.len(), confirmed_in = ?self.pace.doubt,
            "the API server's list lacks what is served, and is hard to believe: what it lacks stays until the server says so again, or \
             tells of the deletions; if this is not meant, look what the API server's store holds, and whether this is the right server"
        );
        self.health.holding_back(T::KIND, missing);
        Lacking::Stays
    }

    /// The watch brought an object, so it works. It goes forward: a version that goes back comes from a server
    /// that was restored from a backup, and what was seen of it may never have happened there.
    fn heard(&mut self, carried: &Carried<T>) -> Result<(), RequestError> {
        if let (Some(seen), Some(got)) = (self.version, carried.version())
            && got < seen
        {
            let operation = Operation { verb: Verb::Watch, kind: T::KIND };
            return Err(RequestError::OtherHistory { operation, seen, got });
        }
        self.version = self.version.max(carried.version());
        self.answers.heard();
        self.start_afresh();
        Ok(())
    }

    async fn back_off(&mut self, error: &RequestError) {
        if !T::KIND.is_necessary() && error.is_withheld() {
            if self.may_be_allowed_soon(error) {
                tokio::time::sleep(self.refused.next().unwrap_or(self.pace.forbidden)).await;
            } else {
                self.do_without(error).await;
            }
            return;
        }
        self.forbidden_since = None;
        self.doubt.disturb(Instant::now());
        if self.answers.lasted() {
            self.start_afresh();
        }
        if error.lost_server() {
            self.answers.lost();
        }
        // A whole list that failed may have been too much at once. Watches come after lists in pages only: `paged` is true then.
        self.paged = !(self.paged && error.is_lost_page());
        let backoff = if error.reached_server() { &mut self.refused } else { &mut self.unreachable };
        let delay = backoff.next().unwrap_or(self.pace.longest_retry_refused);
        // Clients that were refused together were asked to wait equally long.
        let asked_for = error.asked_for().map(|asked_for| asked_for + delay.min(self.pace.first_retry));
        let delay = asked_for.map_or(delay, |asked_for| delay.max(asked_for));
        self.health.failing(T::KIND, error);
        debug!(kind = %T::KIND, %error, retry_in = ?delay, "API server");
        tokio::time::sleep(delay).await;
    }

    fn may_be_allowed_soon(&mut self, error: &RequestError) -> bool {
        if !error.is_forbidden() {
            return false;
        }
        let now = Instant::now();
        now.duration_since(*self.forbidden_since.get_or_insert(now)) < self.pace.forbidden
    }

    /// The server does not have the kind, or not for this proxy: what there is to know is that there is nothing. What was
    /// seen before stays. It is tried again seldom.
    async fn do_without(&mut self, error: &RequestError) {
        if self.health.withheld(T::KIND, error) && !self.complete {
            for delta in self.known.listed(Vec::new(), Lacking::Gone) {
                self.send(delta).await;
            }
        }
        self.start_afresh();
        tokio::time::sleep(self.pace.withheld).await;
    }

    /// The next failure is the first again.
    fn start_afresh(&mut self) {
        self.unreachable.reset();
        self.refused.reset();
    }

    async fn send(&self, delta: Delta<T>) {
        // When nobody listens, `run` is over.
        let _ = self.events.send(T::event(delta)).await;
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => pending().await,
    }
}

/// Delays that double up to a limit, each with a jitter of half of it, so that the nodes of a cluster do not
/// come back as one.
fn delays(first: Duration, longest: Duration) -> ExponentialBackoff {
    let delays = ExponentialBuilder::new().with_min_delay(first / 2).with_max_delay(longest / 2);
    delays.with_jitter().without_max_times().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_limit_and_start_over_after_a_reset() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut delays = delays(first, longest);
        for failure in 0..100_u32 {
            let most = first.saturating_mul(1 << failure.min(20)).min(longest);
            let delay = delays.next().expect("a delay");
            // Doubled in single precision.
            assert!(delay >= most.mul_f64(0.499) && delay <= most.mul_f64(1.001), "{failure}: {delay:?} of {most:?}");
        }
        delays.reset();
        assert!(delays.next().expect("a delay") <= first);
    }
}
