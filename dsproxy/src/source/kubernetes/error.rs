//! Why a list or a watch came to an end, and what has to be done about it.
//!
//! It knows what the API server's refusals mean, and nothing of when to try again.

use std::{error::Error, fmt, time::Duration};

use kube::{core::Status, runtime::watcher};
use thiserror::Error;

use super::super::{Trouble, convert::Kind};

/// The longest that a server may ask us to stay away.
const LONGEST_ASKED_FOR: Duration = Duration::from_secs(60);

/// What was asked of the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    List,
    Watch,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::List => "list",
            Self::Watch => "watch",
        })
    }
}

/// A request: the operation and the objects it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Operation {
    pub(super) verb: Verb,
    pub(super) kind: Kind,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.kind.plural())
    }
}

/// Why a list or a watch came to an end.
#[derive(Debug, Error)]
pub(super) enum RequestError {
    #[error(
        "{operation}: the API server cannot be reached: {}; {}, it is tried again",
        Chain(.source), advice_on_connecting(.source)
    )]
    Unreachable {
        operation: Operation,
        #[source]
        source: kube::Error,
    },
    #[error("{operation}: the API server did not answer within {after:?}; it is tried again")]
    Silent { operation: Operation, after: Duration },
    #[error("{operation}: the API server refuses with {code}: {message}; {}", advice(*code, *operation))]
    Refused { operation: Operation, code: u16, message: String, asked_for: Option<Duration> },
    #[error("{operation}: the connection broke: {}; it is made again", Chain(.source))]
    Broken {
        operation: Operation,
        #[source]
        source: kube::Error,
    },
    #[error("{operation}: the API server ended it at once; it is started again")]
    CutShort { operation: Operation },
    #[error("{operation}: the answer cannot be read: {}; everything is listed again", Chain(.source))]
    Unreadable {
        operation: Operation,
        #[source]
        source: kube::Error,
    },
    #[error("{kind}: a list or an object carries no resourceVersion; is this an API server?")]
    NoVersion { kind: Kind },
    #[error("{operation}: the server no longer has what happened since ({message}); everything is listed again")]
    Gone { operation: Operation, message: String },
    #[error(
        "{operation}: resourceVersion {got} follows {seen}, so the server's history is another; everything is \
         listed again"
    )]
    OtherHistory { operation: Operation, seen: u64, got: u64 },
}

impl RequestError {
    /// What kube's watcher came upon.
    pub(super) fn of_watcher(kind: Kind, error: watcher::Error) -> Self {
        use watcher::Error;
        let (verb, source) = match error {
            Error::InitialListFailed(source) => (Verb::List, source),
            Error::WatchStartFailed(source) | Error::WatchFailed(source) => (Verb::Watch, source),
            Error::WatchError(status) => {
                return Self::refused(Operation { verb: Verb::Watch, kind }, *status, None);
            }
            Error::NoResourceVersion => return Self::NoVersion { kind },
        };
        let operation = Operation { verb, kind };
        match source {
            kube::Error::Service(error) => match error.downcast::<Self>() {
                Ok(error) => *error,
                Err(error) => Self::Broken { operation, source: kube::Error::Service(error) },
            },
            source @ (kube::Error::ReadEvents(_) | kube::Error::HyperError(_)) => Self::Broken { operation, source },
            source => Self::Unreadable { operation, source },
        }
    }

    /// What the server said in refusing.
    pub(super) fn refused(operation: Operation, status: Status, retry_after: Option<Duration>) -> Self {
        let Status { code, message, reason, details, .. } = status;
        let message = if message.is_empty() { reason.clone() } else { message };
        let asked_for = retry_after
            .or_else(|| {
                let seconds = details.as_ref()?.retry_after_seconds;
                (seconds > 0).then(|| Duration::from_secs(seconds.into()))
            })
            .map(|asked_for| asked_for.min(LONGEST_ASKED_FOR));
        // A server restored from a backup is behind what was seen of it.
        let behind = details
            .is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "ResourceVersionTooLarge"))
            || message.contains("Too large resource version");
        if behind || code == 410 || reason == "Expired" || reason == "Gone" {
            Self::Gone { operation, message }
        } else {
            Self::Refused { operation, code, message, asked_for }
        }
    }

    /// Whether a watch cannot go on from where it was.
    pub(super) fn needs_list(&self) -> bool {
        match self {
            Self::Gone { .. } | Self::OtherHistory { .. } | Self::Unreadable { .. } | Self::NoVersion { .. } => true,
            // Refused credentials and an overloaded server say nothing against the resource version.
            Self::Refused { code, .. } => matches!(code, 400..=499) && !matches!(code, 401 | 403 | 408 | 429),
            Self::Unreachable { .. } | Self::Silent { .. } | Self::Broken { .. } | Self::CutShort { .. } => false,
        }
    }

    /// Whether the server does not have the kind, or a Role keeps it from us.
    pub(super) fn is_withheld(&self) -> bool {
        matches!(self, Self::Refused { code: 403 | 404, .. })
    }

    /// Whether it is a Role that keeps it from us. A server that starts may say so before it has read its Roles.
    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused { code: 403, .. })
    }

    /// Whether a list could not go on with its next page.
    pub(super) fn is_lost_page(&self) -> bool {
        matches!(self, Self::Gone { operation: Operation { verb: Verb::List, .. }, .. })
    }

    /// Whether trying again costs the server something.
    pub(super) fn reached_server(&self) -> bool {
        !matches!(self, Self::Unreachable { .. } | Self::Silent { .. } | Self::Broken { .. })
    }

    /// Whether the server was away, for all that can be seen from here; one that stands in front of it may answer in its place.
    pub(super) fn lost_server(&self) -> bool {
        !self.reached_server() || matches!(self, Self::Refused { code: 502..=504, .. })
    }

    /// The class of it.
    pub(super) fn trouble(&self) -> Trouble {
        match self {
            Self::Unreachable { source, .. } | Self::Broken { source, .. } if is_about_certificates(source) => {
                Trouble::Certificate
            }
            Self::Unreachable { .. } => Trouble::Unreachable,
            Self::Silent { .. } => Trouble::Timeout,
            Self::Broken { .. } => Trouble::Broken,
            Self::Refused { code, .. } => match code {
                401 => Trouble::Unauthorized,
                403 => Trouble::Forbidden,
                404 => Trouble::NotFound,
                429 => Trouble::Throttled,
                500..=599 => Trouble::ServerError,
                _ => Trouble::Refused,
            },
            Self::CutShort { .. } => Trouble::CutShort,
            Self::Unreadable { .. } | Self::NoVersion { .. } => Trouble::Unreadable,
            Self::Gone { .. } => Trouble::Gone,
            Self::OtherHistory { .. } => Trouble::OtherHistory,
        }
    }

    /// How long the server asked us to stay away.
    pub(super) fn asked_for(&self) -> Option<Duration> {
        match self {
            Self::Refused { asked_for, .. } => *asked_for,
            _ => None,
        }
    }
}

/// What the user can do about a refusal.
fn advice(code: u16, operation: Operation) -> String {
    match code {
        401 => "check the token or the certificate of the kubeconfig".to_owned(),
        403 if !operation.kind.is_necessary() => {
            format!("it goes without until list and watch on {} are allowed in a ClusterRole", operation.kind.plural())
        }
        403 => format!("allow list and watch on {} in a ClusterRole", operation.kind.plural()),
        404 if !operation.kind.is_necessary() => {
            format!("this server has no {}; it goes without", operation.kind.plural())
        }
        404 => "check that the address is that of a Kubernetes API server".to_owned(),
        _ => "it is tried again".to_owned(),
    }
}

/// What the user can do where no connection is made.
fn advice_on_connecting(error: &kube::Error) -> &'static str {
    if is_about_certificates(error) {
        "check the certificate authority and the client's certificate in the kubeconfig, and what the server was given"
    } else {
        "check its address and the network"
    }
}

/// Whether one side of the connection does not accept the other's certificate.
fn is_about_certificates(error: &kube::Error) -> bool {
    use rustls::{AlertDescription as Alert, Error as Tls};
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        // An error of I/O tells the cause of what it wraps, and not that itself.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        let tls = wrapped.and_then(|error| error.downcast_ref::<Tls>()).or_else(|| error.downcast_ref::<Tls>());
        if let Some(tls) = tls {
            return matches!(
                tls,
                Tls::InvalidCertificate(_)
                    | Tls::NoCertificatesPresented
                    | Tls::AlertReceived(
                        Alert::BadCertificate
                            | Alert::UnsupportedCertificate
                            | Alert::CertificateRevoked
                            | Alert::CertificateExpired
                            | Alert::CertificateUnknown
                            | Alert::CertificateRequired
                            | Alert::UnknownCA
                            | Alert::DecryptError
                    )
            );
        }
        cause = wrapped.map_or_else(|| error.source(), |wrapped| Some(wrapped));
    }
    false
}

/// An error with its causes: kube's own text often ends before the one that says something.
struct Chain<'a, E>(&'a E);

impl<E: Error> fmt::Display for Chain<'_, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = self.0.to_string();
        f.write_str(&last)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !last.contains(&text) {
                write!(f, ": {text}")?;
            }
            last = text;
            cause = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WATCH: Operation = Operation { verb: Verb::Watch, kind: Kind::Service };

    fn refused(status: serde_json::Value) -> RequestError {
        let status = serde_json::from_value(status).expect("a status");
        RequestError::refused(WATCH, status, None)
    }

    #[test]
    fn a_lost_history_needs_a_list() {
        for status in [
            serde_json::json!({"code": 410, "reason": "Expired", "message": "too old"}),
            serde_json::json!({"code": 410}),
            serde_json::json!({"code": 504, "message": "Timeout: Too large resource version: 9"}),
            serde_json::json!({"code": 504, "details": {"causes": [{"reason": "ResourceVersionTooLarge"}]}}),
        ] {
            let error = refused(status);
            assert!(matches!(error, RequestError::Gone { .. }), "{error}");
            assert!(error.needs_list());
            assert_eq!(error.trouble(), Trouble::Gone);
        }
    }

    #[test]
    fn an_unwilling_server_does_not_need_a_list() {
        for code in [401, 403, 429, 500, 503] {
            let error = refused(serde_json::json!({"code": code, "message": "no"}));
            assert!(!error.needs_list(), "{error}");
            assert!(error.to_string().contains("no"), "{error}");
        }
    }

    #[test]
    fn refusals_have_classes() {
        for (code, trouble) in [
            (401, Trouble::Unauthorized),
            (403, Trouble::Forbidden),
            (404, Trouble::NotFound),
            (409, Trouble::Refused),
            (429, Trouble::Throttled),
            (500, Trouble::ServerError),
            (503, Trouble::ServerError),
        ] {
            assert_eq!(refused(serde_json::json!({"code": code, "message": "no"})).trouble(), trouble, "{code}");
        }
    }

    #[test]
    fn a_refused_right_names_the_resource() {
        let text = refused(serde_json::json!({"code": 403, "message": "forbidden"})).to_string();
        assert!(text.contains("list and watch on services"), "{text}");
    }

    #[test]
    fn what_is_not_necessary_can_be_gone_without() {
        let operation = Operation { verb: Verb::List, kind: Kind::ServiceCidr };
        for code in [403, 404] {
            let status = serde_json::from_value(serde_json::json!({"code": code, "message": "no"})).expect("a status");
            let error = RequestError::refused(operation, status, None);
            assert!(error.is_withheld());
            let text = error.to_string();
            assert!(text.contains("servicecidrs.networking.k8s.io") && text.contains("without"), "{text}");
        }
        assert!(!refused(serde_json::json!({"code": 500, "message": "no"})).is_withheld());
    }

    #[test]
    fn what_the_server_asks_for_is_bounded() {
        let details = serde_json::json!({"code": 429, "details": {"retryAfterSeconds": 86_400}});
        assert_eq!(refused(details).asked_for(), Some(LONGEST_ASKED_FOR));
    }
}
