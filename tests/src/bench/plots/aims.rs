//! The table of everything that is aimed at: the worst that was found of each, and whether that is enough.

use super::{
    super::{
        Figure,
        daemon::PART as DAEMON,
        figure::number,
        traffic::{LATENCY_SHARE, ONE_ARMED, PART as TRAFFIC, RATE_SHARE},
    },
    tables::{head, row},
};

/// One thing that is aimed at.
struct Goal {
    title: &'static str,
    /// Which of the figures with an aim are of it.
    takes: fn(&Figure) -> bool,
}

/// All of them. Each figure is of the first that takes it.
const GOALS: [Goal; 28] = [
    Goal { title: "tc, an established packet or a reply, IPv4, ns", takes: |figure| is_translated(figure, "IPv4") },
    Goal { title: "tc, an established packet or a reply, IPv6, ns", takes: |figure| is_translated(figure, "IPv6") },
    Goal {
        title: "tc, the same of 64 k flows, ns",
        takes: |figure| is_named(figure, &["established, ", "reply, "]) && has(figure, "64 k flows"),
    },
    Goal { title: "XDP, there and back, IPv4, ns", takes: |figure| is_sent_on(figure, "") && has(figure, "IPv4") },
    Goal { title: "XDP, there and back, IPv6, ns", takes: |figure| is_sent_on(figure, "") && has(figure, "IPv6") },
    Goal {
        title: "XDP, of 64 k flows, as it comes, ns",
        takes: |figure| is_sent_on(figure, "64 k flows") && !has(figure, "with room"),
    },
    Goal { title: "XDP, of 64 k flows, with room for them, ns", takes: |figure| is_sent_on(figure, "64 k flows") },
    Goal { title: "XDP, of 1 M flows, with room for them, ns", takes: |figure| is_sent_on(figure, "1 M flows") },
    Goal {
        title: "The first packet of a flow from outside to a NodePort, two programs, ns",
        takes: |figure| is_named(figure, &["new flow, NodePort"]) && figure.unit == "ns",
    },
    Goal {
        title: "The first packet of a flow, table full, ns",
        takes: |figure| is_named(figure, &["new flow"]) && figure.unit == "ns" && has(figure, "table full"),
    },
    Goal {
        title: "The first packet of a flow, ns",
        takes: |figure| is_named(figure, &["new flow"]) && figure.unit == "ns",
    },
    Goal {
        title: "A packet for nobody, tc, ns",
        takes: |figure| is_named(figure, &["for no Service"]) && figure.unit == "ns",
    },
    Goal {
        title: "A packet for nobody, XDP, ns",
        takes: |figure| is_named(figure, &["XDP, for nobody"]) && figure.unit == "ns",
    },
    Goal {
        title: "Growth from 10 to 100,000 Services, XDP, %",
        takes: |figure| has(figure, "growth from") && is_named(figure, &["XDP"]),
    },
    Goal { title: "Growth from 10 to 100,000 Services, tc, %", takes: |figure| has(figure, "growth from") },
    Goal {
        title: "Live frames through one veth pair, share of XDP_TX alone",
        takes: |figure| is_of(figure, ONE_ARMED),
    },
    Goal {
        title: "New connections, share of the floor's rate",
        takes: |figure| is_of(figure, TRAFFIC) && has(figure, "rate, share of the floor"),
    },
    Goal {
        title: "Processor time that a connection adds, us",
        takes: |figure| has(figure, "processor time added") && is_named(figure, &["connections"]),
    },
    Goal {
        title: "Processor time that a kept request adds, us",
        takes: |figure| has(figure, "processor time added") && is_named(figure, &["requests"]),
    },
    Goal {
        title: "Ahead of nftables rules at 10,000 Services, share of their rate",
        takes: |figure| is_of(figure, TRAFFIC) && has(figure, RATE_SHARE),
    },
    Goal {
        title: "Ahead of nftables rules at 10,000 Services, share of their p99",
        takes: |figure| is_of(figure, TRAFFIC) && has(figure, LATENCY_SHARE),
    },
    Goal {
        title: "Ahead of nftables rules at 10,000 Services, forwarded packets, share of their rate",
        takes: |figure| has(figure, RATE_SHARE),
    },
    Goal {
        title: "The daemon's processor time for an endpoint change, ms",
        takes: |figure| is_of(figure, DAEMON) && has(figure, "processor time for one endpoint change"),
    },
    Goal {
        title: "An endpoint change to its first answer, p99, ms",
        takes: |figure| is_of(figure, DAEMON) && has(figure, "p99"),
    },
    Goal { title: "Cold start with 10,000 Services x 10, s", takes: |figure| is_start(figure, "10000", "cold start") },
    Goal { title: "Cold start with 50,000 Services x 10, s", takes: |figure| is_start(figure, "50000", "cold start") },
    Goal {
        title: "The daemon's resident memory, 10,000 Services x 10, MiB",
        takes: |figure| is_start(figure, "10000", "resident memory"),
    },
    Goal {
        title: "The daemon's resident memory, 50,000 Services x 10, MiB",
        takes: |figure| is_start(figure, "50000", "resident memory"),
    },
];

fn has(figure: &Figure, text: &str) -> bool {
    figure.name.contains(text)
}

fn is_named(figure: &Figure, starts: &[&str]) -> bool {
    starts.iter().any(|start| figure.name.starts_with(start))
}

fn is_of(figure: &Figure, part: &str) -> bool {
    figure.is_at(&[("part", part)])
}

fn is_translated(figure: &Figure, family: &str) -> bool {
    is_named(figure, &["established, ", "reply, "])
        && !has(figure, "flows")
        && figure.unit == "ns"
        && has(figure, family)
}

/// Of `flows`, or of one where that is empty.
fn is_sent_on(figure: &Figure, flows: &str) -> bool {
    let is_of_these = if flows.is_empty() { !has(figure, "flows") } else { has(figure, &format!(", {flows}")) };
    is_named(figure, &["XDP, to a "]) && figure.unit == "ns" && is_of_these
}

fn is_start(figure: &Figure, services: &str, what: &str) -> bool {
    figure.is_at(&[("part", DAEMON), ("services", services)]) && has(figure, what)
}

/// The table. What has an aim and is of none of these has a row of its own, and what was not measured says so.
pub(super) fn aims(figures: &[&Figure]) -> String {
    let with_aim: Vec<&Figure> = figures.iter().copied().filter(|figure| figure.aim.is_some()).collect();
    if with_aim.is_empty() {
        return String::new();
    }
    let goal_of = |figure: &Figure| GOALS.iter().position(|goal| (goal.takes)(figure));
    let mut text = head(&["what", "aim", "worst", "where", "", "met by"].map(str::to_owned));
    for (place, goal) in GOALS.iter().enumerate() {
        let own: Vec<&Figure> = with_aim.iter().copied().filter(|figure| goal_of(figure) == Some(place)).collect();
        text += &line(goal.title, &own);
    }
    for figure in with_aim.into_iter().filter(|figure| goal_of(figure).is_none()) {
        text += &line(&figure.name, &[figure]);
    }
    text
}

fn line(title: &str, own: &[&Figure]) -> String {
    // What is no number is worse than any.
    let missed_by = |figure: &Figure| match figure.held() {
        Some((_, missed_by)) if !missed_by.is_nan() => missed_by,
        _ => f64::INFINITY,
    };
    let Some(worst) = own.iter().max_by(|one, other| missed_by(one).total_cmp(&missed_by(other))) else {
        return row([title, "", "not measured", "", "", ""].map(str::to_owned));
    };
    let (Some(aim), Some((held, missed_by))) = (worst.aim, worst.held()) else { return String::new() };
    let verdict = match missed_by {
        _ if worst.is_met() => "met".to_owned(),
        missed_by => format!("**missed by {}** ({:.0} %)", number(missed_by), missed_by / aim.bound() * 100.0),
    };
    let met = own.iter().filter(|figure| figure.is_met()).count();
    let sums = format!("{met} of {}", own.len());
    row([title.to_owned(), aim.to_string(), number(held), worst.name.clone(), verdict, sums])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_of_each_is_shown() {
        let packet = |name: &str, minimum| Figure::new(name, "ns", minimum, minimum + 9.0).at_most(80.0);
        let figures = [packet("established, TCP, IPv4", 48.0), packet("reply, UDP, IPv4", 92.0)];
        let text = aims(&figures.iter().collect::<Vec<_>>());
        let rows: Vec<&str> = text.lines().collect();
        let expected = "| 80.0 | 92.0 | reply, UDP, IPv4 | **missed by 12.0** (15 %) | 1 of 2 |";
        assert!(rows[2].ends_with(expected), "{}", rows[2]);
        assert!(rows[3].contains("not measured"), "{}", rows[3]);
        assert_eq!(rows.len(), 2 + GOALS.len());
    }

    #[test]
    fn a_share_is_missed_from_below_and_what_nobody_takes_is_not_lost() {
        let of = |part: &str, share| Figure::new(part, "", share, share).at("part", part).at_least(0.8);
        let figures = [of(ONE_ARMED, 0.6), of("another", 0.9)];
        let text = aims(&figures.iter().collect::<Vec<_>>());
        assert!(
            text.contains("| at least 0.800 | 0.600 | one veth pair | **missed by 0.200** (25 %) | 0 of 1 |"),
            "{text}"
        );
        assert!(text.ends_with("| another | at least 0.800 | 0.900 | another | met | 1 of 1 |\n"), "{text}");
        assert_eq!(aims(&[&Figure::new("without", "ns", 1.0, 1.0)]), "");
    }

    #[test]
    fn each_way_of_a_packet_has_its_goal() {
        for (name, unit, wanted) in [
            ("established, UDP, IPv6", "ns", "tc, an established packet or a reply, IPv6, ns"),
            ("reply, 64 k flows, TCP, IPv4", "ns", "tc, the same of 64 k flows, ns"),
            ("XDP, to a client, TCP, IPv4", "ns", "XDP, there and back, IPv4, ns"),
            ("XDP, to a client, 64 k flows, TCP, IPv4", "ns", "XDP, of 64 k flows, as it comes, ns"),
            (
                "XDP, to a backend, 64 k flows, with room for 64 k flows, TCP, IPv6",
                "ns",
                "XDP, of 64 k flows, with room for them, ns",
            ),
            (
                "XDP, to a backend, 1 M flows, with room for 1 M flows, TCP, IPv6",
                "ns",
                "XDP, of 1 M flows, with room for them, ns",
            ),
            ("XDP, for nobody, with room for 64 k flows, TCP, IPv4", "ns", "A packet for nobody, XDP, ns"),
            ("new flow, 10 endpoints, table full, TCP, IPv4", "ns", "The first packet of a flow, table full, ns"),
            ("new flow, one endpoint, TCP, IPv4", "ns", "The first packet of a flow, ns"),
            (
                "XDP, for nobody, TCP, IPv4, growth from 10 to 100000 Services",
                "%",
                "Growth from 10 to 100,000 Services, XDP, %",
            ),
            (
                "new flow, 10 endpoints, TCP, IPv4, growth from 10 to 100000 Services",
                "%",
                "Growth from 10 to 100,000 Services, tc, %",
            ),
        ] {
            let figure = Figure::new(name, unit, 1.0, 1.0);
            let goal = GOALS.iter().find(|goal| (goal.takes)(&figure)).map(|goal| goal.title);
            assert_eq!(goal, Some(wanted), "{name}");
        }
    }
}
