//! Clients: one TCP connection or UDP socket each, with the checks that make an exchange worth having.
//!
//! `open_here` works in the namespace the calling thread is in, `open` in a given one.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket},
    sync::atomic::{AtomicU16, Ordering},
    time::{Duration, Instant},
};

use super::{LabError, Namespace};

/// How long an answer may take. A lost SYN is repeated after a second, so a loss shows as latency before it
/// shows as a failure.
const PATIENCE: Duration = Duration::from_secs(3);

/// Why an exchange did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The connection or socket could not be made.
    #[error("connect to {target}: {source}")]
    Connect {
        /// Where to.
        target: SocketAddr,
        /// Why it failed.
        source: io::Error,
    },
    /// Nothing, or an error, came back.
    #[error("exchange with {target}: {source}")]
    NoAnswer {
        /// Where to.
        target: SocketAddr,
        /// Why it failed.
        source: io::Error,
    },
    /// The answer is not what was sent.
    #[error("exchange with {target}: the answer is garbled")]
    Garbled {
        /// Where to.
        target: SocketAddr,
    },
    /// The answer does not come from the address that was asked.
    #[error("asked {target}, but {source_address} answered")]
    WrongSource {
        /// Where to.
        target: SocketAddr,
        /// Who answered.
        source_address: SocketAddr,
    },
    /// The lab failed.
    #[error(transparent)]
    Lab(#[from] LabError),
}

impl ExchangeError {
    /// Whether the other side answered with a refusal, as opposed to silence.
    pub fn is_refused(&self) -> bool {
        matches!(
            self,
            Self::Connect { source, .. } | Self::NoAnswer { source, .. }
                if source.kind() == io::ErrorKind::ConnectionRefused
        )
    }

    /// Whether the kernel has ended the socket, as it does with a UDP socket of the host whose endpoint is gone: whoever uses it then
    /// hears so, or finds it connected to nobody.
    pub fn is_ended(&self) -> bool {
        matches!(
            self,
            Self::NoAnswer { source, .. }
                if source.kind() == io::ErrorKind::ConnectionAborted
                    || source.raw_os_error() == Some(libc::EDESTADDRREQ)
        )
    }

    /// Whether nothing at all came back, neither an answer nor an error.
    pub fn is_silence(&self) -> bool {
        matches!(
            self,
            Self::Connect { source, .. } | Self::NoAnswer { source, .. }
                if matches!(source.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
        )
    }
}

/// An established TCP connection to an echo server.
#[derive(Debug)]
pub struct TcpSession {
    target: SocketAddr,
    stream: BufReader<TcpStream>,
    backend: String,
    latency: Duration,
}

impl TcpSession {
    /// Connects from `namespace` and reads the greeting.
    pub fn open(namespace: &Namespace, target: SocketAddr) -> Result<Self, ExchangeError> {
        Self::open_within(namespace, target, PATIENCE)
    }

    /// The same, giving up on each answer after `patience` instead of seconds.
    pub fn open_within(namespace: &Namespace, target: SocketAddr, patience: Duration) -> Result<Self, ExchangeError> {
        namespace.run(|| Self::connect(target, patience))?
    }

    /// The same from the namespace of the calling thread.
    pub fn open_here_within(target: SocketAddr, patience: Duration) -> Result<Self, ExchangeError> {
        Self::connect(target, patience)
    }

    /// Connects from the namespace of the calling thread and reads the greeting.
    pub fn open_here(target: SocketAddr) -> Result<Self, ExchangeError> {
        Self::connect(target, PATIENCE)
    }

    fn connect(target: SocketAddr, patience: Duration) -> Result<Self, ExchangeError> {
        let started = Instant::now();
        let stream = TcpStream::connect_timeout(&target, patience)
            .map_err(|source| ExchangeError::Connect { target, source })?;
        let no_answer = |source| ExchangeError::NoAnswer { target, source };
        stream.set_nodelay(true).map_err(no_answer)?;
        stream.set_read_timeout(Some(patience)).map_err(no_answer)?;
        stream.set_write_timeout(Some(patience)).map_err(no_answer)?;
        let mut stream = BufReader::new(stream);
        let mut greeting = String::new();
        stream.read_line(&mut greeting).map_err(no_answer)?;
        let backend = greeting.strip_suffix('\n').ok_or(ExchangeError::Garbled { target })?.to_owned();
        Ok(Self { target, stream, backend, latency: started.elapsed() })
    }

    /// The name of the backend that answered.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// How long connecting and being greeted took.
    pub fn latency(&self) -> Duration {
        self.latency
    }

    /// The client's own address.
    pub fn local_address(&self) -> Result<SocketAddr, ExchangeError> {
        let target = self.target;
        self.stream.get_ref().local_addr().map_err(|source| ExchangeError::NoAnswer { target, source })
    }

    /// Sends `payload` and checks that it comes back.
    pub fn exchange(&mut self, payload: &[u8]) -> Result<(), ExchangeError> {
        let target = self.target;
        let no_answer = |source| ExchangeError::NoAnswer { target, source };
        self.stream.get_mut().write_all(payload).map_err(no_answer)?;
        let mut answer = vec![0; payload.len()];
        self.stream.read_exact(&mut answer).map_err(no_answer)?;
        if answer == payload { Ok(()) } else { Err(ExchangeError::Garbled { target }) }
    }

    /// The bare connection, once the greeting was read.
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream.into_inner()
    }
}

/// A UDP socket at `address`, with a port that none had before it.
///
/// A port that comes from another node or outside straight to a backend, to which it came through a VIP a minute ago, is taken for
/// what it was: a datagram does not tell that it begins something. What is tested with many sockets must not depend on
/// which ports the kernel happens to give twice.
fn bind_unused(address: IpAddr) -> io::Result<UdpSocket> {
    /// Below the ports that the kernel gives out, and what the daemon keeps from it.
    const PORTS: std::ops::Range<u16> = 10_000..30_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);

    loop {
        let place = NEXT.fetch_add(1, Ordering::Relaxed) % (PORTS.end - PORTS.start);
        let port = PORTS.start + place;
        match UdpSocket::bind((address, port)) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            bound => return bound,
        }
    }
}

/// A UDP socket that talks to an echo server.
#[derive(Debug)]
pub struct UdpSession {
    target: SocketAddr,
    socket: UdpSocket,
    connected: bool,
    asked: u64,
}

impl UdpSession {
    /// A socket in `namespace`. A connected one leaves the check of the answer's source to the kernel, an
    /// unconnected one makes it itself.
    pub fn open(namespace: &Namespace, target: SocketAddr, connected: bool) -> Result<Self, ExchangeError> {
        namespace.run(|| Self::open_here(target, connected))?
    }

    /// A socket in the namespace of the calling thread.
    pub fn open_here(target: SocketAddr, connected: bool) -> Result<Self, ExchangeError> {
        let any: IpAddr = match target {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let open = || {
            let socket = bind_unused(any)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            if connected {
                socket.connect(target)?;
            }
            Ok(socket)
        };
        Ok(Self {
            target,
            socket: open().map_err(|source| ExchangeError::Connect { target, source })?,
            connected,
            asked: 0,
        })
    }

    /// Gives up on an answer after `patience` instead of seconds.
    pub fn with_patience(self, patience: Duration) -> Result<Self, ExchangeError> {
        let target = self.target;
        self.socket.set_read_timeout(Some(patience)).map_err(|source| ExchangeError::NoAnswer { target, source })?;
        Ok(self)
    }

    /// Sends a question that no other is equal to; returns the name of the backend that answered it.
    pub fn ask(&mut self) -> Result<String, ExchangeError> {
        self.ask_at_length(0)
    }

    /// [`ask`](Self::ask) with a question of at least `bytes`, which may take several fragments each way.
    pub fn ask_at_length(&mut self, bytes: usize) -> Result<String, ExchangeError> {
        let target = self.target;
        let no_answer = |source| ExchangeError::NoAnswer { target, source };
        self.asked += 1;
        let question = format!("{:.<bytes$}", format!("question {} ", self.asked));
        if self.connected {
            self.socket.send(question.as_bytes()).map_err(no_answer)?;
        } else {
            self.socket.send_to(question.as_bytes(), target).map_err(no_answer)?;
        }
        let mut buffer = vec![0; 1 << 16];
        loop {
            let (length, source_address) = self.socket.recv_from(&mut buffer).map_err(no_answer)?;
            if source_address != target {
                return Err(ExchangeError::WrongSource { target, source_address });
            }
            let answer = std::str::from_utf8(&buffer[..length]).ok().and_then(|text| text.split_once('\n'));
            match answer {
                Some((backend, echoed)) if echoed == question => return Ok(backend.to_owned()),
                // The late answer to a question that was given up on.
                Some((_, echoed)) if echoed.starts_with("question ") => {}
                _ => return Err(ExchangeError::Garbled { target }),
            }
        }
    }
}
