//! The two requests made of an API server: one page of a list, and a watch.
//!
//! It does not know what becomes of the objects, nor when to try again.

use std::time::Duration;

use http_body_util::BodyExt;
use kube::{
    Client,
    api::{ListParams, WatchParams},
    client::Body,
    core::{Request, Status},
};

use super::{
    super::convert::FromObject,
    Pace,
    error::{Operation, RequestError, Verb},
    wire::{Lines, Page, WatchEvent, read_line},
};

/// No object is longer: etcd takes 1.5 MiB, and 64 leave room for what else may store them.
const LONGEST_LINE: usize = 64 << 20;

/// Makes requests about the objects of one kind.
pub(super) struct Requests {
    client: Client,
    pace: Pace,
}

impl Requests {
    pub(super) fn new(client: Client, pace: Pace) -> Self {
        Self { client, pace }
    }

    /// A page of the list: the first, or the one that `continue_token` stands for. Without `paged` the one
    /// page is all.
    pub(super) async fn list<T: FromObject>(
        &self,
        paged: bool,
        continue_token: Option<String>,
    ) -> Result<Page<T>, RequestError> {
        let operation = Operation { verb: Verb::List, kind: T::KIND };
        let params = ListParams {
            label_selector: Some(T::LABEL_SELECTOR.to_owned()),
            field_selector: T::FIELD_SELECTOR.map(str::to_owned),
            limit: paged.then_some(self.pace.page_size),
            continue_token,
            ..ListParams::default()
        };
        let request =
            Request::new(T::PATH).list(&params).map_err(|source| RequestError::Request { operation, source })?;
        let answer = self.within_time(operation, async {
            let body = self.send(operation, request).await?;
            body.collect_bytes().await.map_err(|source| RequestError::Broken { operation, source })
        });
        serde_json::from_slice(&answer.await?).map_err(|source| RequestError::Unreadable { operation, source })
    }

    /// A watch of everything after `version`, which lasts `duration`.
    pub(super) async fn watch<T: FromObject>(
        &self,
        version: &str,
        duration: Duration,
    ) -> Result<WatchStream, RequestError> {
        let operation = Operation { verb: Verb::Watch, kind: T::KIND };
        let params = WatchParams {
            label_selector: Some(T::LABEL_SELECTOR.to_owned()),
            field_selector: T::FIELD_SELECTOR.map(str::to_owned),
            timeout: u32::try_from(duration.as_secs().max(1)).ok(),
            bookmarks: true,
            send_initial_events: false,
        };
        let request = Request::new(T::PATH)
            .watch(&params, version)
            .map_err(|source| RequestError::Request { operation, source })?;
        let body = self.within_time(operation, self.send(operation, request)).await?;
        let silence = self.pace.silence;
        Ok(WatchStream { operation, body, lines: Lines::default(), silence })
    }

    async fn within_time<R>(
        &self,
        operation: Operation,
        answer: impl Future<Output = Result<R, RequestError>>,
    ) -> Result<R, RequestError> {
        let after = self.pace.answer;
        match tokio::time::timeout(after, answer).await {
            Ok(answer) => answer,
            Err(_) => Err(RequestError::Silent { operation, after }),
        }
    }

    async fn send(&self, operation: Operation, request: http::Request<Vec<u8>>) -> Result<Body, RequestError> {
        let response = self
            .client
            .send(request.map(Body::from))
            .await
            .map_err(|source| RequestError::Unreachable { operation, source })?;
        if response.status().is_success() {
            return Ok(response.into_body());
        }

        let code = response.status().as_u16();
        let retry_after = response
            .headers()
            .get("retry-after")
            .and_then(|seconds| seconds.to_str().ok()?.parse().ok())
            .map(Duration::from_secs);
        // Not every refusal carries a Status: priority and fairness, and proxies, answer in plain text.
        let body = response.into_body().collect_bytes().await.unwrap_or_default();
        let status = serde_json::from_slice::<Status>(&body).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(&body);
            Status::failure(text.lines().next().unwrap_or_default().trim(), "")
        });
        Err(RequestError::refused(operation, status.with_code(code), retry_after))
    }
}

/// A watch that the server has accepted.
pub(super) struct WatchStream {
    operation: Operation,
    body: Body,
    lines: Lines,
    silence: Duration,
}

impl WatchStream {
    /// The next event; none when the watch is over and can be started again from the last event's version.
    pub(super) async fn next<T: FromObject>(&mut self) -> Result<Option<WatchEvent<T>>, RequestError> {
        let operation = self.operation;
        loop {
            if let Some(line) = self.lines.pop() {
                return read_line(&line).map(Some).map_err(|source| RequestError::Unreadable { operation, source });
            }
            let length = self.lines.unfinished();
            if length > LONGEST_LINE {
                return Err(RequestError::TooLong { operation, length });
            }
            let Ok(frame) = tokio::time::timeout(self.silence, self.body.frame()).await else {
                // Whether the connection has died or nothing happened shows when the next one is made.
                return Ok(None);
            };
            match frame {
                Some(Ok(frame)) => {
                    if let Some(bytes) = frame.data_ref() {
                        self.lines.push(bytes);
                    }
                }
                Some(Err(source)) => return Err(RequestError::Broken { operation, source }),
                // Half an event will come again as a whole.
                None if length > 0 => return Err(RequestError::CutShort { operation }),
                None => return Ok(None),
            }
        }
    }
}
