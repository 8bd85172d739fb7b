//! The Internet checksum (RFC 1071) and its incremental update (RFC 1624).
//!
//! All values are as they stand in memory: the sum does not care for byte order as long as everything is
//! read alike.

/// Folds a sum of 16-bit words into 16 bits.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    fold_small((sum >> 32) + (sum & 0xffff_ffff))
}

/// As `fold`, for a sum below 2^36: as much as sixteen words of 32 bits can make.
#[inline(always)]
const fn fold_small(sum: u64) -> u16 {
    // Below 2^21, then at most 0x1_001f, whose carry fits.
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + sum) as u16
}

/// The one's complement sum of two words.
#[inline(always)]
pub const fn add(a: u16, b: u16) -> u16 {
    let sum = a as u32 + b as u32;
    (sum + (sum >> 16)) as u16
}

/// The difference that replacing the words `old` by `new`, of which there are at most eight, makes to a sum.
#[inline(always)]
pub fn difference(old: &[u32], new: &[u32]) -> u16 {
    let mut sum: u64 = 0;
    let mut i = 0;
    while i < old.len() && i < new.len() {
        sum += u64::from(!old[i]) + u64::from(new[i]);
        i += 1;
    }
    fold_small(sum)
}

/// As `difference`, for one word of 16 bits.
#[inline(always)]
pub const fn word_difference(old: u16, new: u16) -> u16 {
    add(!old, new)
}

/// Whether a `difference` leaves a sum as it is: zero has two forms in one's complement.
#[inline(always)]
pub const fn is_nothing(difference: u16) -> bool {
    difference.wrapping_add(1) <= 1
}

/// The checksum after a `difference` (RFC 1624, equation 3).
#[inline(always)]
pub const fn update(checksum: u16, difference: u16) -> u16 {
    !add(!checksum, difference)
}

/// The checksum of `bytes`, to be stored with `to_ne_bytes`. An odd last byte is padded with zero.
pub fn compute(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

/// The sum of `bytes` as native 16-bit words, for checksums over several parts. Only the last part may be odd.
pub fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(2);
    let mut sum: u64 = words.by_ref().map(|word| u64::from(u16::from_ne_bytes([word[0], word[1]]))).sum();
    if let [last] = words.remainder() {
        sum += u64::from(u16::from_ne_bytes([*last, 0]));
    }
    sum
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!((!compute(&bytes)).to_ne_bytes(), [0xdd, 0xf2]);
    }

    #[test]
    fn the_example_of_rfc_1624() {
        // Section 4: header checksum 0xdd2f, a word 0x5555 that becomes 0x3285 gives 0x0000, not 0xffff.
        let word = |value: u16| u32::from(value.to_be());
        let checksum = update(0xdd2f_u16.to_be(), difference(&[word(0x5555)], &[word(0x3285)]));
        assert_eq!(u16::from_be(checksum), 0x0000);
    }

    proptest! {
        #[test]
        fn an_update_equals_a_full_recomputation(
            mut bytes in proptest::collection::vec(any::<u8>(), 24..200),
            words in proptest::collection::vec(any::<u32>(), 1..=4),
            at in 0usize..2,
        ) {
            // An even start, as all addresses and ports have.
            let at = at * 4;
            // No real packet sums to zero: its header has a version.
            bytes[20] = 0x45;
            let before = compute(&bytes);
            let old: Vec<u32> = words
                .iter()
                .enumerate()
                .map(|(i, _)| u32::from_ne_bytes(bytes[at + i * 4..at + i * 4 + 4].try_into().expect("four bytes")))
                .collect();
            for (i, word) in words.iter().enumerate() {
                bytes[at + i * 4..at + i * 4 + 4].copy_from_slice(&word.to_ne_bytes());
            }
            prop_assert_eq!(update(before, difference(&old, &words)), compute(&bytes));
        }

        /// By this the kernel programs tell a checksum from the sum of a pseudo-header that a device is to finish.
        #[test]
        fn a_checksum_and_a_sum_change_by_opposites(before: u16, difference: u16) {
            prop_assume!(!is_nothing(difference));
            prop_assert_eq!(word_difference(before, add(before, difference)), difference);
            prop_assert_eq!(word_difference(before, update(before, difference)), !difference);
            prop_assert!(is_nothing(word_difference(before, before)));
        }

        #[test]
        fn one_word_is_like_many(checksum: u16, old: u16, new: u16) {
            let padded = difference(&[old.into()], &[new.into()]);
            // Zero and all ones are the same to a sum, and only a word of zero in place of all ones comes out as zero.
            prop_assume!((old, new) != (u16::MAX, 0));
            prop_assert_eq!(update(checksum, word_difference(old, new)), update(checksum, padded));
        }
    }
}
