//! Connections: accepted, served, and reset when the server stops.
//!
//! It knows nothing of what is asked for.

use std::{pin::pin, sync::Arc};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{Shared, answer, lock};

/// Accepts connections until it is aborted.
pub(super) async fn accept(listener: Arc<TcpListener>, shared: Arc<Shared>, reset: watch::Sender<bool>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        tokio::spawn(serve(stream, Arc::clone(&shared), reset.subscribe()));
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>, reset: watch::Receiver<bool>) {
    let acceptor = lock(&shared.tls).clone();
    match acceptor {
        None => speak(stream, false, shared, reset, |stream| stream).await,
        // A client that does not accept our certificate, or we its, is gone.
        Some(acceptor) => {
            if let Ok(stream) = acceptor.accept(stream).await {
                let is_known = stream.get_ref().1.peer_certificates().is_some();
                speak(stream, is_known, shared, reset, |stream| stream.into_inner().0).await;
            }
        }
    }
}

/// Serves a client, which `is_known` by its certificate or has to show a token, until it or the server goes.
async fn speak<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    is_known: bool,
    shared: Arc<Shared>,
    mut reset: watch::Receiver<bool>,
    inner: impl FnOnce(S) -> TcpStream,
) {
    let service = service_fn(move |request| {
        let shared = Arc::clone(&shared);
        Box::pin(async move { answer::answer(request, is_known, &shared).await })
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // An error is the client's end of the connection, or an answer that was to be cut.
        _ = pin!(&mut connection) => {}
        _ = reset.wait_for(|&reset| reset) => {
            // Dropped with linger zero, a socket sends a RST.
            let stream = inner(connection.into_parts().io.into_inner());
            stream.set_zero_linger().expect("set linger");
        }
    }
}
