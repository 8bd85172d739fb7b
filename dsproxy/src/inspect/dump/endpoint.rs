//! What the daemon serves beside its metrics, asked for over HTTP.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio::{
    io::{self, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::shorten;

/// How long the daemon may take for an answer, all of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// More is not read: a longer body is cut off, and no head is that long.
const LONGEST: u64 = shorten::LONGEST as u64 + (64 << 10);

/// The body of what `path` is answered with, if that is before `deadline`.
pub(super) fn get(server: SocketAddr, path: &str, deadline: Instant) -> anyhow::Result<Vec<u8>> {
    let patience = PATIENCE.min(deadline.saturating_duration_since(Instant::now()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    runtime.block_on(ask(reachable(server), path, patience))
}

async fn ask(server: SocketAddr, path: &str, patience: Duration) -> anyhow::Result<Vec<u8>> {
    let ask = || format!("ask http://{server}{path}");
    let late = || format!("there was no whole answer within {patience:?}; is the daemon held up?");
    let answer = timeout(patience, exchange(server, path)).await.with_context(late).with_context(ask)?;
    body(&answer.with_context(ask)?).with_context(ask)
}

async fn exchange(server: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    // Of HTTP/1.0, whose answers end with the connection and have no parts.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// A server that listens at every address is reached at the one of this machine itself.
fn reachable(server: SocketAddr) -> SocketAddr {
    let ip = match server.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, server.port())
}

fn body(answer: &[u8]) -> anyhow::Result<Vec<u8>> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("the answer is not HTTP")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("the answer is {status:?}");
    }
    Ok(answer[end + 4..].to_vec())
}

#[cfg(test)]
mod tests {
    use tokio::{net::TcpListener, time::sleep};

    use super::*;

    #[test]
    fn only_what_was_asked_for_counts() {
        let body = |answer: &str| body(answer.as_bytes()).map(|body| String::from_utf8_lossy(&body).into_owned());
        assert_eq!(body("HTTP/1.0 200 OK\r\nA: b\r\n\r\nx 1\r\n\r\ny 2").expect("a body"), "x 1\r\n\r\ny 2");
        for wrong in ["HTTP/1.1 404 Not Found\r\n\r\n", "HTTP/1.0 200 OK\r\n", "", "220 mail.example.org\r\n\r\n"] {
            body(wrong).expect_err(wrong);
        }
    }

    #[test]
    fn a_server_at_every_address_is_here() {
        for (server, expected) in [
            ("0.0.0.0:1", "127.0.0.1:1"),
            ("[::]:2", "[::1]:2"),
            ("192.0.2.1:3", "192.0.2.1:3"),
            ("[::1]:4", "[::1]:4"),
        ] {
            assert_eq!(reachable(server.parse().expect("an address")).to_string(), expected);
        }
    }

    #[tokio::test]
    async fn an_answer_that_comes_bit_by_bit_has_an_end_all_the_same() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
        let server = listener.local_addr().expect("an address");
        let trickle = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("it connects");
            while stream.write_all(b"HTTP/1.0 200 OK\r\n").await.is_ok() {
                sleep(Duration::from_millis(5)).await;
            }
        });
        let error = ask(server, "/metrics", Duration::from_millis(100)).await.expect_err("it never ends");
        let text = format!("{error:#}");
        assert!(
            text.contains(&format!("ask http://{server}/metrics: there was no whole answer within 100ms")),
            "{text}"
        );
        trickle.await.expect("nobody listens any more");
    }
}
