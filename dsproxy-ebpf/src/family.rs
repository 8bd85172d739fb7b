//! All that differs between IPv4 and IPv6: where the header's fields stand, whether the header has a
//! checksum, and which maps hold the family's state.

use dsproxy_common::{Addr4, Addr6, Address, IpFamily, checksum, count::Reason, flow::FlowKey};

use crate::{
    maps,
    packet::{Linear, Short, View},
    parse::{Transport, ipv4, ipv6},
};

/// The maps of one family.
pub(crate) struct Maps<A: 'static> {
    pub(crate) frontends: &'static maps::Frontends<A>,
    pub(crate) filter: &'static maps::Filter,
    pub(crate) slots: &'static maps::Slots,
    pub(crate) backends: &'static maps::Backends<A>,
    pub(crate) forward: &'static maps::Forward<A>,
    pub(crate) reply: &'static maps::Reply<A>,
}

/// An address family, as the pipeline sees it.
pub(crate) trait Family: Sized + 'static {
    /// Its addresses.
    type Address: Address;

    /// Which family it is.
    const FAMILY: IpFamily = <Self::Address as Address>::FAMILY;
    /// Where the source address stands in the IP header.
    const SOURCE: usize;
    /// Where the destination address stands in the IP header.
    const DESTINATION: usize;

    /// The family's maps.
    fn maps() -> Maps<Self::Address>;

    /// Reads the IP header at `l3` and whatever stands between it and the transport header; the addresses go to `key`.
    fn parse(linear: Linear, l3: usize, key: &mut FlowKey<Self::Address>) -> Result<Result<Transport, Reason>, Short>;

    /// Makes the checksum of the IP header right after a change of an address by `difference`.
    fn update_header_checksum(linear: Linear, l3: usize, difference: u16) -> Result<(), Short>;
}

/// IPv4.
pub(crate) enum V4 {}

/// IPv6.
pub(crate) enum V6 {}

impl Family for V4 {
    type Address = Addr4;

    const SOURCE: usize = ipv4::SOURCE;
    const DESTINATION: usize = ipv4::DESTINATION;

    #[inline(always)]
    fn maps() -> Maps<Addr4> {
        Maps {
            frontends: &maps::FRONTENDS_V4,
            filter: &maps::FILTER_V4,
            slots: &maps::SLOTS_V4,
            backends: &maps::BACKENDS_V4,
            forward: &maps::FORWARD_V4,
            reply: &maps::REPLY_V4,
        }
    }

    #[inline(always)]
    fn parse(linear: Linear, l3: usize, key: &mut FlowKey<Addr4>) -> Result<Result<Transport, Reason>, Short> {
        ipv4::parse(linear, l3, key)
    }

    #[inline(always)]
    fn update_header_checksum(linear: Linear, l3: usize, difference: u16) -> Result<(), Short> {
        let field = View::<2>::at(linear, l3 + ipv4::CHECKSUM)?;
        field.write::<u16, 0>(checksum::update(field.read::<u16, 0>(), difference));
        Ok(())
    }
}

impl Family for V6 {
    type Address = Addr6;

    const SOURCE: usize = ipv6::SOURCE;
    const DESTINATION: usize = ipv6::DESTINATION;

    #[inline(always)]
    fn maps() -> Maps<Addr6> {
        Maps {
            frontends: &maps::FRONTENDS_V6,
            filter: &maps::FILTER_V6,
            slots: &maps::SLOTS_V6,
            backends: &maps::BACKENDS_V6,
            forward: &maps::FORWARD_V6,
            reply: &maps::REPLY_V6,
        }
    }

    #[inline(always)]
    fn parse(linear: Linear, l3: usize, key: &mut FlowKey<Addr6>) -> Result<Result<Transport, Reason>, Short> {
        ipv6::parse(linear, l3, key)
    }

    /// The IPv6 header has no checksum (RFC 8200, section 3).
    #[inline(always)]
    fn update_header_checksum(_: Linear, _: usize, _: u16) -> Result<(), Short> {
        Ok(())
    }
}
