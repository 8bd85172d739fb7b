//! Tells the log once a minute what goes on having no room: Services that are not served as they should be, and tables of connections in
//! which open ones give way to new ones. The kernel does not say when one does, so it is the table's fill that tells.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use tokio::{
    task,
    time::{MissedTickBehavior, interval},
};
use tracing::warn;

use crate::{
    datapath::{
        bpffs::Bpffs,
        open_connections::{self, Table},
    },
    maps::{Capacities, MapKind, MapStore as _, kernel::KernelMaps},
    model::ObjectName,
    progress::{Progress, Snapshot},
};

/// How many entries of an LRU hash each CPU sets aside (`LOCAL_FREE_TARGET` in kernel/bpf/bpf_lru_list.c): a table without so many has none
/// to spare.
const SET_ASIDE: usize = 128;

/// Tells the log, for ever, of what `progress` has no room for, and of the tables pinned on `bpffs`.
pub async fn follow(bpffs: Bpffs, maps: KernelMaps, progress: Arc<Progress>, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let cpus = aya::util::nr_cpus().unwrap_or(1);
    loop {
        ticks.tick().await;
        let Snapshot { failed, host_failure, .. } = progress.snapshot();
        for (reason, services) in by_reason(&failed) {
            let service = services[0];
            warn!(%service, and_others = services.len() - 1, reason, "Services are still not served as they should be");
        }
        if let Some(reason) = host_failure {
            warn!(reason, "networks or the node's addresses are still not in the maps as they should be");
        }
        // Large tables take a while to read, which the other tasks of this thread should not wait for.
        let tables = task::block_in_place(|| open_connections::read_tables(&bpffs, &maps));
        let tables = match tables {
            Ok(tables) => tables,
            Err(error) => {
                warn!(error = format!("{error:#}"), "whether the tables of connections are full is not known");
                continue;
            }
        };
        for Table { kind, family, open, .. } in
            tables.into_iter().filter(|table| is_full(table, &maps.capacities(), cpus))
        {
            let (table, flag) = (kind.name(), kind.flag().unwrap_or_default());
            warn!(table, %family, open, "open connections give way to new ones: {}; {flag} sets the table's size", advice(kind));
        }
    }
}

/// The Services by why they are not served as they should be.
fn by_reason(failed: &BTreeMap<ObjectName, String>) -> BTreeMap<&str, Vec<&ObjectName>> {
    let mut reasons: BTreeMap<&str, Vec<&ObjectName>> = BTreeMap::new();
    for (service, reason) in failed {
        reasons.entry(reason).or_default().push(service);
    }
    reasons
}

/// Whether a new entry takes the place of an open connection: those that are over give way before.
fn is_full(table: &Table, capacities: &Capacities, cpus: usize) -> bool {
    let Some(capacity) = capacities.of(table.kind) else { return false };
    let capacity = capacity as usize;
    // In a small table all may be set aside.
    let least = capacity.saturating_sub(cpus * SET_ASIDE).max(capacity / 2);
    table.entries >= least && table.open >= least
}

fn advice(kind: MapKind) -> &'static str {
    match kind {
        MapKind::BriefConnections => {
            "what is opening and what is not TCP; is it a flood? `dsproxy top` shows whose. A flow that was pushed out goes on, a masqueraded \
             one by another port"
        }
        _ => "confirmed TCP, which goes on where its Service has one endpoint, and ends elsewhere",
    }
}

#[cfg(test)]
mod tests {
    use dsproxy_common::IpFamily;

    use super::*;

    #[test]
    fn a_table_is_full_when_open_connections_fill_it() {
        let capacities = Capacities { connections: 10_000, ..Capacities::default() };
        let of = |entries, open| Table { kind: MapKind::Connections, family: IpFamily::V6, entries, open };
        assert!(is_full(&of(10_000, 10_000), &capacities, 2));
        assert!(is_full(&of(9_744, 9_744), &capacities, 2), "the rest is set aside");
        assert!(!is_full(&of(9_743, 9_743), &capacities, 2));
        assert!(!is_full(&of(10_000, 9_000), &capacities, 2), "what is over gives way");
        assert!(!is_full(&of(4_999, 4_999), &capacities, 400), "half of a small table is left");
        assert!(is_full(&of(5_000, 5_000), &capacities, 400));
    }

    #[test]
    fn services_stand_together_by_reason() {
        let name = |name| ObjectName::new("default", name);
        let failed = [("a", "no room"), ("b", "another"), ("c", "no room")];
        let failed = failed.map(|(service, reason)| (name(service), reason.to_owned())).into();
        let (a, b, c) = (name("a"), name("b"), name("c"));
        assert_eq!(by_reason(&failed), [("another", vec![&b]), ("no room", vec![&a, &c])].into());
    }
}
