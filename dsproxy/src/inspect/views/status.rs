//! Whether a daemon keeps the maps up to date, what is attached where, how full the maps are, and what became of packets.

use std::path::Path;

use anyhow::Context as _;
use dsproxy_common::{layout::LAYOUT_VERSION, next_hop::Routing};
use nix::sys::utsname::uname;
use serde::Serialize;

use crate::{
    datapath::{
        attach::{
            self, AttachKind, WhyNot,
            cgroup::{self, SocketAttachment},
        },
        load,
        probe::{Feature, features},
    },
    host_settings,
    inspect::{
        Live, View,
        columns::Columns,
        fill::{self, MapFill, fill},
    },
    interfaces::Role,
    jiffies,
};

pub(in crate::inspect) mod daemon;

use self::daemon::{DaemonStatus, daemon};

/// `dsproxy status`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    version: &'static str,
    kernel: String,
    layout: u32,
    daemon: DaemonStatus,
    features: Vec<Feature>,
    hooks: Vec<Hook>,
    without_xdp: Vec<WithoutXdp>,
    routing: Option<FollowedRouting>,
    socket_hooks: Vec<SocketAttachment>,
    maps: Vec<MapFill>,
    packets: Vec<PacketCount>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Hook {
    interface: String,
    role: Role,
    direction: String,
    kind: String,
    program_id: u32,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct WithoutXdp {
    interface: String,
    reason: String,
}

/// What XDP is told of the kernel's routing, where XDP serves.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct FollowedRouting {
    /// How often it has changed, or the stack had its turn.
    changes: u32,
    /// For how long XDP may rely on that; none if the stack has all packets.
    seconds_left: Option<u32>,
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
    let next_hops = load::open_pinned_next_hops(&live.bpffs)?;
    let node_devices = next_hops.devices()?;
    let hooks = attach::list(&live.bpffs.links(), |index| node_devices.contains_key(&index))?;
    let routing = followed_routing(next_hops.routing()?)?;
    let in_the_way = || host_settings::in_the_way_of_xdp(Path::new("/"));
    let without_xdp = node_devices.iter().filter_map(|(index, device)| {
        let reason = WhyNot::of(device, in_the_way)?.to_string();
        Some(WithoutXdp { interface: attach::name_of(*index), reason })
    });
    let without_xdp = without_xdp.filter(|without| !without.interface.is_empty()).collect();
    let has_xdp = hooks.iter().any(|hook| hook.kind == AttachKind::Xdp);
    let socket_hooks = cgroup::list(&live.bpffs.links())?;
    let programs = hooks.iter().map(|hook| hook.program_id).chain(socket_hooks.iter().map(|hook| hook.program_id));
    let maps = fill(live, &programs.collect())?;
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
        daemon: daemon(live)?,
        features: features(),
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
        without_xdp,
        routing: has_xdp.then_some(routing),
        socket_hooks,
        maps,
        packets: packets.collect(),
    })
}

fn followed_routing(routing: Routing) -> anyhow::Result<FollowedRouting> {
    let second = jiffies::per_second().context("read the clock")?;
    let now = jiffies::now(second).context("read the clock")?;
    let seconds_left = routing.holds(now).then(|| routing.lease.wrapping_sub(now) / second);
    Ok(FollowedRouting { changes: routing.epoch, seconds_left })
}

impl View for Status {
    fn table(&self) -> String {
        let Self {
            version,
            kernel,
            layout,
            daemon,
            features,
            hooks,
            without_xdp,
            routing,
            socket_hooks,
            maps,
            packets,
        } = self;
        let mut text = format!("dsproxy {version}, map layout {layout}, kernel {kernel}\n\n");
        text += &daemon.table();
        let mut columns = Columns::new(&["KERNEL", "FOUND", "WHAT FOR"]);
        for Feature { name, found, meaning, why_unknown } in features {
            let found = match (found, why_unknown) {
                (Some(true), _) => "yes".to_owned(),
                (Some(false), _) => "no".to_owned(),
                (None, why) => format!("unknown: {}", why.as_deref().unwrap_or_default()),
            };
            columns.row([(*name).to_owned(), found, (*meaning).to_owned()]);
        }
        text += "\n";
        text += &columns.text();
        text += "\n";
        let mut columns = Columns::new(&["INTERFACE", "ROLE", "DIRECTION", "KIND", "PROGRAM"]);
        for Hook { interface, role, direction, kind, program_id } in hooks {
            let role = match role {
                Role::PodInterface => "pod interface",
                Role::NodeDevice => "node device",
            };
            columns.row([interface.clone(), role.to_owned(), direction.clone(), kind.clone(), program_id.to_string()]);
        }
        text += &columns.text();
        if !without_xdp.is_empty() {
            let mut columns = Columns::new(&["WITHOUT XDP", "WHY"]);
            for WithoutXdp { interface, reason } in without_xdp {
                columns.row([interface.clone(), reason.clone()]);
            }
            text += "\n";
            text += &columns.text();
        }
        if let Some(FollowedRouting { changes, seconds_left }) = routing {
            text += &match seconds_left {
                Some(seconds) => {
                    format!("\nXDP relies on the kernel's routing as of change {changes}, for {seconds} s more\n")
                }
                None => "\nXDP leaves all packets to tc: nobody follows the kernel's routing. Does the daemon run?\n"
                    .to_owned(),
            };
        }
        if !socket_hooks.is_empty() {
            let mut columns = Columns::new(&["SOCKETS", "CGROUP", "PROGRAM"]);
            for SocketAttachment { hook, cgroup, program_id, link_id: _ } in socket_hooks {
                columns.row([(*hook).to_owned(), cgroup.to_string(), program_id.to_string()]);
            }
            text += "\n";
            text += &columns.text();
        }
        text += "\n";
        text += &fill::table(maps);
        let mut columns = Columns::new(&["PACKETS", "FAMILY", "VERDICT", "REASON", "MEANING"]);
        for PacketCount { reason, family, verdict, packets, meaning } in packets {
            let family = family.clone().unwrap_or_default();
            columns.row([
                packets.to_string(),
                family,
                (*verdict).to_owned(),
                (*reason).to_owned(),
                (*meaning).to_owned(),
            ]);
        }
        text += "\n";
        text += &columns.text();
        text
    }
}
