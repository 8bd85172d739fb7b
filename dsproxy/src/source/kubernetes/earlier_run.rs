//! What is served of an earlier run when the source begins: a first list that lacks all of it is not believed at once either.
//!
//! It knows of objects no more than that they are there.

use std::collections::HashSet;

use dsproxy_common::service::BackendState;

use super::super::convert::Kind;
use crate::{maps::Contents, model::ObjectName, reconcile::service_of};

/// What the maps hold of an earlier run.
#[derive(Clone, Debug, Default)]
pub struct EarlierRun {
    services: HashSet<ObjectName>,
    backends: usize,
}

/// What is served of the objects of one kind.
#[derive(Clone, Debug, Default)]
pub(super) enum OfKind {
    /// Nothing, or nobody knows.
    #[default]
    Nothing,
    /// What comes from these.
    Names(HashSet<ObjectName>),
    /// So much that comes from some of them.
    Some(usize),
}

impl EarlierRun {
    /// What `contents` holds.
    pub fn of(contents: &Contents) -> Self {
        let active = |record: &crate::maps::BackendRecord| record.state == BackendState::Active;
        Self {
            services: contents.names.iter().filter_map(|(_, name)| service_of(name)).collect(),
            backends: contents.backends.iter().filter(|(_, _, record)| active(record)).count(),
        }
    }

    pub(super) fn of_kind(&self, kind: Kind) -> OfKind {
        match kind {
            Kind::Service if !self.services.is_empty() => OfKind::Names(self.services.clone()),
            Kind::EndpointSlice if self.backends > 0 => OfKind::Some(self.backends),
            Kind::Service | Kind::EndpointSlice | Kind::Node | Kind::ServiceCidr => OfKind::Nothing,
        }
    }
}
