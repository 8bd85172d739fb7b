//! All that differs between IPv4 and IPv6: where the header's fields stand, whether the header has a
//! checksum, and which maps hold the family's state.

use dsproxy_common::{Addr4, Addr6, Address, IpFamily, checksum, count::Reason, flow::FlowKey};

use crate::{
    maps,
    packet::{Linear, Short, View},
    parse::{Transport, ipv4, ipv6},
    rewrite::End,
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

    /// The family's maps.
    fn maps() -> Maps<Self::Address>;

    /// Reads the IP header at `l3` and whatever stands between it and the transport header; the addresses go to `key`.
    fn parse(linear: Linear, l3: usize, key: &mut FlowKey<Self::Address>) -> Result<Result<Transport, Reason>, Short>;

    /// Puts `address` at one end of the IP header at `l3`, in place of one from which it has `difference`; the header's
    /// checksum, if it has one, is made right.
    fn write_address(linear: Linear, l3: usize, end: End, address: Self::Address, difference: u16)
    -> Result<(), Short>;
}

/// IPv4.
pub(crate) enum V4 {}

/// IPv6.
pub(crate) enum V6 {}

impl Family for V4 {
    type Address = Addr4;

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
    fn write_address(linear: Linear, l3: usize, end: End, address: Addr4, difference: u16) -> Result<(), Short> {
        let header = View::<{ ipv4::HEADER }>::at(linear, l3)?;
        match end {
            End::Source => header.write_address::<_, { ipv4::SOURCE }>(address),
            End::Destination => header.write_address::<_, { ipv4::DESTINATION }>(address),
        }
        let checksum = header.read::<u16, { ipv4::CHECKSUM }>();
        header.write::<u16, { ipv4::CHECKSUM }>(checksum::update(checksum, difference));
        Ok(())
    }
}

impl Family for V6 {
    type Address = Addr6;

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
    fn write_address(linear: Linear, l3: usize, end: End, address: Addr6, _: u16) -> Result<(), Short> {
        let header = View::<{ ipv6::HEADER }>::at(linear, l3)?;
        match end {
            End::Source => header.write_address::<_, { ipv6::SOURCE }>(address),
            End::Destination => header.write_address::<_, { ipv6::DESTINATION }>(address),
        }
        Ok(())
    }
}
