//! Answers to requests: lists, refusals, and the head of a watch.
//!
//! It does not know how an open watch goes on.

use std::{io, sync::Arc};

use bytes::Bytes;
use futures::{
    future::ready,
    stream::{self, Stream, StreamExt as _},
};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Method, Response, StatusCode,
    body::{Frame, Incoming},
};
use serde_json::{Value, json};

use super::{
    Shared,
    faults::{Fault, Refusal},
    lock,
    request::{Request, Verb, is_authorized},
    stream::open as open_watch,
};

pub(super) type Body = BoxBody<Bytes, io::Error>;

/// Where Events are made that are about something without a namespace.
const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// Answers a request, or ends the connection without an answer.
pub(super) async fn answer(
    request: hyper::Request<Incoming>,
    is_known: bool,
    shared: &Arc<Shared>,
) -> io::Result<Response<Body>> {
    let is_authorized = is_known || is_authorized(&request, &lock(&shared.token));
    if request.method() == Method::POST && request.uri().path() == EVENTS {
        return take_event(request, is_authorized, shared).await;
    }
    let request = match Request::read(&request) {
        Ok(_) if !is_authorized => return Ok(refuse(&Refusal::with(401))),
        Ok(request) => request,
        Err(bewildering) => {
            lock(&shared.bewildering).push(bewildering);
            shared.moved();
            return Ok(refuse(&Refusal::with(400)));
        }
    };
    lock(&shared.requests).push(request.clone());
    shared.moved();
    let fault = shared.faults.take(&request);
    match &fault {
        Some(Fault::Refuse(refusal)) => return Ok(refuse(refusal)),
        Some(Fault::Delay(delay)) => tokio::time::sleep(*delay).await,
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Answer(text)) => return Ok(with_body(StatusCode::OK, whole(text.clone()))),
        Some(Fault::CutAnswer | Fault::StallAnswer) | None => {}
    }

    let bewildered = |bewildering: String| {
        lock(&shared.bewildering).push(bewildering);
        refuse(&Refusal::with(400))
    };
    match request.verb {
        Verb::List | Verb::Look => match list(&request, shared) {
            Err(bewildering) => Ok(bewildered(bewildering)),
            Ok(Err(refusal)) => Ok(refuse(&refusal)),
            Ok(Ok(list)) => Ok(match fault {
                Some(Fault::CutAnswer) => half(&list.to_string(), stream::once(ready(broken()))),
                Some(Fault::StallAnswer) => half(&list.to_string(), stream::pending()),
                _ => with_body(StatusCode::OK, whole(list.to_string())),
            }),
        },
        Verb::Watch if matches!(fault, Some(Fault::CutAnswer)) => Err(io::ErrorKind::BrokenPipe.into()),
        Verb::Watch if matches!(fault, Some(Fault::StallAnswer)) => {
            Ok(half("{\"type\":\"MODIFIED\",\"object\":{\"kind\":", stream::pending()))
        }
        Verb::Watch => match open_watch(&request, shared) {
            Err(bewildering) => Ok(bewildered(bewildering)),
            Ok(Err(refusal)) => Ok(refuse(&refusal)),
            Ok(Ok(body)) => Ok(with_body(StatusCode::OK, body)),
        },
    }
}

/// Keeps an Event, whoever may make one.
async fn take_event(
    request: hyper::Request<Incoming>,
    is_authorized: bool,
    shared: &Shared,
) -> io::Result<Response<Body>> {
    if !is_authorized {
        return Ok(refuse(&Refusal::with(401)));
    }
    let body = request.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
    let event: Value = serde_json::from_slice(&body)?;
    let text = event.to_string();
    lock(&shared.events).push(event);
    shared.moved();
    Ok(with_body(StatusCode::CREATED, whole(text)))
}

fn list(request: &Request, shared: &Shared) -> Result<Result<Value, Refusal>, String> {
    let selector = request.selector()?;
    let limit = request.number("limit")?;
    let mut store = lock(&shared.store);
    let (version, mut items) = match request.parameter("continue") {
        Some(token) => match store.take_page(token) {
            Some(rest) => rest,
            None => return Ok(Err(Refusal::with(410))),
        },
        None => {
            let items = store.objects(request.resource).filter(|object| selector.matches(object));
            (store.version(), items.cloned().collect())
        }
    };
    let limit = limit.map_or(items.len(), |limit| usize::try_from(limit).unwrap_or(usize::MAX));
    let rest = items.split_off(limit.min(items.len()));
    let mut metadata = json!({"resourceVersion": version.to_string()});
    if !rest.is_empty() {
        metadata["remainingItemCount"] = json!(rest.len());
        metadata["continue"] = json!(store.keep_page(version, rest));
    }
    let (api_version, kind) = request.resource.type_meta();
    // Others are copied when their page is asked for: a cluster's objects are many.
    let mut items: Vec<Value> = items.into_iter().map(Arc::unwrap_or_clone).collect();
    drop(store);
    for item in &mut items {
        // The real server leaves them out in lists.
        if let Some(item) = item.as_object_mut() {
            item.remove("apiVersion");
            item.remove("kind");
        }
    }
    Ok(Ok(json!({
        "apiVersion": api_version,
        "kind": format!("{kind}List"),
        "metadata": metadata,
        "items": items,
    })))
}

/// The Status object of a failure.
pub(super) fn status(code: u16) -> Value {
    let (reason, message) = match code {
        400 => ("BadRequest", "the request is not understood"),
        401 => ("Unauthorized", "Unauthorized"),
        403 => ("Forbidden", "the user may not do this"),
        410 => ("Expired", "too old resource version"),
        429 => ("TooManyRequests", "the server has received too many requests"),
        503 => ("ServiceUnavailable", "the server is unable to handle the request"),
        _ => ("InternalError", "an error on the server has prevented the request"),
    };
    json!({
        "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
        "code": code, "reason": reason, "message": message,
    })
}

pub(super) fn refuse(refusal: &Refusal) -> Response<Body> {
    let Refusal { code, retry_after, plain } = *refusal;
    let text = if plain { "Too many requests, please try again later.\n".to_owned() } else { status(code).to_string() };
    let code = StatusCode::from_u16(code).expect("an HTTP status");
    let mut response = with_body(code, whole(text));
    if let Some(seconds) = retry_after {
        response.headers_mut().insert("retry-after", seconds.into());
    }
    response
}

fn whole(text: String) -> Body {
    Full::new(Bytes::from(text)).map_err(|never| match never {}).boxed()
}

/// The first half of an answer, and what comes then in place of the second.
fn half(text: &str, rest: impl Stream<Item = io::Result<Frame<Bytes>>> + Send + Sync + 'static) -> Response<Body> {
    let half = Bytes::from(text.as_bytes()[..text.len() / 2].to_vec());
    let frames = stream::once(ready(Ok(Frame::data(half)))).chain(rest);
    with_body(StatusCode::OK, BodyExt::boxed(StreamBody::new(frames)))
}

fn broken() -> io::Result<Frame<Bytes>> {
    Err(io::ErrorKind::BrokenPipe.into())
}

fn with_body(code: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    response
}
