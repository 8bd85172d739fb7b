//! What the demo prints: the cluster, a table of answers, and where to look next.

use std::{path::Path, time::Duration};

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::{Daemon, Lab, Side};

use crate::{service::Frontend, stage::Stage, traffic::Outcome};

/// Prints who is where.
pub(crate) fn topology(lab: &Lab, stage: &Stage, keep: bool) {
    let end = if keep { "left standing" } else { "removed when the demo ends" };
    println!("\nA small cluster in network namespaces, {end}:\n");
    for (side, name, note) in [(Side::A, "node-a", "dsproxy runs here"), (Side::B, "node-b", "")] {
        let pods = stage.backends.iter().filter(|backend| backend.side == side).map(|b| (b.name, &b.pod));
        let client = [("client", &stage.client)].into_iter().filter(|_| side == Side::A);
        let addresses = lab.node(side).addresses();
        println!("{}", format!("  {name:14}{:14}{:20}{note}", addresses.v4, addresses.v6).trim_end());
        for (name, pod) in client.chain(pods) {
            let addresses = pod.addresses();
            println!("    {name:12}{:14}{}", addresses.v4, addresses.v6);
        }
    }
}

/// Prints that the daemon runs.
pub(crate) fn daemon_started(manifests: &Path, took: Duration) {
    println!("\ndsproxy run --manifests {} (healthy after {:.2} s)", shortened(manifests), took.as_secs_f64());
}

/// Prints the table; returns whether every request was answered by a backend that is known.
pub(crate) fn outcomes(outcomes: &[Outcome], stage: &Stage) -> bool {
    println!("\nThe client sends to the Services' ClusterIPs, a new connection or socket for each request:\n");
    let names: Vec<&str> = stage.backends.iter().map(|backend| backend.name).collect();
    let mut head: Vec<String> = ["SERVICE", "FAMILY", "PROTOCOL", "VIP", "ANSWERED"].map(str::to_owned).into();
    head.extend(names.iter().map(|name| (*name).to_owned()));
    head.extend(["MEDIAN", "DIRECT"].map(str::to_owned));
    let mut rows = vec![head];
    for outcome in outcomes {
        let Frontend { service, protocol, vip, .. } = &outcome.frontend;
        let mut row = vec![
            service.clone(),
            IpFamily::of(vip.ip()).to_string(),
            protocol.to_string(),
            vip.to_string(),
            format!("{}/{}", outcome.answered(), outcome.sent),
        ];
        row.extend(names.iter().map(|name| outcome.answers.get(*name).copied().unwrap_or(0).to_string()));
        row.extend([outcome.median, outcome.median_direct].map(|time| format!("{} µs", time.as_micros())));
        rows.push(row);
    }
    print_table(&rows);

    println!("\nMEDIAN is a whole request through the VIP, DIRECT the same straight to a backend's own address.");
    let answered: usize = outcomes.iter().map(Outcome::answered).sum();
    let sent: usize = outcomes.iter().map(|outcome| outcome.sent).sum();
    for outcome in outcomes {
        if let Some(failure) = &outcome.first_failure {
            println!("{} {}: {failure}", outcome.frontend.protocol, outcome.frontend.vip);
        }
    }
    let idle: Vec<&&str> =
        names.iter().filter(|name| outcomes.iter().any(|outcome| !outcome.answers.contains_key(**name))).collect();
    if answered == sent && idle.is_empty() {
        let seen = if outcomes.iter().all(|outcome| outcome.masqueraded == 0) {
            ", and each backend saw the client's own address"
        } else {
            ""
        };
        println!("All {sent} requests were answered, every backend took part in both families{seen}.");
    } else {
        println!("{} of {sent} requests were NOT answered.", sent - answered);
        for name in &idle {
            println!("{name} did not take part everywhere.");
        }
    }
    answered == sent && idle.is_empty()
}

/// Prints commands for a cluster that is left standing.
pub(crate) fn how_to_look_around(lab: &Lab, stage: &Stage, daemon: &Daemon<'_>, frontends: &[Frontend]) {
    let client = stage.client.namespace().name();
    let node = lab.node(Side::A).namespace().name();
    let binary = shortened(daemon.binary());
    let bpffs = daemon.bpffs().display();
    println!("\nEverything is left standing. Ask through a VIP, as the client:\n");
    for Frontend { vip, .. } in frontends.iter().filter(|frontend| frontend.protocol == Protocol::Tcp) {
        let host = vip.to_string();
        println!("  ip netns exec {client} curl -s --globoff 'http://{}/'", host.strip_suffix(":80").unwrap_or(&host));
    }
    println!("\nSee what dsproxy knows and does:\n");
    for command in ["status", "services", "backends", "connections"] {
        println!("  ip netns exec {node} {binary} {command} --bpffs {bpffs}");
    }
    println!("  less {}", daemon.log().display());
    println!("\nRemove it all:\n\n  cargo xtask demo --remove");
}

/// `path` as it is best typed: relative to the current directory where it lies below it.
fn shortened(path: &Path) -> String {
    std::env::current_dir()
        .ok()
        .and_then(|directory| path.strip_prefix(directory).ok())
        .unwrap_or(path)
        .display()
        .to_string()
}

fn print_table(rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            // Names to the left, numbers to the right.
            .map(
                |(column, (cell, &width))| {
                    if column < 4 { format!("{cell:width$}") } else { format!("{cell:>width$}") }
                },
            )
            .collect();
        println!("  {}", cells.join("  ").trim_end());
    }
}
