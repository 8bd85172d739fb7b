//! What comes before a soak's own load: packets by the million thrown at the kernel programs, and many Services of which some change
//! all the time.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;

use crate::{
    churn::{self, Churn, Churned},
    fuzz,
};

/// What came of it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Prelude {
    /// The packets; none if none were to be thrown, or one did not become what it should.
    pub(super) packets: Option<Thrown>,
    /// The changes; none if there were to be none, or they could not be made.
    pub(super) churn: Option<Kept>,
    /// What was not as it should be.
    pub(super) troubles: Vec<String>,
}

/// Packets that all became what the model says.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Thrown {
    pub(super) packets: u64,
    pub(super) scenes: u64,
    pub(super) seconds: f64,
    /// What became of how many.
    pub(super) reasons: BTreeMap<&'static str, u64>,
}

/// How changes were kept up with.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Kept {
    pub(super) services: u16,
    /// Changes a second, and for how many seconds.
    pub(super) rate: u32,
    pub(super) seconds: u64,
    pub(super) changes: u64,
    /// Until everything was served.
    pub(super) started_in_seconds: f64,
    /// From the API server to a client, in milliseconds: half of the changes took no longer, 99 of 100, and none.
    pub(super) lag_p50: f64,
    pub(super) lag_p99: f64,
    pub(super) lag_most: f64,
    /// The daemon's memory at the begin and at the end.
    pub(super) resident_kib: [u64; 2],
}

impl Prelude {
    /// Throws `packets`, which follow from `seed`, and has Services change as `churn` says.
    pub(super) fn play(packets: u64, seed: u64, churn: Option<Churn>) -> Self {
        let mut prelude = Self::default();
        if packets > 0 {
            println!("{packets} packets for the kernel programs, of seed {seed}");
            match fuzz::packets(packets, seed) {
                Ok(report) => prelude.packets = Some(Thrown::of(&report)),
                Err(error) => prelude.troubles.push(error.to_string()),
            }
            prelude.packets.iter().for_each(|thrown| println!("{thrown}"));
        }
        if let Some(churn) = churn {
            let Churn { services, rate, length } = churn;
            println!("{} s of {rate} changes a second among {services} Services", length.as_secs());
            match churn::run(churn) {
                Ok(churned) => {
                    let kept = Kept::of(churn, &churned);
                    println!("{kept}");
                    prelude.churn = Some(kept);
                    let judged = churned.judge(churn::LAG, churn::LATER);
                    prelude.troubles.extend(judged.err().map(|error| format!("{error:#}")));
                }
                Err(error) => prelude.troubles.push(format!("{error:#}")),
            }
        }
        prelude.troubles.iter().for_each(|trouble| println!("TROUBLE: {trouble}"));
        prelude
    }
}

impl Thrown {
    fn of(report: &fuzz::Report) -> Self {
        let fuzz::Report { packets, scenes, seconds, reasons, .. } = report;
        let reasons = reasons.iter().map(|(reason, count)| (reason.name(), *count)).collect();
        Self { packets: *packets, scenes: *scenes, seconds: *seconds, reasons }
    }
}

impl Kept {
    fn of(churn: Churn, churned: &Churned) -> Self {
        let Churn { services, rate, length } = churn;
        let milliseconds = |lag: Duration| lag.as_secs_f64() * 1000.0;
        let mut lags = churned.lags.clone();
        lags.sort_unstable();
        let share = |of_hundred: usize| {
            let place = (lags.len() * of_hundred).div_ceil(100).saturating_sub(1);
            lags.get(place).copied().map(milliseconds).unwrap_or_default()
        };
        let resident = |of: Option<&u64>| of.copied().unwrap_or_default();
        Self {
            services,
            rate,
            seconds: length.as_secs(),
            changes: churned.changes,
            started_in_seconds: churned.started_in.as_secs_f64(),
            lag_p50: share(50),
            lag_p99: share(99),
            lag_most: share(100),
            resident_kib: [resident(churned.memory.first()), resident(churned.memory.last())],
        }
    }
}

impl fmt::Display for Thrown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, scenes, seconds, reasons } = self;
        write!(
            f,
            "{packets} packets in {scenes} scenes, each as the model says ({seconds:.0} s); {} different things became of them",
            reasons.len()
        )
    }
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            services,
            rate,
            seconds,
            changes,
            started_in_seconds,
            lag_p50,
            lag_p99,
            lag_most,
            resident_kib: [begin, end],
        } = self;
        writeln!(f, "{services} Services served {started_in_seconds:.1} s after the start")?;
        write!(
            f,
            "{changes} changes, {rate} a second for {seconds} s: served after {lag_p50:.0} ms (p50), {lag_p99:.0} ms (p99), {lag_most:.0} ms \
             at most; resident {begin} KiB at the begin, {end} KiB at the end"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_those_of_the_lags() {
        let churn = Churn { services: 10_000, rate: 100, length: Duration::from_secs(200) };
        let churned = Churned {
            started_in: Duration::from_millis(1500),
            changes: 20_000,
            // The worst first.
            lags: (1..=200).rev().map(Duration::from_millis).collect(),
            memory: vec![10, 30, 20],
            pending: 0.0,
        };
        let kept = Kept::of(churn, &churned);
        assert_eq!([kept.lag_p50, kept.lag_p99, kept.lag_most], [100.0, 198.0, 200.0]);
        assert_eq!(kept.resident_kib, [10, 20]);
        let told = kept.to_string();
        for part in
            ["1.5 s", "100 ms (p50)", "198 ms (p99)", "200 ms at most", "10 KiB at the begin", "20 KiB at the end"]
        {
            assert!(told.contains(part), "{part}: {told}");
        }
    }
}
