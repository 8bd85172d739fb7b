//! Two runs held against each other: what changed by more than the runs themselves vary.

use std::{collections::BTreeMap, fmt};

use super::{Better, Figure, Machine, Report, figure::number};

/// What always counts as noise, as a share of the older median: runs of the same build differ by that much.
const LEAST_NOISE: f64 = 0.03;

/// The same where a figure has too few samples to say how much it varies.
const LEAST_NOISE_OF_FEW: f64 = 0.10;

/// So many samples say something of how much a figure varies.
const ENOUGH: usize = 4;

/// All that two runs differ in.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The older and the newer run's machines, where these are not alike.
    pub machines: Option<[Machine; 2]>,
    /// What became worse, the most first.
    pub worse: Vec<Change>,
    /// What became better, the most first.
    pub better: Vec<Change>,
    /// How many figures stayed within their noise.
    pub same: usize,
    /// What only the older run has.
    pub gone: Vec<String>,
    /// What only the newer run has.
    pub added: Vec<String>,
}

/// A figure that changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The figure's name.
    pub name: String,
    /// Its unit.
    pub unit: String,
    /// The older median.
    pub old: f64,
    /// The newer median.
    pub new: f64,
    /// How much of a difference would have been noise.
    pub noise: f64,
}

impl Comparison {
    /// Compares two runs, figure by figure, by name.
    pub fn of(old: &Report, new: &Report) -> Self {
        let by_name = |report: &Report| -> BTreeMap<String, Figure> {
            report.figures.iter().map(|figure| (figure.name.clone(), figure.clone())).collect()
        };
        let (before, after) = (by_name(old), by_name(new));
        let only_in = |these: &BTreeMap<String, Figure>, others: &BTreeMap<String, Figure>| -> Vec<String> {
            these.keys().filter(|name| !others.contains_key(*name)).cloned().collect()
        };
        let machines = [&old.machine, &new.machine];
        let mut comparison = Self {
            machines: (!machines[0].is_like(machines[1])).then(|| machines.map(Clone::clone)),
            worse: Vec::new(),
            better: Vec::new(),
            same: 0,
            gone: only_in(&before, &after),
            added: only_in(&after, &before),
        };
        for (old, new) in before.values().filter_map(|old| Some((old, after.get(&old.name)?))) {
            match change(old, new) {
                None => comparison.same += 1,
                Some(change) if (change.new > change.old) == (new.better == Better::Higher) => {
                    comparison.better.push(change);
                }
                Some(change) => comparison.worse.push(change),
            }
        }
        for changes in [&mut comparison.worse, &mut comparison.better] {
            changes.sort_by(|one, other| other.share().total_cmp(&one.share()));
        }
        comparison
    }
}

/// What changed between two figures of one name, if it is more than noise: the median moved further than the samples of either run lie
/// apart, and the best sample, which noise moves least, moved the same way.
fn change(old: &Figure, new: &Figure) -> Option<Change> {
    let noise = noise(old).max(noise(new));
    let moved = new.median - old.median;
    // NaN is no change that one could speak of.
    let same_way = moved * (new.best() - old.best()) > 0.0;
    (moved.abs() > noise && same_way).then(|| Change {
        name: old.name.clone(),
        unit: old.unit.to_string(),
        old: old.median,
        new: new.median,
        noise,
    })
}

/// By how much the median of `figure` may differ from run to run.
fn noise(figure: &Figure) -> f64 {
    let (spread, least) = match figure.spread {
        Some(spread) if spread.samples >= ENOUGH => (spread.quartiles, LEAST_NOISE),
        Some(spread) => (spread.maximum - figure.minimum, LEAST_NOISE_OF_FEW),
        // Noise only adds, so half of what it adds is what the median lies above the minimum.
        None => (figure.median - figure.minimum, LEAST_NOISE),
    };
    spread.abs().max(figure.median.abs() * least)
}

impl Change {
    /// The change as a share of what was before.
    fn share(&self) -> f64 {
        ((self.new - self.old) / self.old).abs()
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, unit, old, new, noise } = self;
        let percent = (new - old) / old.abs() * 100.0;
        let (old, new, noise) = (number(*old), number(*new), number(*noise));
        write!(f, "{name}: {old} -> {new} {unit} ({percent:+.0} %, noise {noise})")
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machines, worse, better, same, gone, added } = self;
        if let Some([old, new]) = machines {
            writeln!(f, "DIFFERENT MACHINES: what follows says more of these than of dsproxy.")?;
            writeln!(f, "  older: {old}\n  newer: {new}")?;
        }
        for (what, changes) in [("worse", worse), ("better", better)] {
            writeln!(f, "{}: {what} beyond noise", changes.len())?;
            for change in changes {
                writeln!(f, "  {change}")?;
            }
        }
        writeln!(f, "{same}: within noise")?;
        for (what, names) in [("no longer measured", gone), ("not measured before", added)] {
            if !names.is_empty() {
                writeln!(f, "{}: {what}", names.len())?;
            }
            for name in names {
                writeln!(f, "  {name}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(figures: Vec<Figure>) -> Report {
        let machine = Machine {
            processor: String::new(),
            processors: 2,
            kernel: String::new(),
            mitigations: Vec::new(),
            jit: 1,
            load: 0.0,
        };
        Report { machine, figures }
    }

    fn figure(name: &str, samples: [f64; 5]) -> Figure {
        Figure::of_samples(name, "us", samples)
    }

    const CALM: [f64; 5] = [100.0, 101.0, 102.0, 103.0, 104.0];
    const WILD: [f64; 5] = [80.0, 90.0, 102.0, 120.0, 150.0];

    fn compare(old: Figure, new: Figure) -> (usize, usize, usize) {
        let Comparison { worse, better, same, .. } = Comparison::of(&report(vec![old]), &report(vec![new]));
        (worse.len(), better.len(), same)
    }

    #[test]
    fn a_step_counts_where_samples_lie_closer_than_that() {
        let further = |samples: [f64; 5]| samples.map(|sample| sample + 12.0);
        assert_eq!(compare(figure("x", CALM), figure("x", further(CALM))), (1, 0, 0));
        assert_eq!(compare(figure("x", further(CALM)), figure("x", CALM)), (0, 1, 0));
        assert_eq!(compare(figure("x", WILD), figure("x", further(WILD))), (0, 0, 1));
        assert_eq!(compare(figure("x", CALM), figure("x", further(WILD))), (0, 0, 1));
    }

    #[test]
    fn more_is_better_of_a_rate() {
        let rate = |samples| figure("x", samples).higher_is_better();
        assert_eq!(compare(rate(CALM), rate(CALM.map(|sample| sample * 2.0))), (0, 1, 0));
    }

    #[test]
    fn a_run_held_against_itself_does_not_differ() {
        assert_eq!(compare(figure("x", WILD), figure("x", WILD)), (0, 0, 1));
        let nothing = Figure::of_samples("x", "us", []);
        assert_eq!(compare(nothing.clone(), nothing), (0, 0, 1));
    }

    #[test]
    fn a_median_that_moves_without_the_best_is_noise() {
        let disturbed = [100.0, 130.0, 131.0, 131.0, 132.0];
        assert_eq!(compare(figure("x", CALM), figure("x", disturbed)), (0, 0, 1));
    }

    #[test]
    fn without_samples_the_median_tells_by_how_much_noise_adds() {
        let old = Figure::new("x", "ns", 70.0, 75.0);
        assert_eq!(compare(old.clone(), Figure::new("x", "ns", 74.0, 79.0)), (0, 0, 1));
        assert_eq!(compare(old, Figure::new("x", "ns", 84.0, 89.0)), (1, 0, 0));
    }

    #[test]
    fn what_one_run_lacks_is_named() {
        let comparison = Comparison::of(&report(vec![figure("old", CALM)]), &report(vec![figure("new", CALM)]));
        assert_eq!((comparison.gone, comparison.added), (vec!["old".to_owned()], vec!["new".to_owned()]));
    }

    #[test]
    fn machines_that_are_not_alike_are_named() {
        let (old, mut new) = (report(Vec::new()), report(Vec::new()));
        new.machine.load = 2.0;
        assert!(Comparison::of(&old, &new).machines.is_none(), "how busy it was makes no other machine");
        new.machine.kernel = "6.1".to_owned();
        let text = Comparison::of(&old, &new).to_string();
        assert!(text.starts_with("DIFFERENT MACHINES") && text.contains("kernel 6.1"), "{text}");
    }

    #[test]
    fn the_largest_change_comes_first() {
        let figures = |factor: f64| ["a", "b"].map(|name| figure(name, CALM.map(|sample| sample * factor)));
        let [a, b] = figures(1.0);
        let [worse_a, _] = figures(1.5);
        let [_, worse_b] = figures(3.0);
        let comparison = Comparison::of(&report(vec![a, b]), &report(vec![worse_a, worse_b]));
        let names: Vec<&str> = comparison.worse.iter().map(|change| change.name.as_str()).collect();
        assert_eq!(names, ["b", "a"]);
    }
}
