//! Tells XDP for how long it can rely on what the kernel's routing has told it (`dsproxy_common::next_hop`): counts what changes
//! in the kernel's routing, and sees to it that the kernel asks neighbours whether they are still there, whom it does not see
//! XDP send frames to.
//!
//! `Neighbours` (pure) knows which news of neighbours are a change.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use dsproxy_common::{
    flow::jiffies_since,
    next_hop::{NeighbourKey, Routing},
};
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::{
    jiffies,
    maps::{MapError, next_hops::NextHopMaps},
    netlink::{EventLoopSocket, Message, NetlinkError, Request, attributes, messages, number},
};

/// How far the word of this task reaches: if it ends, XDP leaves all packets to the stack after that. Longer than a restart takes.
const LEASE: Duration = Duration::from_secs(20);

/// How often the lease is renewed.
const RENEWAL: Duration = Duration::from_secs(4);

/// How often everything is found out anew, and neighbours are asked about.
const REVIEW: Duration = Duration::from_secs(30);

/// The least time between two counts: one change at once, many together.
const TOGETHER: Duration = Duration::from_millis(20);

/// How long to wait before events are followed again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Groups of events (`RTNLGRP_*`, include/uapi/linux/rtnetlink.h).
const LINK: u32 = 1;
const NEIGH: u32 = 3;
const IPV4_IFADDR: u32 = 5;
const IPV4_ROUTE: u32 = 7;
const IPV4_RULE: u32 = 8;
const IPV6_IFADDR: u32 = 9;
const IPV6_ROUTE: u32 = 11;
const IPV6_RULE: u32 = 19;
const IPV4_NETCONF: u32 = 24;
const IPV6_NETCONF: u32 = 25;
const NEXTHOP: u32 = 32;

const GROUPS: [u32; 11] = [
    LINK,
    NEIGH,
    IPV4_IFADDR,
    IPV4_ROUTE,
    IPV4_RULE,
    IPV6_IFADDR,
    IPV6_ROUTE,
    IPV6_RULE,
    IPV4_NETCONF,
    IPV6_NETCONF,
    NEXTHOP,
];

/// `struct ndmsg` (include/uapi/linux/neighbour.h).
const NEIGHBOUR_HEADER: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NTF_USE: u8 = 1 << 0;
/// States in which frames can be sent to a neighbour: reachable, stale, delay, probe, no ARP, permanent.
const NUD_VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;

/// Why the kernel's routing is not followed.
#[derive(Debug, Error)]
enum RoutingError {
    /// The kernel was not heard, or did not answer.
    #[error("follow the kernel's routing: {0}")]
    Netlink(#[from] NetlinkError),
    /// XDP could not be told.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The clock could not be read.
    #[error("read the clock: {0}")]
    Clock(#[from] nix::Error),
}

/// Tells XDP in `maps` of the kernel's routing for as long as it runs.
pub async fn tell(mut maps: NextHopMaps) {
    loop {
        match follow(&mut maps).await {
            Ok(()) | Err(RoutingError::Netlink(NetlinkError::Overrun)) => {}
            Err(error) => warn!(%error, "XDP leaves packets to the stack until this works"),
        }
        sleep(RETRY_AFTER).await;
    }
}

/// Tells XDP in `maps` that nobody follows the kernel's routing: it leaves all packets to the stack.
///
/// # Errors
///
/// When the map cannot be written.
pub fn tell_nothing(maps: &mut NextHopMaps) -> Result<(), MapError> {
    let Routing { epoch, lease: _ } = maps.routing()?;
    // The count stays, so that no entry of today is taken for good by another day's.
    if epoch != 0 { maps.set_routing(Routing { epoch, lease: 0 }) } else { Ok(()) }
}

/// Follows the kernel's routing until events are lost or something fails.
async fn follow(maps: &mut NextHopMaps) -> Result<(), RoutingError> {
    let mask = GROUPS.iter().fold(0, |mask, group| mask | 1 << (group - 1));
    let mut events = EventLoopSocket::subscribe(mask)?;
    let mut requests = EventLoopSocket::open()?;
    let mut neighbours = Neighbours::default();
    let list = Request::dump(libc::RTM_GETNEIGH, &[0; NEIGHBOUR_HEADER]);
    // What changes meanwhile comes as an event as well.
    match requests.exchange(list, |message| _ = neighbours.take(&message)).await {
        Ok(()) | Err(NetlinkError::Interrupted) => {}
        Err(error) => return Err(error.into()),
    }
    let mut teller = Teller::new(maps)?;
    teller.count()?;
    info!(neighbours = neighbours.0.len(), "the kernel's routing is followed for XDP");
    let mut renewal = interval(RENEWAL);
    let mut review = interval(REVIEW);
    for ticks in [&mut renewal, &mut review] {
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut count_at: Option<Instant> = None;
    loop {
        tokio::select! {
            // Events last, so that a flood of them puts off nothing.
            biased;
            () = due(count_at) => {
                count_at = None;
                teller.count()?;
            }
            _ = renewal.tick() => teller.renew()?,
            _ = review.tick() => {
                let used = teller.recently_used()?;
                ask_after(&mut requests, neighbours.behind(&used)).await?;
                teller.count()?;
            }
            datagram = events.receive() => {
                for message in messages(datagram?) {
                    if is_change(&message?, &mut neighbours) {
                        count_at.get_or_insert(teller.counted_at + TOGETHER);
                    }
                }
            }
        }
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Whether a packet may have to go another way after this event.
fn is_change(message: &Message<'_>, neighbours: &mut Neighbours) -> bool {
    match message.kind {
        libc::RTM_NEWNEIGH | libc::RTM_DELNEIGH => neighbours.take(message),
        _ => true,
    }
}

/// Has the kernel ask these neighbours whether they are there, unless it knows. One that has gone meanwhile is fine.
async fn ask_after(requests: &mut EventLoopSocket, neighbours: Vec<(u32, Vec<u8>)>) -> Result<(), RoutingError> {
    for (device, address) in neighbours {
        let mut header = [0; NEIGHBOUR_HEADER];
        header[0] = if address.len() == 4 { libc::AF_INET } else { libc::AF_INET6 } as u8;
        header[4..8].copy_from_slice(&device.to_ne_bytes());
        header[10] = NTF_USE;
        let request = Request::change(libc::RTM_NEWNEIGH, 0, &header).attribute(NDA_DST, &address);
        match requests.exchange(request, |_| {}).await {
            Err(error) if error.errno().is_some() => debug!(device, ?address, %error, "a neighbour is not asked after"),
            asked => asked?,
        }
    }
    Ok(())
}

/// What XDP is told, and when it was told of the last change.
struct Teller<'m> {
    maps: &'m mut NextHopMaps,
    per_second: u32,
    epoch: u32,
    counted_at: Instant,
}

impl<'m> Teller<'m> {
    fn new(maps: &'m mut NextHopMaps) -> Result<Self, RoutingError> {
        let Routing { epoch, lease: _ } = maps.routing()?;
        Ok(Self { per_second: jiffies::per_second()?, epoch, counted_at: Instant::now(), maps })
    }

    /// Tells of a change.
    fn count(&mut self) -> Result<(), RoutingError> {
        self.epoch = self.epoch.checked_add(1).unwrap_or(1);
        self.counted_at = Instant::now();
        self.renew()
    }

    fn renew(&mut self) -> Result<(), RoutingError> {
        let lease = LEASE.as_secs() as u32 * self.per_second;
        let lease = jiffies::now(self.per_second)?.wrapping_add(lease);
        Ok(self.maps.set_routing(Routing { epoch: self.epoch, lease })?)
    }

    /// The neighbours that frames went to since the review before.
    fn recently_used(&self) -> Result<BTreeSet<NeighbourKey>, RoutingError> {
        let now = jiffies::now(self.per_second)?;
        let longest = 2 * REVIEW.as_secs() as u32 * self.per_second;
        let used = self.maps.neighbours()?.into_iter();
        Ok(used.filter(|(_, last_used)| jiffies_since(*last_used, now) < longest).map(|(key, _)| key).collect())
    }
}

/// The neighbours that frames can be sent to: device and IP address, and the link-layer address.
#[derive(Default)]
struct Neighbours(BTreeMap<(u32, Vec<u8>), Vec<u8>>);

impl Neighbours {
    /// Takes in an event, and says whether frames to somebody known go elsewhere now, or nowhere.
    fn take(&mut self, message: &Message<'_>) -> bool {
        let payload = message.payload;
        let state = payload.get(8..10).and_then(|state| state.first_chunk()).map(|state| u16::from_ne_bytes(*state));
        let (Some(device), Some(state)) = (payload.get(4..).and_then(number), state) else { return false };
        let (mut address, mut link_layer) = (None, None);
        for (kind, value) in attributes(payload, NEIGHBOUR_HEADER) {
            match kind {
                NDA_DST => address = Some(value.to_vec()),
                NDA_LLADDR => link_layer = Some(value.to_vec()),
                _ => {}
            }
        }
        // Bridges speak of MAC addresses they have learned in the same words.
        let Some(address) = address.filter(|address| matches!(address.len(), 4 | 16)) else { return false };
        let is_valid = message.kind == libc::RTM_NEWNEIGH && state & NUD_VALID != 0;
        match link_layer.filter(|_| is_valid) {
            Some(link_layer) => {
                let before = self.0.insert((device, address), link_layer.clone());
                before.is_some_and(|before| before != link_layer)
            }
            None => self.0.remove(&(device, address)).is_some(),
        }
    }

    /// Device and IP address of those at these link-layer addresses.
    fn behind(&self, used: &BTreeSet<NeighbourKey>) -> Vec<(u32, Vec<u8>)> {
        let is_used = |device: u32, link_layer: &[u8]| {
            let Some([a, b, c, d, e, f]) = link_layer.first_chunk().filter(|_| link_layer.len() == 6) else {
                return false;
            };
            let address = [[*a, *b], [*c, *d], [*e, *f]].map(u16::from_ne_bytes);
            used.contains(&NeighbourKey { device, address, reserved: 0 })
        };
        let found = self.0.iter().filter(|((device, _), link_layer)| is_used(*device, link_layer));
        found.map(|(neighbour, _)| neighbour.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACHABLE: u16 = 0x02;
    const STALE: u16 = 0x04;
    const FAILED: u16 = 0x20;
    const ADDRESS: [u8; 4] = [192, 0, 2, 1];
    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

    /// What a neighbour of device 7 being news makes of what was known.
    fn news(neighbours: &mut Neighbours, kind: u16, state: u16, link_layer: Option<[u8; 6]>) -> bool {
        let mut header = [0; NEIGHBOUR_HEADER];
        header[0] = libc::AF_INET as u8;
        header[4..8].copy_from_slice(&7u32.to_ne_bytes());
        header[8..10].copy_from_slice(&state.to_ne_bytes());
        let mut request = Request::change(kind, 0, &header).attribute(NDA_DST, &ADDRESS);
        if let Some(link_layer) = link_layer {
            request = request.attribute(NDA_LLADDR, &link_layer);
        }
        let bytes = request.numbered(1);
        let message = messages(&bytes).next().expect("a message").expect("well formed");
        is_change(&message, neighbours)
    }

    #[test]
    fn a_neighbour_is_a_change_when_it_moves_or_goes_and_not_when_it_comes_or_ages() {
        let mut neighbours = Neighbours::default();
        let known = &mut neighbours;
        assert!(!news(known, libc::RTM_NEWNEIGH, FAILED, None), "nobody knew it");
        assert!(!news(known, libc::RTM_NEWNEIGH, REACHABLE, Some(MAC)), "it has come");
        assert!(!news(known, libc::RTM_NEWNEIGH, STALE, Some(MAC)), "it is only not sure");
        assert!(news(known, libc::RTM_NEWNEIGH, STALE, Some([2, 0, 0, 0, 0, 2])), "it has moved");
        assert!(news(known, libc::RTM_NEWNEIGH, FAILED, Some([2, 0, 0, 0, 0, 2])), "it does not answer");
        assert!(!news(known, libc::RTM_DELNEIGH, FAILED, None), "which was known already");
        assert!(!news(known, libc::RTM_NEWNEIGH, REACHABLE, Some(MAC)));
        assert!(news(known, libc::RTM_DELNEIGH, REACHABLE, Some(MAC)), "it is gone");
        assert!(neighbours.0.is_empty());
    }

    #[test]
    fn routes_rules_and_addresses_are_changes() {
        for kind in [libc::RTM_NEWROUTE, libc::RTM_DELROUTE, libc::RTM_NEWRULE, libc::RTM_NEWADDR, libc::RTM_DELLINK] {
            assert!(news(&mut Neighbours::default(), kind, 0, None), "{kind}");
        }
    }

    #[test]
    fn those_are_asked_after_whom_frames_went_to() {
        let mut neighbours = Neighbours::default();
        news(&mut neighbours, libc::RTM_NEWNEIGH, STALE, Some(MAC));
        let key = |device| NeighbourKey { device, address: [2, 0, 0x100].map(|half: u16| half), reserved: 0 };
        let used = |device| BTreeSet::from([NeighbourKey { address: mac(MAC), ..key(device) }]);
        assert_eq!(neighbours.behind(&used(7)), [(7, ADDRESS.to_vec())]);
        assert!(neighbours.behind(&used(8)).is_empty(), "behind another device");
        assert!(neighbours.behind(&BTreeSet::from([key(7)])).is_empty(), "somebody else");
    }

    fn mac([a, b, c, d, e, f]: [u8; 6]) -> dsproxy_common::next_hop::Mac {
        [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes)
    }
}
