//! The views: which facts each shows, and in what form.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
};

use anyhow::Context as _;
use dsproxy_common::{IpFamily, flow::FlowState, layout::LAYOUT_VERSION, service::BackendState};
use nix::{
    sys::utsname::uname,
    time::{ClockId, clock_gettime},
};
use serde::Serialize;

use super::{Live, View, columns::Columns};
use crate::{
    datapath::attach,
    interfaces::{self, Overrides, Role},
    maps::{MapKind, MapStore as _, kernel::KernelMaps},
};

/// `dsproxy status`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    version: &'static str,
    kernel: String,
    layout: u32,
    hooks: Vec<Hook>,
    maps: Vec<MapFill>,
    packets: Vec<PacketCount>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    interface: String,
    role: Option<Role>,
    direction: String,
    kind: String,
    program_id: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct MapFill {
    map: &'static str,
    family: Option<String>,
    entries: usize,
    capacity: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct PacketCount {
    reason: &'static str,
    family: Option<String>,
    verdict: &'static str,
    packets: u64,
    meaning: &'static str,
}

/// Makes `dsproxy status`.
///
/// # Errors
///
/// When maps, links or interfaces cannot be read.
pub fn status(live: &Live) -> anyhow::Result<Status> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start a runtime")?;
    let interfaces = runtime.block_on(interfaces::read(&Overrides::new(&[], &[])?))?;
    let hooks = attach::list(&live.bpffs.links(), &interfaces)?;
    let capacities = live.maps.capacities();
    let frontends = live.maps.frontends()?;
    let backends = live.maps.backends()?;
    let mut maps = vec![MapFill {
        map: "services",
        family: None,
        entries: live.maps.names()?.len(),
        capacity: capacities.services,
    }];
    for family in IpFamily::ALL {
        let frontend_count = frontends.iter().filter(|(address, _)| address.family() == family).count();
        let in_use = |state| state != BackendState::Gone;
        let backend_count = backends.iter().filter(|(of, _, record)| *of == family && in_use(record.state)).count();
        let made = |map| live.maps.entries(family, map);
        for (map, entries, capacity) in [
            ("frontends", frontend_count, capacities.frontends),
            ("backends", backend_count, capacities.backends),
            ("connections", made(MapKind::Connections)?, capacities.connections),
            ("brief connections", made(MapKind::BriefConnections)?, capacities.brief_connections),
            ("masqueraded connections", made(MapKind::Masqueraded)?, capacities.connections),
            ("affinities", made(MapKind::Affinities)?, capacities.affinities),
        ] {
            maps.push(MapFill { map, family: Some(family.to_string()), entries, capacity });
        }
    }
    let counted = live.maps.counters()?.into_iter().filter(|(.., packets)| *packets > 0);
    let packets = counted.map(|(reason, family, packets)| PacketCount {
        reason: reason.name(),
        family: family.map(|family| family.to_string()),
        verdict: if reason.is_drop() { "drop" } else { "pass" },
        packets,
        meaning: reason.explanation().trim(),
    });
    Ok(Status {
        version: env!("CARGO_PKG_VERSION"),
        kernel: uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default(),
        layout: LAYOUT_VERSION,
        hooks: hooks
            .into_iter()
            .map(|hook| Hook {
                interface: hook.interface,
                role: hook.role,
                direction: hook.direction.to_string(),
                kind: hook.kind.to_string(),
                program_id: hook.program_id,
            })
            .collect(),
        maps,
        packets: packets.collect(),
    })
}

impl View for Status {
    fn table(&self) -> String {
        let Self { version, kernel, layout, hooks, maps, packets } = self;
        let mut text = format!("dsproxy {version}, map layout {layout}, kernel {kernel}\n\n");
        let mut columns = Columns::new(&["INTERFACE", "ROLE", "DIRECTION", "KIND", "PROGRAM"]);
        for Hook { interface, role, direction, kind, program_id } in hooks {
            let role = match role {
                Some(Role::PodInterface) => "pod interface",
                Some(Role::NodeDevice) => "node device",
                None => "",
            };
            columns.row([interface.clone(), role.to_owned(), direction.clone(), kind.clone(), program_id.to_string()]);
        }
        text += &columns.text();
        let mut columns = Columns::new(&["MAP", "FAMILY", "ENTRIES", "CAPACITY"]);
        for MapFill { map, family, entries, capacity } in maps {
            let family = family.clone().unwrap_or_default();
            columns.row([(*map).to_owned(), family, entries.to_string(), capacity.to_string()]);
        }
        text += "\n";
        text += &columns.text();
        let mut columns = Columns::new(&["PACKETS", "FAMILY", "REASON", "MEANING"]);
        for PacketCount { reason, family, verdict: _, packets, meaning } in packets {
            let family = family.clone().unwrap_or_default();
            columns.row([packets.to_string(), family, (*reason).to_owned(), (*meaning).to_owned()]);
        }
        text += "\n";
        text += &columns.text();
        text
    }
}

/// `dsproxy services`.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct Services(Vec<ServiceRow>);

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ServiceRow {
    name: String,
    family: String,
    protocol: String,
    frontend: SocketAddr,
    endpoints: Vec<SocketAddr>,
    distribution: &'static str,
    connections: u64,
    packets: u64,
    bytes: u64,
    reply_packets: u64,
    reply_bytes: u64,
}

/// Makes `dsproxy services`: a row for each frontend.
///
/// # Errors
///
/// When the maps cannot be read.
pub fn services(live: &Live) -> anyhow::Result<Services> {
    let names = names(&live.maps)?;
    let backends: HashMap<_, _> =
        live.maps.backends()?.into_iter().map(|(family, id, record)| ((family, id), record)).collect();
    let mut rows = Vec::new();
    for (address, frontend) in live.maps.frontends()? {
        let family = address.family();
        let slots = live.maps.slots(family, frontend.inside)?;
        let mut endpoints: Vec<SocketAddr> = slots
            .iter()
            .filter_map(|id| backends.get(&(family, *id)))
            .map(|record| SocketAddr::new(record.address, record.port))
            .collect();
        endpoints.sort_unstable();
        endpoints.dedup();
        let counted = live.maps.service_counters(frontend.service)?;
        rows.push(ServiceRow {
            name: name(&names, frontend.service),
            family: family.to_string(),
            protocol: address.protocol.to_string(),
            frontend: SocketAddr::new(address.address, address.port),
            distribution: if slots.len() > endpoints.len() { "maglev" } else { "list" },
            endpoints,
            connections: counted.connections,
            packets: counted.packets,
            bytes: counted.bytes,
            reply_packets: counted.reply_packets,
            reply_bytes: counted.reply_bytes,
        });
    }
    rows.sort_by(|a, b| (&a.name, a.frontend).cmp(&(&b.name, b.frontend)));
    Ok(Services(rows))
}

impl View for Services {
    /// Traffic is counted by service port, both families together, so it stands on each of its rows.
    fn table(&self) -> String {
        let mut columns = Columns::new(&[
            "SERVICE PORT",
            "FAMILY",
            "FRONTEND",
            "ENDPOINTS",
            "CONNECTIONS",
            "PACKETS",
            "BYTES",
            "REPLY BYTES",
        ]);
        for row in &self.0 {
            columns.row([
                row.name.clone(),
                row.family.clone(),
                row.frontend.to_string(),
                row.endpoints.len().to_string(),
                row.connections.to_string(),
                (row.packets + row.reply_packets).to_string(),
                row.bytes.to_string(),
                row.reply_bytes.to_string(),
            ]);
        }
        columns.text()
    }
}

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
    id: u32,
    generation: u32,
}

/// Makes `dsproxy backends`: those that take or keep connections.
///
/// # Errors
///
/// When the maps cannot be read.
pub fn backends(live: &Live) -> anyhow::Result<Backends> {
    let names = names(&live.maps)?;
    let backends = live.maps.backends()?.into_iter();
    let mut rows: Vec<BackendRow> = backends
        .filter(|(_, _, record)| record.state != BackendState::Gone)
        .map(|(family, id, record)| BackendRow {
            name: name(&names, record.service),
            family: family.to_string(),
            endpoint: SocketAddr::new(record.address, record.port),
            state: match record.state {
                BackendState::Active => "active",
                BackendState::Draining => "draining",
                BackendState::Gone => "gone",
            },
            id,
            generation: record.generation,
        })
        .collect();
    rows.sort_by(|a, b| (&a.name, a.endpoint).cmp(&(&b.name, b.endpoint)));
    Ok(Backends(rows))
}

impl View for Backends {
    fn table(&self) -> String {
        let mut columns = Columns::new(&["SERVICE PORT", "FAMILY", "ENDPOINT", "STATE", "ID", "GENERATION"]);
        for BackendRow { name, family, endpoint, state, id, generation } in &self.0 {
            columns.row([
                name.clone(),
                family.clone(),
                endpoint.to_string(),
                (*state).to_owned(),
                id.to_string(),
                generation.to_string(),
            ]);
        }
        columns.text()
    }
}

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
    state: &'static str,
    idle_seconds: u32,
    name: String,
}

/// Makes `dsproxy connections`: those whose entries still count.
///
/// # Errors
///
/// When the maps cannot be read.
pub fn connections(live: &Live) -> anyhow::Result<Connections> {
    let names = names(&live.maps)?;
    let settings = live.maps.settings()?;
    let now = jiffies(settings.jiffies_per_second)?;
    let mut rows = Vec::new();
    for connection in live.maps.connections()? {
        // An entry written since the clock was read would seem to be very old.
        let age = now.wrapping_sub(connection.last_seen);
        let age = if age > u32::MAX / 2 { 0 } else { age };
        if age > settings.lifetimes[usize::from(connection.state.number())] {
            continue;
        }
        let (address, port) = connection.client;
        rows.push(ConnectionRow {
            family: connection.frontend.family().to_string(),
            protocol: connection.frontend.protocol.to_string(),
            client: SocketAddr::new(address, port),
            frontend: SocketAddr::new(connection.frontend.address, connection.frontend.port),
            backend: connection.endpoint.map(|record| SocketAddr::new(record.address, record.port)),
            state: match connection.state {
                FlowState::Opening => "opening",
                FlowState::Answered => "answered",
                FlowState::Established => "established",
                FlowState::ClientClosed => "client-closed",
                FlowState::BackendClosed => "backend-closed",
                FlowState::Closing => "closing",
                FlowState::Reset => "reset",
                FlowState::Stateless => "active",
            },
            idle_seconds: age / settings.jiffies_per_second.max(1),
            name: name(&names, connection.service),
        });
    }
    rows.sort_by_key(|row| (row.client, row.frontend));
    Ok(Connections(rows))
}

impl View for Connections {
    fn table(&self) -> String {
        let mut columns = Columns::new(&["PROTOCOL", "CLIENT", "FRONTEND", "BACKEND", "STATE", "IDLE", "SERVICE PORT"]);
        for row in &self.0 {
            columns.row([
                row.protocol.clone(),
                row.client.to_string(),
                row.frontend.to_string(),
                row.backend.map_or_else(|| "gone".to_owned(), |backend| backend.to_string()),
                row.state.to_owned(),
                format!("{}s", row.idle_seconds),
                row.name.clone(),
            ]);
        }
        columns.text()
    }
}

fn names(maps: &KernelMaps) -> anyhow::Result<BTreeMap<u32, String>> {
    Ok(maps.names()?.into_iter().collect())
}

fn name(names: &BTreeMap<u32, String>, service: u32) -> String {
    names.get(&service).cloned().unwrap_or_default()
}

/// The low half of the kernel's jiffies now, to within a tick or two: they follow the monotonic clock from a start of
/// minus five minutes (`INITIAL_JIFFIES` in include/linux/jiffies.h).
pub(super) fn jiffies(per_second: u32) -> anyhow::Result<u32> {
    let uptime = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).context("read the clock")?;
    let seconds = u64::try_from(uptime.tv_sec()).unwrap_or_default();
    let nanoseconds = u64::try_from(uptime.tv_nsec()).unwrap_or_default();
    let ticks = seconds * u64::from(per_second) + nanoseconds * u64::from(per_second) / 1_000_000_000;
    Ok((ticks as u32).wrapping_sub(300 * per_second))
}
