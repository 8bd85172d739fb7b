//! Packets that were right, made wrong in the ways that packets are: cut off, lied about, garbled.

use fastrand::Rng;

/// Numbers that headers are likely to take for something.
const TELLING: [u8; 16] = [0, 1, 4, 5, 6, 17, 40, 41, 43, 44, 51, 58, 60, 132, 0x81, 0xff];

/// Makes `bytes`, whose IP header stands at `l3`, wrong in one to three ways.
pub(super) fn mutate(bytes: &mut Vec<u8>, l3: usize, random: &mut Rng) {
    for _ in 0..random.u8(1..4) {
        once(bytes, l3, random);
    }
}

fn once(bytes: &mut Vec<u8>, l3: usize, random: &mut Rng) {
    if bytes.len() <= l3 {
        return;
    }
    // Most of what is looked at stands in the first hundred bytes.
    let any = |bytes: &[u8], random: &mut Rng| random.usize(..bytes.len().min(100));
    let is_v6 = bytes[l3] >> 4 == 6;
    match random.u8(..12) {
        0 => {
            let at = any(bytes, random);
            bytes[at] ^= 1 << random.u8(..8);
        }
        1 => {
            let at = any(bytes, random);
            bytes[at] = TELLING[random.usize(..TELLING.len())];
        }
        2 => {
            let at = any(bytes, random);
            bytes[at] = random.u8(..);
        }
        // Cut off.
        3 => {
            let length = random.usize(l3..=bytes.len());
            bytes.truncate(length);
        }
        // Padded, as short frames are.
        4 => bytes.extend((0..random.u8(1..64)).map(|_| random.u8(..))),
        // Lied about: the length, near to what it is or far from it.
        5 => {
            let said = if random.bool() {
                (bytes.len() - l3).wrapping_add(random.usize(..64)).wrapping_sub(32) as u16
            } else {
                [0, 1, 19, 20, 23, 28, 40, 60, 0xffff][random.usize(..9)]
            };
            put(bytes, l3 + if is_v6 { 4 } else { 2 }, said);
        }
        // A header that is longer or shorter than it says.
        6 => {
            if is_v6 {
                put_byte(bytes, l3 + 41, random.u8(..6));
            } else {
                put_byte(bytes, l3, 0x40 | random.u8(..16));
            }
        }
        // Another protocol.
        7 => put_byte(bytes, l3 + if is_v6 { 6 } else { 9 }, TELLING[random.usize(..TELLING.len())]),
        // A hop limit at its end.
        8 => put_byte(bytes, l3 + if is_v6 { 7 } else { 8 }, random.u8(..3)),
        // Addresses swapped.
        9 => {
            let (first, size) = if is_v6 { (l3 + 8, 16) } else { (l3 + 12, 4) };
            if bytes.len() >= first + 2 * size {
                let (left, right) = bytes[first..first + 2 * size].split_at_mut(size);
                left.swap_with_slice(right);
            }
        }
        // A part of it taken out, or put in.
        10 => {
            let at = any(bytes, random);
            let count = random.usize(..8).min(bytes.len() - at);
            bytes.drain(at..at + count);
        }
        _ => {
            let at = any(bytes, random);
            let more: Vec<u8> = (0..random.u8(1..9)).map(|_| random.u8(..)).collect();
            bytes.splice(at..at, more);
        }
    }
}

fn put(bytes: &mut [u8], at: usize, number: u16) {
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&number.to_be_bytes());
    }
}

fn put_byte(bytes: &mut [u8], at: usize, byte: u8) {
    if let Some(place) = bytes.get_mut(at) {
        *place = byte;
    }
}
