//! Where Services, EndpointSlices, Nodes and ServiceCIDRs come from: a Kubernetes API server or a directory of manifests.
//!
//! A source turns whatever it reads into `Event`s on a bounded channel, in order, and never sees what
//! becomes of them: it knows nothing of maps. A bad object is logged with its name and the reason, counted
//! in `SourceStatus`, and left out; it never stops a source.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use tokio::sync::mpsc;

use crate::model::{EndpointSlice, Node, ObjectName, Service, ServiceCidr};

pub mod convert;
mod intake;
pub mod kubernetes;
pub mod manifests;
mod trouble;

pub use trouble::{Trouble, WatchStatus};

/// The sending half that every source is given.
pub type EventSender = mpsc::Sender<Event>;

/// One thing that happened to the objects of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Something about Services.
    Services(Delta<Service>),
    /// Something about EndpointSlices.
    EndpointSlices(Delta<EndpointSlice>),
    /// Something about Nodes, of which an API server tells the own one alone.
    Nodes(Delta<Node>),
    /// Something about ServiceCIDRs.
    ServiceCidrs(Delta<ServiceCidr>),
}

impl Event {
    /// How many objects a complete list brings; none where it is no list.
    pub fn listed(&self) -> usize {
        match self {
            Self::Services(delta) => delta.listed(),
            Self::EndpointSlices(delta) => delta.listed(),
            Self::Nodes(delta) => delta.listed(),
            Self::ServiceCidrs(delta) => delta.listed(),
        }
    }
}

/// A change to the set of objects of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Delta<T> {
    /// The complete set, as after a (re)list: whatever is not in it is gone.
    Snapshot(Vec<T>),
    /// The object is new or has changed.
    Apply(T),
    /// The object is gone, or no longer for this proxy.
    Delete(ObjectName),
}

impl<T> Delta<T> {
    fn listed(&self) -> usize {
        match self {
            Self::Snapshot(objects) => objects.len(),
            Self::Apply(_) | Self::Delete(_) => 0,
        }
    }
}

/// What a source tells about itself to metrics, health and `status`.
#[derive(Debug, Default)]
pub struct SourceStatus {
    connected: AtomicBool,
    rejected: AtomicU64,
    skipped: AtomicU64,
    failures: AtomicU64,
    last_error: Mutex<Option<String>>,
    watches: Mutex<Vec<WatchStatus>>,
}

impl SourceStatus {
    /// A status that has seen nothing yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Whether the last attempt to list or watch succeeded.
    pub fn connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Objects left out because they make no sense, since the start.
    pub fn rejected(&self) -> u64 {
        self.rejected.load(Ordering::Relaxed)
    }

    /// Ports and endpoints left out of objects that are otherwise used, because they make no sense, since
    /// the start.
    pub fn skipped(&self) -> u64 {
        self.skipped.load(Ordering::Relaxed)
    }

    /// Failed lists, watches and reads since the start.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    /// The last failure, until the source works again.
    pub fn last_error(&self) -> Option<String> {
        self.last_error.lock().map_or(None, |error| error.clone())
    }

    /// The source works.
    pub fn set_connected(&self) {
        self.connected.store(true, Ordering::Relaxed);
        if let Ok(mut error) = self.last_error.lock() {
            *error = None;
        }
    }

    /// A list, watch or read failed.
    pub fn count_failure(&self, reason: String) {
        self.connected.store(false, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.still_failing(reason);
    }

    /// One part of the source works again and another does not: `reason` is what is left to be told.
    fn still_failing(&self, reason: String) {
        if let Ok(mut error) = self.last_error.lock() {
            *error = Some(reason);
        }
    }

    /// How each watch fares; none of a source that has none.
    pub fn watches(&self) -> Vec<WatchStatus> {
        self.watches.lock().map_or_else(|_| Vec::new(), |watches| watches.clone())
    }

    fn set_watches(&self, now: Vec<WatchStatus>) {
        if let Ok(mut watches) = self.watches.lock() {
            *watches = now;
        }
    }

    /// An object was left out.
    pub fn count_rejected(&self) {
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }

    /// A port or an endpoint was left out of an object.
    pub fn count_skipped(&self) {
        self.skipped.fetch_add(1, Ordering::Relaxed);
    }
}
