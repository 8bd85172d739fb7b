//! What is said of a soak, and whether it was well. Pure, but for the file of JSON.

use std::{fmt, fs, path::Path};

use anyhow::Context as _;
use serde::Serialize;

use super::{
    prelude::Prelude,
    traffic::Outcome,
    watch::{Fill, Growth, Sample},
};

/// How often each thing happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Acts {
    pub(super) name: &'static str,
    pub(super) planned: usize,
    pub(super) done: usize,
}

/// All that is to be said.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) seed: u64,
    pub(super) seconds: u64,
    /// What came before the load.
    pub(super) prelude: Prelude,
    pub(super) acts: Vec<Acts>,
    pub(super) traffic: Vec<Outcome>,
    pub(super) growth: Option<Growth>,
    pub(super) fill: Fill,
    pub(super) samples: Vec<Sample>,
    /// What was left in the kernel or on the machine at the end.
    pub(super) left_behind: Vec<String>,
    /// What could not be done as planned.
    pub(super) troubles: Vec<String>,
}

impl Report {
    /// What was not as it should be.
    pub(super) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        for outcome in &self.traffic {
            let Outcome { way, family, protocol, usage, connections, exchanges, failed, .. } = outcome;
            let what = format!("{way}, {family} {protocol}, {usage:?}");
            if *failed > 0 {
                faults.push(format!("{what}: {failed} failed of {}: {:#?}", exchanges + failed, outcome.failures));
            }
            // Half of what the pauses alone would let through at a round trip of many milliseconds.
            if *exchanges < self.seconds * 5 {
                faults.push(format!("{what}: only {exchanges} exchanges over {connections} connections"));
            }
        }
        match &self.growth {
            Some(growth) if growth.is_flat => {}
            Some(growth) => faults.push(format!("the daemon grows: {growth:?}")),
            None => faults.push("no daemon lived long enough at the end to see whether it grows".to_owned()),
        }
        for Acts { name, planned, done } in &self.acts {
            if done != planned {
                faults.push(format!("{name}: {done} of {planned} planned acts were done"));
            }
        }
        faults.extend(self.left_behind.iter().map(|what| format!("left behind: {what}")));
        faults.extend(self.prelude.troubles.iter().chain(&self.troubles).cloned());
        faults
    }

    /// Writes all of it to a file.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self).context("write the report as JSON")?;
        fs::write(path, text + "\n").with_context(|| format!("write {}", path.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nSoak of {} s, seed {}\n", self.seconds, self.seed)?;
        let Prelude { packets, churn, troubles: _ } = &self.prelude;
        packets.iter().try_for_each(|thrown| writeln!(f, "{thrown}"))?;
        churn.iter().try_for_each(|kept| writeln!(f, "{kept}\n"))?;
        writeln!(
            f,
            "{:<36} {:<6} {:<8} {:<5} {:>11} {:>10} {:>7} {:>6} {:>9} {:>9} {:>10}",
            "",
            "FAMILY",
            "PROTOCOL",
            "USE",
            "CONNECTIONS",
            "EXCHANGES",
            "FAILED",
            "ENDED",
            "P50 µs",
            "P99 µs",
            "SLOWEST µs"
        )?;
        for outcome in &self.traffic {
            let Outcome {
                way, family, protocol, usage, connections, exchanges, failed, ended, p50, p99, slowest, ..
            } = outcome;
            let usage = format!("{usage:?}").to_lowercase();
            writeln!(
                f,
                "{way:<36} {family:<6} {protocol:<8} {usage:<5} {connections:>11} {exchanges:>10} {failed:>7} {ended:>6} {p50:>9} {p99:>9} {slowest:>10}"
            )?;
        }
        let total = |of: fn(&Outcome) -> u64| self.traffic.iter().map(of).sum::<u64>();
        writeln!(
            f,
            "\n{} connections, {} exchanges, {} failed, {} sockets ended with their endpoint",
            total(|outcome| outcome.connections),
            total(|outcome| outcome.exchanges),
            total(|outcome| outcome.failed),
            total(|outcome| outcome.ended)
        )?;
        for Acts { name, planned: _, done } in &self.acts {
            writeln!(f, "{done:>6} acts of {name}")?;
        }
        if let Some(Growth { process: _, seconds, resident_kib: [first, last], descriptors, is_flat }) = &self.growth {
            let verdict = if *is_flat { "flat" } else { "GROWING" };
            writeln!(
                f,
                "the daemon's last {seconds} s: resident {first} KiB, then {last} KiB; descriptors {}, then {}: {verdict}",
                descriptors[0], descriptors[1]
            )?;
        }
        writeln!(f, "the most entries of maps:")?;
        for (name, most) in self.fill.iter().filter(|(name, most)| name.starts_with("entries") && **most > 0) {
            writeln!(f, "  {most:>8} {}", name.trim_start_matches("entries"))?;
        }
        let faults = self.faults();
        for fault in &faults {
            writeln!(f, "FAULT: {fault}")?;
        }
        writeln!(f, "{}", if faults.is_empty() { "soak: well" } else { "soak: NOT WELL" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::soak::traffic::Use;

    fn outcome(exchanges: u64, failed: u64) -> Outcome {
        Outcome {
            way: "pod to ClusterIP",
            family: "IPv4".to_owned(),
            protocol: "TCP".to_owned(),
            usage: Use::New,
            target: "10.96.0.1:80".to_owned(),
            connections: exchanges + failed,
            exchanges,
            failed,
            ended: 0,
            failures: Vec::new(),
            p50: 1,
            p99: 2,
            slowest: 3,
        }
    }

    fn report() -> Report {
        let growth = Growth { process: 1, seconds: 20, resident_kib: [1, 1], descriptors: [1, 1], is_flat: true };
        Report {
            seed: 1,
            seconds: 60,
            prelude: Prelude::default(),
            acts: vec![Acts { name: "pods", planned: 2, done: 2 }],
            traffic: vec![outcome(1000, 0)],
            growth: Some(growth),
            fill: Fill::new(),
            samples: Vec::new(),
            left_behind: Vec::new(),
            troubles: Vec::new(),
        }
    }

    #[test]
    fn one_fault_of_any_kind_is_enough() {
        assert_eq!(report().faults(), Vec::<String>::new());
        assert!(report().to_string().ends_with("soak: well\n"));
        let faulty: [fn(&mut Report); 7] = [
            |report| report.prelude.troubles.push("a packet became what it should not".to_owned()),
            |report| report.traffic.push(outcome(1000, 1)),
            |report| report.traffic.push(outcome(10, 0)),
            |report| report.growth = None,
            |report| report.acts[0].done = 1,
            |report| report.left_behind.push("a namespace".to_owned()),
            |report| report.troubles.push("a pod could not be made".to_owned()),
        ];
        for make in faulty {
            let mut report = report();
            make(&mut report);
            assert_eq!(report.faults().len(), 1, "{:?}", report.faults());
            assert!(report.to_string().ends_with("soak: NOT WELL\n"));
        }
    }
}
