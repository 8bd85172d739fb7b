//! What the API server sends: pages of a list, and the lines of a watch.
//!
//! Objects are turned into the model one by one while they are read, so that a page never exists as full
//! objects, and a malformed object is known by its name instead of failing all that stands around it. It
//! knows nothing of requests.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::core::Status;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::convert::{self, Converted, FromObject};
use crate::model::ObjectName;

/// One page of a list.
#[derive(Deserialize)]
#[serde(bound = "")]
pub(super) struct Page<T: FromObject> {
    #[serde(default)]
    pub(super) metadata: ListMeta,
    #[serde(default)]
    items: Option<Vec<Item<T>>>,
}

impl<T: FromObject> Page<T> {
    pub(super) fn into_objects(self) -> impl Iterator<Item = Converted<T>> {
        self.items.into_iter().flatten().map(|item| item.0)
    }
}

struct Item<T>(Converted<T>);

impl<'de, T: FromObject> Deserialize<'de> for Item<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(|value| Self(convert::from_json(&value)))
    }
}

/// One line of a watch.
#[derive(Debug)]
pub(super) enum WatchEvent<T> {
    /// An object is new, has changed, or has begun to match the selectors.
    Changed { object: Converted<T>, version: Option<String> },
    /// An object is gone, or has ceased to match the selectors.
    Deleted { name: Option<ObjectName>, version: Option<String> },
    /// Nothing happened up to this version.
    Bookmark { version: Option<String> },
    /// The server cannot go on.
    Error(Status),
}

impl<T> WatchEvent<T> {
    /// Where the watch has got to with this event.
    pub(super) fn version(&self) -> Option<&str> {
        match self {
            Self::Changed { version, .. } | Self::Deleted { version, .. } | Self::Bookmark { version } => {
                version.as_deref()
            }
            Self::Error(_) => None,
        }
    }
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    event: EventType,
    object: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum EventType {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

/// Reads one line of a watch.
pub(super) fn read_line<T: FromObject>(line: &[u8]) -> Result<WatchEvent<T>, serde_json::Error> {
    let Line { event, object } = serde_json::from_slice(line)?;
    let version = object
        .pointer("/metadata/resourceVersion")
        .and_then(Value::as_str)
        .filter(|version| !version.is_empty())
        .map(str::to_owned);
    Ok(match event {
        EventType::Added | EventType::Modified => WatchEvent::Changed { object: convert::from_json(&object), version },
        EventType::Deleted => WatchEvent::Deleted { name: convert::json_name(&object), version },
        EventType::Bookmark => WatchEvent::Bookmark { version },
        EventType::Error => WatchEvent::Error(serde_json::from_value(object)?),
    })
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    searched: usize,
}

impl Lines {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole line that is not empty, without its end.
    pub(super) fn pop(&mut self) -> Option<Vec<u8>> {
        loop {
            let Some(end) = self.buffer[self.searched..].iter().position(|&byte| byte == b'\n') else {
                self.searched = self.buffer.len();
                return None;
            };
            let rest = self.buffer.split_off(self.searched + end + 1);
            let mut line = std::mem::replace(&mut self.buffer, rest);
            self.searched = 0;
            line.truncate(line.trim_ascii_end().len());
            if !line.is_empty() {
                return Some(line);
            }
        }
    }

    /// The length of the line that has begun and not ended.
    pub(super) fn unfinished(&self) -> usize {
        self.buffer.len()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Service;

    fn service(name: &str, port: &Value) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "ns", "resourceVersion": "7"},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": port}]},
        })
    }

    fn page(text: &str) -> Page<Service> {
        serde_json::from_str(text).expect("a page")
    }

    #[test]
    fn a_malformed_object_harms_no_other() {
        let text = json!({
            "kind": "ServiceList",
            "metadata": {"resourceVersion": "9", "continue": "more"},
            "items": [
                service("a", &json!(80)),
                service("b", &json!("eighty")),
                {"metadata": {"name": "c", "labels": "none"}},
                "not an object",
                service("d", &json!(80)),
            ],
        });
        let page = page(&text.to_string());
        assert_eq!(page.metadata.resource_version.as_deref(), Some("9"));
        assert_eq!(page.metadata.continue_.as_deref(), Some("more"));
        let objects: Vec<(bool, Option<String>)> = page
            .into_objects()
            .map(|object| {
                let ours = matches!(object, Converted::Ours { .. });
                (ours, object.object_name().map(ToString::to_string))
            })
            .collect();
        let named = |ours, name: &str| (ours, Some(name.to_owned()));
        assert_eq!(
            objects,
            [named(true, "ns/a"), named(false, "ns/b"), named(false, "default/c"), (false, None), named(true, "ns/d"),]
        );
    }

    #[test]
    fn a_list_of_nothing_is_null() {
        let page = page(r#"{"metadata": {"resourceVersion": "9"}, "items": null}"#);
        assert_eq!(page.into_objects().count(), 0);
    }

    #[test]
    fn lines_of_a_watch_are_told_apart() {
        let read = |event: &str, object: Value| {
            read_line::<Service>(json!({"type": event, "object": object}).to_string().as_bytes()).expect("a line")
        };
        for event in ["ADDED", "MODIFIED"] {
            let WatchEvent::Changed { object, version } = read(event, service("a", &json!(80))) else {
                panic!("{event} is no change");
            };
            assert!(matches!(object, Converted::Ours { .. }));
            assert_eq!(version.as_deref(), Some("7"));
        }
        // A deletion needs nothing but the name.
        let WatchEvent::Deleted { name, .. } = read("DELETED", service("a", &json!("eighty"))) else {
            panic!("no deletion");
        };
        assert_eq!(name, Some(ObjectName::new("ns", "a")));
        let bookmark = read("BOOKMARK", json!({"metadata": {"resourceVersion": "8"}}));
        assert_eq!(bookmark.version(), Some("8"));
        let WatchEvent::Error(status) = read("ERROR", json!({"code": 410, "message": "old"})) else {
            panic!("no error");
        };
        assert_eq!((status.code, status.message.as_str()), (410, "old"));
    }

    #[test]
    fn a_line_that_is_no_event_is_an_error() {
        for line in ["", "{", "[]", r#"{"type": "RENAMED", "object": {}}"#, r#"{"type": "ADDED"}"#] {
            read_line::<Service>(line.as_bytes()).expect_err(line);
        }
    }

    #[test]
    fn lines_are_whole_whatever_the_pieces() {
        let text = b"one\ntwo\r\n\n\nthree\nfo";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            let mut whole = Vec::new();
            for piece in text.chunks(size) {
                lines.push(piece);
                while let Some(line) = lines.pop() {
                    whole.push(line);
                }
            }
            assert_eq!(whole, [b"one".as_slice(), b"two", b"three"], "pieces of {size}");
            assert_eq!(lines.unfinished(), 2);
        }
    }
}
