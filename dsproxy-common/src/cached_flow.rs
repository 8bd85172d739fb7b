//! Flows as XDP remembers them: what becomes of a packet, ready to be written, found without a search in a table of the CPU's own.
//!
//! The connection table says what is so; this only spares most packets the search. A flow is remembered for less than a second; it
//! is looked up anew when its backend or the kernel's routing has changed.
//!
//! The table is one array, in which each CPU has a part of its own. Of that each flow has two places, in either half one, to which two
//! hashes lead (a skewed cache: Seznec, ISCA 1993): few flows share both with others. Where all is taken, the later flow has it.
//!
//! XDP takes what has settled alone, and of that what says no more than that there is one more packet: the stack sees connections
//! begin and end, and now and then a packet in between (`next_hop::TURN`). With a packet that begins or ends one, what was
//! remembered of its flow is forgotten: the next may be another connection.

use crate::{
    Addr4, Addr6, Address, Port,
    flow::{FlowKey, FlowState},
    hash::mix,
    next_hop::{Mac, NextHop, TURN},
    record::family_record,
    service::BackendState,
    settings::Settings,
};

/// What is remembered of a flow: two cache lines and no more, for with many flows what counts is the memory that a packet touches.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedFlow<A> {
    /// Its packets, as they come in.
    pub key: FlowKey<A>,
    /// The epoch of the [`NextHop`]. Zero: nothing is remembered.
    pub epoch: u32,
    /// Until when this is good: the low half of the jiffies.
    pub good_until: u32,
    /// The index of the device that they come by.
    pub ingress: u32,
    /// The address that their frames come to: the node's own.
    pub arrival: Mac,
    /// The longest IP packet that goes on by this, in bytes.
    pub mtu: u16,
    /// The index of the device that they leave by.
    pub device: u32,
    /// The link-layer addresses that their frames leave with, as in [`NextHop`].
    pub link_addresses: [u32; 3],
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
    /// The id of the service port, for its counters.
    pub service: u32,
    /// The id of the backend that packets go to; [`TO_CLIENT`] of those from a backend.
    pub backend: u32,
    /// The generation that the backend's id had.
    pub generation: u32,
}

const _: () = assert!(size_of::<CachedFlow<Addr4>>() == 80 && size_of::<CachedFlow<Addr6>>() == 128);

/// How many places each half of a CPU's part has that is to hold `flows`: a power of two.
pub const fn places_in_half(flows: u32) -> u32 {
    if flows < 2 { 1 } else { 1 << (flows / 2).ilog2() }
}

/// How many places the array has for so many CPUs; none if that is more than an array can have.
pub const fn places_of_all(flows: u32, cpus: u32) -> Option<u32> {
    (2 * places_in_half(flows)).checked_mul(cpus)
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

/// The places of a flow in the part of `cpu`, each half of which has `mask` + 1, a power of two.
#[inline(always)]
pub fn places<A: Address>(key: &FlowKey<A>, cpu: u32, mask: u32) -> [u32; 2] {
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
    let place = |multiplier| ((hash ^ hash >> 29).wrapping_mul(multiplier) >> 32) as u32 & mask;
    let half = mask.wrapping_add(1);
    let part = cpu.wrapping_mul(half).wrapping_mul(2);
    [part.wrapping_add(place(MULTIPLIERS[1])), part.wrapping_add(half).wrapping_add(place(MULTIPLIERS[2]))]
}

/// Where the flow of `key`, whose places these are, is remembered; else where it is best remembered, and false: in place of one that is good
/// no more, else of either. Which is left to the clock, for where three flows take turns, the one that was used longest ago is always
/// the next.
#[inline(always)]
pub fn place_for<'a, A: Copy + Eq>(
    key: &FlowKey<A>,
    [first, second]: [&'a mut CachedFlow<A>; 2],
    (epoch, now): (u32, u32),
) -> (&'a mut CachedFlow<A>, bool) {
    if first.key == *key {
        return (first, true);
    }
    if second.key == *key {
        return (second, true);
    }
    let is_first = !first.is_good(epoch, now) || second.is_good(epoch, now) && now.is_multiple_of(2);
    (if is_first { first } else { second }, false)
}

impl<A: Copy + Eq> CachedFlow<A> {
    /// Whether a packet of this flow that came by `device` to the address `arrival` may go on by this, as far as time and routing are
    /// concerned.
    #[inline(always)]
    pub fn is_current(&self, (device, arrival): (u32, Mac), epoch: u32, now: u32) -> bool {
        self.ingress == device && self.is_good(epoch, now) && self.arrival == arrival
    }

    /// Whether it is good for any packet of it.
    #[inline(always)]
    fn is_good(&self, epoch: u32, now: u32) -> bool {
        self.epoch == epoch && self.good_until.wrapping_sub(now) <= u32::MAX / 2
    }

    /// Whether its backend, of which the array holds `generation` and `state` now, is still the same and there.
    #[inline(always)]
    pub fn leads_to(&self, generation: u32, state: BackendState) -> bool {
        self.generation == generation && !matches!(state, BackendState::Gone)
    }

    /// Has its packets go on by `next`.
    #[inline(always)]
    pub fn set_next_hop(&mut self, next: &NextHop) {
        self.epoch = next.epoch;
        self.ingress = next.ingress;
        self.device = next.device;
        self.link_addresses = next.addresses;
        self.mtu = next.mtu;
    }

    /// Forgets it.
    #[inline(always)]
    pub fn forget(&mut self) {
        self.epoch = 0;
    }
}

family_record! {
    CachedFlow { key, epoch, good_until, ingress, arrival, mtu, device, link_addresses, source, destination, ports, address_difference, transport_difference, service, backend, generation }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};
    use std::collections::HashSet;

    use super::*;

    const MASK: u32 = (1 << 16) - 1;

    fn key<A: Copy>(source: A, destination: A, port: u16) -> FlowKey<A> {
        FlowKey { source, destination, source_port: Port::new(port), destination_port: Port::new(80), protocol: 6 }
    }

    fn v4(number: u32) -> Addr4 {
        Ipv4Addr::from(number).into()
    }

    fn v6(number: u128) -> Addr6 {
        Ipv6Addr::from(0xfd00 << 112 | number).into()
    }

    /// The places in the part of the first CPU of flows that count up: by port and by client, of each family.
    fn counting_up() -> [Vec<[u32; 2]>; 4] {
        let vip = (v4(0x0a60_0001), v6(0x96));
        [
            (0..=u16::MAX).map(|port| places(&key(v4(0xc000_0201), vip.0, port), 0, MASK)).collect(),
            (0..=u16::MAX).map(|port| places(&key(v6(0x201), vip.1, port), 0, MASK)).collect(),
            (0..1 << 16).map(|client| places(&key(v4(client), vip.0, 7), 0, MASK)).collect(),
            (0..1 << 16).map(|client| places(&key(v6(client), vip.1, 7), 0, MASK)).collect(),
        ]
    }

    #[test]
    fn flows_that_count_up_are_spread_in_either_half() {
        for flows in counting_up() {
            for half in 0..2 {
                let different: HashSet<_> = flows.iter().map(|places| places[half]).collect();
                // Thrown at random, as many keys as places hit 63 % of them.
                assert!(different.len() > 38_000, "{}", different.len());
            }
        }
    }

    #[test]
    fn of_half_as_many_flows_as_there_are_places_few_find_both_taken() {
        for flows in counting_up() {
            let mut taken = HashSet::new();
            let left_out = flows.iter().filter(|places| !places.iter().any(|place| taken.insert(*place))).count();
            // At random 6 % would; with both places in one set it would be 10 %.
            assert!(left_out < flows.len() * 7 / 100, "{left_out}");
        }
    }

    #[test]
    fn every_cpu_has_a_part_of_its_own_and_every_flow_a_place_in_either_half() {
        for (flows, in_half) in [(1, 1), (2, 1), (3, 1), (4, 2), (7, 2), (16_384, 8_192)] {
            assert_eq!(places_in_half(flows), in_half, "{flows}");
            assert_eq!(places_of_all(flows, 3), Some(6 * in_half));
            for cpu in 0..3 {
                for port in 0..1000 {
                    let of = |address| {
                        let [first, second] = places(&key(v4(address), v4(1), port), cpu, in_half - 1);
                        [first / in_half, second / in_half]
                    };
                    assert_eq!([of(2), of(99)], [[2 * cpu, 2 * cpu + 1]; 2]);
                }
            }
        }
        assert_eq!(places_of_all(u32::MAX, 4), None);
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

    /// Good in epoch 3 until 240, for what comes by device 4.
    fn flow(port: u16) -> CachedFlow<Addr4> {
        CachedFlow {
            key: key(Addr4::default(), Addr4::default(), port),
            epoch: 3,
            good_until: 240,
            ingress: 4,
            arrival: [2, 0, 1],
            mtu: 1500,
            device: 0,
            link_addresses: [0; 3],
            source: Addr4::default(),
            destination: Addr4::default(),
            ports: Ports::default(),
            address_difference: 0,
            transport_difference: 0,
            service: 0,
            backend: 1,
            generation: 5,
        }
    }

    #[test]
    fn a_flow_is_current_for_a_time_in_its_epoch_and_for_its_own_packets() {
        let mut flow = flow(1);
        let current = |flow: &CachedFlow<_>, arrival, epoch, now| flow.is_current((4, arrival), epoch, now);
        assert!(current(&flow, [2, 0, 1], 3, u32::MAX) && current(&flow, [2, 0, 1], 3, 200));
        assert!(!current(&flow, [2, 0, 1], 3, 241), "too late");
        assert!(!current(&flow, [2, 0, 1], 4, 0), "routing has changed");
        assert!(!current(&flow, [2, 0, 2], 3, 0), "for another host");
        assert!(!flow.is_current((5, [2, 0, 1]), 3, 0), "by another device");
        assert!(flow.leads_to(5, BackendState::Active) && flow.leads_to(5, BackendState::Draining));
        assert!(!flow.leads_to(5, BackendState::Gone) && !flow.leads_to(6, BackendState::Active));
        flow.forget();
        assert!(!current(&flow, [2, 0, 1], 3, 0), "forgotten");
    }

    #[test]
    fn a_flow_is_found_in_either_place_and_is_best_remembered_where_none_is_good() {
        let [mut first, mut second] = [flow(1), flow(2)];
        let mut found = |port, epoch, now| {
            let (flow, is_known) = place_for(&flow(port).key, [&mut first, &mut second], (epoch, now));
            (flow.key.source_port.number(), is_known)
        };
        assert_eq!([found(1, 3, 10), found(2, 3, 10)], [(1, true), (2, true)]);
        assert_eq!([found(9, 3, 10), found(9, 3, 11)], [(1, false), (2, false)], "both are good");
        assert_eq!([found(9, 4, 11), found(9, 3, 241)], [(1, false), (1, false)], "none is");
        for (first_goes, second_goes, best) in [(true, false, 1), (false, true, 2), (true, true, 1)] {
            let [mut first, mut second] = [flow(1), flow(2)];
            if first_goes {
                first.forget();
            }
            if second_goes {
                second.forget();
            }
            for now in [10, 11] {
                let (flow, is_known) = place_for(&flow(9).key, [&mut first, &mut second], (3, now));
                assert_eq!((flow.key.source_port.number(), is_known), (best, false));
            }
        }
    }
}
