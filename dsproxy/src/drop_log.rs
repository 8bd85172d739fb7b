//! Tells the log once a minute which drops there were, and what an operator can do about them: never a line for each packet.
//!
//! It reads the counters of the kernel programs, and knows nothing of packets.

use std::{collections::BTreeMap, time::Duration};

use dsproxy_common::{
    IpFamily,
    count::{Reason, ServiceDrops},
};
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::maps::{MapError, kernel::KernelMaps};

/// How often it is told.
pub const EVERY: Duration = Duration::from_secs(60);

/// Packets by reason and family.
type Counted = Vec<(Reason, Option<IpFamily>, u64)>;

/// The same, to be looked up.
type ByReason = BTreeMap<(Reason, Option<IpFamily>), u64>;

/// Drops by the id of the service port.
type ByService = BTreeMap<u32, ServiceDrops>;

/// Packets of one reason that were dropped since the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Grown {
    reason: Reason,
    family: Option<IpFamily>,
    packets: u64,
    total: u64,
}

/// Tells the log of drops that `maps` count, for ever.
pub async fn follow(maps: KernelMaps, every: Duration) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut before: Option<(ByReason, ByService)> = None;
    let mut fails = false;
    loop {
        ticks.tick().await;
        let (counted, services) = match read(&maps) {
            Ok(counted) => counted,
            Err(error) => {
                if !std::mem::replace(&mut fails, true) {
                    warn!(%error, "drops are not told, for the counters cannot be read; it is tried again");
                }
                continue;
            }
        };
        fails = false;
        // What the programs counted before this daemon began was told by the one before it.
        if let Some((before, services_before)) = &before {
            for Grown { reason, family, packets, total } in grown(before, &counted) {
                let family = family.map_or_else(String::new, |family| family.to_string());
                // What has no name any more has gone.
                let most = most_of(services_before, &services, reason).map(|service| maps.name(service));
                let mostly = most.and_then(|name| name.ok().flatten()).unwrap_or_default();
                let (why, advice) = (reason.name(), advice(reason));
                macro_rules! tell {
                    ($level:ident) => {
                        $level!(
                            reason = why,
                            family,
                            packets,
                            total,
                            mostly,
                            seconds = every.as_secs(),
                            "packets were dropped: {advice}"
                        )
                    };
                }
                if is_operators(reason) {
                    tell!(warn);
                } else {
                    tell!(info);
                }
            }
        }
        let counted = counted.into_iter().map(|(reason, family, count)| ((reason, family), count)).collect();
        before = Some((counted, services));
    }
}

fn read(maps: &KernelMaps) -> Result<(Counted, ByService), MapError> {
    Ok((maps.counters()?, maps.drops()?.into_iter().collect()))
}

/// The drops among `now` that are more than `before`.
fn grown(before: &ByReason, now: &Counted) -> Vec<Grown> {
    let of_drops = now.iter().filter(|(reason, ..)| reason.is_drop());
    let grown = of_drops.filter_map(|&(reason, family, total)| {
        // Counters begin anew when somebody removes the maps.
        let packets = total.saturating_sub(before.get(&(reason, family)).copied().unwrap_or_default());
        (packets > 0).then_some(Grown { reason, family, packets, total })
    });
    grown.collect()
}

/// The service port of which `now` has the most drops for `reason` that `before` has not, both families together; none if no service port's
/// are more.
fn most_of(before: &ByService, now: &ByService, reason: Reason) -> Option<u32> {
    let count = |drops: &ServiceDrops| drops.iter().find(|(of, _)| *of == reason).map_or(0, |(_, count)| count);
    let growth = now.iter().map(|(service, drops)| {
        let (then, now) = (before.get(service).map_or(0, count), count(drops));
        // A count that is lower than it was is another service port's.
        (*service, now.checked_sub(then).unwrap_or(now))
    });
    growth.filter(|(_, growth)| *growth > 0).max_by_key(|(_, growth)| *growth).map(|(service, _)| service)
}

/// Whether something of the node is at its end or does not work, so that the operator has to act. The rest is what clients meet
/// that ask for what is not there, or not for them.
fn is_operators(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::RefusalLimit
            | Reason::ReplyClash
            | Reason::SnatExhausted
            | Reason::NoNodeAddress
            | Reason::TableRefused
            | Reason::RewriteFailed
    )
}

/// What the reason means for an operator.
fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::NoEndpoint => {
            "a Service without endpoints was called, and the callers were told; `dsproxy services` lists such"
        }
        Reason::NoPort => "a ClusterIP was called at a port that its Service lacks, and the callers were told",
        Reason::RefusalLimit => {
            "more calls to Services without endpoints, or to ports that they lack, than are answered in a second; is it a flood? \
             `dsproxy services` lists Services without endpoints"
        }
        Reason::Unanswerable => "they may not be answered, for they come from no single host or were sent to many",
        Reason::NoLocalEndpoint => {
            "a traffic policy keeps a Service to this node's endpoints, and there are none; load balancers should not send here"
        }
        Reason::SourceRange => "their clients are not within a Service's loadBalancerSourceRanges",
        Reason::Pretended => {
            "a client that is none of the nodes sent what nodes send each other, so as to be taken for another; look who it is"
        }
        Reason::Unallocated => {
            "they are for ClusterIPs that no Service has; somebody may hold on to one that was deleted"
        }
        Reason::BackendGone => "TCP connections to endpoints that have left their Service were reset",
        Reason::ReplyClash => {
            "one client has connections through two VIPs to one endpoint from the same port, and no other port was left for it"
        }
        Reason::SnatExhausted => {
            "no port was left to masquerade a connection with: too many towards one endpoint at a time, or a flood; widen \
             --snat-ports, add endpoints, or set externalTrafficPolicy to Local, which needs none"
        }
        Reason::NoNodeAddress => "neither their device nor the node has an address to masquerade with; see --node-ip",
        Reason::TableRefused => "the connection table took no more just then; raise --max-connections, if this goes on",
        Reason::RewriteFailed => "they could not be rewritten; please report it, with what `dsproxy dump` writes",
        Reason::Forwarded
        | Reason::Opened
        | Reason::Replied
        | Reason::Masqueraded
        | Reason::Unmasqueraded
        | Reason::SentToBackend
        | Reason::SentToClient
        | Reason::SentDirect
        | Reason::DirectArrived
        | Reason::IcmpError
        | Reason::NotIp
        | Reason::OtherProtocol
        | Reason::NotService
        | Reason::NotReply
        | Reason::EarlyFragment
        | Reason::Malformed => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_drop_that_grew_is_told_with_what_it_grew_by() {
        let (v4, v6) = (Some(IpFamily::V4), Some(IpFamily::V6));
        let before = BTreeMap::from([
            ((Reason::SnatExhausted, v4), 5),
            ((Reason::SnatExhausted, v6), 5),
            ((Reason::NoPort, v4), 100),
            ((Reason::Forwarded, v4), 1),
        ]);
        let now = vec![
            (Reason::SnatExhausted, v4, 5),
            (Reason::SnatExhausted, v6, 7),
            (Reason::NoPort, v4, 3),
            (Reason::TableRefused, v4, 9),
            (Reason::Forwarded, v4, 1000),
        ];
        assert_eq!(
            grown(&before, &now),
            [
                Grown { reason: Reason::SnatExhausted, family: v6, packets: 2, total: 7 },
                Grown { reason: Reason::TableRefused, family: v4, packets: 9, total: 9 },
            ]
        );
    }

    #[test]
    fn the_service_port_with_the_most_is_named() {
        let of = |counts: &[(u32, u64)]| -> ByService {
            counts.iter().map(|(service, count)| (*service, ServiceDrops::of(Reason::NoEndpoint, *count))).collect()
        };
        let (before, now) = (of(&[(1, 1000), (2, 5), (3, 90)]), of(&[(1, 1001), (2, 9), (3, 3), (4, 2)]));
        assert_eq!(most_of(&before, &now, Reason::NoEndpoint), Some(2), "three of another are less than four");
        assert_eq!(most_of(&before, &now, Reason::SourceRange), None);
        assert_eq!(most_of(&before, &before, Reason::NoEndpoint), None, "nothing was added");
    }

    #[test]
    fn there_is_something_to_say_of_every_drop_and_of_nothing_else() {
        for &reason in Reason::ALL {
            assert_eq!(advice(reason).is_empty(), !reason.is_drop(), "{reason:?}");
            assert!(!is_operators(reason) || reason.is_drop());
        }
    }
}
