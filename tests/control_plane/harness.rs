//! A source at work, its events sorted by kind, and its status.
//!
//! It does not know which source it is.

use std::{collections::VecDeque, path::Path, sync::Arc, time::Duration};

use dsproxy::{
    model::{EndpointSlice, Node, ObjectName, Service, ServiceCidr},
    source::{
        Delta, Event, EventSender, SourceStatus, Trouble, WatchStatus,
        kubernetes::{self, Connection, EarlierRun, Pace},
    },
};
use dsproxy_tests::apiserver::{ApiServer, OWN_NAME, OWN_NAMESPACE};
use tokio::{sync::mpsc, task::JoinHandle};

/// The node that the proxy is on.
pub(crate) const NODE: &str = "node-a";

/// Nothing in a test takes so long unless it never happens.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Source {
    pub(crate) status: Arc<SourceStatus>,
    events: mpsc::Receiver<Event>,
    services: VecDeque<Delta<Service>>,
    slices: VecDeque<Delta<EndpointSlice>>,
    nodes: VecDeque<Delta<Node>>,
    service_cidrs: VecDeque<Delta<ServiceCidr>>,
    task: JoinHandle<()>,
}

/// Waiting times under which a test does not wait long.
pub(crate) fn pace() -> Pace {
    Pace {
        first_retry: Duration::from_millis(5),
        longest_retry_unreachable: Duration::from_millis(20),
        longest_retry_refused: Duration::from_millis(20),
        forbidden: Duration::from_millis(20),
        withheld: Duration::from_millis(50),
        doubt: Duration::from_millis(200),
        answer: Duration::from_secs(10),
        shortest_watch: Duration::from_millis(20),
        ..Pace::default()
    }
}

impl Source {
    pub(crate) fn start<F>(run: impl FnOnce(EventSender, Arc<SourceStatus>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let status = SourceStatus::new();
        let (sender, events) = mpsc::channel(64);
        let task = tokio::spawn(run(sender, Arc::clone(&status)));
        Self {
            status,
            events,
            services: VecDeque::new(),
            slices: VecDeque::new(),
            nodes: VecDeque::new(),
            service_cidrs: VecDeque::new(),
            task,
        }
    }

    /// The proxy's source with this server at the other end.
    pub(crate) async fn of(server: &ApiServer) -> Self {
        Self::at(server, pace()).await
    }

    pub(crate) async fn at(server: &ApiServer, pace: Pace) -> Self {
        Self::after(EarlierRun::default(), server, pace).await
    }

    /// The source of a daemon that finds what an earlier one has left behind.
    pub(crate) async fn after(earlier: EarlierRun, server: &ApiServer, pace: Pace) -> Self {
        let kubeconfig = server.kubeconfig();
        Self::by(kubeconfig.path(), earlier, pace).await
    }

    /// The source by a kubeconfig.
    pub(crate) async fn by(kubeconfig: &Path, earlier: EarlierRun, pace: Pace) -> Self {
        let connection = Arc::new(Connection::open(None, Some(kubeconfig)).await.expect("a client"));
        Self::start(|events, status| kubernetes::run_at(connection, NODE.to_owned(), earlier, events, status, pace))
    }

    /// The source of a server that is already listed and watched, and what was listed.
    pub(crate) async fn watching(server: &ApiServer) -> (Self, Vec<Service>, Vec<EndpointSlice>) {
        let mut source = Self::of(server).await;
        let services = source.snapshot_of_services().await;
        let slices = source.snapshot_of_slices().await;
        source.until_connected().await;
        (source, services, slices)
    }

    pub(crate) async fn service(&mut self) -> Delta<Service> {
        loop {
            if let Some(delta) = self.services.pop_front() {
                return delta;
            }
            self.receive().await;
        }
    }

    pub(crate) async fn slice(&mut self) -> Delta<EndpointSlice> {
        loop {
            if let Some(delta) = self.slices.pop_front() {
                return delta;
            }
            self.receive().await;
        }
    }

    pub(crate) async fn snapshot_of_services(&mut self) -> Vec<Service> {
        match self.service().await {
            Delta::Snapshot(services) => services,
            other => panic!("expected a snapshot of Services, got {other:?}"),
        }
    }

    pub(crate) async fn snapshot_of_slices(&mut self) -> Vec<EndpointSlice> {
        match self.slice().await {
            Delta::Snapshot(slices) => slices,
            other => panic!("expected a snapshot of EndpointSlices, got {other:?}"),
        }
    }

    pub(crate) async fn node(&mut self) -> Delta<Node> {
        loop {
            if let Some(delta) = self.nodes.pop_front() {
                return delta;
            }
            self.receive().await;
        }
    }

    pub(crate) async fn service_cidr(&mut self) -> Delta<ServiceCidr> {
        loop {
            if let Some(delta) = self.service_cidrs.pop_front() {
                return delta;
            }
            self.receive().await;
        }
    }

    /// Asserts that nothing about Services and EndpointSlices was sent up to now beyond what was received.
    pub(crate) fn assert_silent(&mut self) {
        while let Ok(event) = self.events.try_recv() {
            self.sort(event);
        }
        assert!(self.services.is_empty(), "unexpected {:?}", self.services);
        assert!(self.slices.is_empty(), "unexpected {:?}", self.slices);
    }

    /// Waits until the status is as wanted.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&SourceStatus) -> bool) {
        // The status has no way to be waited for: it is read when someone asks.
        let holds = async {
            while !holds(&self.status) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, holds).await;
        assert!(waited.is_ok(), "waited in vain for {what}: {:?}", self.status);
    }

    /// How the watch of a resource fares.
    pub(crate) fn watch_of(&self, resource: &str) -> WatchStatus {
        let mut watches = self.status.watches().into_iter();
        watches.find(|watch| watch.resource == resource).unwrap_or_else(|| panic!("no watch of {resource}"))
    }

    /// Waits until this is the matter with the watch of a resource.
    pub(crate) async fn until_trouble(&self, resource: &str, trouble: Option<Trouble>) {
        let is_so = |status: &SourceStatus| {
            status.watches().iter().any(|watch| (watch.resource, watch.trouble) == (resource, trouble))
        };
        self.until(&format!("{trouble:?} of {resource}"), is_so).await;
    }

    pub(crate) async fn until_connected(&self) {
        self.until("the connection", SourceStatus::connected).await;
    }

    /// Waits until `more` further attempts have failed.
    pub(crate) async fn until_failed_again(&self, more: u64) {
        let before = self.status.failures();
        self.until("failures", |status| status.failures() >= before + more).await;
    }

    /// Nobody listens any more; asserts that the source ends.
    pub(crate) async fn stop_listening(mut self) {
        self.events.close();
        while self.events.recv().await.is_some() {}
        let ended = tokio::time::timeout(PATIENCE, &mut self.task).await;
        ended.expect("the source ends when nobody listens").expect("the source does not panic");
    }

    async fn receive(&mut self) {
        match tokio::time::timeout(PATIENCE, self.events.recv()).await {
            Ok(Some(event)) => self.sort(event),
            Ok(None) => panic!("the source has ended"),
            Err(_) => panic!("waited in vain for an event: {:?}", self.status),
        }
    }

    fn sort(&mut self, event: Event) {
        match event {
            Event::Services(delta) => self.services.extend(without_own(delta, |service| &service.name)),
            Event::EndpointSlices(delta) => self.slices.extend(without_own(delta, |slice| &slice.name)),
            Event::Nodes(delta) => self.nodes.push_back(delta),
            Event::ServiceCidrs(delta) => self.service_cidrs.push_back(delta),
        }
    }
}

/// A change without what is about the API server's own objects, which come with every list.
fn without_own<T>(delta: Delta<T>, name: impl Fn(&T) -> &ObjectName) -> Option<Delta<T>> {
    let own = ObjectName::new(OWN_NAMESPACE, OWN_NAME);
    match delta {
        Delta::Snapshot(mut objects) => {
            objects.retain(|object| *name(object) != own);
            Some(Delta::Snapshot(objects))
        }
        Delta::Apply(object) => (*name(&object) != own).then_some(Delta::Apply(object)),
        // It never happens, so a test shall see it.
        Delta::Delete(name) => Some(Delta::Delete(name)),
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.task.abort();
    }
}
