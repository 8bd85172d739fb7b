//! What became of a packet, or a socket's call, that was not translated.

use dsproxy_common::{count::Reason, flow::NO_SERVICE};

/// Why a packet goes on as it came, or no further. Whose it is is said with it, for after that only whoever had looked it up knows.
#[derive(Clone, Copy)]
pub(crate) struct Untranslated {
    pub(crate) reason: Reason,
    /// The service port whose packet it is; `NO_SERVICE` if it is none's, or not known.
    pub(crate) service: u32,
}

impl Untranslated {
    /// As the reason says, of a packet of `service`.
    #[inline(always)]
    pub(crate) fn of(service: u32) -> impl Fn(Reason) -> Self + Copy {
        move |reason| Self { reason, service }
    }
}

impl From<Reason> for Untranslated {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self { reason, service: NO_SERVICE }
    }
}
