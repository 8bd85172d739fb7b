//! What happened between two moments, by the second. Pure.

use std::time::Duration;

use dsproxy_common::{
    IpFamily,
    count::{Reason, ServiceCounters, ServiceDrops},
};

use super::{
    SortBy,
    sample::{Counted, Sample},
};

/// By the second, between two moments.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates {
    pub(super) over: Duration,
    pub(super) services: Vec<ServiceRate>,
    pub(super) drops: Vec<DropRate>,
}

/// Of a service port.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ServiceRate {
    pub(super) name: String,
    pub(super) connections: f64,
    pub(super) packets: f64,
    pub(super) bytes: f64,
    pub(super) reply_packets: f64,
    pub(super) reply_bytes: f64,
    /// Drops by reason, the most first; those that are not here were none.
    pub(super) drops: Vec<(Reason, f64)>,
    pub(super) open: u64,
}

/// Of packets that were dropped.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct DropRate {
    pub(super) reason: Reason,
    pub(super) family: Option<IpFamily>,
    pub(super) packets: f64,
    /// All there ever were.
    pub(super) total: u64,
}

impl Rates {
    /// What happened from `before` to `after`, of what `after` shows. A Service that came in between has begun at nothing, but not one
    /// that was there and not shown; one that went is not told of any more. Drops that never were are left out.
    pub(super) fn between(before: &Sample, after: &Sample) -> Self {
        let over = after.at.saturating_duration_since(before.at);
        let services = after.services.iter().filter(|(name, _)| after.shows(name)).map(|(name, now)| {
            let then = before.services.get(name).copied().unwrap_or_default();
            service(name, then, *now, over)
        });
        let mut drops: Vec<_> = after
            .packets
            .iter()
            .filter(|((reason, _), total)| reason.is_drop() && **total > 0)
            .map(|(&(reason, family), &total)| {
                let then = before.packets.get(&(reason, family)).copied().unwrap_or_default();
                DropRate { reason, family, packets: rate(then, total, over), total }
            })
            .collect();
        drops.sort_by(|a, b| b.packets.total_cmp(&a.packets).then(b.total.cmp(&a.total)));
        Self { over, services: services.collect(), drops }
    }
}

fn service(name: &str, then: Counted, now: Counted, over: Duration) -> ServiceRate {
    let Counted { counters: then, drops: dropped_then, open: _ } = then;
    let Counted { counters, drops: dropped_now, open } = now;
    let ServiceCounters { connections, packets, bytes, reply_packets, reply_bytes } = counters;
    // Counters go up only, unless they began anew: all of them at once, so one that is lower tells for the others.
    let is_reset = connections < then.connections
        || packets < then.packets
        || bytes < then.bytes
        || reply_packets < then.reply_packets
        || reply_bytes < then.reply_bytes;
    let (then, dropped_then) = if is_reset { Default::default() } else { (then, dropped_then) };
    ServiceRate {
        name: name.to_owned(),
        connections: rate(then.connections, connections, over),
        packets: rate(then.packets, packets, over),
        bytes: rate(then.bytes, bytes, over),
        reply_packets: rate(then.reply_packets, reply_packets, over),
        reply_bytes: rate(then.reply_bytes, reply_bytes, over),
        drops: drop_rates(&dropped_then, &dropped_now, over),
        open,
    }
}

fn drop_rates(then: &ServiceDrops, now: &ServiceDrops, over: Duration) -> Vec<(Reason, f64)> {
    let rates = then.iter().zip(now.iter()).map(|((reason, then), (_, now))| (reason, rate(then, now, over)));
    let mut rates: Vec<_> = rates.filter(|(_, rate)| *rate > 0.0).collect();
    rates.sort_by(|(_, a), (_, b)| b.total_cmp(a));
    rates
}

fn rate(then: u64, now: u64, over: Duration) -> f64 {
    // A counter that is lower than it was has begun anew.
    let growth = now.checked_sub(then).unwrap_or(now);
    let seconds = over.as_secs_f64();
    if seconds > 0.0 { growth as f64 / seconds } else { 0.0 }
}

impl ServiceRate {
    /// Bytes of both directions.
    pub(super) fn all_bytes(&self) -> f64 {
        self.bytes + self.reply_bytes
    }

    /// Drops for all reasons.
    pub(super) fn all_drops(&self) -> f64 {
        self.drops.iter().map(|(_, rate)| rate).sum()
    }

    /// Whether nothing happened.
    pub(super) fn is_idle(&self) -> bool {
        self.connections + self.packets + self.reply_packets + self.all_drops() == 0.0
    }
}

/// Sorts service ports, the most first, and by name where they are alike.
pub(super) fn sort(services: &mut [&ServiceRate], by: SortBy) {
    let measure = |service: &ServiceRate| match by {
        SortBy::Bytes => service.all_bytes(),
        SortBy::Packets => service.packets,
        SortBy::Replies => service.reply_packets,
        SortBy::Connections => service.connections,
        SortBy::Open => service.open as f64,
        SortBy::Drops => service.all_drops(),
        SortBy::Name => 0.0,
    };
    services.sort_by(|a, b| measure(b).total_cmp(&measure(a)).then_with(|| a.name.cmp(&b.name)));
}

#[cfg(test)]
pub(super) mod tests {
    use std::{collections::BTreeMap, time::Instant};

    use super::*;

    fn counted(connections: u64, packets: u64, open: u64) -> Counted {
        let counters = ServiceCounters {
            connections,
            packets,
            bytes: packets * 100,
            reply_packets: packets,
            reply_bytes: packets * 1000,
        };
        let drops = ServiceDrops::of(Reason::SourceRange, connections)
            .each(ServiceDrops::of(Reason::NoEndpoint, packets / 10), u64::saturating_add);
        Counted { counters, drops, open }
    }

    fn sample(at: Instant, services: &[(&str, Counted)], drops: u64) -> Sample {
        let v6 = Some(IpFamily::V6);
        Sample {
            at,
            services: services.iter().map(|(name, counted)| ((*name).to_owned(), *counted)).collect(),
            shown: None,
            packets: BTreeMap::from([
                ((Reason::NoPort, v6), drops),
                ((Reason::SourceRange, v6), 5),
                ((Reason::TableRefused, v6), 0),
                ((Reason::Forwarded, v6), 1000),
            ]),
        }
    }

    /// Two seconds in which one Service came, one went, one began anew and one was idle.
    pub(in crate::inspect::top) fn rates() -> Rates {
        let start = Instant::now();
        let before = sample(
            start,
            &[
                ("a/gone:x/TCP", counted(5, 50, 5)),
                ("a/steady:x/TCP", counted(10, 100, 3)),
                ("a/reset:x/TCP", counted(500, 5000, 0)),
                ("a/idle:x/UDP", counted(7, 7, 7)),
            ],
            10,
        );
        let after = sample(
            start + Duration::from_secs(2),
            &[
                ("a/steady:x/TCP", counted(14, 300, 4)),
                ("a/reset:x/TCP", counted(2, 20, 1)),
                ("a/idle:x/UDP", counted(7, 7, 7)),
                ("b/new:x/TCP", counted(1, 10, 1)),
            ],
            30,
        );
        Rates::between(&before, &after)
    }

    #[test]
    fn services_come_go_and_begin_anew() {
        let rates = rates();
        let told: Vec<_> = rates
            .services
            .iter()
            .map(|service| (&*service.name, service.connections, service.packets, service.reply_bytes, service.open))
            .collect();
        assert_eq!(
            told,
            [
                ("a/idle:x/UDP", 0.0, 0.0, 0.0, 7),
                ("a/reset:x/TCP", 1.0, 10.0, 10_000.0, 1),
                ("a/steady:x/TCP", 2.0, 100.0, 100_000.0, 4),
                ("b/new:x/TCP", 0.5, 5.0, 5_000.0, 1),
            ]
        );
        assert_eq!(rates.over, Duration::from_secs(2));
    }

    #[test]
    fn what_was_hidden_before_is_told_from_what_was_not_there() {
        let start = Instant::now();
        let shown = |names: &[&str]| Some(names.iter().map(|name| (*name).to_owned()).collect());
        let before = Sample {
            shown: shown(&["a/shown"]),
            ..sample(start, &[("a/shown", counted(1, 10, 1)), ("a/hidden", counted(900, 9000, 0))], 0)
        };
        let after = Sample {
            shown: shown(&["a/hidden", "a/new"]),
            ..sample(
                start + Duration::from_secs(1),
                &[("a/shown", counted(2, 20, 1)), ("a/hidden", counted(901, 9002, 0)), ("a/new", counted(3, 30, 1))],
                0,
            )
        };
        let rates = Rates::between(&before, &after);
        let told: Vec<_> =
            rates.services.iter().map(|service| (&*service.name, service.connections, service.packets)).collect();
        assert_eq!(told, [("a/hidden", 1.0, 2.0), ("a/new", 3.0, 30.0)]);
    }

    #[test]
    fn one_counter_that_is_lower_tells_for_the_others() {
        let counters = |connections, packets| ServiceCounters { connections, packets, ..ServiceCounters::default() };
        let of = |counters| Counted { counters, ..Counted::default() };
        let told = service("a", of(counters(9, 10)), of(counters(1, 12)), Duration::from_secs(1));
        assert_eq!((told.connections, told.packets), (1.0, 12.0), "its packets are all new as well");
    }

    #[test]
    fn drops_are_those_that_ever_were_with_the_busiest_first() {
        let told: Vec<_> = rates().drops.iter().map(|drop| (drop.reason, drop.packets, drop.total)).collect();
        assert_eq!(told, [(Reason::NoPort, 10.0, 30), (Reason::SourceRange, 0.0, 5)]);
    }

    #[test]
    fn drops_of_a_service_port_are_told_by_reason_with_the_most_first() {
        let told: Vec<_> = rates().services.into_iter().map(|service| service.drops).collect();
        let both =
            |no_endpoint, source_range| vec![(Reason::NoEndpoint, no_endpoint), (Reason::SourceRange, source_range)];
        let reset = vec![(Reason::NoEndpoint, 1.0), (Reason::SourceRange, 1.0)];
        assert_eq!(told, [vec![], reset, both(10.0, 2.0), both(0.5, 0.5)]);
    }

    #[test]
    fn who_is_only_dropped_is_not_idle() {
        let dropped = |count| Counted { drops: ServiceDrops::of(Reason::NoEndpoint, count), ..Counted::default() };
        let told = service("a", dropped(3), dropped(7), Duration::from_secs(2));
        assert_eq!((told.is_idle(), told.all_drops()), (false, 2.0));
        let told = service("a", dropped(7), dropped(3), Duration::from_secs(1));
        assert_eq!(told.all_drops(), 3.0, "begun anew");
    }

    #[test]
    fn no_time_is_no_rate() {
        let now = sample(Instant::now(), &[("a", counted(1, 1, 1))], 1);
        let rates = Rates::between(&now, &now);
        assert!(rates.services.iter().all(ServiceRate::is_idle) && rates.services[0].packets == 0.0);
    }

    #[test]
    fn the_most_comes_first_and_names_decide_where_it_is_alike() {
        let rates = rates();
        let sorted = |by| {
            let mut services: Vec<_> = rates.services.iter().collect();
            sort(&mut services, by);
            services.iter().map(|service| service.name.split(':').next().unwrap_or_default()).collect::<Vec<_>>()
        };
        assert_eq!(sorted(SortBy::Bytes), ["a/steady", "a/reset", "b/new", "a/idle"]);
        assert_eq!(sorted(SortBy::Open), ["a/idle", "a/steady", "a/reset", "b/new"]);
        assert_eq!(sorted(SortBy::Drops), ["a/steady", "a/reset", "b/new", "a/idle"]);
        assert_eq!(sorted(SortBy::Name), ["a/idle", "a/reset", "a/steady", "b/new"]);
    }
}
