//! The daemon looked at from outside, again and again: its memory, its descriptors, how full its maps are. What may be said of
//! growth is pure.

use std::{collections::BTreeMap, fs, time::Duration};

use serde::Serialize;

use crate::lab::Daemon;

/// What a process may have grown by in all: a tenth of it, and what the allocator keeps.
const GROWTH: f64 = 0.1;
const ALLOCATOR_KIB: u64 = 4096;

/// Descriptors come and go with connections to the API server.
const DESCRIPTORS: u64 = 6;

/// How long after its start a process still fills what it is going to use.
const WARM: Duration = Duration::from_secs(10);

/// The daemon at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Sample {
    /// Since the start of the soak.
    pub(super) at: Duration,
    pub(super) process: u32,
    pub(super) resident_kib: u64,
    pub(super) descriptors: u64,
}

/// The most entries that each map was seen with, by map and family, and its capacity.
pub(super) type Fill = BTreeMap<String, u64>;

/// The daemon now; none while it does not run.
pub(super) fn sample(daemon: &Daemon<'_>, at: Duration) -> Option<Sample> {
    let process = daemon.id()?;
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let resident_kib = resident.trim().trim_end_matches(" kB").parse().ok()?;
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).ok()?.count() as u64;
    Some(Sample { at, process, resident_kib, descriptors })
}

/// Notes how full maps are in `fill`, from the text of /metrics.
pub(super) fn note_fill(metrics: &str, fill: &mut Fill) {
    for line in metrics.lines() {
        let Some((name, value)) = line.strip_prefix("dsproxy_map_").and_then(|rest| rest.rsplit_once(' ')) else {
            continue;
        };
        let Some(labels) = name.strip_prefix("entries").or_else(|| name.strip_prefix("capacity")) else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        let kind = if name.starts_with("entries") { "entries" } else { "capacity" };
        let most = fill.entry(format!("{kind}{labels}")).or_default();
        *most = (*most).max(value as u64);
    }
}

/// Whether the process that lived to the end has grown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Growth {
    pub(super) process: u32,
    pub(super) seconds: u64,
    /// The medians of the first and the last quarter of its samples.
    pub(super) resident_kib: [u64; 2],
    pub(super) descriptors: [u64; 2],
    pub(super) is_flat: bool,
}

/// The rule: from the first to the last quarter of the life of the last process, beginning ten seconds after its start, the median
/// of its resident memory grows by no more than a tenth and four MiB, that of its descriptors by no more than six. None if it
/// did not live long enough for four samples.
pub(super) fn growth(samples: &[Sample]) -> Option<Growth> {
    let process = samples.last()?.process;
    let lived: Vec<&Sample> = samples.iter().filter(|sample| sample.process == process).collect();
    let warm = lived.first()?.at + WARM;
    let lived: Vec<&Sample> = lived.into_iter().filter(|sample| sample.at >= warm).collect();
    let quarter = lived.len() / 4;
    if quarter == 0 {
        return None;
    }
    let (first, last) = (&lived[..quarter], &lived[lived.len() - quarter..]);
    let medians =
        |of: fn(&Sample) -> u64| [first, last].map(|part| median(part.iter().map(|sample| of(sample)).collect()));
    let resident_kib = medians(|sample| sample.resident_kib);
    let descriptors = medians(|sample| sample.descriptors);
    let allowed = (resident_kib[0] as f64 * GROWTH) as u64 + ALLOCATOR_KIB;
    Some(Growth {
        process,
        seconds: (lived[lived.len() - 1].at - lived[0].at).as_secs(),
        resident_kib,
        descriptors,
        is_flat: resident_kib[1] <= resident_kib[0] + allowed && descriptors[1] <= descriptors[0] + DESCRIPTORS,
    })
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(process: u32, from: u64, count: u64, of: impl Fn(u64) -> (u64, u64)) -> Vec<Sample> {
        let sample = |number| {
            let (resident_kib, descriptors) = of(number);
            Sample { at: Duration::from_secs(from + number), process, resident_kib, descriptors }
        };
        (0..count).map(sample).collect()
    }

    #[test]
    fn what_grows_is_seen_and_what_settles_is_not() {
        let flat = |samples: &[Sample]| growth(samples).map(|growth| growth.is_flat);
        let noisy = |number: u64| (50_000 + number % 7 * 100, 30 + number % 3);
        assert_eq!(flat(&samples(1, 0, 100, noisy)), Some(true));
        assert_eq!(flat(&samples(1, 0, 100, |number| (50_000 + number * 200, 30))), Some(false), "a leak of memory");
        assert_eq!(flat(&samples(1, 0, 100, |number| (50_000, 30 + number / 5))), Some(false), "a leak of descriptors");
        let starts = |number: u64| if number < 10 { (10_000, 10) } else { (50_000, 30) };
        assert_eq!(flat(&samples(1, 0, 100, starts)), Some(true), "a start is no growth");
    }

    #[test]
    fn the_last_process_counts() {
        let mut all = samples(1, 0, 100, |number| (50_000 + number * 1000, 30));
        all.extend(samples(2, 100, 40, |_| (50_000, 30)));
        let growth = growth(&all).expect("it lived long enough");
        assert_eq!((growth.process, growth.seconds, growth.is_flat), (2, 29, true));
        assert_eq!(super::growth(&samples(1, 0, 12, |_| (1, 1))), None, "too short");
    }

    #[test]
    fn the_fullest_moment_of_a_map_is_kept() {
        let mut fill = Fill::new();
        for entries in [3, 7, 5] {
            note_fill(
                &format!(
                    "# TYPE dsproxy_map_entries gauge\ndsproxy_map_entries{{map=\"slots\",family=\"IPv4\"}} {entries}\n\
                     dsproxy_map_capacity{{map=\"slots\"}} 100\ndsproxy_map_writes_total 9\n"
                ),
                &mut fill,
            );
        }
        let kept: Vec<(&str, u64)> = fill.iter().map(|(name, most)| (name.as_str(), *most)).collect();
        assert_eq!(kept, [("capacity{map=\"slots\"}", 100), ("entries{map=\"slots\",family=\"IPv4\"}", 7)]);
    }
}
