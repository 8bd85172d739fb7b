//! Whether a daemon is in charge, and what it says of itself.

use std::{net::Ipv6Addr, time::Duration};

use anyhow::Context as _;
use dsproxy_common::daemon::{DaemonFlags, DaemonRecord};
use serde::Serialize;

use crate::{
    boot_clock,
    daemon_word::STALE_AFTER,
    datapath::{
        charge::{self, Other},
        load,
    },
    inspect::{Live, columns::Columns, human::span},
};

/// Whether a daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::inspect) enum Standing {
    /// One is in charge.
    InCharge,
    /// One is, and has said nothing for too long.
    Silent,
    /// One is, and has not said anything yet.
    Starting,
    /// None runs.
    NotRunning,
}

/// What is known of the daemon.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::inspect) struct DaemonStatus {
    pub(in crate::inspect) standing: Standing,
    /// Its process, if it can be seen from here.
    pub(in crate::inspect) process: Option<u32>,
    /// What it has said last; if none runs, the last that did.
    pub(in crate::inspect) word: Option<Word>,
}

/// What a daemon has said. Times are in seconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::inspect) struct Word {
    pub(in crate::inspect) version: String,
    said_seconds_ago: f64,
    started_seconds_ago: f64,
    /// Whether the maps have once held all that the source listed.
    pub(in crate::inspect) synced: bool,
    last_sync_seconds_ago: Option<f64>,
    last_sync_took_seconds: f64,
    complete_seconds_ago: Option<f64>,
    /// How long the oldest change waits that is not in the maps; none if nothing does.
    oldest_change_waits_seconds: Option<f64>,
    syncs: u64,
    source_answers: bool,
    /// How long something has been the matter with the source.
    source_trouble_seconds: Option<f64>,
    services: u32,
    endpoint_slices: u32,
    service_ports: u32,
    services_failed: u32,
    frontend_conflicts: u32,
    parts_left_out: u32,
    interfaces_failed: u32,
    /// Where it serves metrics.
    pub(in crate::inspect) metrics: Option<std::net::SocketAddr>,
}

/// Asks the bpffs and the map.
///
/// # Errors
///
/// When they cannot be read.
pub(in crate::inspect) fn daemon(live: &Live) -> anyhow::Result<DaemonStatus> {
    let record = load::open_pinned_daemon(&live.bpffs)?.record()?;
    let holder = charge::in_charge(&live.bpffs)?;
    Ok(status(holder, record.as_ref(), boot_clock::now().context("read the clock")?))
}

fn status(holder: Option<Other>, record: Option<&DaemonRecord>, now: Duration) -> DaemonStatus {
    let word = record.map(|record| word(record, now));
    let standing = match (holder, &word) {
        (None, _) => Standing::NotRunning,
        (Some(_), None) => Standing::Starting,
        (Some(_), Some(word)) if word.said_seconds_ago > STALE_AFTER.as_secs_f64() => Standing::Silent,
        (Some(_), Some(_)) => Standing::InCharge,
    };
    DaemonStatus { standing, process: holder.and_then(|holder| holder.process), word }
}

fn word(record: &DaemonRecord, now: Duration) -> Word {
    let DaemonRecord {
        started,
        said,
        synced,
        complete,
        waiting_since,
        trouble_since,
        took,
        passes,
        flags,
        services,
        endpoint_slices,
        service_ports,
        services_failed,
        conflicts,
        left_out,
        interfaces_failed,
        metrics_address,
        metrics_port,
        reserved: _,
        version,
    } = *record;
    let seconds = |time: u64| now.saturating_sub(Duration::from_millis(time)).as_secs_f64();
    let ago = |time: u64| (time != 0).then(|| seconds(time));
    let port = u16::try_from(metrics_port).ok().filter(|port| *port != 0);
    Word {
        version: version.as_str().to_owned(),
        said_seconds_ago: seconds(said),
        started_seconds_ago: seconds(started),
        synced: flags & DaemonFlags::SYNCED != 0,
        last_sync_seconds_ago: ago(synced),
        last_sync_took_seconds: Duration::from_micros(took).as_secs_f64(),
        complete_seconds_ago: ago(complete),
        oldest_change_waits_seconds: ago(waiting_since),
        syncs: passes,
        source_answers: flags & DaemonFlags::CONNECTED != 0,
        source_trouble_seconds: ago(trouble_since),
        services,
        endpoint_slices,
        service_ports,
        services_failed,
        frontend_conflicts: conflicts,
        parts_left_out: left_out,
        interfaces_failed,
        metrics: port.map(|port| (Ipv6Addr::from(metrics_address).to_canonical(), port).into()),
    }
}

impl DaemonStatus {
    /// For people: each line with what it is about.
    pub(in crate::inspect) fn table(&self) -> String {
        let Self { standing, process, word } = self;
        let whose = process.map_or_else(
            || "a process of another container is in charge".to_owned(),
            |process| format!("process {process} is in charge"),
        );
        let last =
            |word: &Word| format!("the last, {}, said something {} ago", word.version, text(word.said_seconds_ago));
        let line = match (standing, word) {
            (Standing::NotRunning, None) => "no daemon is running, and none has said anything".to_owned(),
            (Standing::NotRunning, Some(word)) => {
                format!("no daemon is running: packets are served as before, changes are not; {}", last(word))
            }
            (Standing::Starting, _) | (_, None) => format!("{whose}, and starting"),
            (Standing::Silent, Some(word)) => {
                format!("{whose}, and has said nothing for {}: does it hang? See its log", text(word.said_seconds_ago))
            }
            (Standing::InCharge, Some(word)) => {
                format!("{whose}, version {}, for {}", word.version, text(word.started_seconds_ago))
            }
        };
        let mut columns = Columns::new(&["DAEMON", &line]);
        // What was so when the last one ended need not be so any more.
        if let Some(word) = word.as_ref().filter(|_| *standing != Standing::NotRunning) {
            for (what, line) in word.lines() {
                columns.row([what.to_owned(), line]);
            }
        }
        columns.text()
    }
}

impl Word {
    fn lines(&self) -> Vec<(&'static str, String)> {
        let since = |seconds: Option<f64>| seconds.map(text);
        let source = match (self.source_answers, since(self.source_trouble_seconds)) {
            (true, None) => "answers".to_owned(),
            (true, Some(time)) => format!("answers, but something has been the matter for {time}; see /healthz"),
            (false, Some(time)) => {
                format!("does not answer, and something has been the matter for {time}; see the log")
            }
            (false, None) => "does not answer".to_owned(),
        };
        let sync = match since(self.last_sync_seconds_ago) {
            Some(ago) => format!(
                "{}; the last, number {}, was {ago} ago and took {}",
                if self.synced {
                    "the maps have held all that the source listed"
                } else {
                    "not everything was in the maps yet"
                },
                self.syncs,
                text(self.last_sync_took_seconds)
            ),
            None => "waits for the source to list everything".to_owned(),
        };
        let lag = match (since(self.oldest_change_waits_seconds), since(self.complete_seconds_ago)) {
            (Some(time), _) => format!("the oldest change that is not in the maps has waited for {time}"),
            (None, Some(_)) => "nothing waits".to_owned(),
            (None, None) => "unknown before the first sync".to_owned(),
        };
        let Self { services, endpoint_slices, service_ports, services_failed, frontend_conflicts, .. } = self;
        vec![
            ("source", source),
            ("sync", sync),
            ("lag", lag),
            (
                "serves",
                format!("service ports: {service_ports}, of Services: {services}, EndpointSlices: {endpoint_slices}"),
            ),
            (
                "fails",
                format!(
                    "Services: {services_failed}, frontends that two want: {frontend_conflicts}, parts left out: {}, interfaces: {}",
                    self.parts_left_out, self.interfaces_failed
                ),
            ),
        ]
    }
}

fn text(seconds: f64) -> String {
    span(Duration::try_from_secs_f64(seconds).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use dsproxy_common::daemon::DaemonVersion;

    use super::*;

    const NOW: Duration = Duration::from_secs(1000);

    fn said(seconds: u64) -> DaemonRecord {
        DaemonRecord {
            said: seconds * 1000,
            started: 100_000,
            synced: 990_000,
            complete: 990_000,
            took: 350,
            flags: DaemonFlags::SYNCED | DaemonFlags::CONNECTED,
            version: DaemonVersion::new("1.2.3"),
            ..DaemonRecord::default()
        }
    }

    #[test]
    fn a_word_counts_while_somebody_is_in_charge_and_speaks() {
        let holder = Some(Other { process: Some(7) });
        for (holder, record, expected, shown) in [
            (holder, Some(said(998)), Standing::InCharge, "process 7 is in charge, version 1.2.3, for 15m"),
            (Some(Other { process: None }), Some(said(998)), Standing::InCharge, "another container is in charge"),
            (holder, Some(said(900)), Standing::Silent, "has said nothing for 1m40s"),
            (holder, None, Standing::Starting, "process 7 is in charge, and starting"),
            (None, Some(said(998)), Standing::NotRunning, "no daemon is running"),
            (None, None, Standing::NotRunning, "no daemon is running"),
        ] {
            let status = status(holder, record.as_ref(), NOW);
            assert_eq!(status.standing, expected);
            assert!(status.table().contains(shown), "{shown}: {}", status.table());
        }
    }

    #[test]
    fn what_waits_is_told() {
        let table = |record: DaemonRecord| status(Some(Other { process: Some(7) }), Some(&record), NOW).table();
        let well = table(said(998));
        for part in ["nothing waits", "10s ago and took 350us", "answers"] {
            assert!(well.contains(part), "{part}: {well}");
        }
        let behind = table(DaemonRecord {
            waiting_since: 940_000,
            services_failed: 2,
            trouble_since: 700_000,
            flags: DaemonFlags::SYNCED,
            ..said(998)
        });
        for part in ["has waited for 1m", "Services: 2,", "does not answer, and something has been the matter for 5m"] {
            assert!(behind.contains(part), "{part}: {behind}");
        }
    }

    #[test]
    fn metrics_are_where_the_daemon_says() {
        let metrics = |metrics_address: [u8; 16], metrics_port| {
            word(&DaemonRecord { metrics_address, metrics_port, ..said(998) }, NOW).metrics.map(|at| at.to_string())
        };
        assert_eq!(metrics([0; 16], 0), None);
        assert_eq!(metrics(Ipv6Addr::LOCALHOST.octets(), 10249).as_deref(), Some("[::1]:10249"));
        let mapped = "127.0.0.1".parse::<std::net::Ipv4Addr>().expect("an address").to_ipv6_mapped();
        assert_eq!(metrics(mapped.octets(), 10249).as_deref(), Some("127.0.0.1:10249"));
    }
}
