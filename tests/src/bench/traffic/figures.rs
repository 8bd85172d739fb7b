//! From what single windows say to figures: rates, latencies, and the processor time over the floor.

use std::collections::BTreeMap;

use dsproxy_common::IpFamily;

use super::{
    super::{Figure, statistics::Sorted},
    client::{Measure, Outcome},
    comparison::Comparison,
    stage::Way,
};

/// The name of the part, by which plots and tables find these figures.
pub(in super::super) const PART: &str = "traffic";

/// The variant that has aims, and the one that it is to be ahead of where there are so many Services.
const OWN: &str = "dsproxy";
pub(super) const RULES: &str = "nftables rules";
pub(super) const MANY_SERVICES: u32 = 10_000;

/// What it is of that variant's, in figures' names.
pub(in super::super) const RATE_SHARE: &str = "rate, share of nftables rules";
pub(in super::super) const LATENCY_SHARE: &str = "latency p99, share of nftables rules";

/// The share of the floor's rate that new connections are to reach, one at a time.
const CONNECTION_SHARE: f64 = 0.95;

/// Processor time that a connection, and a request on a kept one, may add to the floor's, in us.
const CONNECTION_TIME: f64 = 4.0;
const REQUEST_TIME: f64 = 0.8;

/// What was measured, in the order in which it is shown.
type Cell = (Measure, Way, IpFamily);

/// Everything measured with one number of Services.
pub(super) struct Samples {
    comparison: &'static Comparison,
    /// By cell and the variant's place, a sample for each round.
    cells: BTreeMap<Cell, Vec<Vec<Sample>>>,
}

/// What one window says.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sample {
    /// Transactions a second; of bulk, Gbit/s.
    rate: f64,
    /// Of latency, in us.
    p50: f64,
    p99: f64,
    /// Processor time for one transaction in us; of bulk, for a MB (10^6 bytes).
    processor_time: f64,
    /// How many programs the packets of one transaction pass, where they are counted; of bulk, of a MB.
    runs: Option<f64>,
}

impl Sample {
    fn of(measure: Measure, outcome: &Outcome, runs: Option<u64>) -> Self {
        let latencies = Sorted::new(outcome.latencies.iter().map(|latency| f64::from(*latency) / 1e3));
        let done = outcome.done as f64;
        // How many transactions or bytes are one of the unit.
        let (of_rate, of_time) = if measure == Measure::Bulk { (1e9 / 8.0, 1e6) } else { (1.0, 1.0) };
        Self {
            rate: done / outcome.elapsed.as_secs_f64() / of_rate,
            p50: latencies.median(),
            p99: latencies.quantile(0.99),
            processor_time: outcome.processor_time.as_secs_f64() * 1e6 / (done / of_time),
            runs: runs.map(|runs| runs as f64 / (done / of_time)),
        }
    }
}

impl Samples {
    pub(super) fn new(comparison: &'static Comparison) -> Self {
        Self { comparison, cells: BTreeMap::new() }
    }

    /// Notes what one window of the variant at `place` said, and how many times programs ran meanwhile, where they count it.
    pub(super) fn add(
        &mut self,
        place: usize,
        measure: Measure,
        way: Way,
        family: IpFamily,
        (outcome, runs): (&Outcome, Option<u64>),
    ) {
        let count = self.comparison.variants.len();
        let variants = self.cells.entry((measure, way, family)).or_insert_with(|| vec![Vec::new(); count]);
        variants[place].push(Sample::of(measure, outcome, runs));
    }

    /// The figures of a run with so many Services.
    pub(super) fn figures(&self, services: u32) -> Vec<Figure> {
        let mut figures = Vec::new();
        let Comparison { variants: compared, devices, has_aims, .. } = *self.comparison;
        let rules = compared.iter().position(|variant| variant.name == RULES);
        for ((measure, way, family), variants) in &self.cells {
            for (place, samples) in variants.iter().enumerate() {
                let mut of = figures_of(*measure, samples, (place > 0).then_some(&variants[0][..]));
                if has_aims && compared[place].name == OWN {
                    of = of
                        .into_iter()
                        .map(|(what, figure)| (what, held_against_floor(*measure, what, figure)))
                        .collect();
                    let rules = rules.map(|rules| &variants[rules][..]).unwrap_or_default();
                    of.extend(ahead_of_rules(*measure, samples, rules, services));
                }
                figures.extend(of.into_iter().map(|(what, figure)| {
                    let (measure, way) = (measure.name(), format!("{}{devices}", way.name()));
                    let variant = compared[place].name;
                    let name = format!("{measure}, {way}, {family}, {services} Services, {variant}: {what}");
                    Figure { name, ..figure }
                        .at("part", PART)
                        .at("measure", measure)
                        .at("way", &way)
                        .at("family", family)
                        .at("services", services)
                        .at("variant", variant)
                        .at("what", what)
                }));
            }
        }
        figures
    }
}

/// The figures of one variant's samples, each by what it says. Those of the floor, round by round, are taken off the processor time.
fn figures_of(measure: Measure, samples: &[Sample], floor: Option<&[Sample]>) -> Vec<(&'static str, Figure)> {
    let of = |unit, value: fn(&Sample) -> f64| Figure::of_samples("", unit, samples.iter().map(value));
    let (rate, time) = if measure == Measure::Bulk { ("Gbit/s", "us/MB") } else { ("/s", "us") };
    let mut figures = vec![("rate", of(rate, |sample| sample.rate).higher_is_better())];
    if measure != Measure::Bulk {
        figures.push(("latency p50", of("us", |sample| sample.p50)));
        figures.push(("latency p99", of("us", |sample| sample.p99)));
    }
    figures.push(("processor time", of(time, |sample| sample.processor_time)));
    let runs: Vec<f64> = samples.iter().filter_map(|sample| sample.runs).collect();
    if !runs.is_empty() {
        figures.push(("programs passed", Figure::of_samples("", "", runs)));
    }
    if let Some(floor) = floor {
        let rounds = || samples.iter().zip(floor);
        let share = rounds().map(|(own, floor)| own.rate / floor.rate);
        figures.push(("rate, share of the floor", Figure::of_samples("", "", share).higher_is_better()));
        let added = rounds().map(|(own, floor)| own.processor_time - floor.processor_time);
        figures.push(("processor time added", Figure::of_samples("", time, added)));
    }
    figures
}

/// With what is aimed at in comparison with the floor.
fn held_against_floor(measure: Measure, what: &str, figure: Figure) -> Figure {
    match (measure, what) {
        (Measure::Connections, "rate, share of the floor") => figure.at_least(CONNECTION_SHARE),
        (Measure::Connections, "processor time added") => figure.median_at_most(CONNECTION_TIME),
        (Measure::Requests, "processor time added") => figure.median_at_most(REQUEST_TIME),
        _ => figure,
    }
}

/// What the samples are of those of the rules in the same rounds; with many Services they are to be no worse.
fn ahead_of_rules(
    measure: Measure,
    samples: &[Sample],
    rules: &[Sample],
    services: u32,
) -> Vec<(&'static str, Figure)> {
    let share = |of: fn(&Sample) -> f64| {
        Figure::of_samples("", "", samples.iter().zip(rules).map(move |(own, rules)| of(own) / of(rules)))
    };
    let has_aim = services >= MANY_SERVICES;
    let rate = share(|sample| sample.rate).higher_is_better();
    let mut figures = vec![(RATE_SHARE, if has_aim { rate.at_least(1.0) } else { rate })];
    if measure != Measure::Bulk {
        let latency = share(|sample| sample.p99);
        figures.push((LATENCY_SHARE, if has_aim { latency.median_at_most(1.0) } else { latency }));
    }
    figures
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::{Aim, traffic::comparison::COMPARISONS};

    fn outcome(done: u64, milliseconds: u64) -> Outcome {
        Outcome {
            elapsed: Duration::from_secs(2),
            done,
            processor_time: Duration::from_millis(milliseconds),
            latencies: vec![1_000, 2_000, 9_000],
        }
    }

    #[test]
    fn processor_time_is_taken_over_the_floor_of_the_same_round() {
        let mut samples = Samples::new(&COMPARISONS[0]);
        // The machine is twice as slow in the second round; what dsproxy adds is 10 us and 20 us.
        for (done, floor, own) in [(1_000, 100, 110), (1_000, 200, 220)] {
            for (place, time, runs) in [(0, floor, None), (1, floor, Some(4 * done)), (4, own, None)] {
                let outcome = outcome(done, time);
                samples.add(place, Measure::Requests, Way::Local, IpFamily::V6, (&outcome, runs));
            }
        }
        let figures = samples.figures(10);
        let find = |what| {
            let at = [("variant", "dsproxy"), ("what", what), ("family", "IPv6"), ("services", "10")];
            figures.iter().find(|figure| figure.is_at(&at)).expect("it was measured")
        };
        assert!((find("processor time added").minimum - 10.0).abs() < 1e-9);
        assert!((find("processor time added").best() - 10.0).abs() < 1e-9);
        let passed = figures.iter().filter(|figure| figure.is_at(&[("what", "programs passed")]));
        assert_eq!(passed.map(|figure| figure.median).collect::<Vec<_>>(), [4.0]);
        assert_eq!(find("rate").median, 500.0);
        assert_eq!((find("latency p50").median, find("latency p99").median), (2.0, 9.0));
        assert!((find("rate, share of the floor").median - 1.0).abs() < 1e-9);
        assert_eq!(find("processor time added").aim.map(Aim::bound), Some(REQUEST_TIME));
    }

    #[test]
    fn only_with_many_services_the_rules_are_to_be_left_behind() {
        let mut samples = Samples::new(&COMPARISONS[0]);
        for (place, done) in [(0, 1_000), (2, 500), (4, 400)] {
            samples.add(place, Measure::Bulk, Way::Remote, IpFamily::V4, (&outcome(done, 100), None));
        }
        for (services, aims) in [(10, 0), (MANY_SERVICES, 1)] {
            let figures = samples.figures(services);
            let share = figures.iter().find(|figure| figure.is_at(&[("what", RATE_SHARE)])).expect("it was measured");
            assert!((share.median - 0.8).abs() < 1e-9);
            assert_eq!(figures.iter().filter(|figure| figure.aim.is_some()).count(), aims);
        }
    }

    #[test]
    fn bulk_is_in_bits_and_megabytes() {
        let sample = Sample::of(Measure::Bulk, &Outcome { latencies: Vec::new(), ..outcome(1_000_000_000, 500) }, None);
        assert_eq!(sample.rate, 4.0);
        assert_eq!(sample.processor_time, 500.0);
    }
}
