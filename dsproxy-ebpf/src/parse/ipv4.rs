//! The IPv4 header (RFC 791, section 3.1).

use core::hint::cold_path;

use dsproxy_common::{Addr4, Address as _, Port, cached_flow::CachedFlow, checksum, count::Reason, flow::FlowKey};

use super::{Plain, Transport, UNKNOWN_END, fragment::Piece};
use crate::{
    family::{HOP_LIMIT, Header},
    packet::{Linear, Short, View},
};

/// The header without options, in bytes.
pub(crate) const HEADER: usize = 20;
/// Where its fields stand.
const VERSION_AND_LENGTH: usize = 0;
const TYPE_OF_SERVICE: usize = 1;
const TOTAL_LENGTH: usize = 2;
const IDENTIFICATION: usize = 4;
const FRAGMENT: usize = 6;
const TIME_TO_LIVE: usize = 8;
const PROTOCOL: usize = 9;
pub(crate) const CHECKSUM: usize = 10;
pub(crate) const SOURCE: usize = 12;
pub(crate) const DESTINATION: usize = 16;

/// Version 4, and a header of five words of 32 bits.
const VERSION_4_FIVE_WORDS: u8 = 0x45;

/// "More fragments" and the offset: all zero in a packet that is whole, the offset in the first fragment of others.
const FRAGMENT_MASK: u16 = 0x3fff;
const FRAGMENT_OFFSET_MASK: u16 = 0x1fff;

/// The option that says a VIP, in bytes: type, length, port, address.
pub(crate) const VIP_OPTION: usize = 8;
const VIP_END: usize = HEADER + VIP_OPTION;
const VIP_TYPE_AND_LENGTH: usize = HEADER;
const VIP_PORT: usize = HEADER + 2;
const VIP_ADDRESS: usize = HEADER + 4;
/// The type is one for experiments (RFC 4727, section 2.3), copied into fragments.
const VIP: u16 = u16::from_ne_bytes([158, VIP_OPTION as u8]);

#[inline(always)]
pub(crate) fn parse(linear: Linear, l3: usize, key: &mut FlowKey<Addr4>) -> Result<Result<Transport, Reason>, Short> {
    let header = View::<HEADER>::at(linear, l3)?;
    let version_and_length = header.read::<u8, VERSION_AND_LENGTH>();
    let length = usize::from(version_and_length & 0x0f) * 4;
    let total = usize::from(u16::from_be(header.read::<u16, TOTAL_LENGTH>()));
    if version_and_length >> 4 != 4 || length < HEADER {
        cold_path();
        return Ok(Err(Reason::Malformed));
    }
    let end = if total >= length {
        l3 + total
    } else {
        cold_path();
        // A length of zero stands for "see the packet" in segments larger than 64 KiB (BIG TCP, kernel 6.3).
        if total != 0 {
            return Ok(Err(Reason::Malformed));
        }
        UNKNOWN_END
    };
    let fragment = u16::from_be(header.read::<u16, FRAGMENT>());
    let identification = || header.read::<u16, IDENTIFICATION>().into();
    let piece = if fragment & FRAGMENT_MASK == 0 {
        Piece::WHOLE
    } else {
        cold_path();
        if fragment & FRAGMENT_OFFSET_MASK == 0 {
            Piece::first(identification())
        } else {
            Piece::later(identification())
        }
    };
    header.read_address::<_, SOURCE>(&mut key.source);
    header.read_address::<_, DESTINATION>(&mut key.destination);
    Ok(Ok(Transport { protocol: header.read::<u8, PROTOCOL>(), offset: l3 + length, end, piece }))
}

/// Parses a header without options of a packet that is whole; none if it is another.
#[inline(always)]
pub(crate) fn plain(linear: Linear, l3: usize, key: &mut FlowKey<Addr4>) -> Option<Plain> {
    let header = View::<HEADER>::at(linear, l3).ok()?;
    let fragment = u16::from_be(header.read::<u16, FRAGMENT>());
    if header.read::<u8, VERSION_AND_LENGTH>() != VERSION_4_FIVE_WORDS || fragment & FRAGMENT_MASK != 0 {
        return None;
    }
    header.read_address::<_, SOURCE>(&mut key.source);
    header.read_address::<_, DESTINATION>(&mut key.destination);
    let total = usize::from(u16::from_be(header.read::<u16, TOTAL_LENGTH>()));
    Some(Plain { protocol: header.read::<u8, PROTOCOL>(), length: total.saturating_sub(HEADER) })
}

/// Gives a packet of `flow` the addresses that it leaves with, and takes one from the time to live. None, and nothing is written, if
/// that was the last.
#[inline(always)]
pub(crate) fn cross(linear: Linear, l3: usize, flow: &CachedFlow<Addr4>) -> Option<()> {
    let header = View::<HEADER>::at(linear, l3).ok()?;
    count_hop(&header, flow.address_difference)?;
    header.write_address::<_, SOURCE>(flow.source);
    header.write_address::<_, DESTINATION>(flow.destination);
    Some(())
}

/// Takes one from the time to live. None, and nothing is written, if that was the last.
#[inline(always)]
pub(crate) fn take_hop(linear: Linear, l3: usize) -> Option<()> {
    count_hop(&View::<HEADER>::at(linear, l3).ok()?, 0)
}

/// As `take_hop`, of a header that changes by `difference` beside that.
#[inline(always)]
fn count_hop(header: &View<HEADER>, difference: u16) -> Option<()> {
    let time_to_live = header.read::<u8, TIME_TO_LIVE>();
    if time_to_live <= 1 {
        cold_path();
        return None;
    }
    let protocol = header.read::<u8, PROTOCOL>();
    let word = |time_to_live: u8| u16::from_ne_bytes([time_to_live, protocol]);
    let hop = checksum::word_difference(word(time_to_live), word(time_to_live - 1));
    let checksum = header.read::<u16, CHECKSUM>();
    header.write::<u8, TIME_TO_LIVE>(time_to_live - 1);
    header.write::<u16, CHECKSUM>(checksum::update(checksum, checksum::add(difference, hop)));
    Some(())
}

/// How long the packet is by its header, if that says so.
#[inline(always)]
pub(crate) fn length(linear: Linear, l3: usize) -> Result<Option<usize>, Short> {
    let total = View::<HEADER>::at(linear, l3)?.read::<u16, TOTAL_LENGTH>();
    Ok((total != 0).then_some(usize::from(u16::from_be(total))))
}

/// Puts a header without options at `l3`. The packet is not to be cut into fragments, so it needs no identification
/// (RFC 6864, section 4.1).
#[inline(always)]
pub(crate) fn write_header(linear: Linear, l3: usize, header: &Header<'_, Addr4>) -> Result<(), Short> {
    const DONT_FRAGMENT: u16 = 0x4000;
    let Header { source, destination, protocol, class, length } = *header;
    let total = (HEADER as u16).wrapping_add(length).to_be();
    let sum = u64::from(u16::from_ne_bytes([VERSION_4_FIVE_WORDS, class]))
        + u64::from(total)
        + u64::from(DONT_FRAGMENT.to_be())
        + u64::from(u16::from_ne_bytes([HOP_LIMIT, protocol]))
        + u64::from(source.words()[0])
        + u64::from(destination.words()[0]);
    let view = View::<HEADER>::at(linear, l3)?;
    view.write::<u8, VERSION_AND_LENGTH>(VERSION_4_FIVE_WORDS);
    view.write::<u8, TYPE_OF_SERVICE>(class);
    view.write::<u16, TOTAL_LENGTH>(total);
    view.write::<u16, IDENTIFICATION>(0);
    view.write::<u16, FRAGMENT>(DONT_FRAGMENT.to_be());
    view.write::<u8, TIME_TO_LIVE>(HOP_LIMIT);
    view.write::<u8, PROTOCOL>(protocol);
    view.write::<u16, CHECKSUM>(!checksum::fold(sum));
    view.write_address::<_, SOURCE>(*source);
    view.write_address::<_, DESTINATION>(*destination);
    Ok(())
}

/// Puts the option that says a VIP behind the header without options at `l3`, where there is room for it.
#[inline(always)]
pub(crate) fn write_vip(linear: Linear, l3: usize, address: Addr4, port: Port) -> Result<(), Short> {
    const WORDS: u8 = (VIP_OPTION / 4) as u8;
    let header = View::<VIP_END>::at(linear, l3)?;
    let total = header.read::<u16, TOTAL_LENGTH>();
    let longer = u16::from_be(total).wrapping_add(VIP_OPTION as u16).to_be();
    header.write::<u8, VERSION_AND_LENGTH>(VERSION_4_FIVE_WORDS + WORDS);
    header.write::<u16, TOTAL_LENGTH>(longer);
    header.write::<u16, VIP_TYPE_AND_LENGTH>(VIP);
    header.write::<u16, VIP_PORT>(port.wire());
    header.write_address::<_, VIP_ADDRESS>(address);
    let first_word = |version_and_length| u16::from_ne_bytes([version_and_length, 0]);
    let mut difference =
        checksum::word_difference(first_word(VERSION_4_FIVE_WORDS), first_word(VERSION_4_FIVE_WORDS + WORDS));
    difference = checksum::add(difference, checksum::word_difference(total, longer));
    difference = checksum::add(difference, checksum::add(VIP, port.wire()));
    difference = checksum::add(difference, checksum::difference(&[0], address.words()));
    let sum = header.read::<u16, CHECKSUM>();
    header.write::<u16, CHECKSUM>(checksum::update(sum, difference));
    Ok(())
}

/// The VIP that the first option of the header at `l3` says.
#[inline(always)]
pub(crate) fn read_vip(linear: Linear, l3: usize) -> Option<(Addr4, Port)> {
    let header = View::<VIP_END>::at(linear, l3).ok()?;
    let length = usize::from(header.read::<u8, VERSION_AND_LENGTH>() & 0x0f) * 4;
    if length < VIP_END || header.read::<u16, VIP_TYPE_AND_LENGTH>() != VIP {
        return None;
    }
    let mut address = Addr4::default();
    header.read_address::<_, VIP_ADDRESS>(&mut address);
    Some((address, Port::from_wire(header.read::<u16, VIP_PORT>())))
}

/// Whether the address is a single host's, as far as one can tell: not "this" network, loopback, multicast, or reserved, the
/// broadcast address among the latter (RFC 1122, section 3.2.1.3).
#[inline(always)]
pub(crate) fn is_host(address: &Addr4) -> bool {
    let [first, ..] = address.words()[0].to_ne_bytes();
    !matches!(first, 0 | 127 | 224..)
}
