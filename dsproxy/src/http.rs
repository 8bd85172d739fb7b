//! HTTP servers: how each comes to listen, and what is served beside the metrics. `health` has the answers of its own.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use serde_json::json;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;
use tracing::{info, warn};

use crate::{app::Backoff, config::kube_proxy::KubeProxyConfiguration, metrics::Metrics};

/// What kube-proxy calls its mode, for tools that ask; there is no other here.
const PROXY_MODE: &str = "ebpf";

/// How many connections may wait to be accepted.
const BACKLOG: i32 = 1024;

/// The key of kube-proxy's configuration in `/configz`.
const CONFIGZ_KEY: &str = "kubeproxy.config.k8s.io";

/// `/metrics`, in the OpenMetrics text format, and what else kube-proxy serves beside it: that the server is there, its
/// mode, and its configuration, also as `flags`.
pub fn metrics_routes(metrics: Metrics, configuration: &KubeProxyConfiguration, flags: String) -> Router {
    let configuration = json!({ CONFIGZ_KEY: configuration });
    Router::new()
        .route("/metrics", get(scrape))
        .with_state(Arc::new(metrics))
        .route("/healthz", get(|| async { "ok" }))
        .route("/proxyMode", get(|| async { PROXY_MODE }))
        .route("/flagz", get(move || async move { flags }))
        .route("/configz", get(move || async move { Json(configuration) }))
}

async fn scrape(State(metrics): State<Arc<Metrics>>) -> Response {
    // Reading the counters takes a system call each, and to see how full the maps are, a walk of each.
    let encoded = tokio::task::spawn_blocking(move || metrics.encode()).await;
    match encoded.unwrap_or(Err(std::fmt::Error)) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// Listens at `address`. "Any IPv6 address" stands for any of either family, whatever `net.ipv6.bindv6only` says, as with kube-proxy; on
/// a host without IPv6 it is any IPv4 address.
///
/// # Errors
///
/// When the address cannot be had.
pub async fn listen(what: &str, address: SocketAddr) -> io::Result<TcpListener> {
    let listener = match bind(address) {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse => {
            bind((Ipv4Addr::UNSPECIFIED, address.port()).into())?
        }
        bound => bound?,
    };
    info!(what, %address, "serving");
    Ok(listener)
}

fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    TcpListener::from_std(socket.into())
}

/// Serves `routes` for ever; an address that cannot be had is tried again, as kube-proxy does.
pub async fn serve(what: &'static str, address: SocketAddr, mut listener: io::Result<TcpListener>, routes: Router) {
    let mut backoff = Backoff::new();
    loop {
        match listener {
            Ok(listener) => {
                if let Err(error) = axum::serve(listener, routes.clone()).await {
                    warn!(what, %address, %error, "the server ended");
                }
            }
            Err(error) => warn!(what, %address, %error, "cannot listen; the next attempt follows"),
        }
        backoff.wait().await;
        listener = listen(what, address).await;
    }
}
