//! What is served of an earlier run when the source begins: a first list that lacks all of it is not believed at once either.
//!
//! It knows of objects no more than that they are there.

use std::collections::{HashMap, HashSet};

use dsproxy_common::service::BackendState;

use super::super::convert::Kind;
use crate::{
    maps::{BackendRecord, Contents},
    model::ObjectName,
    reconcile::service_of,
};

/// What the maps hold of an earlier run.
#[derive(Clone, Debug, Default)]
pub struct EarlierRun {
    services: HashSet<ObjectName>,
    /// Backends of the Service that every API server keeps by itself.
    backends_by_server: usize,
    other_backends: usize,
}

/// What is served of the objects of one kind.
#[derive(Clone, Debug, Default)]
pub(super) enum OfKind {
    /// Nothing, or nobody knows.
    #[default]
    Nothing,
    /// What comes from these.
    Names(HashSet<ObjectName>),
    /// What comes from some of them, of which the names are not known.
    Some {
        /// So much from the one that every API server keeps by itself.
        by_server: usize,
        /// So much from others.
        others: usize,
    },
}

impl EarlierRun {
    /// What `contents` holds.
    pub fn of(contents: &Contents) -> Self {
        let named = contents.names.iter().filter_map(|(id, name)| Some((*id, service_of(name)?)));
        let names: HashMap<u32, ObjectName> = named.collect();
        let kept_by_server = Kind::Service.kept_by_server();
        let is_by_server = |record: &&BackendRecord| names.get(&record.service) == kept_by_server.as_ref();
        let active = |record: &&BackendRecord| record.state == BackendState::Active;
        let backends = || contents.backends.iter().map(|(_, _, record)| record).filter(active);
        let backends_by_server = backends().filter(is_by_server).count();
        let other_backends = backends().count() - backends_by_server;
        Self { services: names.into_values().collect(), backends_by_server, other_backends }
    }

    pub(super) fn of_kind(&self, kind: Kind) -> OfKind {
        match kind {
            Kind::Service if !self.services.is_empty() => OfKind::Names(self.services.clone()),
            Kind::EndpointSlice if self.backends_by_server + self.other_backends > 0 => {
                OfKind::Some { by_server: self.backends_by_server, others: self.other_backends }
            }
            Kind::Service | Kind::EndpointSlice | Kind::Node | Kind::ServiceCidr => OfKind::Nothing,
        }
    }
}
