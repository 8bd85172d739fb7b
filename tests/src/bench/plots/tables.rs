//! Tables in Markdown.

use super::{
    super::{
        Figure, Report, Source,
        account::{COLUMNS as CALLS, PART as ACCOUNT, PRICES},
        control_plane::PART as CONTROL_PLANE,
        daemon::PART as DAEMON,
        figure::number,
        start::PART as START,
        traffic::{ONE_ARMED, PART as TRAFFIC},
    },
    lists::{list, packets},
    select::values,
};

/// The tables of traffic: the measure, what of it, and the heading.
const OF_TRAFFIC: [(&str, &str, &str); 12] = [
    (
        "connections, one at a time",
        "rate, share of the floor",
        "New connections, one at a time: share of the floor's rate",
    ),
    (
        "connections, one at a time",
        "processor time added",
        "New connections, one at a time: processor time that each adds, us",
    ),
    (
        "connections, one at a time",
        "programs passed",
        "New connections, one at a time: programs that the packets of each pass on the node",
    ),
    ("connections, one at a time", "latency p50", "New connections, one at a time: latency p50, us"),
    ("connections, one at a time", "latency p99", "New connections, one at a time: latency p99, us"),
    ("connections, 8 at a time", "rate, share of the floor", "New connections, 8 at a time: share of the floor's rate"),
    ("connections, 8 at a time", "latency p99", "New connections, 8 at a time: latency p99, us"),
    (
        "requests on a kept connection",
        "rate, share of the floor",
        "Requests on a kept connection: share of the floor's rate",
    ),
    (
        "requests on a kept connection",
        "processor time added",
        "Requests on a kept connection: processor time that each adds, us",
    ),
    (
        "requests on a kept connection",
        "programs passed",
        "Requests on a kept connection: programs that the packets of each pass on the node",
    ),
    ("UDP requests", "rate, share of the floor", "UDP requests between two sockets: share of the floor's rate"),
    ("bulk", "rate, share of the floor", "Bulk: share of the floor's throughput"),
];

/// The tables of forwarded packets: what of them, and how the heading ends.
const OF_FORWARDING: [(&str, &str); 3] = [
    ("rate", "packets a second, by one processor"),
    ("processor time", "processor time of each, us"),
    ("lost", "lost, %"),
];

/// The tables of a start: the unit, and the heading.
const OF_START: [(&str, &str); 2] = [
    ("s", "A start step by step, each by itself: processor time, s"),
    ("MiB", "The daemon's memory after a start, MiB"),
];

/// The machine, in a sentence.
pub(super) fn machine(report: &Report) -> String {
    format!("Measured on {}.", report.machine)
}

/// Every table, those without figures left out.
pub(super) fn all(report: &Report) -> String {
    let figures = &report.figures;
    let mut text = String::new();
    let floor = floor(figures);
    if !floor.is_empty() {
        text += &format!("### Traffic, straight to the pod: the floor\n\n{floor}\n");
    }
    for (measure, what, heading) in OF_TRAFFIC {
        let table = traffic(figures, measure, what);
        if !table.is_empty() {
            text += &format!("### {heading}\n\n{table}\n");
        }
    }
    for (source, who) in [(Source::LiveFrames, "live frames of XDP"), (Source::Pktgen, "the kernel's pktgen")] {
        for (what, heading) in OF_FORWARDING {
            let table = forwarding(figures, source.part(), what);
            if !table.is_empty() {
                text += &format!("### Forwarded by NodePort, {who}: {heading}\n\n{table}\n");
            }
        }
    }
    let starts = OF_START.map(|(unit, heading)| (heading, start(figures, unit)));
    let accounts = [("What a call costs, ns", prices(figures)), ("Where the time of a packet goes", account(figures))];
    for (heading, table) in starts.into_iter().chain(accounts) {
        if !table.is_empty() {
            text += &format!("### {heading}\n\n{table}\n");
        }
    }
    let rest: Vec<&Figure> = figures.iter().filter(|figure| figure.of.is_empty()).collect();
    let of_part = |part| figures.iter().filter(|figure| figure.is_at(&[("part", part)])).collect::<Vec<&Figure>>();
    type Table = fn(&[&Figure]) -> String;
    let lists: [(&str, Vec<&Figure>, Table); 4] = [
        ("One veth pair: there and back out of it", of_part(ONE_ARMED), list),
        ("A start and a change: the daemon", of_part(DAEMON), list),
        ("A start and a change: the reconciler alone", of_part(CONTROL_PLANE), list),
        ("A packet", rest, packets),
    ];
    for (heading, figures, table) in lists {
        if !figures.is_empty() {
            text += &format!("### {heading}\n\n{}\n", table(&figures));
        }
    }
    text
}

pub(super) fn row(cells: impl IntoIterator<Item = String>) -> String {
    cells.into_iter().map(|cell| format!("| {cell} ")).collect::<String>() + "|\n"
}

pub(super) fn head(cells: &[String]) -> String {
    row(cells.iter().cloned()) + &row(cells.iter().map(|_| "---".to_owned()))
}

/// What the floor does, by way and family, with the fewest Services: their number makes no difference to it.
fn floor(figures: &[Figure]) -> String {
    let at = [("part", TRAFFIC), ("variant", "straight to the pod")];
    let Some(services) = values(figures, &at, "services").into_iter().next() else { return String::new() };
    let measures = values(figures, &at, "measure");
    let mut text =
        head(&["way".to_owned(), "family".to_owned()].into_iter().chain(measures.iter().cloned()).collect::<Vec<_>>());
    for (way, family) in ways(figures, &at) {
        let cell = |measure: &String| {
            let place = [
                ("measure", measure.as_str()),
                ("what", "rate"),
                ("way", &way),
                ("family", &family),
                ("services", &services),
            ];
            let figure = figures.iter().find(|figure| figure.is_at(&at) && figure.is_at(&place));
            figure.map_or_else(String::new, |figure| format!("{} {}", number(figure.median), figure.unit))
        };
        text += &row([way.clone(), family.clone()].into_iter().chain(measures.iter().map(cell)));
    }
    text
}

fn ways(figures: &[Figure], at: &[(&str, &str)]) -> Vec<(String, String)> {
    let families = values(figures, at, "family");
    let each = |way: String| families.iter().map(move |family| (way.clone(), family.clone())).collect::<Vec<_>>();
    values(figures, at, "way").into_iter().flat_map(each).collect()
}

/// The medians of one measure: a row for each way and family, a column for each variant, a value for each number of Services.
fn traffic(figures: &[Figure], measure: &str, what: &str) -> String {
    let at = [("part", TRAFFIC), ("measure", measure), ("what", what)];
    let variants = values(figures, &at, "variant");
    let services = values(figures, &at, "services");
    if variants.is_empty() {
        return String::new();
    }
    let columns = variants.iter().map(|variant| format!("{variant}, {} Services", services.join(" / ")));
    let mut text = head(&["way".to_owned(), "family".to_owned()].into_iter().chain(columns).collect::<Vec<_>>());
    for (way, family) in ways(figures, &at) {
        let cell = |variant: &String| {
            let of = |services: &String| {
                let place = [("variant", variant.as_str()), ("way", &way), ("family", &family), ("services", services)];
                let figure = figures.iter().find(|figure| figure.is_at(&at) && figure.is_at(&place));
                figure.map_or_else(|| "-".to_owned(), |figure| short(figure.median, &figure.unit))
            };
            services.iter().map(of).collect::<Vec<_>>().join(" / ")
        };
        text += &row([way.clone(), family.clone()].into_iter().chain(variants.iter().map(cell)));
    }
    text
}

/// The medians of forwarded packets: a row for each family and number of flows, a column for each variant, a value for each number of
/// Services.
fn forwarding(figures: &[Figure], part: &str, what: &str) -> String {
    let at = [("part", part), ("what", what)];
    let variants = values(figures, &at, "variant");
    let services = values(figures, &at, "services");
    if variants.is_empty() {
        return String::new();
    }
    let columns = variants.iter().map(|variant| format!("{variant}, {} Services", services.join(" / ")));
    let mut text = head(&["flows".to_owned(), "family".to_owned()].into_iter().chain(columns).collect::<Vec<_>>());
    let families = values(figures, &at, "family");
    for (flows, family) in
        values(figures, &at, "flows").iter().flat_map(|flows| families.iter().map(move |f| (flows, f)))
    {
        let cell = |variant: &String| {
            let of = |services: &String| {
                let place =
                    [("variant", variant.as_str()), ("flows", flows), ("family", family), ("services", services)];
                let figure = figures.iter().find(|figure| figure.is_at(&at) && figure.is_at(&place));
                figure.map_or_else(|| "-".to_owned(), |figure| short(figure.median, &figure.unit))
            };
            services.iter().map(of).collect::<Vec<_>>().join(" / ")
        };
        text += &row([flows.clone(), family.clone()].into_iter().chain(variants.iter().map(cell)));
    }
    text
}

/// The minima of a start: a row for each step or piece, a column for each number of Services.
fn start(figures: &[Figure], unit: &str) -> String {
    let at = [("part", START), ("unit", unit)];
    let services = values(figures, &at, "services");
    if services.is_empty() {
        return String::new();
    }
    let columns = services.iter().map(|services| format!("{services} Services"));
    let mut text = head(&[String::new()].into_iter().chain(columns).collect::<Vec<_>>());
    for what in values(figures, &at, "what") {
        let cell = |services: &String| {
            let place = [("services", services.as_str()), ("what", &what)];
            let figure = figures.iter().find(|figure| figure.is_at(&at) && figure.is_at(&place));
            figure.map_or_else(|| "-".to_owned(), |figure| number(figure.minimum))
        };
        text += &row([what.clone()].into_iter().chain(services.iter().map(cell)));
    }
    text
}

/// What calls cost at least: a row for each, a column for each family and number of keys in rotation.
fn prices(figures: &[Figure]) -> String {
    let at = [("part", PRICES)];
    let (families, keys) = (values(figures, &at, "family"), values(figures, &at, "keys"));
    let calls = values(figures, &at, "call");
    if calls.is_empty() {
        return String::new();
    }
    let columns: Vec<(&String, &String)> =
        families.iter().flat_map(|family| keys.iter().map(move |keys| (family, keys))).collect();
    let titles = columns.iter().map(|(family, keys)| format!("{family}, {keys}"));
    let mut text = head(&[String::new()].into_iter().chain(titles).collect::<Vec<_>>());
    for call in &calls {
        let cell = |(family, keys): &(&String, &String)| {
            let place = [("call", call.as_str()), ("family", family), ("keys", keys)];
            let figure = figures.iter().find(|figure| figure.is_at(&at) && figure.is_at(&place));
            figure.map_or_else(String::new, |figure| number(figure.minimum))
        };
        text += &row([call.clone()].into_iter().chain(columns.iter().map(cell)));
    }
    text
}

/// What a packet's time is made up of: a row for each way and family; a column for each kind of call that any of them makes, with how many
/// and what they come to in ns.
fn account(figures: &[Figure]) -> String {
    let at = [("part", ACCOUNT)];
    let find = |way: &str, family: &str, what: &str| {
        let place = [("way", way), ("family", family), ("what", what)];
        figures.iter().find(|figure| figure.is_at(&at) && figure.is_at(&place))
    };
    let rows = ways(figures, &at);
    if rows.is_empty() {
        return String::new();
    }
    let made = |call: &&str| {
        let mut all = figures.iter().filter(|figure| figure.is_at(&at) && figure.is_at(&[("what", call)]));
        all.any(|figure| figure.minimum > 0.0)
    };
    let calls: Vec<&str> = CALLS.into_iter().filter(made).collect();
    let sums = ["the calls together", "the rest", "instructions", "measured"];
    let titles = ["way", "family"].into_iter().chain(calls.iter().copied()).chain(sums).map(str::to_owned);
    let mut text = head(&titles.collect::<Vec<_>>());
    for (way, family) in rows {
        let call = |call: &&str| match find(&way, &family, call) {
            Some(figure) if figure.minimum > 0.0 => {
                let time = figure.also.as_ref().map_or(f64::NAN, |(_, time)| *time);
                format!("{:.0} ({time:.0} ns)", figure.minimum)
            }
            _ => String::new(),
        };
        let sum = |what: &str| match find(&way, &family, what) {
            Some(figure) if figure.unit.is_empty() => format!("{:.0}", figure.minimum),
            Some(figure) => format!("{:.0} {}", figure.minimum, figure.unit),
            None => String::new(),
        };
        let cells = calls.iter().map(call).chain(sums.into_iter().map(sum));
        text += &row([way.clone(), family.clone()].into_iter().chain(cells));
    }
    text
}

/// Shares with two decimals, all else with three digits at most.
fn short(value: f64, unit: &str) -> String {
    match unit {
        "" => format!("{value:.2}"),
        _ if value.abs() < 10.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_of_the_account_has_the_calls_that_any_way_makes() {
        let of = |way: &str, what: &str, unit: &'static str, value: f64| {
            Figure::new("x", unit, value, value)
                .at("part", ACCOUNT)
                .at("way", way)
                .at("family", "IPv4")
                .at("what", what)
        };
        let figures = [
            of("one", "hash lookups", "", 2.0).also("ns", 48.0),
            of("one", "tries", "", 0.0).also("ns", 0.0),
            of("one", "measured", "ns", 80.4),
            of("other", "hash lookups", "", 0.0).also("ns", 0.0),
        ];
        let text = account(&figures);
        let rows: Vec<&str> = text.lines().collect();
        assert!(rows[0].starts_with("| way | family | hash lookups | the calls together |"), "{}", rows[0]);
        assert_eq!(rows[2], "| one | IPv4 | 2 (48 ns) |  |  |  | 80 ns |");
        assert_eq!(rows[3], "| other | IPv4 |  |  |  |  |  |");
        assert_eq!(account(&figures[..0]), "");
    }

    #[test]
    fn a_price_has_a_column_for_each_family_and_rotation() {
        let of = |family: &str, keys: &str, minimum: f64| {
            Figure::new("x", "ns", minimum, 9.0)
                .at("part", PRICES)
                .at("call", "a lookup")
                .at("family", family)
                .at("keys", keys)
        };
        let figures = [of("IPv4", "1 key", 24.0), of("IPv4", "64 k keys", 66.0), of("IPv6", "1 key", 31.0)];
        let text = prices(&figures);
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows[0], "|  | IPv4, 1 key | IPv4, 64 k keys | IPv6, 1 key | IPv6, 64 k keys |");
        assert_eq!(rows[2], "| a lookup | 24.0 | 66.0 | 31.0 |  |");
    }

    #[test]
    fn a_row_of_forwarding_is_of_a_family_and_a_number_of_flows() {
        let of = |flows: u32, variant: &str, median: f64| {
            Figure::new("x", "/s", median, median)
                .at("part", "rate")
                .at("what", "rate")
                .at("family", "IPv6")
                .at("flows", flows)
                .at("variant", variant)
                .at("services", 10)
        };
        let figures = [of(1, "rules", 5e5), of(1, "dsproxy", 1e6), of(4096, "dsproxy", 9e5)];
        let text = forwarding(&figures, "rate", "rate");
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows[0], "| flows | family | rules, 10 Services | dsproxy, 10 Services |");
        assert_eq!(rows[2..], ["| 1 | IPv6 | 500000 | 1000000 |", "| 4096 | IPv6 | - | 900000 |"]);
        assert_eq!(forwarding(&figures, "pktgen", "rate"), "");
    }

    #[test]
    fn a_row_of_a_start_has_a_value_for_each_number_of_services() {
        let of = |what: &str, unit: &str, services: u32, minimum: f64| {
            let figure = Figure::new("x", "", minimum, 2.0 * minimum).at("part", START).at("unit", unit);
            figure.at("services", services).at("what", what)
        };
        let figures = [
            of("read", "s", 10, 0.25),
            of("read", "s", 50, 1.25),
            of("write", "s", 50, 3.0),
            of("objects", "MiB", 10, 7.0),
        ];
        let text = start(&figures, "s");
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows[0], "|  | 10 Services | 50 Services |");
        assert_eq!(rows[2..], ["| read | 0.250 | 1.25 |", "| write | - | 3.00 |"]);
        assert_eq!(start(&[], "MiB"), "");
    }

    #[test]
    fn a_row_of_traffic_has_a_value_for_each_number_of_services() {
        let of = |variant: &str, services: u32, median: f64| {
            Figure::new("x", "", median, median)
                .at("part", TRAFFIC)
                .at("measure", "bulk")
                .at("what", "rate, share of the floor")
                .at("way", "near")
                .at("family", "IPv4")
                .at("variant", variant)
                .at("services", services)
        };
        let figures = [of("rules", 10, 0.5), of("dsproxy", 10, 0.975), of("rules", 1_000, 0.25)];
        let text = traffic(&figures, "bulk", "rate, share of the floor");
        let rows: Vec<&str> = text.lines().collect();
        assert_eq!(rows[0], "| way | family | rules, 10 / 1000 Services | dsproxy, 10 / 1000 Services |");
        assert_eq!(rows[2], "| near | IPv4 | 0.50 / 0.25 | 0.97 / - |");
        assert_eq!(traffic(&figures, "bulk", "anything else"), "");
    }
}
