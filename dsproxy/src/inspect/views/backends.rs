//! The endpoints.

use std::net::SocketAddr;

use dsproxy_common::service::{BackendFlags, BackendState};
use serde::Serialize;

use super::{name, names};
use crate::inspect::{Live, View, columns::Columns, filter::RowFilter};

/// `dsproxy backends`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Backends(Vec<BackendRow>);

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct BackendRow {
    name: String,
    family: String,
    endpoint: SocketAddr,
    state: &'static str,
    /// On this node.
    local: bool,
    /// Takes new connections as one of the whole cluster's endpoints.
    in_cluster_list: bool,
    /// Takes new connections as one of this node's endpoints.
    in_local_list: bool,
    id: u32,
    generation: u32,
}

/// Makes `dsproxy backends`: those that `filter` takes, and that take or keep connections.
///
/// # Errors
///
/// When the maps cannot be read.
pub fn backends(live: &Live, filter: &RowFilter) -> anyhow::Result<Backends> {
    let names = names(&live.maps)?;
    let backends = live.maps.backends()?.into_iter();
    let mut rows: Vec<BackendRow> = backends
        .filter(|(_, _, record)| record.state != BackendState::Gone)
        .map(|(family, id, record)| {
            let endpoint = SocketAddr::new(record.address, record.port);
            (family, id, record, name(&names, record.service), endpoint)
        })
        .filter(|(family, _, _, name, endpoint)| filter.takes(name, *family, &[*endpoint]))
        .map(|(family, id, record, name, endpoint)| BackendRow {
            name,
            family: family.to_string(),
            endpoint,
            state: match record.state {
                BackendState::Active => "active",
                BackendState::Draining => "draining",
                BackendState::Gone => "gone",
            },
            local: record.flags & BackendFlags::LOCAL != 0,
            in_cluster_list: record.flags & BackendFlags::IN_CLUSTER_LIST != 0,
            in_local_list: record.flags & BackendFlags::IN_LOCAL_LIST != 0,
            id,
            generation: record.generation,
        })
        .collect();
    rows.sort_by(|a, b| (&a.name, a.endpoint).cmp(&(&b.name, b.endpoint)));
    Ok(Backends(rows))
}

impl View for Backends {
    fn table(&self) -> String {
        let headings = ["SERVICE PORT", "ENDPOINT", "STATE", "NODE", "TAKES", "ID", "GENERATION"];
        let mut columns = Columns::new(&headings);
        for row in &self.0 {
            let takes = [(row.in_cluster_list, "cluster"), (row.in_local_list, "local")];
            let takes: Vec<_> = takes.into_iter().filter(|(is_in, _)| *is_in).map(|(_, list)| list).collect();
            columns.row([
                row.name.clone(),
                row.endpoint.to_string(),
                row.state.to_owned(),
                if row.local { "this" } else { "another" }.to_owned(),
                if takes.is_empty() { "none".to_owned() } else { takes.join(", ") },
                row.id.to_string(),
                row.generation.to_string(),
            ]);
        }
        columns.text()
    }
}
