//! A request as the server understands it.
//!
//! It does not know the answer.

use std::{collections::BTreeMap, time::Instant};

use super::{select::Selector, store::Resource};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// The objects as they are.
    List,
    /// The first of the objects as they are, for the version that a list has now.
    Look,
    /// What happens to them.
    Watch,
}

/// A request that was made.
#[derive(Clone, Debug)]
pub struct Request {
    /// What is asked for.
    pub verb: Verb,
    /// Of what.
    pub resource: Resource,
    /// The query parameters.
    pub parameters: BTreeMap<String, String>,
    /// When it arrived.
    pub at: Instant,
}

impl Request {
    /// The query parameter of this name.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    pub(super) fn number(&self, name: &str) -> Result<Option<u64>, String> {
        let number = |text: &str| text.parse().map_err(|_| format!("{name}={text:?}"));
        self.parameter(name).map(number).transpose()
    }

    pub(super) fn selector(&self) -> Result<Selector, String> {
        Selector::parse(self.parameter("labelSelector"), self.parameter("fieldSelector"))
    }

    /// Reads a request, or says what about it is not understood.
    pub(super) fn read<B>(request: &hyper::Request<B>) -> Result<Self, String> {
        let uri = request.uri();
        if request.method() != hyper::Method::GET {
            return Err(format!("{} {uri}", request.method()));
        }
        let resource = Resource::of_path(uri.path()).ok_or_else(|| format!("path of {uri}"))?;
        let mut parameters = BTreeMap::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').ok_or_else(|| format!("query of {uri}"))?;
            let value = decode(value).ok_or_else(|| format!("query of {uri}"))?;
            parameters.insert(name.to_owned(), value);
        }
        let verb = match parameters.remove("watch").as_deref() {
            None if parameters.get("limit").is_some_and(|limit| limit == "1") => Verb::Look,
            None => Verb::List,
            Some("true") => Verb::Watch,
            Some(_) => return Err(format!("query of {uri}")),
        };
        let known: &[&str] = match verb {
            Verb::List | Verb::Look => &["labelSelector", "fieldSelector", "limit", "continue"],
            Verb::Watch => {
                &["labelSelector", "fieldSelector", "timeoutSeconds", "allowWatchBookmarks", "resourceVersion"]
            }
        };
        if let Some(unknown) = parameters.keys().find(|name| !known.contains(&name.as_str())) {
            return Err(format!("parameter {unknown} of {uri}"));
        }
        let request = Self { verb, resource, parameters, at: Instant::now() };
        request.selector()?;
        Ok(request)
    }
}

/// Whether a request carries the token.
pub(super) fn is_authorized<B>(request: &hyper::Request<B>, token: &str) -> bool {
    let authorization = request.headers().get("authorization");
    authorization.is_some_and(|value| value.as_bytes() == format!("Bearer {token}").as_bytes())
}

fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next()?, rest.next()?];
                u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok()
}
