//! The hash of a flow that picks its slot. Every node computes the same, whatever its byte order.

use crate::{Address, flow::FlowKey};

/// Bijective mixing of 64 bits: every input bit reaches every output bit. The two odd constants are
/// David Stafford's variant 13, as in `SplitMix64`.
#[inline(always)]
pub const fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The hash of addresses, ports and protocol, evenly spread over 32 bits.
#[inline(always)]
pub fn flow_hash<A: Address>(key: &FlowKey<A>) -> u32 {
    let ports = (u64::from(key.source_port.number()) << 32)
        | (u64::from(key.destination_port.number()) << 16)
        | u64::from(key.protocol);
    let mut hash = mix(ports);
    let (source, destination) = (key.source.words(), key.destination.words());
    let mut i = 0;
    while i < source.len() && i < destination.len() {
        let pair = (u64::from(u32::from_be(source[i])) << 32) | u64::from(u32::from_be(destination[i]));
        hash = mix(hash ^ pair);
        i += 1;
    }
    (hash >> 32) as u32
}

/// The hash of a client's address alone.
#[inline(always)]
pub fn client_hash<A: Address>(client: &A) -> u32 {
    let words = client.words();
    let mut hash = 0;
    let mut i = 0;
    while i < words.len() {
        hash = mix(hash ^ u64::from(u32::from_be(words[i])));
        i += 1;
    }
    (hash >> 32) as u32
}

/// Which of `count` slots a hash falls on: below `count`, evenly, without a division.
#[inline(always)]
pub const fn slot(hash: u32, count: u32) -> u32 {
    ((hash as u64 * count as u64) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::*;
    use crate::{Addr4, Port};

    fn key(source: u32, port: u16) -> FlowKey<Addr4> {
        FlowKey {
            source: Ipv4Addr::from(source).into(),
            destination: Ipv4Addr::new(10, 96, 0, 1).into(),
            source_port: Port::new(port),
            destination_port: Port::new(443),
            protocol: 6,
        }
    }

    #[test]
    fn clients_that_count_up_their_ports_or_addresses_spread_evenly() {
        for count in [2, 3, 10, 1009] {
            let spread = |keys: &mut dyn Iterator<Item = FlowKey<Addr4>>| {
                let mut hits = vec![0u32; count as usize];
                for key in keys {
                    hits[slot(flow_hash(&key), count) as usize] += 1;
                }
                hits
            };
            for hits in [
                spread(&mut (0..40_000).map(|i| key(0x0a00_0001, 20_000 + i as u16))),
                spread(&mut (0..40_000).map(|i| key(0x0a00_0001 + i, 40_000))),
            ] {
                let mean = 40_000.0 / f64::from(count);
                // Six standard deviations of a binomial count.
                let bound = 6.0 * mean.sqrt();
                assert!(hits.iter().all(|hit| (f64::from(*hit) - mean).abs() < bound), "{count}: {hits:?}");
            }
        }
    }

    #[test]
    fn the_hash_is_a_fixed_function_of_the_packet() {
        assert_eq!(flow_hash(&key(0x0a00_0001, 40_000)), flow_hash(&key(0x0a00_0001, 40_000)));
        assert_ne!(flow_hash(&key(0x0a00_0001, 40_000)), flow_hash(&key(0x0a00_0001, 40_001)));
        assert_eq!(slot(u32::MAX, 7), 6);
        assert_eq!(slot(0, 7), 0);
    }
}
