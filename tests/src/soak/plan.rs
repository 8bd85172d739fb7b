//! What is to happen in a soak and when, from a seed: the same seed and length give the same plan. Pure.

use std::{fmt, time::Duration};

/// How much of a run the daemon is ended and started in. Afterwards one process lives to the end, so that it can be seen whether it
/// grows.
const RESTARTS: f64 = 0.5;

/// How long before the end the last thing happens: everything has to have settled when it is looked at.
const CALM: Duration = Duration::from_secs(8);

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// The daemon ends, and is started again after it has been away.
    Daemon {
        /// By SIGKILL, and not by SIGTERM.
        killed: bool,
        /// How long it is away.
        away: Duration,
    },
    /// The API server is of no use for a while.
    Api {
        /// In which way.
        outage: Outage,
        /// How long.
        length: Duration,
    },
    /// An endpoint of the Service whose endpoints run on changes its place in it.
    Endpoint {
        /// Which of them; never the first two.
        number: usize,
        /// What it is from here on.
        state: Listed,
    },
    /// A pod comes, with an interface of its own, and serves.
    PodComes,
    /// The oldest of those that came goes.
    PodGoes,
    /// A Service that nobody uses comes, or goes if it is there.
    Service {
        /// Which.
        number: u16,
    },
}

/// In which way the API server is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outage {
    /// It is gone, and comes back as it was.
    Gone,
    /// It comes back without a history.
    Compacted,
    /// It comes back as restored from a backup.
    OtherHistory,
    /// It refuses everything with this HTTP status.
    Refuses(u16),
}

/// How an endpoint stands in its slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listed {
    /// It takes connections.
    Ready,
    /// It ends, and still answers.
    Terminating,
    /// It is not there.
    Absent,
}

/// Acts of one kind, one after the other, each with its time from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stream {
    pub(super) name: &'static str,
    pub(super) acts: Vec<(Duration, Act)>,
}

impl fmt::Display for Act {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Daemon { killed: true, away } => write!(f, "the daemon is killed, and away for {away:.1?}"),
            Self::Daemon { killed: false, away } => write!(f, "the daemon is told to end, and away for {away:.1?}"),
            Self::Api { outage, length } => match outage {
                Outage::Gone => write!(f, "the API server is gone for {length:.1?}"),
                Outage::Compacted => write!(f, "the API server is gone for {length:.1?}, and its history for ever"),
                Outage::OtherHistory => {
                    write!(f, "the API server is gone for {length:.1?}, and has another history then")
                }
                Outage::Refuses(status) => {
                    write!(f, "the API server refuses everything with {status} for {length:.1?}")
                }
            },
            Self::Endpoint { number, state } => write!(f, "endpoint {number} is {state:?}"),
            Self::PodComes => f.write_str("a pod comes"),
            Self::PodGoes => f.write_str("a pod goes"),
            Self::Service { number } => write!(f, "the Service {number} comes or goes"),
        }
    }
}

/// How many endpoints run on through the whole soak; the first two are never taken out.
pub(super) const ENDPOINTS: usize = 4;

/// How many Services come and go that nobody uses.
pub(super) const SERVICES: u16 = 40;

/// How many pods there are at most of those that come and go.
pub(super) const PODS: usize = 4;

/// What happens in a soak of this length.
pub(super) fn plan(seed: u64, length: Duration) -> Vec<Stream> {
    let mut random = fastrand::Rng::with_seed(seed);
    let until = length.saturating_sub(CALM);
    let seconds =
        |random: &mut fastrand::Rng, from: f64, to: f64| Duration::from_secs_f64(from + random.f64() * (to - from));
    // Of a short run every kind has to have its part.
    let scale = (length.as_secs_f64() / 300.0).clamp(0.2, 1.0);
    let mut stream = |name, (from, to): (f64, f64), until: Duration, act: &mut dyn FnMut(&mut fastrand::Rng) -> Act| {
        let mut acts = Vec::new();
        let mut time = seconds(&mut random, 1.0, 2.0);
        while time < until {
            acts.push((time, act(&mut random)));
            time += seconds(&mut random, from, to);
        }
        Stream { name, acts }
    };
    let mut pods = 0;
    vec![
        stream("daemon", (20.0 * scale, 60.0 * scale), length.mul_f64(RESTARTS), &mut |random| Act::Daemon {
            killed: random.bool(),
            away: seconds(random, 0.0, 6.0 * scale),
        }),
        stream("api", (15.0 * scale, 45.0 * scale), until, &mut |random| Act::Api {
            outage: match random.u8(0..5) {
                0 => Outage::Compacted,
                1 => Outage::OtherHistory,
                2 => Outage::Refuses(503),
                3 => Outage::Refuses(429),
                _ => Outage::Gone,
            },
            length: seconds(random, 0.5, 15.0 * scale),
        }),
        stream("endpoints", (0.3, 3.0), until, &mut |random| Act::Endpoint {
            number: random.usize(2..ENDPOINTS),
            state: match random.u8(0..3) {
                0 => Listed::Ready,
                1 => Listed::Terminating,
                _ => Listed::Absent,
            },
        }),
        stream("pods", (0.5, 4.0), until, &mut |random| {
            let comes = pods == 0 || (pods < PODS && random.bool());
            if comes {
                pods += 1;
            } else {
                pods -= 1;
            }
            if comes { Act::PodComes } else { Act::PodGoes }
        }),
        stream("services", (0.1, 1.0), until, &mut |random| Act::Service { number: random.u16(0..SERVICES) }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_one_plan() {
        let minute = Duration::from_secs(60);
        assert_eq!(plan(7, minute), plan(7, minute));
        assert_ne!(plan(7, minute), plan(8, minute));
    }

    #[test]
    fn everything_has_its_part_in_any_length_and_nothing_disturbs_the_end() {
        for (seed, minutes) in [(1, 1), (2, 2), (3, 30), (4, 600)] {
            let length = Duration::from_secs(60 * minutes);
            for Stream { name, acts } in plan(seed, length) {
                assert!(acts.len() >= 2, "{name} in {minutes} minutes: {acts:?}");
                assert!(acts.is_sorted_by_key(|(time, _)| *time));
                assert!(acts.iter().all(|(time, _)| *time < length - CALM), "{name}");
            }
        }
    }

    #[test]
    fn no_pod_goes_before_it_came() {
        let pods = plan(5, Duration::from_secs(1800)).remove(3);
        let mut there = 0usize;
        for (_, act) in pods.acts {
            match act {
                Act::PodComes => there += 1,
                Act::PodGoes => there = there.checked_sub(1).expect("a pod"),
                other => panic!("{other}"),
            }
            assert!(there <= PODS);
        }
    }
}
