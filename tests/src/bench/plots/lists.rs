//! Lists of figures in Markdown: one by one, and packets by protocol and family.

use super::{
    super::{Figure, figure::number},
    tables::{head, row},
};

/// What a figure's name can end with that becomes a column.
const COLUMNS: [&str; 4] = ["TCP, IPv4", "UDP, IPv4", "TCP, IPv6", "UDP, IPv6"];

/// One row for each figure.
pub(super) fn list(figures: &[&Figure]) -> String {
    let mut text = head(&["", "minimum", "median", "unit", "aim"].map(str::to_owned));
    for figure in figures {
        let also =
            figure.also.as_ref().map_or_else(String::new, |(name, value)| format!(" ({name} {})", number(*value)));
        text += &row([
            figure.name.clone(),
            number(figure.minimum),
            format!("{}{also}", number(figure.median)),
            figure.unit.to_string(),
            aim(figure),
        ]);
    }
    text
}

fn aim(figure: &Figure) -> String {
    let verdict = if figure.is_met() { "met" } else { "missed" };
    figure.aim.map_or_else(String::new, |aim| format!("{aim}: {verdict}"))
}

/// The figures whose names differ in protocol and family alone, one row for all of a kind: minimum, median in parentheses, and whether an
/// aim is missed. The others come after them, in a list.
pub(super) fn packets(figures: &[&Figure]) -> String {
    let column = |figure: &Figure| COLUMNS.into_iter().position(|column| figure.name.contains(&format!(", {column}")));
    let row_name = |figure: &Figure, column: usize| figure.name.replace(&format!(", {}", COLUMNS[column]), "");
    let mut rows: Vec<(String, [Option<&Figure>; COLUMNS.len()])> = Vec::new();
    let mut others = Vec::new();
    for figure in figures {
        let Some(column) = column(figure) else {
            others.push(*figure);
            continue;
        };
        let name = format!("{}, {}", row_name(figure, column), figure.unit);
        let place = rows.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            rows.push((name, [None; COLUMNS.len()]));
            rows.len() - 1
        });
        rows[place].1[column] = Some(figure);
    }
    let mut text = String::new();
    if !rows.is_empty() {
        text += &head(&["minimum (median)"].into_iter().chain(COLUMNS).map(str::to_owned).collect::<Vec<_>>());
    }
    for (name, cells) in rows {
        let cell = |figure: Option<&Figure>| {
            figure.map_or_else(String::new, |figure| {
                let aim = figure.aim.map_or_else(String::new, |_| format!(", aim {}", aim(figure)));
                format!("{} ({}){aim}", number(figure.minimum), number(figure.median))
            })
        };
        text += &row([name].into_iter().chain(cells.map(cell)));
    }
    if !others.is_empty() {
        text += &format!("\n{}", list(&others));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_and_families_of_a_packet_are_columns() {
        let of = |name: &str, minimum| Figure::new(name, "ns", minimum, minimum + 1.0);
        let figures = [of("reply, TCP, IPv4", 64.0).at_most(80.0), of("reply, TCP, IPv6", 75.0), of("alone", 9.0)];
        let text = packets(&figures.iter().collect::<Vec<_>>());
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows[2], "| reply, ns | 64.0 (65.0), aim 80.0: met |  | 75.0 (76.0) |  |");
        assert_eq!(rows.last(), Some(&"| alone | 9.00 | 10.0 | ns |  |"));
    }
}
