//! Figures, what they should be, and how they are shown: as a table for whoever reads along, as JSON for whoever compares.

use std::fmt;

use serde::Serialize;

use super::Machine;

/// What a figure should be at most.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Aim {
    /// The bound, in the figure's unit.
    pub at_most: f64,
}

/// One result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The unit.
    pub unit: &'static str,
    /// The best of all rounds. It is this that is held against the aim: noise only ever adds.
    pub minimum: f64,
    /// The median of all rounds.
    pub median: f64,
    /// Another quantile or the like, by its name.
    pub also: Option<(&'static str, f64)>,
    /// What it should be.
    pub aim: Option<Aim>,
}

impl Figure {
    /// A figure without an aim.
    pub fn new(name: impl Into<String>, unit: &'static str, minimum: f64, median: f64) -> Self {
        Self { name: name.into(), unit, minimum, median, also: None, aim: None }
    }

    /// With an aim.
    pub fn at_most(self, at_most: f64) -> Self {
        Self { aim: Some(Aim { at_most }), ..self }
    }

    /// With one more number.
    pub fn also(self, name: &'static str, value: f64) -> Self {
        Self { also: Some((name, value)), ..self }
    }

    /// Whether the aim is met; true without one.
    pub fn is_met(&self) -> bool {
        self.aim.is_none_or(|Aim { at_most }| self.minimum <= at_most)
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, unit, minimum, median, also, aim } = self;
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
fn number(value: f64) -> String {
    let decimals = match value.abs() {
        magnitude if magnitude >= 100.0 || magnitude == 0.0 => 0,
        magnitude if magnitude >= 10.0 => 1,
        magnitude if magnitude >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// Everything from one run.
#[derive(Clone, Debug, Serialize)]
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
}
