//! What the daemon serves beside its metrics, asked for over HTTP.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, bail};

/// How long the daemon may take for anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// More is not read: a page of metrics has a few hundred bytes for each service port.
const LONGEST: u64 = 64 << 20;

/// The body of what `path` is answered with.
pub(super) fn get(server: SocketAddr, path: &str) -> anyhow::Result<Vec<u8>> {
    let server = reachable(server);
    let ask = || format!("ask http://{server}{path}");
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE).with_context(ask)?;
    stream.set_read_timeout(Some(PATIENCE)).with_context(ask)?;
    stream.set_write_timeout(Some(PATIENCE)).with_context(ask)?;
    // Of HTTP/1.0, whose answers end with the connection.
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n").with_context(ask)?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).with_context(ask)?;
    body(&answer).with_context(ask)
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
}
