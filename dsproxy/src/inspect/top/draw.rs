//! The screen, drawn. Looks at nothing but what it is given.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style, Stylize as _},
    text::Line,
    widgets::{Block, Cell, Paragraph, Row, Table},
};

use super::{SortBy, rates::Rates, screen::Screen};
use crate::inspect::{
    fill::MapFill,
    human::{bit_rate, rate, span},
};

const KEYS: &str = "q quit  space pause  sort: b bytes, p packets, r replies, c connections, o open, d drops, n name  i idle  / search";

/// Rows of the lower tables, frame and heading included.
const LOWER: u16 = 9;

/// From where on a map is shown to be nearly full.
const NEARLY_FULL: f64 = 0.8;

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, screen: &mut Screen, rates: &Rates, maps: &[MapFill]) {
    let [upper, lower, keys] =
        Layout::vertical([Constraint::Min(3), Constraint::Length(LOWER), Constraint::Length(1)]).areas(frame.area());
    services(frame, upper, screen, rates);
    let [left, right] = Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]).areas(lower);
    drops(frame, left, rates);
    fill(frame, right, maps);
    let line = if screen.is_searching { format!("search: {}_", screen.search) } else { KEYS.to_owned() };
    frame.render_widget(Paragraph::new(Line::from(line).dim()), keys);
}

fn services(frame: &mut Frame<'_>, area: Rect, screen: &mut Screen, rates: &Rates) {
    // A frame above and below, and the heading.
    let room = usize::from(area.height.saturating_sub(3));
    let (rows, all) = screen.rows(rates, room);
    let mut title = format!(" Services: {all}, over {} ", span(rates.over));
    if !screen.search.is_empty() {
        title += &format!("| with {:?} in their name ", screen.search);
    }
    if screen.paused {
        title += "| paused ";
    }
    let headings = [
        ("SERVICE PORT", Some(SortBy::Name)),
        ("OPEN", Some(SortBy::Open)),
        ("CONN/s", Some(SortBy::Connections)),
        ("PKT/s", Some(SortBy::Packets)),
        ("REPLIES/s", Some(SortBy::Replies)),
        ("TO BACKENDS", Some(SortBy::Bytes)),
        ("TO CLIENTS", Some(SortBy::Bytes)),
        ("DROPS/s", Some(SortBy::Drops)),
    ]
    .map(|(text, sort)| {
        let style = if sort == Some(screen.sort) { Style::new().bold().underlined() } else { Style::new().bold() };
        Cell::from(text).style(style)
    });
    let rows = rows.into_iter().map(|service| {
        let drops = service.all_drops();
        let row = Row::new([
            service.name.clone(),
            service.open.to_string(),
            rate(service.connections),
            rate(service.packets),
            rate(service.reply_packets),
            format!("{}/s", bit_rate(service.bytes)),
            format!("{}/s", bit_rate(service.reply_bytes)),
            rate(drops),
        ]);
        if drops > 0.0 { row.red() } else { row }
    });
    let widths = [
        Constraint::Min(20),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(13),
        Constraint::Length(13),
        Constraint::Length(8),
    ];
    let table = Table::new(rows, widths).header(Row::new(headings)).block(Block::bordered().title(title));
    frame.render_widget(table, area);
}

fn drops(frame: &mut Frame<'_>, area: Rect, rates: &Rates) {
    let rows = rates.drops.iter().map(|drop| {
        let family = drop.family.map_or_else(String::new, |family| family.to_string());
        let row = Row::new([drop.reason.name().to_owned(), family, rate(drop.packets), drop.total.to_string()]);
        if drop.packets > 0.0 { row.red() } else { row }
    });
    let widths = [Constraint::Min(18), Constraint::Length(6), Constraint::Length(8), Constraint::Length(10)];
    let header = Row::new(["DROPPED", "FAMILY", "PKT/s", "ALL"]).style(Modifier::BOLD);
    frame.render_widget(Table::new(rows, widths).header(header).block(Block::bordered().title(" Drops ")), area);
}

fn fill(frame: &mut Frame<'_>, area: Rect, maps: &[MapFill]) {
    let rows = maps.iter().map(|map| {
        let share = map.share().unwrap_or_default();
        let number = |number: Option<String>| number.unwrap_or_default();
        let row = Row::new([
            map.map.to_owned(),
            map.family.clone().unwrap_or_default(),
            number(map.entries.map(|entries| entries.to_string())),
            format!("{:.1}%", share * 100.0),
        ]);
        if share > NEARLY_FULL { row.red() } else { row }
    });
    let widths = [Constraint::Min(18), Constraint::Length(6), Constraint::Length(9), Constraint::Length(7)];
    let header = Row::new(["MAP", "FAMILY", "ENTRIES", "FULL"]).style(Modifier::BOLD);
    frame.render_widget(Table::new(rows, widths).header(header).block(Block::bordered().title(" Maps ")), area);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::{super::rates::tests::rates, *};

    fn drawn(screen: &mut Screen, width: u16, height: u16) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a screen in memory");
        let maps = [MapFill {
            map: "connections",
            family: Some("IPv6".to_owned()),
            entries: Some(90),
            capacity: Some(100),
            bytes: 4096,
        }];
        terminal.draw(|frame| draw(frame, screen, &rates(), &maps)).expect("drawn");
        terminal.backend().to_string()
    }

    fn has_row(text: &str, parts: &[&str]) -> bool {
        text.lines().any(|line| parts.iter().all(|part| line.contains(part)))
    }

    #[test]
    fn services_drops_and_maps_are_drawn() {
        let text = drawn(&mut Screen::new(SortBy::Bytes), 120, 24);
        for parts in [
            &["Services: 4, over 2s"][..],
            &["SERVICE PORT", "CONN/s", "TO CLIENTS", "DROPS/s"],
            &["a/steady:x/TCP", "100", "80 kbit/s", "800 kbit/s", "12"],
            &["b/new:x/TCP", "0.5"],
            &["no-port", "IPv6", "10", "30"],
            &["connections", "IPv6", "90", "90.0%"],
            &["q quit"],
        ] {
            assert!(has_row(&text, parts), "{parts:?}:\n{text}");
        }
        let place = |name: &str| text.find(name).unwrap_or_else(|| panic!("{name}:\n{text}"));
        assert!(
            place("a/steady") < place("a/reset") && place("a/reset") < place("b/new"),
            "the busiest first:\n{text}"
        );
        assert!(!text.contains("a/gone"), "{text}");
    }

    #[test]
    fn a_search_and_a_pause_are_told() {
        let mut screen = Screen { search: "new".to_owned(), is_searching: true, paused: true, ..Screen::default() };
        let text = drawn(&mut screen, 100, 20);
        assert!(has_row(&text, &["Services: 1", "\"new\"", "paused"]), "{text}");
        assert!(has_row(&text, &["search: new_"]) && !text.contains("a/steady"), "{text}");
    }

    #[test]
    fn no_screen_is_too_small() {
        for (width, height) in [(1, 1), (10, 3), (20, 11), (300, 4)] {
            drawn(&mut Screen::new(SortBy::Bytes), width, height);
        }
    }
}
