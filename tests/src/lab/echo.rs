//! Backends that say who they are: a TCP server that greets with its name and then echoes, and a UDP server
//! that answers with its name and what it was sent.

use std::{
    collections::BTreeSet,
    io,
    net::{SocketAddr, TcpListener as StdTcpListener, UdpSocket as StdUdpSocket},
    sync::{Arc, Mutex, PoisonError},
};

use dsproxy_common::IpFamily;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::oneshot,
    task::JoinSet,
};

use super::{DualStack, LabError, Namespace, Pod, runtime};

/// Serves one port of a pod, TCP and UDP, in both families, until dropped.
#[derive(Debug)]
pub struct EchoServer {
    name: String,
    /// Closing it ends the server; the second channel closes when every socket is closed.
    stop: Option<oneshot::Sender<()>>,
    stopped: Option<std::sync::mpsc::Receiver<()>>,
    peers: Peers,
}

/// The addresses that clients were seen with, as far as nobody has asked for them.
type Peers = Arc<Mutex<BTreeSet<SocketAddr>>>;

fn note(peers: &Peers, peer: SocketAddr) {
    peers.lock().unwrap_or_else(PoisonError::into_inner).insert(peer);
}

impl EchoServer {
    /// Starts a server called `name` on `port` of `pod`.
    pub fn start(pod: &Pod, port: u16, name: &str) -> Result<Self, LabError> {
        Self::start_in(pod.namespace(), pod.addresses(), port, name)
    }

    /// Starts a server called `name` on `port` of `addresses`, which are those of `namespace`.
    pub fn start_in(namespace: &Namespace, addresses: DualStack, port: u16, name: &str) -> Result<Self, LabError> {
        let mut sockets = Vec::new();
        for family in IpFamily::ALL {
            let address = addresses.socket(family, port);
            let listening = namespace.run(|| listen(address))?.map_err(|source| LabError::Listen {
                address,
                namespace: namespace.name().to_owned(),
                source,
            })?;
            sockets.push(listening);
        }
        let (stop, mut told_to_stop) = oneshot::channel::<()>();
        let (sockets_closed, stopped) = std::sync::mpsc::channel();
        let served_as = name.to_owned();
        let peers = Peers::default();
        let seen = Arc::clone(&peers);
        runtime::handle().spawn(async move {
            let mut tasks = JoinSet::new();
            for (tcp, udp) in sockets {
                tasks.spawn(serve_tcp(tcp, served_as.clone(), Arc::clone(&seen)));
                tasks.spawn(serve_udp(udp, served_as.clone(), Arc::clone(&seen)));
            }
            tokio::select! {
                _ = &mut told_to_stop => {}
                Some(ended) = tasks.join_next() => {
                    eprintln!("echo server {served_as} ended early: {ended:?}");
                }
            }
            tasks.shutdown().await;
            drop(sockets_closed);
        });
        Ok(Self { name: name.to_owned(), stop: Some(stop), stopped: Some(stopped), peers })
    }

    /// The addresses that clients were seen with since this was last asked.
    pub fn take_peers(&self) -> BTreeSet<SocketAddr> {
        std::mem::take(&mut *self.peers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The name it answers with.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(stopped) = self.stopped.take() {
            // Nothing is ever sent: this returns when the task has closed its sockets.
            let _ = stopped.recv();
        }
    }
}

/// Sockets made inside the pod; they stay in its namespace wherever they are used.
fn listen(address: SocketAddr) -> io::Result<(StdTcpListener, StdUdpSocket)> {
    let tcp = StdTcpListener::bind(address)?;
    tcp.set_nonblocking(true)?;
    let udp = StdUdpSocket::bind(address)?;
    udp.set_nonblocking(true)?;
    Ok((tcp, udp))
}

async fn serve_tcp(listener: StdTcpListener, name: String, peers: Peers) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, peer) = accepted?;
                note(&peers, peer);
                connections.spawn(echo(stream, format!("{name}\n")));
            }
            // Finished connections are taken out so that they do not pile up.
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn echo(mut stream: TcpStream, greeting: String) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(greeting.as_bytes()).await?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length]).await?,
        }
    }
}

async fn serve_udp(socket: StdUdpSocket, name: String, peers: Peers) -> io::Result<()> {
    let socket = UdpSocket::from_std(socket)?;
    let mut buffer = vec![0; 1 << 16];
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((length, client)) => {
                note(&peers, client);
                let mut answer = format!("{name}\n").into_bytes();
                answer.extend_from_slice(&buffer[..length]);
                // A client that is gone is no reason to stop serving the others.
                let _ = socket.send_to(&answer, client).await;
            }
            // An ICMP error that an earlier answer brought back.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
            Err(error) => return Err(error),
        }
    }
}
