//! Real sockets through the lab: what a connection, a request and a byte cost behind dsproxy, behind kube-proxy-shaped rules, and
//! with nothing in between.
//!
//! Each variant has a lab of its own, alike in every address and device, and all of them stand at the same time. So the variants take
//! turns within a round, after windows of a fraction of a second, and what else the machine does meets them alike. Each Service
//! under test has a backend port of its own: behind any translation a client's port that is used again within a minute, towards another
//! Service with the same backend and port, meets that backend's TIME_WAIT.
//!
//! One client at a time, and everything else that takes turns, runs on one processor with its server: there is no sleeping processor
//! to wake, and a rate is the inverse of the work. Eight at a time, and bulk, have all processors.

mod backend;
mod client;
mod comparison;
mod figures;
pub(super) mod live;
mod one_armed;
mod pktgen;
mod processor_time;
mod rate;
mod stage;
mod variant;

use std::time::{Duration, Instant};

use dsproxy_common::IpFamily;

pub use client::{ExchangeFailed, Measure, MeasureFailed};
pub use rate::{RateEffort, Source, measure_rate};

use super::{BenchError, Figure};
use comparison::{COMPARISONS, Comparison};
use figures::Samples;
pub(super) use figures::{LATENCY_SHARE, PART, RATE_SHARE};
pub(super) use one_armed::PART as ONE_ARMED;
use stage::Stage;
use variant::Variant;
pub(super) use variant::wait_until_served;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct TrafficEffort {
    /// How many rounds; each measures everything once.
    pub rounds: u32,
    /// How long one measurement takes.
    pub window: Duration,
    /// How many Services there are; everything is measured with each of these numbers.
    pub services: Vec<u32>,
}

/// Measures every variant of every comparison, and tells `progress` what it is at.
///
/// # Errors
///
/// When a lab, a proxy or an exchange fails.
pub fn measure_traffic(effort: &TrafficEffort, mut progress: impl FnMut(&str)) -> Result<Vec<Figure>, BenchError> {
    let mut figures = Vec::new();
    for comparison in &COMPARISONS {
        figures.extend(compare(comparison, effort, &mut progress)?);
    }
    Ok(figures)
}

fn compare(
    comparison: &'static Comparison,
    effort: &TrafficEffort,
    progress: &mut impl FnMut(&str),
) -> Result<Vec<Figure>, BenchError> {
    let TrafficEffort { rounds, window, services } = effort;
    let Comparison { variants, measures, ways, is_like_hardware, .. } = *comparison;
    let mut stages = Vec::new();
    for _ in variants {
        let stage = Stage::build()?;
        if is_like_hardware {
            stage.make_like_hardware()?;
        }
        stages.push(stage);
    }
    let mut proxies = Vec::new();
    for (variant, stage) in variants.iter().zip(&stages) {
        proxies.push(variant.start(stage)?);
    }
    let mut figures = Vec::new();
    for &count in services {
        for ((variant, stage), proxy) in variants.iter().zip(&stages).zip(&mut proxies) {
            let started = Instant::now();
            proxy.serve(stage, count)?;
            progress(&format!(
                "{}: {count} Services are served {:.1} s after they were given",
                variant.name,
                started.elapsed().as_secs_f64()
            ));
        }
        let mut samples = Samples::new(comparison);
        for round in 0..*rounds {
            progress(&format!("{count} Services, round {} of {rounds}", round + 1));
            for measure in measures {
                for (way, family) in ways.iter().flat_map(|way| IpFamily::ALL.map(|family| (*way, family))) {
                    // Who begins changes, for whoever comes first finds the caches as the last measurement left them.
                    for turn in 0..variants.len() {
                        let place = (turn + round as usize) % variants.len();
                        let (variant, stage) = (&variants[place], &stages[place]);
                        let target = stage.target(way, family, variant.is_straight());
                        let before = proxies[place].runs()?;
                        let has_xdp = variant.has_xdp();
                        let sent_on = if has_xdp { proxies[place].sent_on(family)? } else { 0 };
                        let outcome = measure.run(stage.client(way), target, *window).map_err(|source| {
                            MeasureFailed { variant: variant.name, services: count, way: way.name(), family, source }
                        })?;
                        let runs = proxies[place].runs()?.zip(before).map(|(after, before)| after - before);
                        if has_xdp {
                            let by_xdp = proxies[place].sent_on(family)? - sent_on;
                            make_sure(variant, measure.packets(outcome.done), by_xdp)?;
                        }
                        samples.add(place, *measure, way, family, (&outcome, runs));
                    }
                }
            }
        }
        figures.extend(samples.figures(count));
    }
    Ok(figures)
}

/// Makes sure that XDP has sent on what it is measured for: at least half of `packets`, for of the rest some is the stack's turn.
fn make_sure(variant: &Variant, packets: u64, by_xdp: u64) -> Result<(), BenchError> {
    if by_xdp >= packets / 2 {
        return Ok(());
    }
    let sent = packets.try_into().unwrap_or(u32::MAX);
    Err(BenchError::Lost { variant: variant.name, sent, arrived: by_xdp })
}
