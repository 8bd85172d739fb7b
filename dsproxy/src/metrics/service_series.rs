//! Which service ports have series of their own, and what all others come to. Pure.
//!
//! A label for each service port of a large cluster, on each node, is more than Prometheus should have to keep. Who has its own
//! series keeps them for as long as it exists, and the others are summed by what they grew: so whatever comes, goes or gets a place
//! that has become free, no counter ever seems to go back.

use std::collections::{BTreeMap, BTreeSet};

use dsproxy_common::count::{ServiceCounters, ServiceDrops};

/// What was counted of a service port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// What was translated.
    pub(super) traffic: ServiceCounters,
    /// What was dropped.
    pub(super) drops: ServiceDrops,
}

impl Counted {
    /// What `with` makes of each of these and its counterpart.
    fn each(self, counterparts: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        let Self { traffic, drops } = self;
        Self { traffic: traffic.each(counterparts.traffic, &with), drops: drops.each(counterparts.drops, &with) }
    }
}

/// The choice, and the sum of the others.
#[derive(Debug)]
pub(super) struct ServiceSeries {
    limit: usize,
    own: BTreeSet<String>,
    /// What the others had at the last scrape.
    others: BTreeMap<String, Counted>,
    sum: Counted,
    is_first: bool,
}

/// What is told of service ports.
#[derive(Debug, PartialEq)]
pub(super) struct Told {
    /// Those with series of their own.
    pub(super) own: Vec<(String, Counted)>,
    /// All others together, from when there first were some.
    pub(super) others: Option<Counted>,
}

impl ServiceSeries {
    /// At most `limit` service ports have their own.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, own: BTreeSet::new(), others: BTreeMap::new(), sum: Counted::default(), is_first: true }
    }

    /// What is told of `services`, which are in the order of their ids: those that have been there for longest come first.
    pub(super) fn tell(&mut self, services: Vec<(String, Counted)>) -> Told {
        let present: BTreeSet<&String> = services.iter().map(|(name, _)| name).collect();
        self.own.retain(|name| present.contains(name));
        for (name, _) in &services {
            if self.own.len() >= self.limit {
                break;
            }
            self.own.insert(name.clone());
        }
        let mut own = Vec::new();
        let mut others = BTreeMap::new();
        for (name, now) in services {
            if self.own.contains(&name) {
                own.push((name, now));
                continue;
            }
            // What was counted before this daemon began, the one before it has told.
            let then = self.others.get(&name).copied().unwrap_or(if self.is_first { now } else { Counted::default() });
            self.sum = self.sum.each(growth(then, now), u64::saturating_add);
            others.insert(name, now);
        }
        let were_others = !self.others.is_empty() || !others.is_empty() || self.sum != Counted::default();
        self.others = others;
        self.is_first = false;
        Told { own, others: were_others.then_some(self.sum) }
    }
}

/// A counter that is lower than it was has begun anew.
fn growth(then: Counted, now: Counted) -> Counted {
    then.each(now, |then, now| now.checked_sub(then).unwrap_or(now))
}

#[cfg(test)]
mod tests {
    use dsproxy_common::count::Reason;

    use super::*;

    fn counted(packets: u64) -> Counted {
        Counted {
            traffic: ServiceCounters { packets, bytes: packets * 100, ..ServiceCounters::default() },
            drops: ServiceDrops::of(Reason::SourceRange, packets * 10),
        }
    }

    fn tell(series: &mut ServiceSeries, services: &[(&str, u64)]) -> (Vec<(String, u64)>, Option<u64>) {
        let services = services.iter().map(|(name, packets)| ((*name).to_owned(), counted(*packets)));
        let Told { own, others } = series.tell(services.collect());
        assert!(others.is_none_or(|others| others == counted(others.traffic.packets)), "{others:?}");
        let own = own.into_iter().map(|(name, counted)| (name, counted.traffic.packets)).collect();
        (own, others.map(|others| others.traffic.packets))
    }

    fn own(all: &[(&str, u64)]) -> Vec<(String, u64)> {
        all.iter().map(|(name, packets)| ((*name).to_owned(), *packets)).collect()
    }

    #[test]
    fn the_first_have_their_own_and_keep_them() {
        let mut series = ServiceSeries::new(2);
        assert_eq!(tell(&mut series, &[("b", 5), ("c", 7)]), (own(&[("b", 5), ("c", 7)]), None));
        assert_eq!(tell(&mut series, &[("a", 9), ("b", 6), ("c", 8)]), (own(&[("b", 6), ("c", 8)]), Some(9)));
    }

    #[test]
    fn the_sum_never_goes_back() {
        let mut series = ServiceSeries::new(1);
        let first = tell(&mut series, &[("a", 100), ("b", 1000), ("c", 1000)]);
        assert_eq!(first, (own(&[("a", 100)]), Some(0)), "what was counted before is not told twice");
        assert_eq!(tell(&mut series, &[("a", 100), ("b", 1010), ("c", 1001)]).1, Some(11));
        assert_eq!(tell(&mut series, &[("a", 100), ("c", 1002)]).1, Some(12), "one that goes takes nothing away");
        assert_eq!(tell(&mut series, &[("a", 100), ("c", 3)]).1, Some(15), "one that begins anew adds what it has");
        assert_eq!(tell(&mut series, &[("a", 100), ("c", 3), ("d", 50)]).1, Some(65), "one that is new adds all");
        let promoted = tell(&mut series, &[("c", 4), ("d", 51)]);
        assert_eq!(promoted, (own(&[("c", 4)]), Some(66)), "a place that became free is the next one's");
        assert_eq!(
            tell(&mut series, &[("c", 4)]),
            (own(&[("c", 4)]), Some(66)),
            "nor when there are no others any more"
        );
    }

    #[test]
    fn none_may_have_their_own() {
        let mut series = ServiceSeries::new(0);
        assert_eq!(tell(&mut series, &[("a", 5)]), (Vec::new(), Some(0)));
        assert_eq!(tell(&mut series, &[("a", 7)]), (Vec::new(), Some(2)));
    }
}
