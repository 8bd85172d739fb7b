//! The connections.

use std::net::SocketAddr;

use anyhow::Context as _;
use dsproxy_common::flow::{FlowState, jiffies_since};
use serde::Serialize;

use super::{name, names};
use crate::{
    inspect::{Live, View, columns::Columns, filter::FlowFilter},
    jiffies,
};

/// `dsproxy connections`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Connections(Vec<ConnectionRow>);

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ConnectionRow {
    family: String,
    protocol: String,
    client: SocketAddr,
    frontend: SocketAddr,
    backend: Option<SocketAddr>,
    /// The node's address and port that the backend sees, where it does not see the client.
    masquerade: Option<SocketAddr>,
    /// Whether the backend's node answers the client directly.
    direct: bool,
    state: &'static str,
    idle_seconds: u32,
    name: String,
}

/// Makes `dsproxy connections`: those that `filter` takes and whose entries still count.
///
/// # Errors
///
/// When the maps cannot be read.
pub fn connections(live: &Live, filter: &FlowFilter) -> anyhow::Result<Connections> {
    up_to(usize::MAX, live, filter)
}

/// As [`connections`], of all, but no more than `most`: those that the tables have first.
///
/// # Errors
///
/// When the maps cannot be read.
pub(in crate::inspect) fn first_connections(live: &Live, most: usize) -> anyhow::Result<Connections> {
    up_to(most, live, &FlowFilter::default())
}

fn up_to(most: usize, live: &Live, filter: &FlowFilter) -> anyhow::Result<Connections> {
    let names = names(&live.maps)?;
    let settings = live.maps.settings()?;
    let now = jiffies::now(settings.jiffies_per_second).context("read the clock")?;
    let mut rows = Vec::new();
    for connection in live.maps.connections() {
        if rows.len() == most {
            break;
        }
        let connection = connection?;
        // An entry may have been written since the clock was read.
        let age = jiffies_since(connection.last_seen, now);
        if age > settings.lifetimes[usize::from(connection.state.number())] {
            continue;
        }
        let (address, port) = connection.client;
        let client = SocketAddr::new(address, port);
        let frontend = SocketAddr::new(connection.frontend.address, connection.frontend.port);
        let backend = connection.endpoint.map(|record| SocketAddr::new(record.address, record.port));
        let masquerade = connection.masquerade.map(|(address, port)| SocketAddr::new(address, port));
        let name = name(&names, connection.service);
        let (protocol, family) = (connection.frontend.protocol, connection.frontend.family());
        let addresses: Vec<_> = [Some(client), Some(frontend), backend, masquerade].into_iter().flatten().collect();
        if !filter.takes(protocol, &name, family, &addresses) {
            continue;
        }
        rows.push(ConnectionRow {
            family: family.to_string(),
            protocol: protocol.to_string(),
            client,
            frontend,
            backend,
            masquerade,
            direct: connection.is_direct,
            state: match connection.state {
                FlowState::Opening => "opening",
                // Nobody has: answers to this do not come by this node.
                FlowState::Answered if connection.is_direct => "opening",
                FlowState::Answered => "answered",
                FlowState::Established => "established",
                FlowState::ClientClosed => "client-closed",
                FlowState::BackendClosed => "backend-closed",
                FlowState::Closing => "closing",
                FlowState::Reset => "reset",
                FlowState::Stateless => "active",
            },
            idle_seconds: age / settings.jiffies_per_second.max(1),
            name,
        });
    }
    rows.sort_by_key(|row| (row.client, row.frontend));
    Ok(Connections(rows))
}

/// As whom the backend sees the client.
fn seen_as(row: &ConnectionRow) -> String {
    let seen = row.masquerade.unwrap_or(row.client);
    if row.direct { format!("{seen}, directly") } else { seen.to_string() }
}

impl View for Connections {
    fn table(&self) -> String {
        let mut columns =
            Columns::new(&["PROTOCOL", "CLIENT", "FRONTEND", "BACKEND", "SEEN AS", "STATE", "IDLE", "SERVICE PORT"]);
        for row in &self.0 {
            columns.row([
                row.protocol.clone(),
                row.client.to_string(),
                row.frontend.to_string(),
                row.backend.map_or_else(|| "gone".to_owned(), |backend| backend.to_string()),
                seen_as(row),
                row.state.to_owned(),
                format!("{}s", row.idle_seconds),
                row.name.clone(),
            ]);
        }
        columns.text()
    }
}
