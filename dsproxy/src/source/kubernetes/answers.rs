//! The API server's answers on their way to kube's watcher: what it does not tell of them is noted here.
//!
//! It does not know what the objects are, nor when to try again.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Request, Response, Uri};
use http_body_util::BodyExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::{Client, client::Body, core::Status};
use serde::Deserialize;
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
    /// Whether the server was away since it last said where its history ends. It may come back with another.
    lost: AtomicBool,
    /// When the server accepted a watch that has brought nothing yet, unless a failure came after it.
    idle_since: Mutex<Option<Instant>>,
}

impl Answers {
    pub(super) fn new(kind: Kind, pace: Pace, health: Arc<Health>) -> Arc<Self> {
        Arc::new(Self { kind, pace, health, lost: AtomicBool::new(false), idle_since: Mutex::default() })
    }

    /// A client whose requests go by `connection`, and whose answers pass through here. Its errors are
    /// `kube::Error::Service` around a [`RequestError`].
    pub(super) fn client(self: &Arc<Self>, connection: &Arc<Connection>) -> Client {
        let (answers, connection) = (Arc::clone(self), Arc::clone(connection));
        let service = service_fn(move |request| {
            let (answers, connection) = (Arc::clone(&answers), Arc::clone(&connection));
            async move {
                let response = answers.ask(&connection, request).await?;
                // The watcher goes on after a watch whose connection broke, and tells nobody.
                let broken = move |error| {
                    answers.lost();
                    error
                };
                Ok::<_, BoxError>(response.map(|body| body.map_err(broken)))
            }
        });
        // All is asked for in all namespaces.
        Client::new(service, "default")
    }

    /// The watch brought an object.
    pub(super) fn heard(&self) {
        self.replace_idle_since(None);
        self.health.working(self.kind);
    }

    /// The server was away.
    pub(super) fn lost(&self) {
        self.lost.store(true, Ordering::Relaxed);
    }

    /// Whether there was a watch since the last failure, and it lasted.
    pub(super) fn lasted(&self) -> bool {
        self.replace_idle_since(None).is_some_and(|since| since.elapsed() >= self.pace.shortest_watch)
    }

    fn replace_idle_since(&self, since: Option<Instant>) -> Option<Instant> {
        std::mem::replace(&mut *self.idle_since.lock().unwrap_or_else(PoisonError::into_inner), since)
    }

    async fn ask(&self, connection: &Connection, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let watch = parameter(request.uri(), "watch").is_some();
        let operation = Operation { verb: if watch { Verb::Watch } else { Verb::List }, kind: self.kind };
        let before = if watch { self.replace_idle_since(None) } else { None };
        // The watcher starts a watch that was ended again at once, for ever, and tells nobody.
        if before.is_some_and(|since| since.elapsed() < self.pace.shortest_watch) {
            return Err(RequestError::CutShort { operation }.into());
        }
        let client = connection.client().await;
        if watch && self.lost.load(Ordering::Relaxed) {
            self.compare_history(&client, request.uri()).await?;
        }
        let begins = parameter(request.uri(), "continue").is_none();
        let response = self.answer_in_time(&client, operation, request).await?;
        if watch {
            self.replace_idle_since(Some(Instant::now()));
            self.health.working(self.kind);
        } else if begins {
            // What is known from now on is of the history that the server has now.
            self.lost.store(false, Ordering::Relaxed);
        }
        Ok(response)
    }

    /// Asks for no more than the first object of a list, for the version that it comes with, before a watch goes on that was begun
    /// before the server was away: one that was restored from a backup may take a watch from a version that it has not come
    /// to, and be silent until then. A version that is no number cannot be compared.
    async fn compare_history(&self, client: &Client, watch: &Uri) -> Result<(), RequestError> {
        let operation = Operation { verb: Verb::List, kind: self.kind };
        let request = Request::get(first_of_list(watch)).body(Body::empty());
        let request = request.map_err(|error| unreadable(operation, kube::Error::HttpError(error)))?;
        let body = self.answer_in_time(client, operation, request).await?.into_body();
        let body = body.collect_bytes().await.map_err(|source| RequestError::Broken { operation, source })?;
        let list = serde_json::from_slice(&body);
        let list: PartialList = list.map_err(|error| unreadable(operation, kube::Error::SerdeError(error)))?;
        self.lost.store(false, Ordering::Relaxed);
        let seen = parameter(watch, "resourceVersion").and_then(|version| version.parse().ok());
        let got = list.metadata.resource_version.and_then(|version| version.parse().ok());
        match (seen, got) {
            (Some(seen), Some(got)) if got < seen => {
                let operation = Operation { verb: Verb::Watch, kind: self.kind };
                Err(RequestError::OtherHistory { operation, seen, got })
            }
            _ => Ok(()),
        }
    }

    async fn answer_in_time(
        &self,
        client: &Client,
        operation: Operation,
        request: Request<Body>,
    ) -> Result<Response<Body>, RequestError> {
        let after = self.pace.answer;
        let answer = tokio::time::timeout(after, answer(client, operation, request)).await;
        answer.unwrap_or(Err(RequestError::Silent { operation, after }))
    }
}

/// What is read of a list for its version alone.
#[derive(Deserialize)]
struct PartialList {
    metadata: ListMeta,
}

fn unreadable(operation: Operation, source: kube::Error) -> RequestError {
    RequestError::Unreadable { operation, source }
}

/// The value of a parameter in the query, as it is written there.
fn parameter<'a>(uri: &'a Uri, name: &str) -> Option<&'a str> {
    parameters(uri).find(|(of, _)| *of == name).map(|(_, value)| value)
}

fn parameters(uri: &Uri) -> impl Iterator<Item = (&str, &str)> {
    uri.query().unwrap_or_default().split('&').filter_map(|parameter| parameter.split_once('='))
}

/// The path and query that ask for the first object of what a watch is about.
fn first_of_list(watch: &Uri) -> String {
    let selectors = parameters(watch).filter(|(name, _)| matches!(*name, "labelSelector" | "fieldSelector"));
    selectors.fold(format!("{}?limit=1", watch.path()), |uri, (name, value)| format!("{uri}&{name}={value}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_a_list_is_asked_for_by_the_selectors_of_the_watch() {
        for (watch, first, version) in [
            (
                "/api/v1/services?&watch=true&timeoutSeconds=290&labelSelector=%21a%2Fb&allowWatchBookmarks=true&resourceVersion=7",
                "/api/v1/services?limit=1&labelSelector=%21a%2Fb",
                Some("7"),
            ),
            (
                "/api/v1/nodes?watch=true&fieldSelector=metadata.name%3Da&resourceVersion=opaque",
                "/api/v1/nodes?limit=1&fieldSelector=metadata.name%3Da",
                Some("opaque"),
            ),
            ("/apis/networking.k8s.io/v1/servicecidrs", "/apis/networking.k8s.io/v1/servicecidrs?limit=1", None),
        ] {
            let watch = Uri::from_static(watch);
            assert_eq!(first_of_list(&watch), first);
            assert_eq!(parameter(&watch, "resourceVersion"), version);
        }
    }
}
