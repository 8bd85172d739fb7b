//! SCTP: a server that greets with its name and echoes, and a client, over real sockets of one association each (RFC 6458, section 4).
//!
//! To the standard library they are streams: what it does to a stream is what such a socket takes. Every socket is bound to one
//! address, so that none tells its peer of others by which the VIP could be passed by.

use std::{
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use dsproxy_common::IpFamily;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, listen, socket,
};

use super::{DualStack, ExchangeError, LabError, Namespace};

/// How long anything of an association may take: a lost first packet is sent again after three seconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often a server looks for a client, and whether it is to end.
const LOOK: Duration = Duration::from_millis(10);

/// A socket that is bound to nothing.
///
/// # Errors
///
/// `EPROTONOSUPPORT` where the kernel has no SCTP.
pub fn sctp_socket(family: IpFamily) -> io::Result<OwnedFd> {
    let family = match family {
        IpFamily::V4 => AddressFamily::Inet,
        IpFamily::V6 => AddressFamily::Inet6,
    };
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp)?)
}

fn bound(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = sctp_socket(IpFamily::of(address.ip()))?;
    bind(socket.as_raw_fd(), &SockaddrStorage::from(address))?;
    Ok(socket)
}

/// Serves one port of a pod in both families until dropped.
#[derive(Debug)]
pub struct SctpServer {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl SctpServer {
    /// Starts a server called `name` on `port` of `addresses`, which are those of `namespace`.
    ///
    /// # Errors
    ///
    /// When a socket cannot be had.
    pub fn start(namespace: &Namespace, addresses: DualStack, port: u16, name: &str) -> Result<Self, LabError> {
        let mut server = Self { ended: Arc::default(), threads: Vec::new() };
        for address in IpFamily::ALL.map(|family| addresses.socket(family, port)) {
            let listening = || {
                let socket = bound(address)?;
                listen(&socket, Backlog::new(16)?)?;
                let listener = TcpListener::from(socket);
                listener.set_nonblocking(true)?;
                Ok(listener)
            };
            let listener = namespace.run(listening)?.map_err(|source| LabError::Listen {
                address,
                namespace: namespace.name().to_owned(),
                source,
            })?;
            let (ended, greeting) = (Arc::clone(&server.ended), format!("{name}\n"));
            server.threads.push(thread::spawn(move || serve(&listener, &greeting, &ended)));
        }
        Ok(server)
    }
}

impl Drop for SctpServer {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // It has told of its panic itself.
            let _ = thread.join();
        }
    }
}

fn serve(listener: &TcpListener, greeting: &str, ended: &AtomicBool) {
    while !ended.load(Ordering::Relaxed) {
        match listener.accept() {
            // A client that has gone is no reason to stop serving the others.
            Ok((stream, _)) => drop(echo(stream, greeting)),
            Err(_) => thread::sleep(LOOK),
        }
    }
}

fn echo(mut stream: TcpStream, greeting: &str) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(greeting.as_bytes())?;
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

/// Makes an association from `source` in `namespace` to `target`, has `payload` echoed, and returns the name of who did.
///
/// # Errors
///
/// When any of it fails.
pub fn sctp_exchange(
    namespace: &Namespace,
    source: IpAddr,
    target: SocketAddr,
    payload: &[u8],
) -> Result<String, ExchangeError> {
    let associate = || {
        let stream = TcpStream::from(bound((source, 0).into())?);
        // It bounds `connect` as well.
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        connect(stream.as_raw_fd(), &SockaddrStorage::from(target))?;
        Ok(BufReader::new(stream))
    };
    let mut stream = namespace.run(associate)?.map_err(|source| ExchangeError::Connect { target, source })?;
    let mut exchange = || {
        let mut name = String::new();
        stream.read_line(&mut name)?;
        stream.get_mut().write_all(payload)?;
        let mut echoed = vec![0; payload.len()];
        stream.read_exact(&mut echoed)?;
        Ok((name.trim().to_owned(), echoed))
    };
    let (name, echoed) = exchange().map_err(|source| ExchangeError::NoAnswer { target, source })?;
    if echoed == payload { Ok(name) } else { Err(ExchangeError::Garbled { target }) }
}
