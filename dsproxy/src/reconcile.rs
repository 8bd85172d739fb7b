//! The one task that owns the model and the maps: takes in events, plans, writes, retries.
//!
//! Nothing is written before the source has listed everything once. Work follows the change: only Services that an event
//! touched are looked at. What cannot be written is tried again, and what was served meanwhile stays served.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use dsproxy_common::{Protocol, service::BackendState};
use thiserror::Error;
use tokio::{
    sync::{Notify, mpsc, watch},
    time,
};
use tracing::{debug, info, warn};

use crate::{
    allocator,
    claims::{Claims, Conflict},
    cluster::Cluster,
    diff::{Known, PlanError},
    few::Few,
    interfaces::NodeAddresses,
    local_node::LocalNode,
    maps::{Contents, MapError, MapKind, MapStore, Write},
    masquerade::Masquerade,
    model::{IpFamily, ObjectName},
    networks::{ConfiguredNetworks, Networks},
    progress::{NoLocalEndpoints, Progress, Snapshot},
    resolve::{HealthCheck, LeftOut},
    source::{Delta, Event},
};

mod host;
mod services;

#[cfg(test)]
mod tests;

/// A Service and its slices change in several events a moment apart; they are taken together.
const COALESCE: Duration = Duration::from_millis(2);

/// How long the Node object is waited for: as long as kube-proxy waits. What it says is then left out until it comes.
const NODE: Duration = Duration::from_secs(30);

/// The first wait before a failed Service is tried again, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How many objects a list has, at least, that takes much memory on its way.
const LONG_LIST: usize = 1000;

/// How often bits of the frontend filter are looked at that may be due.
const FILTER_RETIREMENT: Duration = Duration::from_secs(600);

/// Why a Service could not be brought into the maps.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// There is no room for it.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A write failed.
    #[error(transparent)]
    Write(#[from] MapError),
}

impl ServiceError {
    /// The map that is full, when that is the reason.
    pub fn full(&self) -> Option<MapKind> {
        match self {
            Self::Plan(PlanError::Full { map, .. }) | Self::Write(MapError::Full { map, .. }) => Some(*map),
            Self::Write(MapError::Kernel { .. } | MapError::OnDemand) => None,
        }
    }
}

/// What load balancers are told, by Service.
pub type HealthChecks = BTreeMap<ObjectName, HealthCheck>;

/// The state of the task.
pub struct Reconciler<S> {
    store: S,
    known: Known,
    networks: Networks,
    masquerade: Masquerade,
    configured: ConfiguredNetworks,
    cluster: Cluster,
    claims: Claims,
    /// The names of the service ports in the maps, by Service.
    served: HashMap<ObjectName, Few<Arc<str>>>,
    failed: BTreeMap<ObjectName, Failure>,
    /// The frontends that a Service wants and another has.
    conflicting: BTreeMap<ObjectName, Vec<Conflict>>,
    /// What cannot be served of which Service.
    left_out: BTreeMap<ObjectName, Vec<LeftOut>>,
    /// The Services of which packets are dropped on this node, for want of an endpoint of its own.
    without_local: BTreeMap<ObjectName, NoLocalEndpoints>,
    health_checks: watch::Sender<HealthChecks>,
    node_port_addresses: watch::Sender<BTreeSet<IpAddr>>,
    retry_after: Duration,
    retry_at: Option<Instant>,
    /// Whether a long list came since memory was last given back.
    took_in_much: bool,
    /// Whether a write since the last attempt at what has failed may have made room for it.
    made_room: bool,
    /// Why what is not a Service's is not in the maps as it should be.
    host_failure: Option<Failure>,
    /// Whether what an earlier run has left, and nobody wants, is still to be removed.
    has_orphans: bool,
    was_synced: bool,
    progress: Arc<Progress>,
    /// Told when a UDP backend has gone.
    gone: Arc<Notify>,
}

/// Why a Service is not served as it should be.
struct Failure {
    text: String,
    /// There is no room for it, and there is nothing wrong with the maps.
    full: bool,
}

impl Failure {
    fn of(error: &MapError) -> Self {
        Self { text: error.to_string(), full: matches!(error, MapError::Full { .. }) }
    }
}

impl<S: MapStore> Reconciler<S> {
    /// A reconciler on `node` for `store`, which holds `contents` now.
    pub fn new(store: S, contents: &Contents, node: LocalNode, progress: Arc<Progress>, now: Instant) -> Self {
        let known = Known::new(store.capacities(), contents, now);
        let mut served: HashMap<ObjectName, Few<Arc<str>>> = HashMap::new();
        for name in known.names() {
            if let Some(service) = service_of(name) {
                served.entry(service).or_default().insert(Arc::clone(name));
            }
        }
        Self {
            store,
            known,
            networks: Networks::new(contents),
            masquerade: Masquerade::new(contents),
            configured: ConfiguredNetworks::default(),
            cluster: Cluster::new(node),
            claims: Claims::default(),
            served,
            failed: BTreeMap::new(),
            conflicting: BTreeMap::new(),
            left_out: BTreeMap::new(),
            without_local: BTreeMap::new(),
            health_checks: watch::Sender::default(),
            node_port_addresses: watch::Sender::default(),
            retry_after: RETRY.0,
            retry_at: None,
            took_in_much: false,
            made_room: false,
            host_failure: None,
            has_orphans: false,
            was_synced: false,
            progress,
            gone: Arc::default(),
        }
    }

    /// Goes by what the configuration says of networks.
    pub fn with_networks(self, configured: ConfiguredNetworks) -> Self {
        Self { configured, ..self }
    }

    /// What load balancers are told, for whoever follows it.
    pub fn health_checks(&self) -> watch::Receiver<HealthChecks> {
        self.health_checks.subscribe()
    }

    /// Tells whenever a UDP backend has gone.
    pub fn gone(&self) -> Arc<Notify> {
        Arc::clone(&self.gone)
    }

    /// The addresses of this node where NodePorts are served, for whoever follows them.
    pub fn node_port_addresses(&self) -> watch::Receiver<BTreeSet<IpAddr>> {
        self.node_port_addresses.subscribe()
    }

    /// Works until the source is gone.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>, mut addresses: watch::Receiver<NodeAddresses>) {
        let mut retirement = time::interval(FILTER_RETIREMENT);
        let mut node_is_late = None;
        let known = addresses.borrow_and_update().clone();
        self.set_addresses(known);
        loop {
            let retry_at = self.retry_at;
            tokio::select! {
                () = sleep_until(node_is_late) => {
                    node_is_late = None;
                    if self.cluster.has_node() {
                        continue;
                    }
                    warn!("the Node object did not come; what it says (zone, addresses, taints) is left out until then");
                    self.cluster.go_without_node();
                    self.work(Self::reconcile, &events);
                }
                Ok(()) = addresses.changed() => {
                    let now = addresses.borrow_and_update().clone();
                    self.set_addresses(now);
                    self.work(Self::reconcile, &events);
                }
                event = events.recv() => match event {
                    Some(event) => {
                        self.apply(event);
                        if self.cluster.is_synced() {
                            self.progress.received(Instant::now());
                        }
                        time::sleep(COALESCE).await;
                        while let Ok(event) = events.try_recv() {
                            self.apply(event);
                        }
                        if self.cluster.lacks_node_alone() {
                            node_is_late.get_or_insert_with(|| time::Instant::now().into_std() + NODE);
                        }
                        self.work(Self::reconcile, &events);
                    }
                    None => return,
                },
                () = sleep_until(retry_at) => self.work(Self::retry, &events),
                _ = retirement.tick() => self.retire_filter_bits(Instant::now()),
            }
        }
    }

    /// Does `work`. What the source sends meanwhile waits although nobody looks at it: since when an event does not say, but not for
    /// longer than this, for when nothing was done it was looked at as it came.
    fn work(&mut self, work: fn(&mut Self, Instant), events: &mpsc::Receiver<Event>) {
        let began = Instant::now();
        work(self, began);
        if self.was_synced && !events.is_empty() {
            self.progress.queued(began);
        }
    }

    /// Takes in one event without acting on it.
    pub fn apply(&mut self, event: Event) {
        self.took_in_much |= event.listed() >= LONG_LIST;
        self.count(&event);
        self.cluster.apply(event);
    }

    /// Takes in the node's addresses without acting on them.
    pub fn set_addresses(&mut self, addresses: NodeAddresses) {
        self.cluster.set_addresses(addresses);
    }

    fn count(&self, event: &Event) {
        let (times, now) = (self.progress.sync_times(), SystemTime::now());
        match event {
            Event::Services(Delta::Snapshot(services)) => times.services_changed(services.len() as u64, now),
            Event::Services(Delta::Apply(_) | Delta::Delete(_)) => times.services_changed(1, now),
            Event::EndpointSlices(Delta::Snapshot(slices)) => {
                for slice in slices {
                    times.slice_changed(slice.family, slice.triggered, now);
                }
            }
            Event::EndpointSlices(Delta::Apply(slice)) => times.slice_changed(slice.family, slice.triggered, now),
            Event::EndpointSlices(Delta::Delete(name)) => {
                if let Some(family) = self.cluster.family_of(name) {
                    times.slice_changed(family, None, now);
                }
            }
            Event::Nodes(_) | Event::ServiceCidrs(_) => {}
        }
    }

    /// The maps.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Brings the maps up to date with whatever has changed.
    pub fn reconcile(&mut self, now: Instant) {
        if !self.cluster.is_synced() {
            return;
        }
        let started = Instant::now();
        let mut touched = self.cluster.take_touched();
        if !self.was_synced {
            // What changed while the daemon was down: whatever the maps hold is looked at, too.
            touched.extend(self.served.keys().cloned());
        }
        let count = touched.len();
        self.bring_up_to_date(touched, now);
        if !self.was_synced {
            self.was_synced = true;
            self.remove_orphans(now);
            let (services, slices) = self.cluster.len();
            let failed = self.failed.len();
            let seconds = started.elapsed().as_secs_f64();
            info!(services, slices, failed, seconds, "what the source listed is in the maps, but for what failed");
        }
        self.bring_host_up_to_date(now);
        debug!(services = count, seconds = started.elapsed().as_secs_f64(), "reconciled");
        self.publish(now, started.elapsed());
        if std::mem::take(&mut self.took_in_much) {
            allocator::give_back();
        }
    }

    /// Takes away what an earlier run has left of Services that there are no more. What cannot be taken away is tried again.
    fn remove_orphans(&mut self, now: Instant) {
        let orphans = self.known.plan_orphans();
        let outcome = self.write(&orphans, now);
        self.has_orphans = outcome.is_err();
        if let Err(error) = outcome {
            warn!(%error, "leftovers of an earlier run stay in the maps until the next attempt");
            let again = now + RETRY.0;
            self.retry_at = Some(self.retry_at.map_or(again, |at| at.min(again)));
        }
    }

    fn retry(&mut self, now: Instant) {
        let started = Instant::now();
        let failed = self.failed.keys().cloned().collect();
        self.retry_at = None;
        self.bring_up_to_date(failed, now);
        if self.has_orphans {
            self.remove_orphans(now);
        }
        if self.host_failure.is_some() {
            self.bring_host_up_to_date(now);
        }
        self.publish(now, started.elapsed());
    }

    fn retire_filter_bits(&mut self, now: Instant) {
        let writes = self.known.plan_filter_retirement(now);
        if let Err(error) = self.write(&writes, now) {
            warn!(%error, "bits of frontends long gone stay in the filter until the next attempt");
        }
    }

    fn write(&mut self, writes: &[Write], now: Instant) -> Result<(), MapError> {
        for write in writes {
            self.store.write(write).inspect_err(|_| self.known.failed(write))?;
            self.known.applied(write, now);
            self.networks.applied(write);
            self.masquerade.applied(write);
            if self.ends_udp(write) {
                self.gone.notify_one();
            }
            self.made_room |= makes_room(write);
        }
        self.progress.wrote(writes.len());
        Ok(())
    }

    /// Whether a write takes away a backend that UDP sockets may be connected to; one of a service port that nobody knows any
    /// more may be one.
    fn ends_udp(&self, write: &Write) -> bool {
        let Write::Backend { record, .. } = write else { return false };
        record.state == BackendState::Gone
            && self.known.protocol_of(record.service).is_none_or(|protocol| protocol == Protocol::Udp)
    }

    /// Logs what is new among the failures, one line for each reason, and sets the time of the next attempt.
    fn note_failures(
        &mut self,
        tried: &BTreeSet<ObjectName>,
        errors: &BTreeMap<ObjectName, ServiceError>,
        now: Instant,
    ) {
        let mut news: BTreeMap<String, Vec<ObjectName>> = BTreeMap::new();
        // Where there is no room there is none for whatever comes: `full_log` counts them.
        let known = if errors.is_empty() { None } else { Some(self.failed.values()) };
        let full = known.into_iter().flatten().filter(|failure| failure.full);
        let full: BTreeSet<&str> = full.map(|failure| failure.text.as_str()).collect();
        for (service, error) in errors {
            self.progress.failed(error.full());
            let text = error.to_string();
            let is_known = match error.full() {
                Some(_) => full.contains(text.as_str()),
                None => self.failed.get(service).is_some_and(|failure| failure.text == text),
            };
            if !is_known {
                news.entry(text).or_default().push(service.clone());
            }
        }
        for (error, services) in news {
            if let Some(service) = services.first() {
                warn!(%service, and_others = services.len() - 1, %error, "a Service is not served as it should be");
            }
        }
        for service in tried {
            if let Some(error) = errors.get(service) {
                let failure = Failure { text: error.to_string(), full: error.full().is_some() };
                self.failed.insert(service.clone(), failure);
            } else if self.failed.remove(service).is_some() && self.cluster.service(service).is_some() {
                info!(%service, "the Service is served as it should be again");
            }
        }
        let made_room = std::mem::take(&mut self.made_room);
        if self.failed.is_empty() {
            self.retry_after = RETRY.0;
            if !self.has_orphans {
                self.retry_at = None;
            }
        } else if made_room {
            let soon = now + RETRY.0;
            self.retry_after = RETRY.0;
            self.retry_at = Some(self.retry_at.map_or(soon, |at| at.min(soon)));
        } else if self.retry_at.is_none() {
            self.retry_at = Some(now + self.retry_after);
            self.retry_after = (self.retry_after * 2).min(RETRY.1);
        }
    }

    fn fill(&self, family: IpFamily) -> [(MapKind, u32); 5] {
        let [frontends, backends, slots, source_ranges] = self.known.fill(family);
        [frontends, backends, slots, source_ranges, (MapKind::Networks, self.networks.entries(family))]
    }

    fn publish(&self, now: Instant, took: Duration) {
        let addresses = &self.cluster.view().node_port_addresses;
        self.node_port_addresses.send_if_modified(|known| {
            let news = known != addresses;
            if news {
                known.clone_from(addresses);
            }
            news
        });
        let (services, slices) = self.cluster.len();
        let is_unserved = |service: &&ObjectName| self.frontends_of(service).next().is_none();
        self.progress.publish(
            Snapshot {
                synced: self.was_synced,
                services,
                slices,
                service_ports: self.known.service_count(),
                fill: IpFamily::ALL.map(|family| (family, self.fill(family))),
                failed: self.failed.iter().map(|(name, failure)| (name.clone(), failure.text.clone())).collect(),
                unserved: self.failed.keys().filter(is_unserved).cloned().collect(),
                host_failure: self.host_failure.as_ref().map(|failure| failure.text.clone()),
                stuck: self.has_orphans
                    || self.host_failure.iter().chain(self.failed.values()).any(|failure| !failure.full),
                conflicts: self.conflicting.values().map(Vec::len).sum(),
                left_out: self.left_out.values().map(Vec::len).sum(),
                no_local_endpoints: self.without_local.values().copied().sum(),
                node_is_eligible: self.cluster.node().is_eligible(),
            },
            now,
            took,
        );
    }
}

/// Keeps what there is to say about a Service, if there is something.
fn note<T: Default + PartialEq>(notes: &mut BTreeMap<ObjectName, T>, service: &ObjectName, note: T) {
    if note == T::default() {
        notes.remove(service);
    } else {
        notes.insert(service.clone(), note);
    }
}

/// Whether a write leaves room in a map for something that failed for want of it.
fn makes_room(write: &Write) -> bool {
    match write {
        Write::RemoveFrontend { .. }
        | Write::RemoveSourceRange { .. }
        | Write::RemoveNetwork { .. }
        | Write::RemoveMasquerade { .. }
        | Write::Name { name: None, .. } => true,
        Write::Backend { record, .. } => record.state == BackendState::Gone,
        Write::Name { name: Some(_), .. }
        | Write::ResetCounters { .. }
        | Write::Slots { .. }
        | Write::FilterWord { .. }
        | Write::Frontend { .. }
        | Write::SourceRange { .. }
        | Write::Network { .. }
        | Write::ServiceNetwork { .. }
        | Write::Masquerade { .. } => false,
    }
}

/// The Service in the name of a service port, `namespace/name:port/PROTOCOL`.
pub(crate) fn service_of(name: &str) -> Option<ObjectName> {
    let (service, _) = name.split_once(':')?;
    let (namespace, name) = service.split_once('/')?;
    Some(ObjectName::new(namespace, name))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
