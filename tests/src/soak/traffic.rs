//! The clients of a soak: each asks one address in one way, again and again, and counts what comes of it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use dsproxy_common::Protocol;
use serde::Serialize;

use crate::lab::{Cgroup, ExchangeError, LabError, Namespace, TcpSession, UdpSession, exchange_once};

/// The pause between two exchanges of a client. Two processors serve all clients, the servers and the daemon.
const PAUSE: Duration = Duration::from_millis(15);

/// Failures that are kept word by word; the rest is only counted.
const FAILURES_KEPT: usize = 5;

/// How a client uses its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Use {
    /// A new one for each exchange.
    New,
    /// One for all.
    Kept,
}

/// A client.
#[derive(Clone, Debug)]
pub(super) struct Client {
    /// Who asks what.
    pub(super) way: &'static str,
    pub(super) protocol: Protocol,
    pub(super) target: SocketAddr,
    pub(super) usage: Use,
    pub(super) namespace: Namespace,
    /// Where its sockets are looked at by the daemon, as the host's are.
    pub(super) cgroup: Option<Cgroup>,
}

impl Client {
    /// Asks once over a new connection, on a thread of the client's namespace.
    pub(super) fn ask_once(&self) -> Result<(), ExchangeError> {
        self.enter_cgroup()?;
        exchange_once(self.protocol, self.target).map(drop)
    }

    /// Whether it keeps a UDP socket that was led to an endpoint when it was connected: it cannot be led to another.
    fn may_be_ended(&self) -> bool {
        self.cgroup.is_some() && self.protocol == Protocol::Udp && self.usage == Use::Kept
    }

    fn enter_cgroup(&self) -> Result<(), LabError> {
        self.cgroup.as_ref().map_or(Ok(()), Cgroup::enter)
    }
}

/// What became of a client's exchanges.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) way: &'static str,
    pub(super) family: String,
    pub(super) protocol: String,
    pub(super) usage: Use,
    pub(super) target: String,
    /// Connections that were made; of UDP, sockets.
    pub(super) connections: u64,
    pub(super) exchanges: u64,
    pub(super) failed: u64,
    /// Sockets of the host that were ended because their endpoint went, as is meant to be (UDP alone); the next has to be served.
    pub(super) ended: u64,
    /// The first failures, with the time since the start.
    pub(super) failures: Vec<String>,
    /// Of an exchange, and of a new connection with its exchange, in microseconds.
    pub(super) p50: u32,
    pub(super) p99: u32,
    pub(super) slowest: u32,
}

/// The outer failure is the namespace's, the inner one the cgroup's.
type Worker = JoinHandle<Result<Result<Outcome, LabError>, LabError>>;

/// Clients at work.
pub(super) struct Traffic {
    stop: Arc<AtomicBool>,
    workers: Vec<Worker>,
}

impl Traffic {
    pub(super) fn start(clients: Vec<Client>, started: Instant) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let workers = clients
            .into_iter()
            .map(|client| {
                let stop = Arc::clone(&stop);
                let namespace = client.namespace.clone();
                namespace.spawn_thread(move || {
                    client.enter_cgroup()?;
                    Ok(Record::new(started).of(&client, &stop))
                })
            })
            .collect();
        Self { stop, workers }
    }

    /// Stops the clients after their current exchange.
    pub(super) fn finish(self) -> Result<Vec<Outcome>, LabError> {
        self.stop.store(true, Ordering::Relaxed);
        let join = |worker: Worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        self.workers.into_iter().map(join).collect()
    }
}

struct Record {
    started: Instant,
    connections: u64,
    failed: u64,
    ended: u64,
    failures: Vec<String>,
    microseconds: Vec<u32>,
}

/// A connection that is kept.
enum Session {
    Tcp(TcpSession),
    Udp(UdpSession),
}

impl Session {
    fn open(client: &Client) -> Result<Self, ExchangeError> {
        Ok(match client.protocol {
            Protocol::Tcp => Self::Tcp(TcpSession::open_here(client.target)?),
            Protocol::Udp | Protocol::Sctp => Self::Udp(UdpSession::open_here(client.target, true)?),
        })
    }

    fn exchange(&mut self) -> Result<(), ExchangeError> {
        match self {
            Self::Tcp(session) => session.exchange(b"still there?"),
            Self::Udp(session) => session.ask().map(drop),
        }
    }
}

impl Record {
    fn new(started: Instant) -> Self {
        Self { started, connections: 0, failed: 0, ended: 0, failures: Vec::new(), microseconds: Vec::new() }
    }

    fn of(mut self, client: &Client, stop: &AtomicBool) -> Outcome {
        let mut session: Option<Session> = None;
        while !stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let result = match client.usage {
                Use::New => {
                    self.connections += 1;
                    exchange_once(client.protocol, client.target).map(drop)
                }
                Use::Kept => self.keep(client, &mut session),
            };
            match result {
                Ok(()) => self.microseconds.push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX)),
                Err(error) if client.may_be_ended() && error.is_ended() => {
                    session = None;
                    self.ended += 1;
                }
                Err(error) => {
                    // One that was cut is counted, and the next one tells whether it goes on.
                    session = None;
                    self.failed += 1;
                    if self.failures.len() < FAILURES_KEPT {
                        self.failures.push(format!("{:.1?} after the start: {error}", self.started.elapsed()));
                    }
                }
            }
            thread::sleep(PAUSE);
        }
        self.finish(client)
    }

    fn keep(&mut self, client: &Client, session: &mut Option<Session>) -> Result<(), ExchangeError> {
        if session.is_none() {
            self.connections += 1;
            *session = Some(Session::open(client)?);
        }
        session.as_mut().map_or(Ok(()), Session::exchange)
    }

    fn finish(self, client: &Client) -> Outcome {
        let Self { started: _, connections, failed, ended, failures, mut microseconds } = self;
        microseconds.sort_unstable();
        Outcome {
            way: client.way,
            family: if client.target.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
            protocol: client.protocol.to_string(),
            usage: client.usage,
            target: client.target.to_string(),
            connections,
            exchanges: microseconds.len() as u64,
            failed,
            ended,
            failures,
            p50: quantile(&microseconds, 50),
            p99: quantile(&microseconds, 99),
            slowest: quantile(&microseconds, 100),
        }
    }
}

/// The sample that so many of a hundred others lie below, of samples in ascending order; zero without any.
fn quantile(sorted: &[u32], percent: usize) -> u32 {
    sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let sorted: Vec<u32> = (1..=101).collect();
        assert_eq!([0, 50, 99, 100].map(|percent| quantile(&sorted, percent)), [1, 51, 100, 101]);
        assert_eq!(quantile(&[], 50), 0);
    }
}
