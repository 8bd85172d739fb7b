//! All that differs between IPv4 and IPv6: where the header's fields stand, whether the header has a
//! checksum, and which maps hold the family's state.

use dsproxy_common::{
    Addr4, Addr6, Address, IpFamily, checksum,
    count::Reason,
    flow::FlowKey,
    settings::{Network, Settings},
};

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
    pub(crate) egress_filter: &'static maps::Filter,
    pub(crate) slots: &'static maps::Slots,
    pub(crate) backends: &'static maps::Backends<A>,
    pub(crate) forward: &'static maps::Forward<A>,
    pub(crate) egress: &'static maps::Egress<A>,
    pub(crate) forward_brief: &'static maps::ForwardBrief<A>,
    pub(crate) egress_brief: &'static maps::EgressBrief<A>,
    pub(crate) snat: &'static maps::Snat<A>,
    pub(crate) affinity: &'static maps::Affinities<A>,
    pub(crate) ranges: &'static maps::Ranges<A>,
    pub(crate) networks: &'static maps::Networks<A>,
    pub(crate) masquerade: &'static maps::NodeAddresses<A>,
    pub(crate) fragments: &'static maps::Fragments<A>,
    pub(crate) scratch: &'static maps::Scratch<A>,
}

/// An address family, as the pipeline sees it.
pub(crate) trait Family: Sized + 'static {
    /// Its addresses.
    type Address: Address;

    /// Which family it is.
    const FAMILY: IpFamily = <Self::Address as Address>::FAMILY;

    /// The protocol number of its ICMP, and the types of its echo messages.
    const ICMP: u8;
    const ECHO_REQUEST: u8;
    const ECHO_REPLY: u8;
    /// Whether the checksum of its ICMP covers the addresses.
    const ICMP_COVERS_ADDRESSES: bool;

    /// The smallest network that holds all ClusterIPs.
    fn services(settings: &Settings) -> &Network<Self::Address>;

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

    // RFC 792.
    const ICMP: u8 = 1;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const ICMP_COVERS_ADDRESSES: bool = false;

    #[inline(always)]
    fn services(settings: &Settings) -> &Network<Addr4> {
        &settings.services_v4
    }

    #[inline(always)]
    fn maps() -> Maps<Addr4> {
        Maps {
            frontends: &maps::FRONTENDS_V4,
            filter: &maps::FILTER_V4,
            egress_filter: &maps::EGRESS_FLT_V4,
            slots: &maps::SLOTS_V4,
            backends: &maps::BACKENDS_V4,
            forward: &maps::FORWARD_V4,
            egress: &maps::EGRESS_V4,
            forward_brief: &maps::FORWARD_B_V4,
            egress_brief: &maps::EGRESS_B_V4,
            snat: &maps::SNAT_V4,
            affinity: &maps::AFFINITY_V4,
            ranges: &maps::RANGES_V4,
            networks: &maps::NETWORKS_V4,
            masquerade: &maps::MASQUERADE_V4,
            fragments: &maps::FRAGMENTS_V4,
            scratch: &maps::SCRATCH_V4,
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

    // RFC 4443.
    const ICMP: u8 = 58;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const ICMP_COVERS_ADDRESSES: bool = true;

    #[inline(always)]
    fn services(settings: &Settings) -> &Network<Addr6> {
        &settings.services_v6
    }

    #[inline(always)]
    fn maps() -> Maps<Addr6> {
        Maps {
            frontends: &maps::FRONTENDS_V6,
            filter: &maps::FILTER_V6,
            egress_filter: &maps::EGRESS_FLT_V6,
            slots: &maps::SLOTS_V6,
            backends: &maps::BACKENDS_V6,
            forward: &maps::FORWARD_V6,
            egress: &maps::EGRESS_V6,
            forward_brief: &maps::FORWARD_B_V6,
            egress_brief: &maps::EGRESS_B_V6,
            snat: &maps::SNAT_V6,
            affinity: &maps::AFFINITY_V6,
            ranges: &maps::RANGES_V6,
            networks: &maps::NETWORKS_V6,
            masquerade: &maps::MASQUERADE_V6,
            fragments: &maps::FRAGMENTS_V6,
            scratch: &maps::SCRATCH_V6,
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
