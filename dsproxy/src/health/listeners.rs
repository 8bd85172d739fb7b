//! The task that keeps the `healthCheckNodePort`s open which Services have, at the addresses where NodePorts are served.
//!
//! What is answered there is not known here, and changes without this task.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::pending,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{
    net::TcpListener,
    sync::{oneshot, watch},
};
use tracing::warn;

use super::{
    Health,
    plan::{self, Plan},
    service::{self, Port},
};
use crate::{app::Backoff, http, model::ObjectName, reconcile::HealthChecks};

/// What these servers are called in the log.
const WHAT: &str = "health check of a Service";

/// Where the ports are open.
#[derive(Clone, Debug)]
pub enum Places {
    /// At all addresses of both families, which one socket serves.
    All,
    /// At these, which may change.
    These(watch::Receiver<BTreeSet<IpAddr>>),
}

impl Places {
    fn now(&mut self) -> BTreeSet<IpAddr> {
        match self {
            Self::All => [Ipv6Addr::UNSPECIFIED.into()].into(),
            Self::These(addresses) => addresses.borrow_and_update().clone(),
        }
    }

    async fn changed(&mut self) {
        let news = match self {
            Self::All => false,
            Self::These(addresses) => addresses.changed().await.is_ok(),
        };
        if !news {
            pending::<()>().await;
        }
    }
}

/// How far it has come, for metrics.
#[derive(Debug, Default)]
pub struct Report {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failing: usize,
    failures: u64,
    conflicts: usize,
}

impl Report {
    /// How many sockets could not be opened at the last attempt, and how often that has happened since the start.
    pub fn failures(&self) -> (usize, u64) {
        let state = self.state();
        (state.failing, state.failures)
    }

    /// How many Services have a port that another one has.
    pub fn conflicts(&self) -> usize {
        self.state().conflicts
    }

    fn note(&self, failing: usize, conflicts: usize) {
        let mut state = self.state();
        state.failing = failing;
        state.failures += failing as u64;
        state.conflicts = conflicts;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Follows `checks` and `places` until there are no more changes of `checks`.
pub async fn follow(
    health: Health,
    mut checks: watch::Receiver<HealthChecks>,
    mut places: Places,
    report: Arc<Report>,
) {
    let mut listeners = Listeners { health, checks: checks.clone(), open: BTreeMap::new(), failed: BTreeMap::new() };
    let mut conflicts = BTreeMap::new();
    let mut backoff = Backoff::new();
    loop {
        let plan = plan::plan(&checks.borrow_and_update(), &places.now());
        let Plan { sockets, conflicts: now } = plan;
        tell_conflicts(&conflicts, &now);
        conflicts = now;
        listeners.sync(&sockets).await;
        report.note(listeners.failed.len(), conflicts.len());
        if listeners.failed.is_empty() {
            backoff.reset();
        }
        tokio::select! {
            changed = checks.changed() => if changed.is_err() { return },
            () = places.changed() => {}
            () = backoff.wait(), if !listeners.failed.is_empty() => {}
        }
    }
}

fn tell_conflicts(known: &BTreeMap<ObjectName, ObjectName>, now: &BTreeMap<ObjectName, ObjectName>) {
    for (service, holder) in now.iter().filter(|(service, holder)| known.get(service) != Some(holder)) {
        warn!(
            %service, %holder,
            "another Service has the same healthCheckNodePort, and what is answered there is for that one alone; give this one \
             another"
        );
    }
}

struct Listeners {
    health: Health,
    checks: watch::Receiver<HealthChecks>,
    /// What ends each when it is dropped.
    open: BTreeMap<SocketAddr, oneshot::Sender<()>>,
    /// Those that could not be opened at the last attempt, and for whom.
    failed: BTreeMap<SocketAddr, ObjectName>,
}

impl Listeners {
    /// Closes what is not wanted and opens what is missing.
    async fn sync(&mut self, wanted: &BTreeMap<SocketAddr, ObjectName>) {
        // One whose server has ended is opened again.
        self.open.retain(|socket, end| wanted.contains_key(socket) && !end.is_closed());
        let known = std::mem::take(&mut self.failed);
        for (socket, service) in wanted {
            if self.open.contains_key(socket) {
                continue;
            }
            match http::listen(WHAT, *socket).await {
                Ok(listener) => {
                    let end = self.serve(socket.port(), listener);
                    self.open.insert(*socket, end);
                }
                Err(error) => {
                    // Once, however often it is tried.
                    if known.get(socket) != Some(service) {
                        warn!(
                            %service, %socket, %error,
                            "cannot listen at the healthCheckNodePort, so load balancers take this node for one without \
                             endpoints; end what listens there (ss -ltnp), or give the Service another; it is tried again"
                        );
                    }
                    self.failed.insert(*socket, service.clone());
                }
            }
        }
    }

    fn serve(&self, number: u16, listener: TcpListener) -> oneshot::Sender<()> {
        let port = Port { number, checks: self.checks.clone(), health: self.health.clone() };
        let routes = service::routes(port).into_make_service_with_connect_info::<SocketAddr>();
        let (end, ended) = oneshot::channel::<()>();
        tokio::spawn(async move {
            // Connections that are idle are ended as well.
            let serve = axum::serve(listener, routes).with_graceful_shutdown(async move {
                // Nothing is ever sent: it ends when the other half is dropped.
                let _ = ended.await;
            });
            if let Err(error) = serve.await {
                warn!(number, %error, "the server of a healthCheckNodePort ended");
            }
        });
        end
    }
}

#[cfg(test)]
mod tests;
