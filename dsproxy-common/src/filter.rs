//! The frontend filter: a bitmap that tells, for the price of an array lookup, that a packet is for no Service.
//!
//! User space sets a bit before it adds a frontend and clears it long after the frontend has gone, so a clear
//! bit is certain; a set bit only means that the hash lookups are worth their while. With 100,000 frontends a
//! packet for nobody meets a set bit one time in eighty.

use crate::{Address, service::FrontendKey};

/// The logarithm of the number of bits.
const LOG_BITS: u32 = 23;

/// How many 64-bit words the bitmap has: one MiB in all.
pub const WORDS: u32 = 1 << (LOG_BITS - 6);

/// The bit of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FilterBit(u32);

impl FilterBit {
    /// The bit that stands for `key`.
    #[inline(always)]
    pub fn of<A: Address>(key: &FrontendKey<A>) -> Self {
        // Multiplication carries upwards only: words are folded in one after the other and the top bits are
        // taken (Knuth, TAOCP vol. 3, section 6.4, Fibonacci hashing).
        const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut hash = (u64::from(key.port.wire()) << 8) | u64::from(key.protocol);
        for word in key.address.words() {
            hash = (hash ^ (u64::from(*word) << 32 | u64::from(*word))).wrapping_mul(MULTIPLIER);
            hash ^= hash >> 32;
        }
        Self((hash.wrapping_mul(MULTIPLIER) >> (64 - LOG_BITS)) as u32)
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
    fn a_bit_is_found_again_by_word_and_position() {
        let bit = FilterBit::at(77, 13);
        assert_eq!((bit.word(), bit.mask()), (77, 1 << 13));
    }
}
