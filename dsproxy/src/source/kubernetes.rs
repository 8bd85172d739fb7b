//! Services, EndpointSlices, the own Node and ServiceCIDRs from a Kubernetes API server, by list and watch.
//!
//! It does not know what the objects are for. While the server is away nothing is sent, so whatever was
//! built from the last state stays.
//!
//! kube's watcher lists and watches. Around it stands what it leaves to others: `answers` sees the responses
//! on their way to it, for it tells nobody that a broken watch works again, waits for ever for an answer, and
//! restarts a watch that is ended at once without a pause, and here a server that was away is asked whether its history is still the
//! same; `watch` backs off after its errors, and makes a new
//! one when the version to watch from is lost, for it tries a version that is refused with HTTP 410 for ever;
//! `object` is what it carries, small and tolerant; `known` lets the last good version of a malformed object
//! stay; `doubt` lets what a list lacks stay until the server has said so twice. A watch whose connection breaks is resumed by it without a word: it counts as a failure when it cannot
//! be resumed.

use std::{sync::Arc, time::Duration};

use self::{health::Health, watch::Watch};
use super::{EventSender, SourceStatus};
use crate::model::{EndpointSlice, Node, Service, ServiceCidr};

mod answers;
mod connection;
mod doubt;
mod earlier_run;
mod error;
mod health;
mod known;
mod object;
mod watch;

pub use self::{
    connection::{ConnectError, Connection},
    earlier_run::EarlierRun,
};

/// How long the source waits for what.
#[derive(Clone, Debug)]
pub struct Pace {
    /// The first delay before a retry; it doubles with each failure in a row, and has jitter.
    pub first_retry: Duration,
    /// The longest delay while the server cannot be reached. Trying costs the server nothing then.
    pub longest_retry_unreachable: Duration,
    /// The longest delay while the server refuses, unless it asks for more.
    pub longest_retry_refused: Duration,
    /// How long the server may take to answer a list, or to start a watch.
    pub answer: Duration,
    /// How long a watch is asked to last, in whole seconds. The server then ends it and a new one follows.
    /// A watch that is silent for 5 seconds longer is given up: its connection died without a word.
    pub watch: Duration,
    /// A watch that the server ends sooner than this, and without a word, is a failure.
    pub shortest_watch: Duration,
    /// For how long a kind that nothing depends on may be forbidden before it is done without.
    pub forbidden: Duration,
    /// How long until a kind that the server does not have, or keeps from us, is asked for again, where nothing depends
    /// on it.
    pub withheld: Duration,
    /// How long what a list lacks and cannot well lack stays. Then it is listed once more, and that counts, if nothing went
    /// wrong in between.
    pub doubt: Duration,
    /// The number of objects in one page of a list.
    pub page_size: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first_retry: Duration::from_millis(200),
            longest_retry_unreachable: Duration::from_secs(5),
            longest_retry_refused: Duration::from_secs(30),
            answer: Duration::from_secs(60),
            watch: Duration::from_secs(150),
            shortest_watch: Duration::from_secs(1),
            forbidden: Duration::from_secs(5),
            withheld: Duration::from_secs(60),
            doubt: Duration::from_secs(60),
            page_size: 500,
        }
    }
}

/// Lists and watches for the proxy of the node `node` until nobody listens to `events` any more. `earlier` is what an
/// earlier run has left behind.
pub async fn run(
    connection: Arc<Connection>,
    node: String,
    earlier: EarlierRun,
    events: EventSender,
    status: Arc<SourceStatus>,
) {
    run_at(connection, node, earlier, events, status, Pace::default()).await;
}

/// [`run`] with other waiting times.
pub async fn run_at(
    connection: Arc<Connection>,
    node: String,
    earlier: EarlierRun,
    events: EventSender,
    status: Arc<SourceStatus>,
    pace: Pace,
) {
    let (to, from) = (&connection, &earlier);
    let health = Health::new(Arc::clone(&status));
    let services = Watch::<Service>::new(to, &node, from, &events, &status, &health, &pace);
    let slices = Watch::<EndpointSlice>::new(to, &node, from, &events, &status, &health, &pace);
    let nodes = Watch::<Node>::new(to, &node, from, &events, &status, &health, &pace);
    let service_cidrs = Watch::<ServiceCidr>::new(to, &node, from, &events, &status, &health, &pace);
    tokio::join!(services.run(), slices.run(), nodes.run(), service_cidrs.run());
}
