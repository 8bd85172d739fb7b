//! Open watches: what happens is sent as it happens, and tests can interfere.
//!
//! It does not know how a watch was asked for beyond where it begins and what it selects.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures::stream::unfold;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    Shared,
    answer::{self, Body},
    faults::{Gone, Refusal},
    lock,
    request::Request,
    select::Selector,
    store::{Change, Resource},
};

/// What a test does to an open watch.
#[derive(Clone, Debug)]
pub enum StreamAct {
    /// The server ends it in order.
    End,
    /// The connection ends.
    Cut,
    /// This object is sent as a change, but the connection ends in the middle of the line.
    CutWithin(Value),
    /// The same, but the server ends the stream in order after half the line.
    EndWithin(Value),
    /// Nothing is sent any more, and it does not end.
    FallSilent,
    /// This text is sent as a line.
    Line(String),
    /// The server says how far the watch has got.
    Bookmark,
    /// An event of type ERROR with this code.
    Error(u16),
}

/// The watches that are open.
#[derive(Default)]
pub(super) struct OpenStreams {
    streams: Mutex<Vec<(Resource, mpsc::UnboundedSender<StreamAct>)>>,
}

impl OpenStreams {
    pub(super) fn act(&self, resource: Resource, act: &StreamAct) -> usize {
        let streams = lock(&self.streams);
        let of_resource = streams.iter().filter(|(of, _)| *of == resource);
        of_resource.filter(|(_, stream)| stream.send(act.clone()).is_ok()).count()
    }

    pub(super) fn count(&self, resource: Resource) -> usize {
        let streams = lock(&self.streams);
        streams.iter().filter(|(of, stream)| *of == resource && !stream.is_closed()).count()
    }

    fn register(&self, resource: Resource) -> mpsc::UnboundedReceiver<StreamAct> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut streams = lock(&self.streams);
        streams.retain(|(_, stream)| !stream.is_closed());
        streams.push((resource, sender));
        receiver
    }
}

/// A watch from the server's side.
pub(super) struct OpenStream {
    shared: Arc<Shared>,
    resource: Resource,
    selector: Selector,
    bookmarks: bool,
    /// What was sent, or passed over.
    version: u64,
    acts: mpsc::UnboundedReceiver<StreamAct>,
    progress: tokio::sync::watch::Receiver<u64>,
    ends: tokio::time::Instant,
    over: Option<io::Result<()>>,
}

/// Opens a watch; an error says what about the request is not understood.
pub(super) fn open(request: &Request, shared: &Arc<Shared>) -> Result<Result<Body, Refusal>, String> {
    let version = request.number("resourceVersion")?.ok_or("a watch from nowhere")?;
    let duration = request.number("timeoutSeconds")?.ok_or("a watch without end")?;
    // One from a version to come is silent until then, as the real server's may be.
    let too_old = version < lock(&shared.store).oldest();
    if too_old && shared.faults.gone() == Gone::Status {
        return Ok(Err(Refusal::with(410)));
    }
    let mut stream = OpenStream {
        shared: Arc::clone(shared),
        resource: request.resource,
        selector: request.selector()?,
        bookmarks: request.parameter("allowWatchBookmarks") == Some("true"),
        version,
        acts: shared.streams.register(request.resource),
        progress: shared.progress.subscribe(),
        ends: tokio::time::Instant::now() + Duration::from_secs(duration),
        over: None,
    };
    if too_old {
        // The acts of a stream of which nobody can know are nobody's.
        let (sender, receiver) = mpsc::unbounded_channel();
        stream.acts = receiver;
        for act in [StreamAct::Error(410), StreamAct::End] {
            sender.send(act).map_err(|error| error.to_string())?;
        }
    }
    shared.moved();
    let frames = unfold(stream, |mut stream| async {
        let bytes = stream.next().await?;
        Some((bytes.map(Frame::data), stream))
    });
    Ok(Ok(BodyExt::boxed(StreamBody::new(frames))))
}

impl OpenStream {
    /// What is sent next; none at an orderly end.
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        match self.over.take() {
            Some(Ok(())) => return None,
            Some(Err(error)) => {
                self.over = Some(Ok(()));
                return Some(Err(error));
            }
            None => {}
        }
        loop {
            self.progress.borrow_and_update();
            if let Some(lines) = self.pending_lines() {
                return Some(Ok(lines));
            }
            tokio::select! {
                // The server itself is gone.
                changed = self.progress.changed() => changed.ok()?,
                () = tokio::time::sleep_until(self.ends) => return None,
                Some(act) = self.acts.recv() => {
                    let mut bytes = self.pending_lines().map_or_else(Vec::new, Vec::from);
                    self.act(act, &mut bytes);
                    if !bytes.is_empty() {
                        return Some(Ok(bytes.into()));
                    }
                    match self.over.take() {
                        Some(Ok(())) => return None,
                        Some(Err(error)) => return Some(Err(error)),
                        None => {}
                    }
                }
            }
        }
    }

    fn act(&mut self, act: StreamAct, bytes: &mut Vec<u8>) {
        match act {
            StreamAct::End => self.over = Some(Ok(())),
            StreamAct::Cut => self.over = Some(Err(io::ErrorKind::BrokenPipe.into())),
            StreamAct::CutWithin(object) => {
                bytes.extend_from_slice(&half_a_line(&object));
                self.over = Some(Err(io::ErrorKind::BrokenPipe.into()));
            }
            StreamAct::EndWithin(object) => {
                bytes.extend_from_slice(&half_a_line(&object));
                self.over = Some(Ok(()));
            }
            StreamAct::FallSilent => {
                // Nothing happens after the last version, and not for as long as any test takes.
                self.version = u64::MAX;
                self.ends += Duration::from_secs(3600);
                // It counts as open no more, so that a test can wait for its silence.
                self.acts.close();
                self.shared.moved();
            }
            StreamAct::Line(text) => bytes.extend_from_slice(format!("{text}\n").as_bytes()),
            StreamAct::Bookmark => {
                assert!(self.bookmarks, "a bookmark for a watch that wants none");
                self.version = lock(&self.shared.store).version();
                let (api_version, kind) = self.resource.type_meta();
                bytes.extend_from_slice(&line(
                    "BOOKMARK",
                    &json!({
                        "apiVersion": api_version,
                        "kind": kind,
                        "metadata": {"resourceVersion": self.version.to_string()},
                    }),
                ));
            }
            StreamAct::Error(code) => {
                bytes.extend_from_slice(&line("ERROR", &answer::status(code)));
            }
        }
    }

    /// The lines about what happened since the last ones.
    fn pending_lines(&mut self) -> Option<Bytes> {
        let changes = lock(&self.shared.store).changes_after(self.version, self.resource);
        self.version = changes.last()?.version;
        let lines: Vec<u8> = changes.iter().filter_map(|change| self.line(change)).flatten().collect();
        (!lines.is_empty()).then(|| lines.into())
    }

    fn line(&self, change: &Change) -> Option<Vec<u8>> {
        let Change { version, resource: _, before, after } = change;
        let selected = |object: &Option<Value>| object.clone().filter(|object| self.selector.matches(object));
        match (selected(before), selected(after)) {
            (None, None) => None,
            (None, Some(object)) => Some(line("ADDED", &object)),
            (Some(_), Some(object)) => Some(line("MODIFIED", &object)),
            (Some(mut object), None) => {
                // As it was last seen by this watch, at the version of the change.
                object["metadata"]["resourceVersion"] = json!(version.to_string());
                Some(line("DELETED", &object))
            }
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.acts.close();
        self.shared.moved();
    }
}

fn half_a_line(object: &Value) -> Vec<u8> {
    let mut line = line("MODIFIED", object);
    line.truncate(line.len() / 2);
    line
}

fn line(event: &str, object: &Value) -> Vec<u8> {
    // In the order in which the real server writes them.
    format!("{{\"type\":\"{event}\",\"object\":{object}}}\n").into_bytes()
}
