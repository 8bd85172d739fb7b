//! The text of a manifest file to objects.
//!
//! One bad document harms no other, so the text is cut into documents before any of them is read. It knows
//! nothing of files.

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;
use tracing::debug;

use super::super::convert::{self, Converted, FromObject};
use crate::model::{EndpointSlice, Node, Service, ServiceCidr};

/// How deep lists may stand in lists.
const DEEPEST_LIST: usize = 8;

/// Brackets within each other that no object needs: the parser of YAML takes a time for them that grows with the square of their number.
const DEEPEST_BRACKETS: usize = 1_000;

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Yaml,
    Json,
}

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) services: Vec<Converted<Service>>,
    pub(super) endpoint_slices: Vec<Converted<EndpointSlice>>,
    pub(super) nodes: Vec<Converted<Node>>,
    pub(super) service_cidrs: Vec<Converted<ServiceCidr>>,
    /// The documents that are no object, so that nobody knows what they were meant to be.
    pub(super) broken: Vec<Broken>,
}

/// A document that is no object.
#[derive(Debug, Error)]
#[error("document {document}: {reason}")]
pub(super) struct Broken {
    /// Its place in the file, from 1.
    document: usize,
    #[source]
    reason: DocumentError,
}

#[derive(Debug, Error)]
pub(super) enum DocumentError {
    #[error("not text: {0}")]
    Encoding(#[from] std::str::Utf8Error),
    #[error("not YAML: {0}")]
    Yaml(#[from] serde_yaml::Error),
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error("not an object but {0}")]
    NoObject(&'static str),
    #[error("an object without kind")]
    NoKind,
    #[error("an object of kind {kind} without apiVersion")]
    NoApiVersion { kind: String },
    #[error("{kind} of apiVersion {api_version}; {known} is known")]
    ApiVersion { kind: String, api_version: String, known: &'static str },
    #[error("a {0} whose items are no list")]
    NoItems(String),
    #[error("lists within lists, more than {DEEPEST_LIST} deep")]
    TooDeep,
    #[error("brackets within brackets, more than {DEEPEST_BRACKETS} deep")]
    TooNested,
}

/// Reads the text of a file.
pub(super) fn read(text: &[u8], format: Format) -> Contents {
    let mut contents = Contents::default();
    let text = match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(error) => {
            contents.add(1, Err(error.into()));
            return contents;
        }
    };
    match format {
        Format::Yaml => {
            for (index, document) in yaml_documents(text).enumerate() {
                for value in read_yaml(document) {
                    contents.add(index + 1, value);
                }
            }
        }
        Format::Json => {
            let values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
            for (index, value) in values.enumerate() {
                contents.add(index + 1, value.map_err(DocumentError::from));
            }
        }
    }
    contents
}

/// Cuts at lines that begin with `---`, which can stand nowhere inside a document.
fn yaml_documents(text: &str) -> impl Iterator<Item = &str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut starts = vec![0];
    let mut position = 0;
    for line in text.split_inclusive('\n') {
        if line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace)) {
            starts.push(position);
        }
        position += line.len();
    }
    let ends: Vec<usize> = starts[1..].iter().copied().chain([text.len()]).collect();
    starts.into_iter().zip(ends).map(|(start, end)| &text[start..end]).filter(|document| {
        // A comment or a %YAML directive above the first document is none.
        document.lines().any(|line| {
            let line = line.trim();
            !(line.is_empty() || line.starts_with(['#', '%']) || line == "---")
        })
    })
}

/// How many brackets are open at once at most. Those in quotes count as well, which makes no difference to what is written in earnest.
fn bracket_depth(text: &str) -> usize {
    let (_, deepest) = text.bytes().fold((0_usize, 0), |(depth, deepest), byte| {
        let depth = match byte {
            b'[' | b'{' => depth + 1,
            b']' | b'}' => depth.saturating_sub(1),
            _ => depth,
        };
        (depth, deepest.max(depth))
    });
    deepest
}

fn read_yaml(document: &str) -> Vec<Result<Value, DocumentError>> {
    if bracket_depth(document) > DEEPEST_BRACKETS {
        return vec![Err(DocumentError::TooNested)];
    }
    // A document that ends with `...` may be followed by another without `---`.
    let mut values = Vec::new();
    for document in serde_yaml::Deserializer::from_str(document) {
        let value = serde_yaml::Value::deserialize(document).and_then(|mut value| {
            value.apply_merge()?;
            Ok(value)
        });
        // Through the YAML value, as keys that are numbers or truth values are strings in JSON.
        let value = value.map_err(DocumentError::from);
        let value = value.and_then(|value| Ok(serde_json::to_value(&value)?));
        let failed = value.is_err();
        values.push(value);
        if failed {
            break;
        }
    }
    values
}

impl Contents {
    fn add(&mut self, document: usize, value: Result<Value, DocumentError>) {
        if let Err(reason) = value.and_then(|value| self.add_object(value, None, 0)) {
            self.broken.push(Broken { document, reason });
        }
    }

    /// `of_list` is the apiVersion and kind that the items of a typed list have without saying so.
    fn add_object(
        &mut self,
        mut value: Value,
        of_list: Option<(&str, &str)>,
        depth: usize,
    ) -> Result<(), DocumentError> {
        let object = match &mut value {
            Value::Object(object) => object,
            // An empty document.
            Value::Null => return Ok(()),
            Value::Bool(_) => return Err(DocumentError::NoObject("a truth value")),
            Value::Number(_) => return Err(DocumentError::NoObject("a number")),
            Value::String(_) => return Err(DocumentError::NoObject("a string")),
            Value::Array(_) => return Err(DocumentError::NoObject("a sequence")),
        };
        if let Some((api_version, kind)) = of_list {
            object.entry("apiVersion").or_insert_with(|| api_version.into());
            object.entry("kind").or_insert_with(|| kind.into());
        }
        let text = |field| object.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
        let kind = text("kind").ok_or(DocumentError::NoKind)?.to_owned();
        let api_version =
            text("apiVersion").ok_or_else(|| DocumentError::NoApiVersion { kind: kind.clone() })?.to_owned();

        match (group(&api_version), kind.as_str()) {
            ("", "Service") => add(&mut self.services, &value, &api_version)?,
            ("discovery.k8s.io", "EndpointSlice") => add(&mut self.endpoint_slices, &value, &api_version)?,
            ("", "Node") => add(&mut self.nodes, &value, &api_version)?,
            ("networking.k8s.io", "ServiceCIDR") => add(&mut self.service_cidrs, &value, &api_version)?,
            ("", "List" | "ServiceList" | "NodeList")
            | ("discovery.k8s.io", "EndpointSliceList")
            | ("networking.k8s.io", "ServiceCIDRList") => {
                if depth == DEEPEST_LIST {
                    return Err(DocumentError::TooDeep);
                }
                let item = kind.strip_suffix("List").filter(|item| !item.is_empty());
                let of_list = item.map(|item| (api_version.as_str(), item));
                let items = match object.remove("items") {
                    Some(Value::Array(items)) => items,
                    None | Some(Value::Null) => Vec::new(),
                    Some(_) => return Err(DocumentError::NoItems(kind)),
                };
                let mut first_error = None;
                for item in items {
                    if let Err(error) = self.add_object(item, of_list, depth + 1) {
                        first_error.get_or_insert(error);
                    }
                }
                return first_error.map_or(Ok(()), Err);
            }
            (group, _) => debug!(group, kind, "an object of a kind that is not used"),
        }
        Ok(())
    }
}

/// The API group, empty for the core group.
fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

fn add<T: FromObject>(objects: &mut Vec<Converted<T>>, value: &Value, api_version: &str) -> Result<(), DocumentError> {
    if api_version == T::API_VERSION {
        objects.push(convert::from_json(value));
        return Ok(());
    }
    Err(DocumentError::ApiVersion {
        kind: T::KIND.name().to_owned(),
        api_version: api_version.to_owned(),
        known: T::API_VERSION,
    })
}

#[cfg(test)]
mod garbled;
#[cfg(test)]
mod tests;
