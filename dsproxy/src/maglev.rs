//! Maglev hashing (Eisenbud et al., NSDI 2016, section 3.4): a table that sends equal flows to equal endpoints on
//! every node, spreads them evenly, and changes little when an endpoint comes or goes.
//!
//! Pure: the table follows from the endpoints' addresses alone, whatever their order or ids.

use std::net::IpAddr;

use dsproxy_common::hash::mix;

/// Entries for each endpoint; with a hundred, the fullest endpoint has about one per cent more than the emptest.
const ENTRIES_PER_ENDPOINT: usize = 100;

/// No table is longer, so that a Service with very many endpoints does not eat all slots: beyond some 1,300 endpoints
/// the spread is coarser instead.
const MAX_LENGTH: usize = 131_071;

/// The length of the table for `endpoints` endpoints: a prime.
///
/// It goes up in powers of two: another length would send nearly every flow elsewhere, so it must not change
/// with each endpoint.
pub fn table_length(endpoints: usize) -> usize {
    let wanted = endpoints.next_power_of_two() * ENTRIES_PER_ENDPOINT;
    next_prime(wanted.min(MAX_LENGTH).max(2 * endpoints))
}

/// The table for `endpoints`: each entry is an index into them.
///
/// Empty for no endpoints. Duplicates share the entries of one.
pub fn table(endpoints: &[(IpAddr, u16)]) -> Vec<usize> {
    if endpoints.is_empty() {
        return Vec::new();
    }
    let length = table_length(endpoints.len());
    let mut order: Vec<usize> = (0..endpoints.len()).collect();
    order.sort_unstable_by_key(|index| endpoints[*index]);
    order.dedup_by_key(|index| endpoints[*index]);
    let mut permutations: Vec<Permutation> =
        order.iter().map(|index| Permutation::of(endpoints[*index], length)).collect();

    let mut table = vec![usize::MAX; length];
    let mut filled = 0;
    // Each endpoint in turn takes the next entry of its permutation that is still free.
    'fill: loop {
        for (index, permutation) in order.iter().zip(&mut permutations) {
            let entry = permutation.next_free(&table, length);
            table[entry] = *index;
            filled += 1;
            if filled == length {
                break 'fill;
            }
        }
    }
    table
}

/// The order in which one endpoint asks for entries: `offset`, `offset + skip`, ..., modulo the prime length, which
/// reaches every entry.
struct Permutation {
    next: usize,
    skip: usize,
}

impl Permutation {
    fn of((address, port): (IpAddr, u16), length: usize) -> Self {
        let bits = match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let seed = mix(mix(mix((bits >> 64) as u64) ^ bits as u64) ^ u64::from(port));
        let below = |hash: u64, bound: usize| (hash % bound as u64) as usize;
        Self { next: below(mix(seed ^ 1), length), skip: 1 + below(mix(seed ^ 2), length - 1) }
    }

    fn next_free(&mut self, table: &[usize], length: usize) -> usize {
        loop {
            let entry = self.next;
            self.next = (self.next + self.skip) % length;
            if table[entry] == usize::MAX {
                return entry;
            }
        }
    }
}

fn next_prime(from: usize) -> usize {
    (from.max(2)..).find(|candidate| is_prime(*candidate)).unwrap_or(MAX_LENGTH)
}

fn is_prime(number: usize) -> bool {
    number >= 2
        && (2..).take_while(|divisor| divisor * divisor <= number).all(|divisor| !number.is_multiple_of(divisor))
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn endpoints() -> impl Strategy<Value = Vec<(IpAddr, u16)>> {
        let v4 = proptest::collection::btree_set((any::<u32>(), 1u16..), 2..60).prop_map(|set| {
            set.into_iter().map(|(address, port)| (IpAddr::V4(address.into()), port)).collect::<Vec<_>>()
        });
        let v6 = proptest::collection::btree_set((any::<u128>(), 1u16..), 2..60).prop_map(|set| {
            set.into_iter().map(|(address, port)| (IpAddr::V6(address.into()), port)).collect::<Vec<_>>()
        });
        prop_oneof![v4, v6]
    }

    /// The table by endpoint instead of index.
    fn named(endpoints: &[(IpAddr, u16)]) -> Vec<(IpAddr, u16)> {
        table(endpoints).into_iter().map(|index| endpoints[index]).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn entries_are_spread_within_a_few_per_cent(endpoints in endpoints()) {
            let table = named(&endpoints);
            let mut counts: BTreeMap<_, usize> = BTreeMap::new();
            for endpoint in &table {
                *counts.entry(*endpoint).or_default() += 1;
            }
            prop_assert_eq!(counts.len(), endpoints.len());
            let mean = table.len() as f64 / endpoints.len() as f64;
            for count in counts.values() {
                prop_assert!((*count as f64 - mean).abs() <= mean * 0.03 + 1.0, "{} of {}", count, mean);
            }
        }

        #[test]
        fn every_node_builds_the_same_table(endpoints in endpoints(), seed in any::<u64>()) {
            let mut shuffled = endpoints.clone();
            shuffled.sort_by_key(|(address, port)| mix(seed ^ u64::from(*port) ^ match address {
                IpAddr::V4(address) => u64::from(address.to_bits()),
                IpAddr::V6(address) => address.to_bits() as u64,
            }));
            prop_assert_eq!(named(&endpoints), named(&shuffled));
        }

        #[test]
        fn an_endpoint_that_goes_takes_few_others_with_it(endpoints in endpoints(), gone in any::<prop::sample::Index>()) {
            let mut fewer = endpoints.clone();
            let gone = fewer.remove(gone.index(endpoints.len()));
            prop_assume!(table_length(fewer.len()) == table_length(endpoints.len()));
            let (before, after) = (named(&endpoints), named(&fewer));
            let moved = before.iter().zip(&after).filter(|(b, a)| **b != gone && b != a).count();
            // Its own entries must move; of the others only a few do, next to all of them with plain modulo. The fewer
            // endpoints there are, the more it is up to chance: of four, one took a fifth with it.
            prop_assert!(moved as f64 <= before.len() as f64 * 0.25, "{} of {}", moved, before.len());
        }
    }

    #[test]
    fn lengths_are_primes_that_follow_the_endpoints_in_steps() {
        for endpoints in 1..3000 {
            let length = table_length(endpoints);
            assert!(is_prime(length) && length >= 2 * endpoints, "{endpoints}: {length}");
            assert!(length >= 100 * endpoints || length >= MAX_LENGTH, "{endpoints}: {length}");
        }
        let steps: BTreeSet<_> = (1..=64).map(table_length).collect();
        assert_eq!(steps.len(), 7);
    }

    #[test]
    fn no_endpoints_make_no_table_and_duplicates_count_once() {
        assert!(table(&[]).is_empty());
        let endpoint = ("10.0.0.1".parse().expect("address"), 80);
        let other = ("10.0.0.2".parse().expect("address"), 80);
        let with_duplicate = named(&[endpoint, other, endpoint]);
        let share = with_duplicate.iter().filter(|entry| **entry == endpoint).count();
        assert!(share.abs_diff(with_duplicate.len() / 2) <= 1);
    }
}
