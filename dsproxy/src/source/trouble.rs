//! How each watch of a source fares, in terms that metrics and health checks can tell: a class of trouble, not a text.
//!
//! Texts go to the log: they name addresses and users, which are not everybody's to read.

use std::{collections::BTreeMap, time::SystemTime};

/// Declares [`Trouble`] with a name for each value.
macro_rules! troubles {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What is the matter with a watch.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Trouble {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Trouble {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The name in metrics and health checks.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }
    };
}

troubles! {
    /// Nothing was heard of the server yet.
    Starting = "starting",
    /// No connection can be made.
    Unreachable = "unreachable",
    /// One side does not accept the other's certificate.
    Certificate = "certificate",
    /// The server did not answer in time.
    Timeout = "timeout",
    /// The connection broke within an answer.
    Broken = "broken",
    /// HTTP 401: the credentials are not accepted.
    Unauthorized = "unauthorized",
    /// HTTP 403: a Role does not allow it.
    Forbidden = "forbidden",
    /// HTTP 404: the server has no such resource.
    NotFound = "not-found",
    /// HTTP 429: the server is asked too much.
    Throttled = "throttled",
    /// HTTP 5xx: the server fails.
    ServerError = "server-error",
    /// Another HTTP status.
    Refused = "refused",
    /// Watches are ended as soon as they begin.
    CutShort = "cut-short",
    /// The answer is not what an API server writes.
    Unreadable = "unreadable",
    /// HTTP 410: the server has forgotten what the watch has seen; everything is listed again.
    Gone = "gone",
    /// Versions go back: the server was restored from a backup; everything is listed again.
    OtherHistory = "other-history",
    /// A list lacks what it cannot well lack; what it lacks is kept until the server has confirmed it.
    ObjectsMissing = "objects-missing",
}

/// How the watch of one resource fares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchStatus {
    /// The resource, as it stands in an API path.
    pub resource: &'static str,
    /// Whether it is watched. What the server does not have, or keeps from us, need not be.
    pub works: bool,
    /// What is the matter with it, if something is.
    pub trouble: Option<Trouble>,
    /// Since when it has been well, or not.
    pub since: SystemTime,
    /// How many objects are kept that the last list lacks.
    pub held_back: usize,
    /// What has failed how often since the start.
    pub failures: BTreeMap<Trouble, u64>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let names: BTreeSet<_> = Trouble::ALL.iter().map(|trouble| trouble.name()).collect();
        assert_eq!(names.len(), Trouble::ALL.len());
    }
}
