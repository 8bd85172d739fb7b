//! Tells XDP for how long it can rely on how the stack sent packets before (`dsproxy_common::next_hop`): counts what changes in the
//! kernel's routing, and vouches for the count.
//!
//! `Neighbours` (pure) knows which news of neighbours are a change.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use dsproxy_common::{
    cached_flow,
    next_hop::{Routing, TURN},
};
use thiserror::Error;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};
use tracing::{info, warn};

use crate::{
    datapath::carry::PACKETS_UNDER_WAY,
    jiffies,
    maps::{MapError, next_hops::NextHopMaps},
    netlink::{EventLoopSocket, Message, NetlinkError, Request, attributes, messages, number},
};

/// How far the word of this task reaches: if it ends, XDP leaves all packets to the stack after that. Longer than a restart takes.
const LEASE: Duration = Duration::from_secs(20);

/// How often the lease is renewed.
const RENEWAL: Duration = Duration::from_secs(4);

/// How often the stack has its turn with all that XDP sends on.
const TURNS: Duration = Duration::from_secs(TURN as u64);

/// The least time between two counts: one change at once, many together.
const TOGETHER: Duration = Duration::from_millis(20);

/// A change is counted again so much later. The kernel tells of some, routes that go among them, before they are in effect; and a packet
/// that waits for its neighbour, for up to three seconds, leaves as it was routed before.
const AFTERWARDS: [Duration; 3] = [Duration::from_millis(100), Duration::from_secs(1), Duration::from_secs(4)];

/// How far in the past a lease ends that is none, in jiffies: farther than the kernel's clock may be behind the one that is read.
const LONG_AGO: u32 = 1 << 30;

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
/// States in which frames can be sent to a neighbour: reachable, stale, delay, probe, no ARP, permanent.
const NUD_VALID: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80;

/// Why the kernel's routing is not followed.
#[derive(Debug, Error)]
pub enum RoutingError {
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

/// How often a list is asked for that changes while it is sent.
const LISTING_ATTEMPTS: u32 = 5;

/// What XDP is told. Clones tell the same.
#[derive(Clone)]
pub struct Word(Arc<Mutex<Told>>);

struct Told {
    maps: NextHopMaps,
    per_second: u32,
    flow_mask: u32,
    epoch: u32,
}

impl Word {
    /// Will tell XDP in `maps`, each CPU of which remembers so many flows. Nothing holds yet but what another run has said, which ends at
    /// once if that had CPUs remember another number: two that do not agree on it would write to each other's part.
    ///
    /// # Errors
    ///
    /// When the map cannot be read or written, or the clock not be read.
    pub fn new(maps: NextHopMaps, cached_flows: u32) -> Result<Self, RoutingError> {
        // The count goes on, so that nothing noted in one life is good in another.
        let Routing { epoch, flow_mask, .. } = maps.routing()?;
        let mut told = Told { maps, per_second: jiffies::per_second()?, flow_mask, epoch };
        let wanted = cached_flow::places_in_half(cached_flows) - 1;
        if epoch != 0 && wanted != flow_mask {
            told.withdraw()?;
            std::thread::sleep(PACKETS_UNDER_WAY);
        }
        told.flow_mask = wanted;
        Ok(Self(Arc::new(Mutex::new(told))))
    }

    /// Tells of a change.
    ///
    /// # Errors
    ///
    /// When the map cannot be written, or the clock not be read.
    pub fn count(&self) -> Result<(), RoutingError> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        told.epoch = told.epoch.checked_add(1).unwrap_or(1);
        let Routing { lease, .. } = told.maps.routing()?;
        told.tell(lease)
    }

    /// Vouches for the count until the lease ends.
    fn renew(&self) -> Result<(), RoutingError> {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lease = LEASE.as_secs() as u32 * told.per_second;
        let lease = jiffies::now(told.per_second)?.wrapping_add(lease);
        told.tell(lease)
    }

    /// Vouches for nothing: XDP leaves all packets to the stack.
    ///
    /// # Errors
    ///
    /// As `count`.
    pub fn withdraw(&self) -> Result<(), RoutingError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).withdraw()
    }
}

impl Told {
    fn withdraw(&mut self) -> Result<(), RoutingError> {
        let lease = jiffies::now(self.per_second)?.wrapping_sub(LONG_AGO);
        self.tell(lease)
    }

    fn tell(&mut self, lease: u32) -> Result<(), RoutingError> {
        let Self { flow_mask, epoch, .. } = *self;
        Ok(self.maps.set_routing(Routing { epoch, lease, flow_mask })?)
    }
}

/// Tells XDP of the kernel's routing for as long as it runs.
pub async fn tell(word: Word) {
    loop {
        let ended = follow(&word).await;
        if let Err(error) = word.withdraw() {
            warn!(%error, "XDP may go on for {LEASE:?} by routes that are not followed");
        }
        match ended {
            Ok(()) | Err(RoutingError::Netlink(NetlinkError::Overrun)) => {}
            Err(error) => warn!(%error, "XDP leaves packets to the stack until this works"),
        }
        sleep(RETRY_AFTER).await;
    }
}

/// Follows the kernel's routing until events are lost or something fails.
async fn follow(word: &Word) -> Result<(), RoutingError> {
    let mask = GROUPS.iter().fold(0, |mask, group| mask | 1 << (group - 1));
    let mut events = EventLoopSocket::subscribe(mask)?;
    let mut neighbours = list_neighbours().await?;
    word.count()?;
    info!(neighbours = neighbours.0.len(), "the kernel's routing is followed for XDP");
    let mut renewal = interval(RENEWAL);
    renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut turns = interval(TURNS);
    turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut counted_at, mut count_at, mut times_again) = (Instant::now(), None, AFTERWARDS.len());
    loop {
        tokio::select! {
            // Events last, so that a flood of them puts off nothing.
            biased;
            () = due(count_at) => {
                word.count()?;
                (counted_at, count_at, times_again) = (Instant::now(), None, 0);
            }
            () = due(AFTERWARDS.get(times_again).map(|after| counted_at + *after)) => {
                word.count()?;
                times_again += 1;
            }
            _ = renewal.tick() => word.renew()?,
            _ = turns.tick() => word.count()?,
            datagram = events.receive() => {
                for message in messages(datagram?) {
                    if is_change(&message?, &mut neighbours) {
                        count_at.get_or_insert(counted_at + TOGETHER);
                    }
                }
            }
        }
    }
}

/// The neighbours there are. What changes meanwhile comes as an event as well.
async fn list_neighbours() -> Result<Neighbours, RoutingError> {
    let mut requests = EventLoopSocket::open()?;
    let mut attempt = 1;
    loop {
        let mut neighbours = Neighbours::default();
        let list = Request::dump(libc::RTM_GETNEIGH, &[0; NEIGHBOUR_HEADER]);
        match requests.exchange(list, |message| _ = neighbours.take(&message)).await {
            Ok(()) => return Ok(neighbours),
            Err(NetlinkError::Interrupted) if attempt < LISTING_ATTEMPTS => attempt += 1,
            Err(error) => return Err(error.into()),
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
}
