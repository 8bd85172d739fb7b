//! One HTTP request, from within a namespace.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::{ExchangeError, Namespace};

const PATIENCE: Duration = Duration::from_secs(3);

/// What an HTTP server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpAnswer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// `GET path` of the server at `target`.
pub fn http_get(namespace: &Namespace, target: SocketAddr, path: &str) -> Result<HttpAnswer, ExchangeError> {
    let text = namespace.run(|| exchange(target, path))??;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(ExchangeError::Garbled { target })?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or(ExchangeError::Garbled { target })?;
    Ok(HttpAnswer { status, body: body.to_owned() })
}

fn exchange(target: SocketAddr, path: &str) -> Result<String, ExchangeError> {
    let no_answer = |source| ExchangeError::NoAnswer { target, source };
    let mut stream =
        TcpStream::connect_timeout(&target, PATIENCE).map_err(|source| ExchangeError::Connect { target, source })?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(no_answer)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").map_err(no_answer)?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(no_answer)?;
    Ok(text)
}
