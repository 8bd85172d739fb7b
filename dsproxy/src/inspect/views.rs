//! The views: which facts each shows, and in what form.

use std::collections::BTreeMap;

use crate::maps::kernel::KernelMaps;

mod backends;
mod connections;
mod services;
mod status;

pub use self::{backends::backends, connections::connections, services::services, status::status};

fn names(maps: &KernelMaps) -> anyhow::Result<BTreeMap<u32, String>> {
    Ok(maps.names()?.into_iter().collect())
}

fn name(names: &BTreeMap<u32, String>, service: u32) -> String {
    names.get(&service).cloned().unwrap_or_default()
}
