//! Keeps the roles of all interfaces current: a full listing first, then the kernel's events.
//!
//! Nothing is polled. A new pod interface is announced within milliseconds; announcements wait that
//! long so that the handful of events a new veth causes make one. Lost events, and any error, end
//! in a fresh listing. Deciding a role is `classify`'s; this file knows when to ask it.

use std::{convert::Infallible, future::pending, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    sync::watch::{self, Receiver, Sender},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    Interfaces, NodeAddresses, Overrides, Snapshot, classify,
    message::{self, Event},
    node_addresses,
    snapshot::{Consequence, Routing},
};
use crate::netlink::{EventLoopSocket, NetlinkError, Request, messages};

/// How long announcements are held back so that several events make one.
const COALESCE: Duration = Duration::from_millis(3);

/// A routes listing waits this long after the change that asked for it, and twice as long each time
/// the routes do not settle: a node with a full routing table takes a second to list it.
const LIST_ROUTES_AFTER: Duration = Duration::from_millis(50);
const LIST_ROUTES_AT_MOST_EVERY: Duration = Duration::from_secs(10);

const RETRY_AFTER: Duration = Duration::from_millis(10);
const RETRY_AT_MOST_AFTER: Duration = Duration::from_secs(10);

/// How often a listing is asked for again when what it lists changes meanwhile.
const LISTING_ATTEMPTS: u32 = 20;
const ROUTE_LISTING_ATTEMPTS: u32 = 3;

/// Why interfaces cannot be followed.
#[derive(Debug, Error)]
pub enum InterfaceError {
    /// The events cannot be received.
    #[error("follow links, addresses and routes: {0}")]
    Events(#[source] NetlinkError),
    /// A list cannot be had.
    #[error("list the {what}: {source}")]
    List {
        /// Links, addresses or routes.
        what: &'static str,
        /// What went wrong.
        #[source]
        source: NetlinkError,
    },
}

/// The interfaces with a role and the node's addresses, kept current by a task that ends with this value.
#[derive(Debug)]
pub struct Watch {
    receiver: Receiver<Arc<Interfaces>>,
    addresses: Receiver<NodeAddresses>,
    task: JoinHandle<Infallible>,
}

impl Watch {
    /// The interfaces as they are now; marks them as seen.
    pub fn current(&mut self) -> Arc<Interfaces> {
        Arc::clone(&self.receiver.borrow_and_update())
    }

    /// Waits until they are different from what was last seen. Cancel safe.
    pub async fn changed(&mut self) -> Arc<Interfaces> {
        if self.receiver.changed().await.is_err() {
            // The task never returns; it can only be gone because the runtime is shutting down.
            pending::<()>().await;
        }
        self.current()
    }

    /// The node's addresses, for whoever follows them. They are current for as long as this watch is there.
    pub fn addresses(&self) -> Receiver<NodeAddresses> {
        self.addresses.clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Reads the interfaces of the calling thread's network namespace once.
pub async fn read(overrides: &Overrides) -> Result<Interfaces, InterfaceError> {
    let mut queries = EventLoopSocket::open().map_err(InterfaceError::Events)?;
    Ok(classify(&list(&mut queries).await?, overrides))
}

/// Follows the interfaces of the calling thread's network namespace. Returns when they are known.
pub async fn watch(overrides: Overrides) -> Result<Watch, InterfaceError> {
    let follower = Follower::open().await?;
    let interfaces = classify(&follower.snapshot, &overrides);
    let (addresses, addresses_receiver) = watch::channel(node_addresses(&follower.snapshot, &interfaces));
    let (interfaces, receiver) = watch::channel(Arc::new(interfaces));
    let announcements = Announcements { overrides, interfaces, addresses };
    let task = tokio::spawn(follow_forever(follower, announcements));
    Ok(Watch { receiver, addresses: addresses_receiver, task })
}

/// What is told to whom.
struct Announcements {
    overrides: Overrides,
    interfaces: Sender<Arc<Interfaces>>,
    addresses: Sender<NodeAddresses>,
}

impl Announcements {
    fn announce(&self, snapshot: &Snapshot) {
        let interfaces = classify(snapshot, &self.overrides);
        announce(&self.addresses, node_addresses(snapshot, &interfaces));
        announce(&self.interfaces, Arc::new(interfaces));
    }
}

/// Tells news only.
fn announce<T: PartialEq>(sender: &Sender<T>, now: T) {
    sender.send_if_modified(|known| {
        let changed = *known != now;
        *known = now;
        changed
    });
}

async fn follow_forever(mut follower: Follower, announcements: Announcements) -> Infallible {
    let mut retry_after = RETRY_AFTER;
    loop {
        let started = Instant::now();
        let Err(error) = follower.follow(&announcements).await;
        match error {
            InterfaceError::Events(NetlinkError::Overrun) => {
                info!(%error, "listing interfaces afresh");
            }
            error => warn!(%error, "listing interfaces afresh"),
        }
        if started.elapsed() > RETRY_AT_MOST_AFTER {
            retry_after = RETRY_AFTER;
        }
        follower = loop {
            sleep(retry_after).await;
            retry_after = (retry_after * 2).min(RETRY_AT_MOST_AFTER);
            match Follower::open().await {
                Ok(follower) => break follower,
                Err(error) => warn!(%error, "interfaces are not followed; trying again"),
            }
        };
        announcements.announce(&follower.snapshot);
    }
}

/// The sockets and what was learned through them.
struct Follower {
    events: EventLoopSocket,
    queries: EventLoopSocket,
    snapshot: Snapshot,
}

impl Follower {
    /// Subscribes, then lists: whatever changes in between comes as an event as well, and events
    /// carry whole states, so that seeing one twice does no harm.
    async fn open() -> Result<Self, InterfaceError> {
        let events = EventLoopSocket::subscribe(message::GROUPS).map_err(InterfaceError::Events)?;
        let mut queries = EventLoopSocket::open().map_err(InterfaceError::Events)?;
        let snapshot = list(&mut queries).await?;
        Ok(Self { events, queries, snapshot })
    }

    /// Takes in events until one is lost or a socket fails.
    async fn follow(&mut self, announcements: &Announcements) -> Result<Infallible, InterfaceError> {
        let mut announce_at: Option<Instant> = None;
        let mut listing = RoutesListing::default();
        loop {
            let mut consequences = Vec::new();
            tokio::select! {
                // Events last, so that a flood of them cannot put off the other two for ever.
                biased;
                () = due(announce_at) => {
                    announcements.announce(&self.snapshot);
                    announce_at = None;
                }
                () = due(listing.at) => {
                    let started = Instant::now();
                    let routing = list_routes(&mut self.queries).await?;
                    listing.done(started);
                    consequences.push(self.snapshot.set_routing(routing));
                }
                datagram = self.events.receive() => {
                    for message in messages(datagram.map_err(InterfaceError::Events)?) {
                        let message = message.map_err(InterfaceError::Events)?;
                        if let Some(event) = message::read(&message) {
                            consequences.push(take_in(&mut self.snapshot, event));
                        }
                    }
                }
            }
            while let Some(Consequence { reclassify, list_routes, ask_links }) = consequences.pop() {
                if reclassify {
                    announce_at.get_or_insert_with(|| Instant::now() + COALESCE);
                }
                if list_routes {
                    listing.ask();
                }
                for index in ask_links {
                    consequences.extend(self.ask_link(index).await?);
                }
            }
        }
    }

    async fn ask_link(&mut self, index: u32) -> Result<Option<Consequence>, InterfaceError> {
        let mut answer = None;
        let take = |message: crate::netlink::Message<'_>| answer = message::read(&message);
        match self.queries.exchange(message::one_link(index), take).await {
            // An answer is final: it does not lead to another question about the same link.
            Ok(()) => {
                Ok(answer.map(|event| Consequence { ask_links: Vec::new(), ..take_in(&mut self.snapshot, event) }))
            }
            // It is gone too; its own event is on the way.
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            Err(source) => Err(InterfaceError::List { what: "links", source }),
        }
    }
}

/// When the routes are to be listed again.
#[derive(Default)]
struct RoutesListing {
    at: Option<Instant>,
    done_at: Option<Instant>,
    pause: Duration,
}

impl RoutesListing {
    fn ask(&mut self) {
        if self.at.is_some() {
            return;
        }
        let now = Instant::now();
        let settled = self.done_at.is_none_or(|done| now - done > LIST_ROUTES_AT_MOST_EVERY);
        self.pause = if settled { LIST_ROUTES_AFTER } else { (self.pause * 2).min(LIST_ROUTES_AT_MOST_EVERY) };
        self.at = Some(now + self.pause);
    }

    fn done(&mut self, started: Instant) {
        debug!(took = ?started.elapsed(), "listed the routes");
        self.at = None;
        self.done_at = Some(Instant::now());
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}

fn take_in(snapshot: &mut Snapshot, event: Event) -> Consequence {
    match event {
        Event::Link(link) => snapshot.set_link(link),
        Event::LinkGone(index) => snapshot.remove_link(index),
        Event::Address(address) => snapshot.set_address(address),
        Event::AddressGone(address) => snapshot.remove_address(&address),
        Event::Route(route, replaces) => snapshot.set_route(&route, replaces),
        Event::RouteGone(route) => snapshot.remove_route(&route),
    }
}

async fn list(queries: &mut EventLoopSocket) -> Result<Snapshot, InterfaceError> {
    let mut snapshot = Snapshot::default();
    let mut found = Vec::new();
    complete(queries, "links", message::all_links, &mut found).await?;
    complete(queries, "addresses", message::all_addresses, &mut found).await?;
    for event in found {
        take_in(&mut snapshot, event);
    }
    snapshot.set_routing(list_routes(queries).await?);
    Ok(snapshot)
}

/// Asks for a list until it comes without having changed on the way.
async fn complete(
    queries: &mut EventLoopSocket,
    what: &'static str,
    request: impl Fn() -> Request,
    found: &mut Vec<Event>,
) -> Result<(), InterfaceError> {
    let before = found.len();
    let mut attempt = 1;
    loop {
        match queries.exchange(request(), |message| found.extend(message::read(&message))).await {
            Ok(()) => return Ok(()),
            Err(NetlinkError::Interrupted) if attempt < LISTING_ATTEMPTS => {
                found.truncate(before);
                attempt += 1;
            }
            Err(source) => return Err(InterfaceError::List { what, source }),
        }
    }
}

/// Lists the routes straight into witnesses: there may be a million of them.
async fn list_routes(queries: &mut EventLoopSocket) -> Result<Routing, InterfaceError> {
    let mut routing = Routing::default();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for _ in 0..ROUTE_LISTING_ATTEMPTS {
            let listed = queries.exchange(message::all_routes(family), |message| {
                if let Some(Event::Route(route, _)) = message::read(&message) {
                    routing.add(&route);
                }
            });
            match listed.await {
                Ok(()) => break,
                // A full table on a busy node never holds still. What one attempt missed the next
                // one adds, and what was removed meanwhile comes as an event too.
                Err(NetlinkError::Interrupted) => {}
                Err(source) => {
                    return Err(InterfaceError::List { what: "routes", source });
                }
            }
        }
    }
    Ok(routing)
}
