//! Figures, what they should be, and how they are shown: as a table for whoever reads along, as JSON for whoever compares.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::{Deserialize, Serialize};

use super::{Machine, statistics::Sorted};

/// What a figure should be, in its unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aim {
    /// Its minimum is to be no more: of what noise only ever adds to.
    AtMost(f64),
    /// Its median is to be no more: of differences, quantiles and the like, which noise moves either way.
    MedianAtMost(f64),
    /// Its median is to be no less: of shares and rates.
    AtLeast(f64),
}

impl Aim {
    /// The bound.
    pub fn bound(self) -> f64 {
        match self {
            Self::AtMost(bound) | Self::MedianAtMost(bound) | Self::AtLeast(bound) => bound,
        }
    }
}

impl fmt::Display for Aim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bound = number(self.bound());
        match self {
            Self::AtMost(_) | Self::MedianAtMost(_) => write!(f, "{bound}"),
            Self::AtLeast(_) => write!(f, "at least {bound}"),
        }
    }
}

/// Which of two values is the better one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// The lower, as with times.
    #[default]
    Lower,
    /// The higher, as with rates.
    Higher,
}

/// One result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The unit.
    pub unit: Cow<'static, str>,
    /// Which values are better.
    #[serde(default)]
    pub better: Better,
    /// The least of all rounds. Of a time it is the best.
    pub minimum: f64,
    /// The median of all rounds.
    pub median: f64,
    /// How the rounds differ, where they are known one by one.
    #[serde(default)]
    pub spread: Option<Spread>,
    /// Another quantile or the like, by its name.
    pub also: Option<(Cow<'static, str>, f64)>,
    /// What it should be.
    pub aim: Option<Aim>,
    /// What it is a figure of, by the names of its coordinates; plots and tables pick figures by these.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub of: BTreeMap<String, String>,
}

/// How samples differ from each other.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// How many there are.
    pub samples: usize,
    /// The greatest.
    pub maximum: f64,
    /// The width of the range that the middle half of them lies in.
    pub quartiles: f64,
}

impl Figure {
    /// A figure without an aim.
    pub fn new(name: impl Into<String>, unit: &'static str, minimum: f64, median: f64) -> Self {
        Self {
            name: name.into(),
            unit: unit.into(),
            better: Better::Lower,
            minimum,
            median,
            spread: None,
            also: None,
            aim: None,
            of: BTreeMap::new(),
        }
    }

    /// What many samples say.
    pub fn of_samples(name: impl Into<String>, unit: &'static str, samples: impl IntoIterator<Item = f64>) -> Self {
        let sorted = Sorted::new(samples);
        let spread = Spread { samples: sorted.len(), maximum: sorted.maximum(), quartiles: sorted.spread() };
        Self { spread: Some(spread), ..Self::new(name, unit, sorted.minimum(), sorted.median()) }
    }

    /// With an aim for its minimum.
    pub fn at_most(self, bound: f64) -> Self {
        Self { aim: Some(Aim::AtMost(bound)), ..self }
    }

    /// With an aim for its median.
    pub fn median_at_most(self, bound: f64) -> Self {
        Self { aim: Some(Aim::MedianAtMost(bound)), ..self }
    }

    /// With an aim that its median is to reach.
    pub fn at_least(self, bound: f64) -> Self {
        Self { aim: Some(Aim::AtLeast(bound)), ..self }
    }

    /// With one more number.
    pub fn also(self, name: &'static str, value: f64) -> Self {
        Self { also: Some((name.into(), value)), ..self }
    }

    /// As a rate, of which more is better.
    pub fn higher_is_better(self) -> Self {
        Self { better: Better::Higher, ..self }
    }

    /// With one more coordinate.
    #[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike, as they come")]
    pub fn at(mut self, coordinate: &str, value: impl ToString) -> Self {
        self.of.insert(coordinate.to_owned(), value.to_string());
        self
    }

    /// Whether all these coordinates are the figure's.
    pub fn is_at(&self, coordinates: &[(&str, &str)]) -> bool {
        coordinates.iter().all(|(name, value)| self.of.get(*name).is_some_and(|own| own == value))
    }

    /// The best of all rounds.
    pub fn best(&self) -> f64 {
        match (self.better, self.spread) {
            (Better::Higher, Some(spread)) => spread.maximum,
            (Better::Higher, None) => self.median,
            (Better::Lower, _) => self.minimum,
        }
    }

    /// What is held against the aim, and by how much it misses it; not above zero where it is met. None without an aim.
    pub fn held(&self) -> Option<(f64, f64)> {
        Some(match self.aim? {
            Aim::AtMost(bound) => (self.minimum, self.minimum - bound),
            Aim::MedianAtMost(bound) => (self.median, self.median - bound),
            Aim::AtLeast(bound) => (self.median, bound - self.median),
        })
    }

    /// Whether the aim is met; true without one. What is no number meets none.
    pub fn is_met(&self) -> bool {
        self.held().is_none_or(|(_, missed_by)| missed_by <= 0.0)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, unit, better: _, minimum, median, spread: _, also, aim, of: _ } = self;
        write!(f, "{name:<82} {:>8} {:>8} {unit:<3}", number(*minimum), number(*median))?;
        if let (Some(aim), Some((_, missed_by))) = (aim, self.held()) {
            if self.is_met() {
                write!(f, " aim {aim}: met")?;
            } else {
                write!(f, " aim {aim}: MISSED by {}", number(missed_by))?;
            }
        }
        if let Some((also, value)) = also {
            write!(f, " ({also} {})", number(*value))?;
        }
        Ok(())
    }
}

/// Three significant digits, or all of the whole part.
pub(super) fn number(value: f64) -> String {
    let decimals = match value.abs() {
        magnitude if magnitude >= 100.0 || magnitude == 0.0 => 0,
        magnitude if magnitude >= 10.0 => 1,
        magnitude if magnitude >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// Everything from one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Where it ran.
    pub machine: Machine,
    /// The figures, in the order in which they were had.
    pub figures: Vec<Figure>,
}

impl Report {
    /// Names that more than one figure has: of these, all but one would be lost where reports are compared.
    pub fn ambiguous(&self) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        self.figures.iter().map(|figure| figure.name.as_str()).filter(|name| !seen.insert(*name)).collect()
    }

    /// How many aims there are, and how many of them are met.
    pub fn aims(&self) -> (usize, usize) {
        let aims = || self.figures.iter().filter(|figure| figure.aim.is_some());
        (aims().count(), aims().filter(|figure| figure.is_met()).count())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aim_is_met_or_missed_by_the_minimum() {
        let figure = Figure::new("x", "ns", 79.4, 85.0);
        assert!(figure.is_met() && figure.clone().at_most(80.0).is_met());
        assert!(figure.clone().at_most(80.0).to_string().ends_with("aim 80.0: met"));
        assert!(figure.at_most(70.0).to_string().ends_with("aim 70.0: MISSED by 9.40"));
    }

    #[test]
    fn a_median_is_held_against_an_aim_for_medians() {
        let figure = Figure::new("x", "", 0.9, 1.1);
        assert!(figure.clone().at_least(1.1).is_met() && figure.clone().median_at_most(1.1).is_met());
        assert!(figure.clone().median_at_most(1.0).to_string().ends_with("aim 1.00: MISSED by 0.100"));
        assert!(figure.at_least(1.25).to_string().ends_with("aim at least 1.25: MISSED by 0.150"));
        assert!(!Figure::new("x", "", f64::NAN, f64::NAN).at_least(1.0).is_met());
    }

    #[test]
    fn the_best_of_rates_is_the_greatest() {
        let samples = [3.0, 1.0, 2.0];
        assert_eq!(Figure::of_samples("x", "us", samples).best(), 1.0);
        assert_eq!(Figure::of_samples("x", "/s", samples).higher_is_better().best(), 3.0);
    }

    #[test]
    fn a_name_that_two_figures_have_is_found() {
        let machine = serde_json::json!({
            "processor": "", "processors": 2, "kernel": "", "mitigations": [], "jit": 1, "load": 0.0,
        });
        let figures = ["x", "y", "x"].map(|name| Figure::new(name, "ns", 1.0, 1.0)).into();
        let machine = serde_json::from_value(machine).expect("a machine");
        assert_eq!(Report { machine, figures }.ambiguous(), BTreeSet::from(["x"]));
    }

    #[test]
    fn figures_read_back_as_they_were_written() {
        let figure = Figure::of_samples("x", "/s", [1.0, 2.0]).at("services", 10).also("p99", 3.0).at_most(4.0);
        let text = serde_json::to_string(&figure).expect("a figure can be written");
        assert_eq!(serde_json::from_str::<Figure>(&text).expect("and read"), figure);
    }
}
