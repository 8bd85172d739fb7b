//! What every source does with a converted object: log and count what is wrong with it.
//!
//! It does not know what the source then does about an older version of the object.

use tracing::{debug, info, warn};

use super::{
    SourceStatus,
    convert::{Converted, FromObject},
};
use crate::model::ObjectName;

/// An object after everything noteworthy about it was said.
#[derive(Debug)]
pub(super) enum Taken<T> {
    /// To be served.
    Ours(T),
    /// Not, or no longer, for this proxy.
    NotOurs(ObjectName),
    /// Makes no sense; nameless when even the name could not be read.
    Bad(Option<ObjectName>),
}

impl<T: FromObject> Taken<T> {
    /// The name of the object.
    pub(super) fn name(&self) -> Option<&ObjectName> {
        match self {
            Self::Ours(object) => Some(object.name()),
            Self::NotOurs(name) => Some(name),
            Self::Bad(name) => name.as_ref(),
        }
    }
}

/// Logs and counts what is wrong with an object.
pub(super) fn take<T: FromObject>(converted: Converted<T>, status: &SourceStatus) -> Taken<T> {
    match converted {
        Converted::Ours { object, skipped } => {
            for part in skipped {
                if part.is_nonsense() {
                    status.count_skipped();
                    warn!(kind = %T::KIND, object = %object.name(), part = %part, "left out of an object");
                } else {
                    info!(kind = %T::KIND, object = %object.name(), part = %part, "left out of an object");
                }
            }
            Taken::Ours(object)
        }
        Converted::NotOurs { name, why } => {
            debug!(kind = %T::KIND, object = %name, %why, "not for this proxy");
            Taken::NotOurs(name)
        }
        Converted::Rejected(rejected) => {
            status.count_rejected();
            warn!(kind = %T::KIND, reason = %rejected, "object left out, its last good version stays");
            Taken::Bad(rejected.name)
        }
    }
}
