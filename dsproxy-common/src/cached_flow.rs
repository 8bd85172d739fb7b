//! Flows as XDP remembers them: what becomes of a packet, ready to be written, found by one look into a table of the CPU's own.
//!
//! The connection table says what is so; this only spares most packets the search. A flow is remembered for less than a second; it
//! is looked up anew when its backend or the kernel's routing has changed. Two flows have room where a hash leads to; of more, the
//! later have it.
//!
//! XDP takes what has settled alone, and of that what says no more than that there is one more packet: the stack sees connections
//! begin and end, and now and then a packet in between (`next_hop::TURN`). With a packet that begins or ends one, what was
//! remembered of its flow is forgotten: the next may be another connection.

use crate::{
    Address, Port,
    flow::{FlowKey, FlowState},
    hash::mix,
    next_hop::{Mac, NextHop, TURN},
    record::family_record,
    service::BackendState,
    settings::Settings,
};

/// What is remembered of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedFlow<A> {
    /// Its packets, as they come in.
    pub key: FlowKey<A>,
    /// Where they go next. Of no epoch, nothing is remembered.
    pub next_hop: NextHop,
    /// Their source, as they leave.
    pub source: A,
    /// Their destination, as they leave.
    pub destination: A,
    /// The ports, likewise.
    pub ports: Ports,
    /// The difference that the addresses make to the IP header's checksum.
    pub address_difference: u16,
    /// The difference that addresses and ports make to the transport checksum.
    pub transport_difference: u16,
    /// Until when this is good: the low half of the jiffies.
    pub good_until: u32,
    /// The id of the service port, for its counters.
    pub service: u32,
    /// The id of the backend that packets go to; [`TO_CLIENT`] of those from a backend.
    pub backend: u32,
    /// The generation that the backend's id had.
    pub generation: u32,
    /// The address that their frames come to: the node's own.
    pub arrival: Mac,
    /// Zero.
    pub reserved: u16,
}

/// How many flows have room in a set.
pub const WAYS: u32 = 2;

/// The flows that a hash leads to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowSet<A> {
    /// In any order.
    pub ways: [CachedFlow<A>; WAYS as usize],
}

/// How many sets a table for `flows` has, a power of two.
pub const fn sets(flows: u32) -> u32 {
    if flows < WAYS { 1 } else { 1 << (flows / WAYS).ilog2() }
}

/// In place of a backend's id.
pub const TO_CLIENT: u32 = u32::MAX;

/// How long a flow in `state` is remembered, in jiffies; none if it has not settled, is about to end, or would be over by the time the
/// stack has its turn: only the stack keeps entries alive.
///
/// Less than a second: so long a port that leads to the client is not given to another connection (`Settings::port_waits`), of which
/// other CPUs do not hear; and UDP follows its Service as fast.
#[inline(always)]
pub fn lifetime(state: FlowState, settings: &Settings) -> Option<u32> {
    let has_settled = matches!(state, FlowState::Stateless | FlowState::Established);
    let lives_on = settings.lifetime(state) / 4 >= TURN * settings.jiffies_per_second;
    (has_settled && lives_on).then_some(settings.jiffies_per_second - 1)
}

/// Source and destination port.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// The source port.
    pub source: Port,
    /// The destination port.
    pub destination: Port,
}

/// Any odd numbers without a pattern: one for each word of a key.
const MULTIPLIERS: [u64; 10] = {
    let mut multipliers = [0; 10];
    let mut i = 0;
    while i < multipliers.len() {
        multipliers[i] = mix(i as u64 + 101) | 1;
        i += 1;
    }
    multipliers
};

/// The set of a flow in a table with `mask` + 1 sets, a power of two.
#[inline(always)]
pub fn set<A: Address>(key: &FlowKey<A>, mask: u32) -> u32 {
    // Multilinear, as `filter`: a sum of products. What counts up makes a pattern of it, which one more product breaks.
    let ports = u64::from(key.source_port.wire()) << 16 | u64::from(key.destination_port.wire());
    let mut hash =
        ports.wrapping_mul(MULTIPLIERS[0]).wrapping_add(u64::from(key.protocol).wrapping_mul(MULTIPLIERS[1]));
    let (source, destination) = (key.source.words(), key.destination.words());
    let mut i = 0;
    while i < source.len() && i < destination.len() && i < 4 {
        hash = hash
            .wrapping_add(u64::from(source[i]).wrapping_mul(MULTIPLIERS[2 + 2 * i]))
            .wrapping_add(u64::from(destination[i]).wrapping_mul(MULTIPLIERS[3 + 2 * i]));
        i += 1;
    }
    ((hash ^ hash >> 29).wrapping_mul(MULTIPLIERS[1]) >> 32) as u32 & mask
}

impl<A: Copy + Eq> FlowSet<A> {
    /// Where the flow of `key` stands, if it is remembered.
    #[inline(always)]
    pub fn find(&self, key: &FlowKey<A>) -> Option<u32> {
        let [first, second] = &self.ways;
        if first.key == *key {
            Some(0)
        } else if second.key == *key {
            Some(1)
        } else {
            None
        }
    }

    /// Where a flow is best remembered that is not yet: in place of one that is good no more, else of either. Which is left to the clock, for
    /// where three flows take turns, the one that was used longest ago is always the next.
    #[inline(always)]
    pub fn victim(&self, epoch: u32, now: u32) -> u32 {
        let [first, second] = &self.ways;
        match (first.is_good(epoch, now), second.is_good(epoch, now)) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => now % WAYS,
        }
    }
}

impl<A: Copy + Eq> CachedFlow<A> {
    /// Whether a packet of this flow that came by `device` to the address `arrival` may go on by this, as far as time and routing are
    /// concerned.
    #[inline(always)]
    pub fn is_current(&self, (device, arrival): (u32, Mac), epoch: u32, now: u32) -> bool {
        self.next_hop.ingress == device && self.is_good(epoch, now) && self.arrival == arrival
    }

    /// Whether it is good for any packet of it.
    #[inline(always)]
    fn is_good(&self, epoch: u32, now: u32) -> bool {
        self.next_hop.epoch == epoch && self.good_until.wrapping_sub(now) <= u32::MAX / 2
    }

    /// Whether its backend, of which the array holds `generation` and `state` now, is still the same and there.
    #[inline(always)]
    pub fn leads_to(&self, generation: u32, state: BackendState) -> bool {
        self.generation == generation && !matches!(state, BackendState::Gone)
    }

    /// Forgets it.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.next_hop.epoch = 0;
    }
}

family_record! {
    CachedFlow { key, next_hop, source, destination, ports, address_difference, transport_difference, good_until, service, backend, generation, arrival, reserved }
    FlowSet { ways }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};
    use std::collections::HashSet;

    use super::*;
    use crate::{Addr4, Addr6};

    const MASK: u32 = (1 << 16) - 1;

    fn key<A: Copy>(source: A, destination: A, port: u16) -> FlowKey<A> {
        FlowKey { source, destination, source_port: Port::new(port), destination_port: Port::new(80), protocol: 6 }
    }

    #[test]
    fn flows_that_count_up_are_spread() {
        let v4 = |number: u32| Addr4::from(Ipv4Addr::from(number));
        let v6 = |number: u128| Addr6::from(Ipv6Addr::from(0xfd00 << 112 | number));
        let vip = (v4(0x0a60_0001), v6(0x96));
        let ports_v4: HashSet<u32> = (0..=u16::MAX).map(|port| set(&key(v4(0xc000_0201), vip.0, port), MASK)).collect();
        let ports_v6: HashSet<u32> = (0..=u16::MAX).map(|port| set(&key(v6(0x201), vip.1, port), MASK)).collect();
        let clients_v4: HashSet<u32> = (0..65_536).map(|client| set(&key(v4(client), vip.0, 7), MASK)).collect();
        let clients_v6: HashSet<u32> = (0..65_536).map(|client| set(&key(v6(client), vip.1, 7), MASK)).collect();
        for places in [ports_v4, ports_v6, clients_v4, clients_v6] {
            // Thrown at random, as many keys as places hit 63 % of them.
            assert!(places.len() > 38_000, "{}", places.len());
        }
    }

    #[test]
    fn what_has_settled_is_remembered_for_less_than_it_lives() {
        let lifetimes = [7, 40_000, 7, 7, 7, 7, 30_000, 7];
        let settings = Settings { jiffies_per_second: 250, lifetimes, ..Settings::default() };
        assert_eq!(lifetime(FlowState::Established, &settings), Some(249));
        assert_eq!(lifetime(FlowState::Stateless, &settings), Some(249));
        for (lifetime_of_all, is_ours) in [(64 * 250, true), (64 * 250 - 1, false)] {
            let short = Settings { lifetimes: [lifetime_of_all; FlowState::COUNT], ..settings };
            for number in 0..FlowState::COUNT as u16 {
                let state = FlowState::from_number(number);
                let settled = matches!(state, FlowState::Established | FlowState::Stateless);
                assert_eq!(lifetime(state, &short).is_some(), settled && is_ours, "{state:?} {lifetime_of_all}");
            }
        }
    }

    #[test]
    fn a_flow_is_current_for_a_time_in_its_epoch_and_for_its_own_packets() {
        let of = |port| key(Addr4::default(), Addr4::default(), port);
        let next_hop = NextHop { epoch: 3, ingress: 4, ..NextHop::default() };
        let mut flow = CachedFlow {
            key: of(1),
            next_hop,
            source: Addr4::default(),
            destination: Addr4::default(),
            ports: Ports::default(),
            address_difference: 0,
            transport_difference: 0,
            good_until: 240,
            service: 0,
            backend: 1,
            generation: 5,
            arrival: [2, 0, 1],
            reserved: 0,
        };
        let current = |flow: &CachedFlow<_>, arrival, epoch, now| flow.is_current((4, arrival), epoch, now);
        assert!(current(&flow, [2, 0, 1], 3, u32::MAX) && current(&flow, [2, 0, 1], 3, 200));
        assert!(!current(&flow, [2, 0, 1], 3, 241), "too late");
        assert!(!current(&flow, [2, 0, 1], 4, 0), "routing has changed");
        assert!(!current(&flow, [2, 0, 2], 3, 0), "for another host");
        assert!(!flow.is_current((5, [2, 0, 1]), 3, 0), "by another device");
        assert!(flow.leads_to(5, BackendState::Active) && flow.leads_to(5, BackendState::Draining));
        assert!(!flow.leads_to(5, BackendState::Gone) && !flow.leads_to(6, BackendState::Active));
        let other = CachedFlow { key: of(2), ..flow };
        let mut set = FlowSet { ways: [flow, other] };
        assert_eq!([1, 2, 3].map(|port| set.find(&of(port))), [Some(0), Some(1), None]);
        assert_eq!([set.victim(3, 10), set.victim(3, 11)], [0, 1], "both are good");
        set.ways[1].forget();
        assert_eq!([set.victim(3, 10), set.victim(3, 11)], [1, 1]);
        assert_eq!([set.victim(4, 10), set.victim(3, 241)], [0, 0], "none is");
        flow.forget();
        assert!(!current(&flow, [2, 0, 1], 3, 0), "forgotten");
    }

    #[test]
    fn a_table_has_room_for_at_most_as_many_as_it_is_to() {
        assert_eq!([1, 2, 3, 4, 7, 16_384].map(sets), [1, 1, 1, 2, 2, 8_192]);
    }
}
