//! Checksums, summed up from nothing over all that they cover.
//!
//! A checksum that was wrong has to stay wrong by as much, or a translation would turn a broken packet into one that
//! looks whole: what is asked for is the old field plus what the whole sum has changed by.

use std::net::IpAddr;

/// The one's complement sum over `bytes`, of 16 bits each in network byte order; an odd last byte counts as the high half.
pub(super) fn sum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|word| u64::from(word[0]) << 8 | u64::from(word.get(1).copied().unwrap_or_default()));
    fold(words.sum())
}

/// The sum of the addresses in a pseudo-header; its other fields are not changed by a translation.
pub(super) fn addresses(source: IpAddr, destination: IpAddr) -> u16 {
    let of = |address| match address {
        IpAddr::V4(address) => sum(&address.octets()),
        IpAddr::V6(address) => sum(&address.octets()),
    };
    add(of(source), of(destination))
}

pub(super) fn add(a: u16, b: u16) -> u16 {
    fold(u64::from(a) + u64::from(b))
}

/// The checksum field that stood for `before`, where the sum over what it covers, itself left out, is `after` now.
pub(super) fn mended(field: u16, before: u16, after: u16) -> u16 {
    // The field is the complement of a sum: it goes down by what the sum goes up.
    add(add(field, before), !after)
}

/// The checksum of what sums up to `sum`.
pub(super) fn complete(sum: u16) -> u16 {
    !sum
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_sum_stays_right_and_a_wrong_one_wrong_by_as_much() {
        let (before, after) = ([0x12, 0x34, 0xfe, 0xdc, 0x01], [0xab, 0xcd, 0xfe, 0xdc, 0x01]);
        let right = complete(sum(&before));
        assert_eq!(mended(right, sum(&before), sum(&after)), complete(sum(&after)));
        let wrong = add(right, 5);
        assert_eq!(mended(wrong, sum(&before), sum(&after)), add(complete(sum(&after)), 5));
    }
}
