//! The clients: what they do again and again for the length of a window, and what came of it.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket},
    sync::{Arc, Barrier},
    time::{Duration, Instant},
};

use dsproxy_common::IpFamily;
use thiserror::Error;

use super::{
    super::BenchError,
    backend::{BULK, KEPT, MESSAGE, ONCE},
    processor_time::{Confined, ProcessorClock},
};
use crate::lab::{LabError, Namespace};

/// How long an answer may take. A lost packet is sent again after a second at the latest, and shows in the rate.
const PATIENCE: Duration = Duration::from_secs(5);

/// How much is done before it counts: whatever is looked up, allocated or learnt the first time is, then.
const WARM_UP: usize = 3;

/// How much bulk sends at a time, in bytes.
const CHUNK: usize = 1 << 17;

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Measure {
    /// Connect, request, answer, close.
    Connections,
    /// The same by eight clients at once.
    ConnectionsAtOnce,
    /// Request and answer on one TCP connection.
    Requests,
    /// Request and answer between two UDP sockets.
    Datagrams,
    /// As much as goes over one TCP connection, one way.
    Bulk,
}

/// What came of one window.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// How long it was.
    pub(super) elapsed: Duration,
    /// How many transactions there were; of bulk, how many bytes.
    pub(super) done: u64,
    /// Processor time of clients, servers and all between them.
    pub(super) processor_time: Duration,
    /// How long each transaction took, in ns; of bulk, nothing.
    pub(super) latencies: Vec<u32>,
}

/// A transaction did not succeed.
#[derive(Debug, Error)]
pub enum ExchangeFailed {
    /// No connection.
    #[error("connect to {target}: {source}")]
    Connect {
        /// Where to.
        target: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// No answer.
    #[error("exchange with {target}: {source}")]
    NoAnswer {
        /// Where to.
        target: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The lab failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// Processor time could not be had.
    #[error(transparent)]
    Clock(Box<BenchError>),
}

/// A measurement did not succeed.
#[derive(Debug, Error)]
#[error("{variant}, {services} Services, {way}, {family}: {source}")]
pub struct MeasureFailed {
    /// What stood between client and pod.
    pub variant: &'static str,
    /// How many Services there were.
    pub services: u32,
    /// How the client came to the backend.
    pub way: &'static str,
    /// The family.
    pub family: IpFamily,
    /// What went wrong.
    pub source: ExchangeFailed,
}

impl Measure {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Connections, Self::ConnectionsAtOnce, Self::Requests, Self::Datagrams, Self::Bulk];

    /// What it is called in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections, one at a time",
            Self::ConnectionsAtOnce => "connections, 8 at a time",
            Self::Requests => "requests on a kept connection",
            Self::Datagrams => "UDP requests",
            Self::Bulk => "bulk",
        }
    }

    /// How many packets at least a client has sent for what was `done`, in packets as large as they get.
    pub(super) fn packets(self, done: u64) -> u64 {
        /// The MTU of the lab's devices.
        const LARGEST: u64 = 1500;
        if self == Self::Bulk { done / LARGEST } else { done }
    }

    fn clients(self) -> usize {
        match self {
            Self::ConnectionsAtOnce => 8,
            Self::Connections | Self::Requests | Self::Datagrams | Self::Bulk => 1,
        }
    }

    /// Whether client and server run at the same time, so that they need a processor each.
    fn is_parallel(self) -> bool {
        matches!(self, Self::ConnectionsAtOnce | Self::Bulk)
    }

    /// Does it from `namespace` towards `target` for the length of `window`.
    pub(super) fn run(
        self,
        namespace: &Namespace,
        target: SocketAddr,
        window: Duration,
    ) -> Result<Outcome, ExchangeFailed> {
        let clock = |error| ExchangeFailed::Clock(Box::new(error));
        let processors = ProcessorClock::new().map_err(clock)?;
        let _confined = if self.is_parallel() { None } else { Some(Confined::to_one().map_err(clock)?) };
        // Once when all clients are warm, and once more when the clock was read.
        let barrier = Arc::new(Barrier::new(self.clients() + 1));
        let threads: Vec<_> = (0..self.clients())
            .map(|_| {
                let barrier = Arc::clone(&barrier);
                namespace.spawn_thread(move || self.work(target, window, &barrier))
            })
            .collect();
        barrier.wait();
        let before = processors.now();
        let started = Instant::now();
        barrier.wait();
        let reports: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        let elapsed = started.elapsed();
        let after = processors.now().map_err(clock)?;
        let mut outcome = Outcome {
            elapsed,
            done: 0,
            processor_time: after.saturating_sub(before.map_err(clock)?),
            latencies: Vec::new(),
        };
        for report in reports {
            let (done, latencies) = report??;
            outcome.done += done;
            outcome.latencies.extend(latencies);
        }
        Ok(outcome)
    }

    /// One client.
    fn work(self, target: SocketAddr, window: Duration, barrier: &Barrier) -> Result<(u64, Vec<u32>), ExchangeFailed> {
        let mut client = match self {
            Self::Connections | Self::ConnectionsAtOnce => Ok(Client::Opens),
            Self::Requests => open(target).map(Client::Keeps),
            Self::Datagrams => bind(target).map(Client::Sends),
            Self::Bulk => open(target).map(Client::Pours),
        };
        let mut warmed = Ok(());
        if let Ok(client) = &mut client {
            warmed = (0..WARM_UP).try_for_each(|_| client.transact(target).map(|_| ()));
        }
        // Also when something has failed already: the others wait for this one.
        barrier.wait();
        barrier.wait();
        warmed?;
        let mut client = client?;
        let deadline = Instant::now() + window;
        let (mut done, mut latencies) = (0, Vec::with_capacity(1 << 14));
        loop {
            let started = Instant::now();
            if started >= deadline {
                break;
            }
            client.transact(target)?;
            if self != Self::Bulk {
                latencies.push(started.elapsed().as_nanos().try_into().unwrap_or(u32::MAX));
                done += 1;
            }
        }
        if let Client::Pours(stream) = client {
            done = end_of_bulk(stream, target)?;
        }
        Ok((done, latencies))
    }
}

/// One client's socket, if it keeps one.
enum Client {
    Opens,
    Keeps(TcpStream),
    Sends(UdpSocket),
    Pours(TcpStream),
}

impl Client {
    fn transact(&mut self, target: SocketAddr) -> Result<(), ExchangeFailed> {
        let no_answer = |source| ExchangeFailed::NoAnswer { target, source };
        let mut answer = [0; MESSAGE];
        match self {
            Self::Opens => {
                let mut stream = open(target)?;
                stream.write_all(&message(ONCE)).map_err(no_answer)?;
                stream.read_exact(&mut answer).map_err(no_answer)?;
                // The server closes first, so the client's port is free at once.
                match stream.read(&mut answer).map_err(no_answer)? {
                    0 => Ok(()),
                    _ => Err(no_answer(io::Error::other("more came than was asked for"))),
                }
            }
            Self::Keeps(stream) => {
                stream.write_all(&message(KEPT)).map_err(no_answer)?;
                stream.read_exact(&mut answer).map_err(no_answer)
            }
            Self::Sends(socket) => {
                socket.send(&message(KEPT)).map_err(no_answer)?;
                socket.recv(&mut answer).map(|_| ()).map_err(no_answer)
            }
            Self::Pours(stream) => stream.write_all(&[BULK; CHUNK]).map_err(no_answer),
        }
    }
}

fn message(kind: u8) -> [u8; MESSAGE] {
    [kind; MESSAGE]
}

fn open(target: SocketAddr) -> Result<TcpStream, ExchangeFailed> {
    let connected = || {
        let stream = TcpStream::connect(target)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    };
    connected().map_err(|source| ExchangeFailed::Connect { target, source })
}

fn bind(target: SocketAddr) -> Result<UdpSocket, ExchangeFailed> {
    let bound = || {
        let socket = match target {
            SocketAddr::V4(_) => UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?,
            SocketAddr::V6(_) => UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0))?,
        };
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(target)?;
        Ok(socket)
    };
    bound().map_err(|source| ExchangeFailed::Connect { target, source })
}

/// Says that there is no more; returns how many bytes have arrived, but for those that the warm-up has sent.
fn end_of_bulk(mut stream: TcpStream, target: SocketAddr) -> Result<u64, ExchangeFailed> {
    let no_answer = |source| ExchangeFailed::NoAnswer { target, source };
    stream.shutdown(Shutdown::Write).map_err(no_answer)?;
    let mut total = [0; 8];
    stream.read_exact(&mut total).map_err(no_answer)?;
    Ok(u64::from_be_bytes(total).saturating_sub((WARM_UP * CHUNK) as u64))
}
