//! Which figures a plot shows, and where. It draws nothing.

use super::super::Figure;

/// One of the small plots of a plot: a way and a family.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) lines: Vec<Line>,
}

/// A variant's medians by the number of Services, in the order of these.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Line {
    pub(super) variant: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// The values that `coordinate` has among figures `at` these coordinates, each once, in the order in which they first come.
pub(super) fn values(figures: &[Figure], at: &[(&str, &str)], coordinate: &str) -> Vec<String> {
    let mut values: Vec<String> = Vec::new();
    for value in figures.iter().filter(|figure| figure.is_at(at)).filter_map(|figure| figure.of.get(coordinate)) {
        if !values.contains(value) {
            values.push(value.clone());
        }
    }
    values
}

/// A panel for each way and family of the figures `at` these coordinates, family by family.
pub(super) fn panels(figures: &[Figure], at: &[(&str, &str)]) -> Vec<Panel> {
    let with = |more: &[(&str, &str)]| -> Vec<(String, String)> {
        at.iter().chain(more).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    let mut panels = Vec::new();
    for family in values(figures, at, "family") {
        for way in values(figures, at, "way") {
            let place = with(&[("family", &family), ("way", &way)]);
            let place: Vec<(&str, &str)> = place.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let lines = values(figures, &place, "variant").into_iter().map(|variant| {
                let own =
                    figures.iter().filter(|figure| figure.is_at(&place) && figure.is_at(&[("variant", &variant)]));
                let mut points: Vec<(f64, f64)> =
                    own.filter_map(|figure| Some((figure.of.get("services")?.parse().ok()?, figure.median))).collect();
                points.sort_by(|one, other| one.0.total_cmp(&other.0));
                Line { variant, points }
            });
            panels.push(Panel { title: format!("{way}, {family}"), lines: lines.collect() });
        }
    }
    panels
}

/// The range that all points of `panels` and zero lie in, with some room above.
pub(super) fn range(panels: &[Panel]) -> (f64, f64) {
    let heights = || panels.iter().flat_map(|panel| &panel.lines).flat_map(|line| &line.points).map(|point| point.1);
    let (least, most) = (heights().fold(0.0, f64::min), heights().fold(0.0, f64::max));
    let room = (most - least) * 0.05;
    (if least < 0.0 { least - room } else { 0.0 }, most + room)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(family: &str, way: &str, variant: &str, services: u32, median: f64) -> Figure {
        Figure::new("x", "us", 0.0, median)
            .at("part", "traffic")
            .at("family", family)
            .at("way", way)
            .at("variant", variant)
            .at("services", services)
    }

    #[test]
    fn a_panel_has_the_lines_of_its_way_and_family_in_the_order_of_services() {
        let figures = [
            figure("IPv4", "near", "dsproxy", 1_000, 3.0),
            figure("IPv4", "near", "dsproxy", 10, 2.0),
            figure("IPv4", "near", "rules", 10, 9.0),
            figure("IPv6", "near", "dsproxy", 10, 4.0),
            figure("IPv4", "far", "dsproxy", 10, 5.0),
            Figure::new("of another part", "us", 1.0, 1.0).at("family", "IPv4").at("way", "near"),
        ];
        let panels = panels(&figures, &[("part", "traffic")]);
        let titles: Vec<&str> = panels.iter().map(|panel| panel.title.as_str()).collect();
        assert_eq!(titles, ["near, IPv4", "far, IPv4", "near, IPv6", "far, IPv6"]);
        let line = |variant: &str, points: &[(f64, f64)]| Line { variant: variant.to_owned(), points: points.to_vec() };
        assert_eq!(panels[0].lines, [line("dsproxy", &[(10.0, 2.0), (1_000.0, 3.0)]), line("rules", &[(10.0, 9.0)])]);
        assert_eq!(panels[1].lines, [line("dsproxy", &[(10.0, 5.0)])]);
        assert!(panels[3].lines.is_empty());
        assert_eq!(range(&panels), (0.0, 9.45));
    }

    #[test]
    fn what_is_below_zero_is_shown_too() {
        let figures = [figure("IPv4", "near", "dsproxy", 10, -1.0), figure("IPv4", "near", "dsproxy", 20, 1.0)];
        assert_eq!(range(&panels(&figures, &[])), (-1.1, 1.1));
    }
}
