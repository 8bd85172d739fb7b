//! Traffic that goes on while something else happens: new connections one after the other, and long-lived
//! ones that keep talking.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use dsproxy_common::Protocol;

use super::{ExchangeError, LabError, Namespace, TcpSession, UdpSession};

/// The pause between two exchanges of a long-lived session.
const BEAT: Duration = Duration::from_millis(1);

/// Failures that are kept word by word; the rest is only counted.
const FAILURES_KEPT: usize = 5;

/// Clients that open a connection, use it and close it, again and again.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    workers: Vec<thread::JoinHandle<Result<LoadReport, LabError>>>,
}

/// What a [`Load`] did.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Exchanges that succeeded, by the backend that answered.
    pub answers: BTreeMap<String, u64>,
    /// Exchanges that failed.
    pub failed: u64,
    /// The first failures, with the time since the start.
    pub failures: Vec<String>,
    /// The longest successful exchange.
    pub slowest: Duration,
}

impl LoadReport {
    /// All exchanges that succeeded.
    pub fn succeeded(&self) -> u64 {
        self.answers.values().sum()
    }

    fn add(&mut self, outcome: Result<(String, Duration), ExchangeError>, since: Instant) {
        match outcome {
            Ok((backend, took)) => {
                *self.answers.entry(backend).or_default() += 1;
                self.slowest = self.slowest.max(took);
            }
            Err(error) => {
                self.failed += 1;
                if self.failures.len() < FAILURES_KEPT {
                    self.failures.push(format!("{:?} after the start: {error}", since.elapsed()));
                }
            }
        }
    }

    fn merge(&mut self, other: Self) {
        let Self { answers, failed, failures, slowest } = other;
        for (backend, count) in answers {
            *self.answers.entry(backend).or_default() += count;
        }
        self.failed += failed;
        self.failures.extend(failures);
        self.slowest = self.slowest.max(slowest);
    }
}

impl Load {
    /// Starts one client in `namespace` for each of `targets`, as fast as it can.
    pub fn start(namespace: &Namespace, targets: &[(Protocol, SocketAddr)]) -> Self {
        Self::paced(namespace, targets, Duration::ZERO)
    }

    /// As `start`, with `pause` after each exchange.
    pub fn paced(namespace: &Namespace, targets: &[(Protocol, SocketAddr)], pause: Duration) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let workers = targets
            .iter()
            .map(|&(protocol, target)| {
                let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
                namespace.spawn_thread(move || {
                    let started = Instant::now();
                    let mut report = LoadReport::default();
                    while !stop.load(Ordering::Relaxed) {
                        report.add(exchange_once(protocol, target), started);
                        done.fetch_add(1, Ordering::Relaxed);
                        thread::sleep(pause);
                    }
                    report
                })
            })
            .collect();
        Self { stop, done, workers }
    }

    /// How many exchanges have ended so far, well or not.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// Stops the clients after their current exchange.
    pub fn finish(self) -> Result<LoadReport, LabError> {
        self.stop.store(true, Ordering::Relaxed);
        let mut total = LoadReport::default();
        for worker in self.workers {
            total.merge(join(worker)?);
        }
        Ok(total)
    }
}

/// Exchanges once over a new connection; returns who answered and how long all of it took.
pub(crate) fn exchange_once(protocol: Protocol, target: SocketAddr) -> Result<(String, Duration), ExchangeError> {
    let started = Instant::now();
    let backend = match protocol {
        Protocol::Tcp => {
            let mut session = TcpSession::open_here(target)?;
            session.exchange(b"are you there?")?;
            session.backend().to_owned()
        }
        Protocol::Udp | Protocol::Sctp => UdpSession::open_here(target, true)?.ask()?,
    };
    Ok((backend, started.elapsed()))
}

/// One long-lived session that exchanges without end.
#[derive(Debug)]
pub struct Steady {
    stop: Arc<AtomicBool>,
    worker: thread::JoinHandle<Result<Result<SteadyReport, ExchangeError>, LabError>>,
}

/// What a [`Steady`] session did.
#[derive(Clone, Debug)]
pub struct SteadyReport {
    /// Exchanges that succeeded: all of them, for the first failure ends the session.
    pub exchanges: u64,
    /// The backends that answered, in order, each once for every change.
    pub backends: Vec<String>,
    /// The longest exchange.
    pub slowest: Duration,
}

impl Steady {
    /// Starts the session in `namespace`.
    pub fn start(namespace: &Namespace, protocol: Protocol, target: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told_to_stop = Arc::clone(&stop);
        let worker = namespace.spawn_thread(move || match protocol {
            Protocol::Tcp => {
                let mut session = TcpSession::open_here(target)?;
                let backend = session.backend().to_owned();
                keep_on(&told_to_stop, || {
                    session.exchange(b"still there?")?;
                    Ok(backend.clone())
                })
            }
            Protocol::Udp | Protocol::Sctp => {
                let mut session = UdpSession::open_here(target, false)?;
                keep_on(&told_to_stop, || session.ask())
            }
        });
        Self { stop, worker }
    }

    /// Stops the session after its current exchange.
    pub fn finish(self) -> Result<SteadyReport, ExchangeError> {
        self.stop.store(true, Ordering::Relaxed);
        join(self.worker)?
    }
}

fn keep_on(
    stop: &AtomicBool,
    mut exchange: impl FnMut() -> Result<String, ExchangeError>,
) -> Result<SteadyReport, ExchangeError> {
    let mut report = SteadyReport { exchanges: 0, backends: Vec::new(), slowest: Duration::ZERO };
    while !stop.load(Ordering::Relaxed) {
        let started = Instant::now();
        let backend = exchange()?;
        report.exchanges += 1;
        report.slowest = report.slowest.max(started.elapsed());
        if report.backends.last() != Some(&backend) {
            report.backends.push(backend);
        }
        thread::sleep(BEAT);
    }
    Ok(report)
}

fn join<T>(worker: thread::JoinHandle<T>) -> T {
    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
