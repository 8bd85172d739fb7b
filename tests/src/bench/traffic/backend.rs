//! The server in a backend's namespace: one thread, both families, TCP and UDP. The first byte of a TCP connection says what the client
//! wants of it.

use std::{io, net::SocketAddr, sync::mpsc, thread};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::oneshot,
};

use super::super::BenchError;
use crate::lab::{LabError, Namespace};

/// The length of requests and answers.
pub(super) const MESSAGE: usize = 64;

/// One answer, and the server closes.
pub(super) const ONCE: u8 = b'1';
/// An answer to each request.
pub(super) const KEPT: u8 = b'k';
/// The client sends until it has nothing left, and then is told how much arrived, as eight bytes.
pub(super) const BULK: u8 = b'b';

/// A running server; it ends when this is dropped.
pub(super) struct Backend {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<Result<(), LabError>>>,
}

impl Backend {
    /// Listens on `ports` of all addresses in `namespace`.
    pub(super) fn start(namespace: &Namespace, ports: Vec<u16>) -> Result<Self, BenchError> {
        let (stop, stopped) = oneshot::channel();
        let (listening, told) = mpsc::channel();
        let thread = namespace.spawn_thread(move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return drop(listening.send(Err(error))),
            };
            runtime.block_on(async {
                let outcome = serve(&ports).await;
                let serves = outcome.is_ok();
                // Its starter waits for this word.
                let _ = listening.send(outcome);
                if serves {
                    let _ = stopped.await;
                }
            });
        });
        let ended = || io::Error::other("the server's thread ended before it listened");
        told.recv().unwrap_or_else(|_| Err(ended())).map_err(BenchError::Thread)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Starts to serve `ports` on the runtime of the caller.
async fn serve(ports: &[u16]) -> io::Result<()> {
    for &port in ports {
        // `::` takes both families.
        let address: SocketAddr = (std::net::Ipv6Addr::UNSPECIFIED, port).into();
        let listener = TcpListener::bind(address).await?;
        tokio::spawn(async move {
            loop {
                // A connection that was lost again before it was taken is its client's to notice.
                if let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(answer(stream));
                }
            }
        });
        let socket = UdpSocket::bind(address).await?;
        tokio::spawn(async move {
            let mut buffer = [0; MESSAGE];
            loop {
                if let Ok((length, client)) = socket.recv_from(&mut buffer).await {
                    let _ = socket.send_to(&buffer[..length], client).await;
                }
            }
        });
    }
    Ok(())
}

/// Does what the client of one connection wants.
async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    loop {
        if let Err(error) = stream.read_exact(&mut message).await {
            return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(error) };
        }
        match message[0] {
            ONCE => return stream.write_all(&message).await,
            KEPT => stream.write_all(&message).await?,
            BULK => return swallow(stream).await,
            other => return Err(io::Error::other(format!("nobody wants {other}"))),
        }
    }
}

async fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 1 << 18];
    let mut total = 0u64;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.write_all(&total.to_be_bytes()).await,
            length => total += length as u64,
        }
    }
}
