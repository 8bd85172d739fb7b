//! The link layer: Ethernet with up to two VLAN tags, or none at all.

use dsproxy_common::{IpFamily, count::Reason};

use crate::{
    packet::{Linear, PacketContext, Short, View},
    verifier,
};

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;

/// Two MAC addresses and the `EtherType`.
pub(crate) const ETHERNET_HEADER: usize = 14;
const ETHERTYPE: usize = 12;
/// A tag (IEEE 802.1Q) as it follows an `EtherType`: its content and the next `EtherType`.
const VLAN_TAG: usize = 4;
const MAX_VLAN_TAGS: usize = 2;

/// An IPv4 header without options.
const SHORTEST_HEADER: usize = 20;

/// What a device puts in front of the IP header.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Link {
    /// An Ethernet header.
    Ethernet = 0,
    /// Nothing.
    None = 1,
}

/// Finds the family and the offset of the IP header.
///
/// Tags that the kernel or the device has taken out of the packet are not seen here and need not be.
#[inline(always)]
pub(crate) fn parse<C: PacketContext>(context: &C, link: Link) -> Result<(IpFamily, usize), Reason> {
    let parsed = match link {
        Link::Ethernet => ethernet(context.linear()),
        Link::None => raw(context.linear()),
    };
    let (family, l3) = match parsed {
        Ok(found) => found?,
        Err(Short { .. }) => return Err(Reason::NotIp),
    };
    const LONGEST: usize = ETHERNET_HEADER + MAX_VLAN_TAGS * VLAN_TAG;
    verifier::forget(l3, context.length(), LONGEST).map(|l3| (family, l3)).ok_or(Reason::NotIp)
}

#[inline(always)]
fn ethernet(linear: Linear) -> Result<Result<(IpFamily, usize), Reason>, Short> {
    let mut offset = ETHERNET_HEADER;
    let mut ethertype = u16::from_be(View::<ETHERNET_HEADER>::at(linear, 0)?.read::<u16, ETHERTYPE>());
    let mut tags = 0;
    while tags < MAX_VLAN_TAGS && matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN) {
        ethertype = u16::from_be(View::<VLAN_TAG>::at(linear, offset)?.read::<u16, 2>());
        offset += VLAN_TAG;
        tags += 1;
    }
    Ok(match ethertype {
        ETHERTYPE_IPV4 => Ok((IpFamily::V4, offset)),
        ETHERTYPE_IPV6 => Ok((IpFamily::V6, offset)),
        _ => Err(Reason::NotIp),
    })
}

/// The family of what an Ethernet frame without tags carries, if it is IP.
#[inline(always)]
pub(crate) fn untagged(linear: Linear) -> Option<IpFamily> {
    let header = View::<ETHERNET_HEADER>::at(linear, 0).ok()?;
    match u16::from_be(header.read::<u16, ETHERTYPE>()) {
        ETHERTYPE_IPV4 => Some(IpFamily::V4),
        ETHERTYPE_IPV6 => Some(IpFamily::V6),
        _ => None,
    }
}

/// The version in the first four bits tells the family (RFC 791, RFC 8200).
#[inline(always)]
fn raw(linear: Linear) -> Result<Result<(IpFamily, usize), Reason>, Short> {
    // The verifier learns nothing from a comparison that asks for a single byte; no header is that short.
    let first = View::<SHORTEST_HEADER>::at(linear, 0)?.read::<u8, 0>();
    Ok(match first >> 4 {
        4 => Ok((IpFamily::V4, 0)),
        6 => Ok((IpFamily::V6, 0)),
        _ => Err(Reason::NotIp),
    })
}

/// Swaps source and destination of the link-layer header in front of the IP header at `l3`, if there is one.
#[inline(always)]
pub(crate) fn turn_round(linear: Linear, l3: usize) -> Result<(), Short> {
    if l3 < ETHERNET_HEADER {
        return Ok(());
    }
    let header = View::<ETHERNET_HEADER>::at(linear, 0)?;
    let destination = (header.read::<u32, 0>(), header.read::<u16, 4>());
    let source = (header.read::<u32, 6>(), header.read::<u16, 10>());
    header.write::<u32, 0>(source.0);
    header.write::<u16, 4>(source.1);
    header.write::<u32, 6>(destination.0);
    header.write::<u16, 10>(destination.1);
    Ok(())
}
