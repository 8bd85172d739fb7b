//! The frontend filter: a bitmap that tells, for the price of an array lookup, that a packet is for no Service.
//!
//! User space sets a bit before it adds a frontend and clears it long after the frontend has gone, so a clear
//! bit is certain; a set bit only means that the hash lookups are worth their while. With 100,000 frontends a
//! packet for nobody meets a set bit one time in eighty.

use crate::{Address, hash::mix, service::FrontendKey};

/// The logarithm of the number of bits.
const LOG_BITS: u32 = 23;

/// How many 64-bit words the bitmap has: one MiB in all.
pub const WORDS: u32 = 1 << (LOG_BITS - 6);

/// The logarithm of the number of cells.
const LOG_CELLS: u32 = 16;

/// How many cells a filter has that the programs write to: each a word of its own, so that no two writers take one's word from the other.
pub const CELLS: u32 = 1 << LOG_CELLS;

/// Any odd numbers without a pattern: one for port and protocol, and one for each word of an address.
const MULTIPLIERS: [u64; 5] = [mix(1) | 1, mix(2) | 1, mix(3) | 1, mix(4) | 1, mix(5) | 1];

/// Multilinear hashing (Dietzfelbinger, STACS 1996): a sum of products whose top bits are taken. No product waits for another.
#[inline(always)]
fn hash<A: Address>(key: &FrontendKey<A>) -> u64 {
    let mut hash = (u64::from(key.port.wire()) << 8 | u64::from(key.protocol)).wrapping_mul(MULTIPLIERS[0]);
    let words = key.address.words();
    let mut i = 0;
    while i < words.len() {
        hash = hash.wrapping_add(u64::from(words[i]).wrapping_mul(MULTIPLIERS[i + 1]));
        i += 1;
    }
    hash
}

/// The cell that stands for `key`.
#[inline(always)]
pub fn cell<A: Address>(key: &FrontendKey<A>) -> u32 {
    (hash(key) >> (64 - LOG_CELLS)) as u32
}

/// The bit of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FilterBit(u32);

impl FilterBit {
    /// The bit that stands for `key`.
    #[inline(always)]
    pub fn of<A: Address>(key: &FrontendKey<A>) -> Self {
        Self((hash(key) >> (64 - LOG_BITS)) as u32)
    }

    /// The bit at `position` of the word at `index`.
    pub const fn at(index: u32, position: u32) -> Self {
        Self(index << 6 | position)
    }

    /// The index of the word that holds the bit.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.0 >> 6
    }

    /// The bit alone, within its word.
    #[inline(always)]
    pub const fn mask(self) -> u64 {
        1 << (self.0 & 63)
    }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};
    use std::collections::HashSet;

    use super::*;
    use crate::{Addr4, Addr6, Port};

    #[test]
    fn bits_of_neighbouring_services_are_spread() {
        let v4: HashSet<_> = (0..100_000u32)
            .map(|i| {
                FilterBit::of(&FrontendKey::<Addr4>::new(Ipv4Addr::from(0x0a60_0000 + i).into(), Port::new(80), 6))
            })
            .collect();
        let v6: HashSet<_> = (0..100_000u32)
            .map(|i| {
                let address = Ipv6Addr::from(0xfd00_0000_0000_0000_0000_0000_0000_0000 + u128::from(i));
                FilterBit::of(&FrontendKey::<Addr6>::new(address.into(), Port::new(80), 6))
            })
            .collect();
        // Thrown at random, 100,000 keys hit about 99,400 different bits out of eight million.
        assert!(v4.len() > 99_000 && v6.len() > 99_000, "{} {}", v4.len(), v6.len());
        assert!(v4.iter().chain(&v6).all(|bit| bit.word() < WORDS));
    }

    #[test]
    fn cells_of_neighbouring_backends_are_spread() {
        let cells: HashSet<_> = (0..1000u32)
            .map(|i| cell(&FrontendKey::<Addr4>::new(Ipv4Addr::from(0x0af4_0000 + i).into(), Port::new(8080), 6)))
            .collect();
        // Thrown at random, 1000 keys hit about 992 different cells.
        assert!(cells.len() > 980, "{}", cells.len());
        assert!(cells.iter().all(|cell| *cell < CELLS));
    }

    #[test]
    fn a_bit_is_found_again_by_word_and_position() {
        let bit = FilterBit::at(77, 13);
        assert_eq!((bit.word(), bit.mask()), (77, 1 << 13));
    }
}
