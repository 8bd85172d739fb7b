//! What goes wrong, as told by the test.
//!
//! It does not carry anything out: it tells each request what is to go wrong with it.

use std::{
    sync::{Mutex, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};

use super::{
    lock,
    request::{Request, Verb},
    store::Resource,
};

/// What goes wrong with a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is refused.
    Refuse(Refusal),
    /// It is answered late.
    Delay(Duration),
    /// It is never answered.
    Hang,
    /// The connection ends within the answer.
    CutAnswer,
    /// Half of the answer comes, and then nothing, without an end.
    StallAnswer,
    /// It is answered with this text.
    Answer(String),
}

/// A refusal.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// The HTTP status.
    pub code: u16,
    /// The seconds of the header Retry-After.
    pub retry_after: Option<u64>,
    /// Plain text instead of a Status object, as priority and fairness or a proxy answers.
    pub plain: bool,
}

impl Refusal {
    /// A refusal with this HTTP status and a Status object.
    pub fn with(code: u16) -> Self {
        Self { code, retry_after: None, plain: false }
    }
}

/// Which requests a fault is for; what is not said matches all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Matching {
    /// Only these.
    pub verb: Option<Verb>,
    /// Only for this.
    pub resource: Option<Resource>,
}

impl Matching {
    /// Requests of this kind.
    pub fn only(verb: Verb, resource: Resource) -> Self {
        Self { verb: Some(verb), resource: Some(resource) }
    }

    fn matches(self, request: &Request) -> bool {
        let Self { verb, resource } = self;
        verb.is_none_or(|verb| verb == request.verb) && resource.is_none_or(|resource| resource == request.resource)
    }
}

/// How a watch is told that it begins too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// By the HTTP status.
    Status,
    /// By an event of type ERROR.
    Event,
}

/// What goes wrong with requests to come.
#[derive(Debug, Default)]
pub struct Faults {
    planned: Mutex<Vec<Planned>>,
    gone_by_status: AtomicBool,
}

#[derive(Debug)]
struct Planned {
    matching: Matching,
    /// How often; none for ever.
    times: Option<usize>,
    fault: Fault,
}

impl Faults {
    /// Lets the next `times` matching requests go wrong.
    pub fn next(&self, matching: Matching, times: usize, fault: Fault) {
        lock(&self.planned).push(Planned { matching, times: Some(times), fault });
    }

    /// Lets all matching requests go wrong until [`clear`](Self::clear).
    pub fn always(&self, matching: Matching, fault: Fault) {
        lock(&self.planned).push(Planned { matching, times: None, fault });
    }

    /// Nothing goes wrong any more.
    pub fn clear(&self) {
        lock(&self.planned).clear();
    }

    /// How watches that begin too early are told so.
    pub fn tell_gone_by(&self, gone: Gone) {
        self.gone_by_status.store(gone == Gone::Status, Ordering::Relaxed);
    }

    pub(super) fn gone(&self) -> Gone {
        if self.gone_by_status.load(Ordering::Relaxed) { Gone::Status } else { Gone::Event }
    }

    /// What goes wrong with this request.
    pub(super) fn take(&self, request: &Request) -> Option<Fault> {
        let mut planned = lock(&self.planned);
        let index = planned.iter().position(|planned| planned.matching.matches(request))?;
        let fault = planned[index].fault.clone();
        if let Some(times) = &mut planned[index].times {
            *times -= 1;
            if *times == 0 {
                planned.remove(index);
            }
        }
        Some(fault)
    }
}
