//! `dsproxy trace`: what would become of a packet that enters, and why, in words.
//!
//! `explain` is pure: a picture of the maps in, steps and an outcome out. It takes the steps of `pipeline/ingress.rs` of the kernel
//! programs, by the same rules, which are in `dsproxy_common`; a test holds it against what packets really do.

mod explain;
mod picture;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, bail};
use dsproxy_common::{Protocol, count::Reason, settings::Passage};
use serde::Serialize;

pub use self::{explain::explain, picture::Picture};
use super::{Live, View};
use crate::{cli::TraceArguments, jiffies};

/// By which kind of device a packet enters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// A pod's interface.
    Pod,
    /// A node device.
    Node,
}

/// A packet that opens a connection, or belongs to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// The transport protocol.
    pub protocol: Protocol,
    /// The client.
    pub source: SocketAddr,
    /// Where it sends to.
    pub destination: SocketAddr,
    /// By what it enters.
    pub from: From,
}

/// What becomes of the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on as it came.
    Passed(Reason),
    /// It goes to this endpoint.
    Sent {
        /// The endpoint.
        endpoint: SocketAddr,
        /// How it leaves.
        passage: Passage,
    },
    /// It goes no further; for some reasons the client is told.
    Dropped(Reason),
}

/// The answer: how it was arrived at, and what it is.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trace {
    packet: String,
    steps: Vec<String>,
    verdict: &'static str,
    reason: Option<&'static str>,
    endpoint: Option<SocketAddr>,
    masqueraded: bool,
    /// Whether the endpoint's node answers the client directly.
    direct: bool,
}

impl Trace {
    /// The answer to `question`.
    pub fn new(question: &Question, steps: Vec<String>, outcome: &Outcome) -> Self {
        let Question { protocol, source, destination, from: _ } = question;
        let (verdict, reason, sent) = match *outcome {
            Outcome::Passed(reason) => ("pass", Some(reason.name()), None),
            Outcome::Sent { endpoint, passage } => ("send", None, Some((endpoint, passage))),
            Outcome::Dropped(reason) => ("drop", Some(reason.name()), None),
        };
        Self {
            packet: format!("{protocol} {source} -> {destination}"),
            steps,
            verdict,
            reason,
            endpoint: sent.map(|(endpoint, _)| endpoint),
            masqueraded: matches!(sent, Some((_, Passage::Masqueraded))),
            direct: matches!(sent, Some((_, Passage::Direct))),
        }
    }
}

impl View for Trace {
    fn table(&self) -> String {
        let Self { packet, steps, verdict: _, reason: _, endpoint: _, masqueraded: _, direct: _ } = self;
        let mut text = format!("{packet}\n");
        for (number, step) in (1..).zip(steps) {
            text += &format!("  {number}. {step}\n");
        }
        text
    }
}

/// Reads what `arguments` ask.
///
/// # Errors
///
/// When source and destination are not of one family.
pub fn question(arguments: &TraceArguments) -> anyhow::Result<Question> {
    let TraceArguments { protocol, source, destination, from, inspect: _ } = arguments;
    let source = end(source).with_context(|| format!("read the source {source:?}"))?;
    let destination = end(destination).with_context(|| format!("read the destination {destination:?}"))?;
    if source.is_ipv4() != destination.is_ipv4() {
        bail!("{} and {} are not of one family", source.ip(), destination.ip());
    }
    Ok(Question { protocol: (*protocol).into(), source, destination, from: *from })
}

/// An address with a port, or without one; then the port is zero.
fn end(text: &str) -> anyhow::Result<SocketAddr> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(SocketAddr::new(address, 0));
    }
    text.parse().context("write ADDRESS:PORT, an IPv6 address in brackets")
}

/// Makes `dsproxy trace`.
///
/// # Errors
///
/// When the maps cannot be read, or the question makes no sense.
pub fn trace(live: &Live, arguments: &TraceArguments) -> anyhow::Result<Trace> {
    let question = question(arguments)?;
    let settings = live.maps.settings().context("read the settings")?;
    let now = jiffies::now(settings.jiffies_per_second).context("read the clock")?;
    let picture = Picture::read(&live.maps, &question, now).context("read the maps")?;
    let (steps, outcome) = explain(&question, &picture);
    Ok(Trace::new(&question, steps, &outcome))
}
