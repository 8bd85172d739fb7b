//! Figures, what they should be, and how they are shown: as a table for whoever reads along, as JSON for whoever compares.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use super::{Machine, statistics::Sorted};

/// What a figure should be at most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Aim {
    /// The bound, in the figure's unit.
    pub at_most: f64,
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
    /// The least of all rounds. Of a time it is the best, and it is this that is held against the aim: noise only ever adds.
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

    /// With an aim.
    pub fn at_most(self, at_most: f64) -> Self {
        Self { aim: Some(Aim { at_most }), ..self }
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

    /// Whether the aim is met; true without one.
    pub fn is_met(&self) -> bool {
        self.aim.is_none_or(|Aim { at_most }| self.minimum <= at_most)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, unit, better: _, minimum, median, spread: _, also, aim, of: _ } = self;
        write!(f, "{name:<82} {:>8} {:>8} {unit:<3}", number(*minimum), number(*median))?;
        if let Some(Aim { at_most }) = aim {
            if self.is_met() {
                write!(f, " aim {}: met", number(*at_most))?;
            } else {
                write!(f, " aim {}: MISSED by {}", number(*at_most), number(minimum - at_most))?;
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
    fn the_best_of_rates_is_the_greatest() {
        let samples = [3.0, 1.0, 2.0];
        assert_eq!(Figure::of_samples("x", "us", samples).best(), 1.0);
        assert_eq!(Figure::of_samples("x", "/s", samples).higher_is_better().best(), 3.0);
    }

    #[test]
    fn figures_read_back_as_they_were_written() {
        let figure = Figure::of_samples("x", "/s", [1.0, 2.0]).at("services", 10).also("p99", 3.0).at_most(4.0);
        let text = serde_json::to_string(&figure).expect("a figure can be written");
        assert_eq!(serde_json::from_str::<Figure>(&text).expect("and read"), figure);
    }
}
