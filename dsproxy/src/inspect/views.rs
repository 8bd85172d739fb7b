//! The views: which facts each shows, and in what form.

use std::{collections::BTreeMap, net::SocketAddr};

use crate::maps::kernel::KernelMaps;

mod backends;
mod connections;
mod services;
mod status;

pub(super) use self::connections::first_connections;
use self::status::daemon::{Standing, daemon};
pub use self::{backends::backends, connections::connections, services::services, status::status};
use crate::inspect::Live;

/// Where the daemon serves metrics; none if none runs, or it serves them nowhere.
pub(super) fn metrics_address(live: &Live) -> anyhow::Result<Option<SocketAddr>> {
    let daemon = daemon(live)?;
    Ok(daemon.word.filter(|_| daemon.standing != Standing::NotRunning).and_then(|word| word.metrics))
}

fn names(maps: &KernelMaps) -> anyhow::Result<BTreeMap<u32, String>> {
    Ok(maps.names()?.into_iter().collect())
}

fn name(names: &BTreeMap<u32, String>, service: u32) -> String {
    names.get(&service).cloned().unwrap_or_default()
}
