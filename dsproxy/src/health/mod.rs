//! What load balancers and the kubelet are told of this node.
//!
//! ```text
//!   Progress, SourceStatus, attachments' Report
//!           v
//!         Health ---------+--> node: /healthz and /livez
//!                         |
//!   HealthChecks ---------+--> service: the answer at a healthCheckNodePort
//!           |                     ^
//!           +--> plan --> listeners: where such ports are open
//!   node port addresses --^
//! ```

use std::{sync::Arc, time::Instant};

use crate::{attachments, model::ObjectName, progress::Progress, source::SourceStatus};

mod listeners;
mod node;
mod plan;
mod service;

pub use listeners::{Places, Report, follow};
pub use node::routes;

/// What the answers go by.
#[derive(Clone, Debug)]
pub struct Health {
    progress: Arc<Progress>,
    source: Arc<SourceStatus>,
    attached: Arc<attachments::Report>,
}

impl Health {
    /// Health as `progress` and `attached` tell it, and what `source` tells of its troubles.
    pub fn new(progress: Arc<Progress>, source: Arc<SourceStatus>, attached: Arc<attachments::Report>) -> Self {
        Self { progress, source, attached }
    }

    /// Whether Services are served as the source has them: the maps have once held all of it, and no update waits too long
    /// since. And what serves them is still this daemon's.
    fn serves(&self, now: Instant) -> bool {
        self.progress.is_synced() && self.is_live(now) && !self.attached.is_taken_away()
    }

    /// As `serves`, and whether there was room for `service` at all.
    fn serves_service(&self, service: &ObjectName, now: Instant) -> bool {
        self.serves(now) && !self.progress.is_unserved(service)
    }

    /// Whether a new start would not help: no update waits too long.
    fn is_live(&self, now: Instant) -> bool {
        !self.progress.is_stale(now)
    }
}
