//! The API server's answers on their way to kube's watcher: what it does not tell of them is noted here.
//!
//! It does not know what the objects are, nor when to try again.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use http::{Request, Response};
use kube::{Client, client::Body, core::Status};
use tower::{BoxError, service_fn};

use super::{
    super::convert::Kind,
    Connection, Pace,
    error::{Operation, RequestError, Verb},
    health::Health,
};

/// The answers to the requests about the objects of one kind.
pub(super) struct Answers {
    kind: Kind,
    pace: Pace,
    health: Arc<Health>,
    /// When the server accepted a watch that has brought nothing yet, unless a failure came after it.
    idle_since: Mutex<Option<Instant>>,
}

impl Answers {
    pub(super) fn new(kind: Kind, pace: Pace, health: Arc<Health>) -> Arc<Self> {
        Arc::new(Self { kind, pace, health, idle_since: Mutex::default() })
    }

    /// A client whose requests go by `connection`, and whose answers pass through here. Its errors are
    /// `kube::Error::Service` around a [`RequestError`].
    pub(super) fn client(self: &Arc<Self>, connection: &Arc<Connection>) -> Client {
        let (answers, connection) = (Arc::clone(self), Arc::clone(connection));
        let service = service_fn(move |request| Arc::clone(&answers).ask(Arc::clone(&connection), request));
        // All is asked for in all namespaces.
        Client::new(service, "default")
    }

    /// The watch brought an object.
    pub(super) fn heard(&self) {
        self.replace_idle_since(None);
        self.health.working(self.kind);
    }

    /// Whether there was a watch since the last failure, and it lasted.
    pub(super) fn lasted(&self) -> bool {
        self.replace_idle_since(None).is_some_and(|since| since.elapsed() >= self.pace.shortest_watch)
    }

    fn replace_idle_since(&self, since: Option<Instant>) -> Option<Instant> {
        std::mem::replace(&mut *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner), since)
    }

    async fn ask(
        self: Arc<Self>,
        connection: Arc<Connection>,
        request: Request<Body>,
    ) -> Result<Response<Body>, BoxError> {
        let watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let operation = Operation { verb: if watch { Verb::Watch } else { Verb::List }, kind: self.kind };
        let before = if watch { self.replace_idle_since(None) } else { None };
        // The watcher starts a watch that was ended again at once, for ever, and tells nobody.
        if before.is_some_and(|since| since.elapsed() < self.pace.shortest_watch) {
            return Err(RequestError::CutShort { operation }.into());
        }
        let after = self.pace.answer;
        let client = connection.client().await;
        let answer = tokio::time::timeout(after, answer(&client, operation, request)).await;
        let response = answer.unwrap_or(Err(RequestError::Silent { operation, after }))?;
        if watch {
            self.replace_idle_since(Some(Instant::now()));
            self.health.working(self.kind);
        }
        Ok(response)
    }
}

/// The whole answer, or the head of an accepted watch.
async fn answer(client: &Client, operation: Operation, request: Request<Body>) -> Result<Response<Body>, RequestError> {
    let response = client.send(request).await.map_err(|source| RequestError::Unreachable { operation, source })?;
    let success = response.status().is_success();
    if success && operation.verb == Verb::Watch {
        return Ok(response);
    }
    let (head, body) = response.into_parts();
    let body = body.collect_bytes().await.map_err(|source| RequestError::Broken { operation, source })?;
    if success {
        return Ok(Response::from_parts(head, Body::from(body)));
    }
    let retry_after = head.headers.get("retry-after").and_then(|seconds| seconds.to_str().ok()?.parse().ok());
    // Not every refusal carries a Status: priority and fairness, and proxies, answer in plain text.
    let status = serde_json::from_slice(&body).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(&body);
        Status::failure(text.lines().next().unwrap_or_default().trim(), "")
    });
    let status = status.with_code(head.status.as_u16());
    Err(RequestError::refused(operation, status, retry_after.map(Duration::from_secs)))
}
