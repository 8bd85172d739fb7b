//! The IPv6 header and the extension headers between it and the transport header (RFC 8200).

use core::hint::cold_path;

use dsproxy_common::{Addr6, Address as _, Port, Protocol, cached_flow::CachedFlow, count::Reason, flow::FlowKey};

use super::{LONGEST_HEADERS, Plain, Transport, UNKNOWN_END, fragment::Piece};
use crate::{
    family::{HOP_LIMIT, Header},
    packet::{Linear, Short, View},
    verifier,
};

/// The fixed header, in bytes.
pub(crate) const HEADER: usize = 40;
/// Where its fields stand.
const VERSION: usize = 0;
const PAYLOAD_LENGTH: usize = 4;
const NEXT_HEADER: usize = 6;
const HOP_LIMIT_FIELD: usize = 7;
pub(crate) const SOURCE: usize = 8;
pub(crate) const DESTINATION: usize = 24;

/// Numbers of the extension headers that can be skipped.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

/// What they have in common, in bytes: the number of the next header and the length of this one.
const EXTENSION: usize = 2;
const EXTENSION_NEXT: usize = 0;
const EXTENSION_LENGTH: usize = 1;

/// The fragment header, in bytes, and its fields: offset and "more fragments" are both zero in a packet that is whole, the
/// offset in the first fragment of others.
const FRAGMENT_HEADER: usize = 8;
const FRAGMENT_OFFSET: usize = 2;
const FRAGMENT_IDENTIFICATION: usize = 4;
const FRAGMENT_MASK: u16 = 0xfff9;
const FRAGMENT_OFFSET_MASK: u16 = 0xfff8;

/// More headers than RFC 8200 (section 4.1) knows an order for are left to the stack.
const MAX_EXTENSIONS: usize = 6;

/// The header of destination options that says a VIP, in bytes: number of the next header, its length, and one option of type,
/// length, port, nothing, and address.
pub(crate) const VIP_OPTION: usize = 24;
const VIP_END: usize = HEADER + VIP_OPTION;
const VIP_NEXT_HEADER: usize = HEADER;
const VIP_LENGTH: usize = HEADER + 1;
const VIP_TYPE_AND_LENGTH: usize = HEADER + 2;
const VIP_PORT: usize = HEADER + 4;
const VIP_NOTHING: usize = HEADER + 6;
const VIP_ADDRESS: usize = HEADER + 8;
/// In units of eight bytes, not counting the first.
const VIP_UNITS: u8 = (VIP_OPTION / 8 - 1) as u8;
/// The type is one for experiments (RFC 4727, section 3.3), to be skipped by whom does not know it.
const VIP: u16 = u16::from_ne_bytes([0x1e, (VIP_OPTION - 4) as u8]);

#[inline(always)]
pub(crate) fn parse(linear: Linear, l3: usize, key: &mut FlowKey<Addr6>) -> Result<Result<Transport, Reason>, Short> {
    let header = View::<HEADER>::at(linear, l3)?;
    if header.read::<u8, VERSION>() >> 4 != 6 {
        return Ok(Err(Reason::Malformed));
    }
    header.read_address::<_, SOURCE>(&mut key.source);
    header.read_address::<_, DESTINATION>(&mut key.destination);
    let mut protocol = header.read::<u8, NEXT_HEADER>();
    let mut offset = l3 + HEADER;
    let mut piece = Piece::WHOLE;
    if Protocol::from_number(protocol).is_none() {
        cold_path();
        match skip_extensions(linear, protocol, offset)? {
            Ok(found) => (protocol, offset, piece) = found,
            Err(reason) => return Ok(Err(reason)),
        }
    }
    let end = said_length(&header).map_or(UNKNOWN_END, |length| l3 + length);
    Ok(Ok(Transport { protocol, offset, end, piece }))
}

/// The first header that is no known extension, and where it stands. In a fragment that is not the first there is none: what
/// follows the fragment header is anything.
#[inline(always)]
fn skip_extensions(
    linear: Linear,
    mut next: u8,
    mut offset: usize,
) -> Result<Result<(u8, usize, Piece), Reason>, Short> {
    let mut piece = Piece::WHOLE;
    let mut skipped = 0;
    loop {
        if !matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS) {
            return Ok(Ok((next, offset, piece)));
        }
        if skipped == MAX_EXTENSIONS {
            return Ok(Err(Reason::OtherProtocol));
        }
        let extension = View::<EXTENSION>::at(linear, offset)?;
        let length = usize::from(extension.read::<u8, EXTENSION_LENGTH>());
        let after = offset
            + match next {
                // An "atomic" fragment (RFC 6946) is a whole packet.
                FRAGMENT => {
                    let fragment = View::<FRAGMENT_HEADER>::at(linear, offset)?;
                    let place = u16::from_be(fragment.read::<u16, FRAGMENT_OFFSET>());
                    let identification = fragment.read::<u32, FRAGMENT_IDENTIFICATION>();
                    if place & FRAGMENT_OFFSET_MASK != 0 {
                        let next = extension.read::<u8, EXTENSION_NEXT>();
                        return Ok(Ok((next, offset, Piece::later(identification))));
                    }
                    if place & FRAGMENT_MASK != 0 {
                        piece = Piece::first(identification);
                    }
                    FRAGMENT_HEADER
                }
                // In units of four bytes, not counting the first two (RFC 4302, section 2.2).
                AUTHENTICATION => (length + 2) * 4,
                // In units of eight bytes, not counting the first.
                _ => (length + 1) * 8,
            };
        next = extension.read::<u8, EXTENSION_NEXT>();
        offset = match verifier::forget(after, extension.read::<u16, 0>().into(), LONGEST_HEADERS) {
            Some(after) => after,
            None => return Ok(Err(Reason::OtherProtocol)),
        };
        skipped += 1;
    }
}

/// Parses a header without extensions; none if it is another, as far as that can be told before its protocol is looked at.
#[inline(always)]
pub(crate) fn plain(linear: Linear, l3: usize, key: &mut FlowKey<Addr6>) -> Option<Plain> {
    let header = View::<HEADER>::at(linear, l3).ok()?;
    if header.read::<u8, VERSION>() >> 4 != 6 {
        return None;
    }
    header.read_address::<_, SOURCE>(&mut key.source);
    header.read_address::<_, DESTINATION>(&mut key.destination);
    let length = u16::from_be(header.read::<u16, PAYLOAD_LENGTH>()).into();
    Some(Plain { protocol: header.read::<u8, NEXT_HEADER>(), length })
}

/// Gives a packet of `flow` the addresses that it leaves with, and takes one from the hop limit. None, and nothing is written, if
/// that was the last.
#[inline(always)]
pub(crate) fn cross(linear: Linear, l3: usize, flow: &CachedFlow<Addr6>) -> Option<()> {
    let header = View::<HEADER>::at(linear, l3).ok()?;
    count_hop(&header)?;
    header.write_address::<_, SOURCE>(flow.source);
    header.write_address::<_, DESTINATION>(flow.destination);
    Some(())
}

/// Takes one from the hop limit. None, and nothing is written, if that was the last.
#[inline(always)]
pub(crate) fn take_hop(linear: Linear, l3: usize) -> Option<()> {
    count_hop(&View::<HEADER>::at(linear, l3).ok()?)
}

#[inline(always)]
fn count_hop(header: &View<HEADER>) -> Option<()> {
    let hop_limit = header.read::<u8, HOP_LIMIT_FIELD>();
    if hop_limit <= 1 {
        cold_path();
        return None;
    }
    header.write::<u8, HOP_LIMIT_FIELD>(hop_limit - 1);
    Some(())
}

/// How long the packet is by its header, if that says so.
#[inline(always)]
pub(crate) fn length(linear: Linear, l3: usize) -> Result<Option<usize>, Short> {
    Ok(said_length(&View::<HEADER>::at(linear, l3)?))
}

/// A length of zero stands for "see the packet" in segments larger than 64 KiB (RFC 2675; BIG TCP, kernel 5.19).
#[inline(always)]
fn said_length(header: &View<HEADER>) -> Option<usize> {
    match u16::from_be(header.read::<u16, PAYLOAD_LENGTH>()) {
        0 => None,
        length => Some(HEADER + usize::from(length)),
    }
}

/// Puts a header without extensions at `l3`.
#[inline(always)]
pub(crate) fn write_header(linear: Linear, l3: usize, header: &Header<'_, Addr6>) -> Result<(), Short> {
    let Header { source, destination, protocol, class, length } = *header;
    let view = View::<HEADER>::at(linear, l3)?;
    view.write::<u32, VERSION>((6 << 28 | u32::from(class) << 20).to_be());
    view.write::<u16, PAYLOAD_LENGTH>(length.to_be());
    view.write::<u8, NEXT_HEADER>(protocol);
    view.write::<u8, HOP_LIMIT_FIELD>(HOP_LIMIT);
    view.write_address::<_, SOURCE>(*source);
    view.write_address::<_, DESTINATION>(*destination);
    Ok(())
}

/// Puts the header that says a VIP behind the header at `l3`, where there is room for it.
#[inline(always)]
pub(crate) fn write_vip(linear: Linear, l3: usize, address: Addr6, port: Port) -> Result<(), Short> {
    let header = View::<VIP_END>::at(linear, l3)?;
    let length = u16::from_be(header.read::<u16, PAYLOAD_LENGTH>()).wrapping_add(VIP_OPTION as u16);
    header.write::<u16, PAYLOAD_LENGTH>(length.to_be());
    header.write::<u8, VIP_NEXT_HEADER>(header.read::<u8, NEXT_HEADER>());
    header.write::<u8, NEXT_HEADER>(DESTINATION_OPTIONS);
    header.write::<u8, VIP_LENGTH>(VIP_UNITS);
    header.write::<u16, VIP_TYPE_AND_LENGTH>(VIP);
    header.write::<u16, VIP_PORT>(port.wire());
    header.write::<u16, VIP_NOTHING>(0);
    header.write_address::<_, VIP_ADDRESS>(address);
    Ok(())
}

/// The VIP that the first extension header behind the header at `l3` says.
#[inline(always)]
pub(crate) fn read_vip(linear: Linear, l3: usize) -> Option<(Addr6, Port)> {
    let header = View::<VIP_END>::at(linear, l3).ok()?;
    let is_said = header.read::<u8, NEXT_HEADER>() == DESTINATION_OPTIONS
        && header.read::<u8, VIP_LENGTH>() == VIP_UNITS
        && header.read::<u16, VIP_TYPE_AND_LENGTH>() == VIP;
    if !is_said {
        return None;
    }
    let mut address = Addr6::default();
    header.read_address::<_, VIP_ADDRESS>(&mut address);
    Some((address, Port::from_wire(header.read::<u16, VIP_PORT>())))
}

/// Whether the address is a single host's: not unspecified, loopback, or multicast (RFC 4291, section 2.4).
#[inline(always)]
pub(crate) fn is_host(address: &Addr6) -> bool {
    let words = address.words();
    let is_nobody_or_itself = words[0] == 0 && words[1] == 0 && words[2] == 0 && u32::from_be(words[3]) <= 1;
    let [first, ..] = words[0].to_ne_bytes();
    first != 0xff && !is_nobody_or_itself
}
