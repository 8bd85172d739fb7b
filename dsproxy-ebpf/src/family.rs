//! All that differs between IPv4 and IPv6: where the header's fields stand, whether the header has a
//! checksum, and which maps hold the family's state.

use dsproxy_common::{
    Addr4, Addr6, Address, IpFamily, Port,
    cached_flow::CachedFlow,
    checksum,
    count::Reason,
    flow::FlowKey,
    settings::{Network, Settings},
};

use crate::{
    icmp, maps,
    packet::{Linear, Short, View},
    parse::{Plain, Transport, ipv4, ipv6},
    rewrite::End,
};

/// The hop limit or time to live of packets that are made here (IANA, IP parameters).
pub(crate) const HOP_LIMIT: u8 = 64;

/// An IP header that is to be written.
pub(crate) struct Header<'k, A> {
    pub(crate) source: &'k A,
    pub(crate) destination: &'k A,
    pub(crate) protocol: u8,
    /// The type of service or traffic class.
    pub(crate) class: u8,
    /// How many bytes follow it.
    pub(crate) length: u16,
}

/// The maps of one family.
pub(crate) struct Maps<A: 'static> {
    pub(crate) frontends: &'static maps::Frontends<A>,
    pub(crate) filter: &'static maps::Filter,
    pub(crate) egress_filter: &'static maps::Filter,
    pub(crate) leaving_filter: &'static maps::CellFilter,
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
    pub(crate) sockets: &'static maps::Sockets<A>,
    pub(crate) tcp_sockets: &'static maps::Sockets<A>,
    pub(crate) scratch: &'static maps::Scratch<A>,
    pub(crate) new_entry: &'static maps::NewEntry<A>,
    pub(crate) flows: &'static maps::Flows<A>,
}

/// An address family, as the pipeline sees it.
pub(crate) trait Family: Sized + 'static {
    /// Its addresses.
    type Address: Address;

    /// Which family it is.
    const FAMILY: IpFamily = <Self::Address as Address>::FAMILY;

    /// Its IP header without options or extensions, in bytes.
    const HEADER: usize;

    /// Whether the IP header has a checksum of its own.
    const HAS_HEADER_CHECKSUM: bool;

    /// Its ICMP.
    const ICMP: icmp::Numbers;

    /// How many bytes a VIP takes behind the IP header (`direct`).
    const VIP_OPTION: usize;

    /// The smallest network that holds all ClusterIPs.
    fn services(settings: &Settings) -> &Network<Self::Address>;

    /// The family's maps.
    fn maps() -> Maps<Self::Address>;

    /// Reads the IP header at `l3` and whatever stands between it and the transport header; the addresses go to `key`.
    fn parse(linear: Linear, l3: usize, key: &mut FlowKey<Self::Address>) -> Result<Result<Transport, Reason>, Short>;

    /// Reads the IP header at `l3` if it is one without options or extensions, of a packet that is whole; the addresses go to `key`.
    fn plain(linear: Linear, l3: usize, key: &mut FlowKey<Self::Address>) -> Option<Plain>;

    /// Puts `address` at one end of the IP header at `l3`, in place of one from which it has `difference`; the header's
    /// checksum, if it has one, is made right.
    fn write_address(linear: Linear, l3: usize, end: End, address: Self::Address, difference: u16)
    -> Result<(), Short>;

    /// Makes of the IP header at `l3` what is remembered of the flow, for a packet that is sent on, so with one hop less; the
    /// header's checksum, if it has one, is made right. None, and nothing is written, if it was at its last hop.
    fn cross(linear: Linear, l3: usize, flow: &CachedFlow<Self::Address>) -> Option<()>;

    /// Takes one from the hops that are left to the packet whose IP header stands at `l3`; the header's checksum, if it has one, is
    /// made right. None, and nothing is written, if it was at its last hop.
    fn take_hop(linear: Linear, l3: usize) -> Option<()>;

    /// How many bytes the packet has from its IP header at `l3` on, if the header says so.
    fn length(linear: Linear, l3: usize) -> Result<Option<usize>, Short>;

    /// Puts an IP header at `l3`, its checksum, if it has one, right.
    fn write_header(linear: Linear, l3: usize, header: &Header<'_, Self::Address>) -> Result<(), Short>;

    /// Puts a VIP into the room that was made for it behind the IP header at `l3`, and makes that right.
    fn write_vip(linear: Linear, l3: usize, address: Self::Address, port: Port) -> Result<(), Short>;

    /// The VIP that stands behind the IP header at `l3`, if one does.
    fn read_vip(linear: Linear, l3: usize) -> Option<(Self::Address, Port)>;

    /// Whether `address` is a single host's, as far as can be told from it.
    fn is_host(address: &Self::Address) -> bool;
}

/// IPv4.
pub(crate) enum V4 {}

/// IPv6.
pub(crate) enum V6 {}

impl Family for V4 {
    type Address = Addr4;

    const HEADER: usize = ipv4::HEADER;
    const HAS_HEADER_CHECKSUM: bool = true;
    const ICMP: icmp::Numbers = icmp::V4;
    const VIP_OPTION: usize = ipv4::VIP_OPTION;

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
            leaving_filter: &maps::LEAVING_FLT_V4,
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
            sockets: &maps::SOCKETS_V4,
            tcp_sockets: &maps::TCP_SOCKETS_V4,
            scratch: &maps::SCRATCH_V4,
            new_entry: &maps::NEW_ENTRY_V4,
            flows: &maps::FLOWS_V4,
        }
    }

    #[inline(always)]
    fn parse(linear: Linear, l3: usize, key: &mut FlowKey<Addr4>) -> Result<Result<Transport, Reason>, Short> {
        ipv4::parse(linear, l3, key)
    }

    #[inline(always)]
    fn plain(linear: Linear, l3: usize, key: &mut FlowKey<Addr4>) -> Option<Plain> {
        ipv4::plain(linear, l3, key)
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

    #[inline(always)]
    fn cross(linear: Linear, l3: usize, flow: &CachedFlow<Addr4>) -> Option<()> {
        ipv4::cross(linear, l3, flow)
    }

    #[inline(always)]
    fn take_hop(linear: Linear, l3: usize) -> Option<()> {
        ipv4::take_hop(linear, l3)
    }

    #[inline(always)]
    fn length(linear: Linear, l3: usize) -> Result<Option<usize>, Short> {
        ipv4::length(linear, l3)
    }

    #[inline(always)]
    fn write_header(linear: Linear, l3: usize, header: &Header<'_, Addr4>) -> Result<(), Short> {
        ipv4::write_header(linear, l3, header)
    }

    #[inline(always)]
    fn write_vip(linear: Linear, l3: usize, address: Addr4, port: Port) -> Result<(), Short> {
        ipv4::write_vip(linear, l3, address, port)
    }

    #[inline(always)]
    fn read_vip(linear: Linear, l3: usize) -> Option<(Addr4, Port)> {
        ipv4::read_vip(linear, l3)
    }

    #[inline(always)]
    fn is_host(address: &Addr4) -> bool {
        ipv4::is_host(address)
    }
}

impl Family for V6 {
    type Address = Addr6;

    const HEADER: usize = ipv6::HEADER;
    const HAS_HEADER_CHECKSUM: bool = false;
    const ICMP: icmp::Numbers = icmp::V6;
    const VIP_OPTION: usize = ipv6::VIP_OPTION;

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
            leaving_filter: &maps::LEAVING_FLT_V6,
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
            sockets: &maps::SOCKETS_V6,
            tcp_sockets: &maps::TCP_SOCKETS_V6,
            scratch: &maps::SCRATCH_V6,
            new_entry: &maps::NEW_ENTRY_V6,
            flows: &maps::FLOWS_V6,
        }
    }

    #[inline(always)]
    fn parse(linear: Linear, l3: usize, key: &mut FlowKey<Addr6>) -> Result<Result<Transport, Reason>, Short> {
        ipv6::parse(linear, l3, key)
    }

    #[inline(always)]
    fn plain(linear: Linear, l3: usize, key: &mut FlowKey<Addr6>) -> Option<Plain> {
        ipv6::plain(linear, l3, key)
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

    #[inline(always)]
    fn cross(linear: Linear, l3: usize, flow: &CachedFlow<Addr6>) -> Option<()> {
        ipv6::cross(linear, l3, flow)
    }

    #[inline(always)]
    fn take_hop(linear: Linear, l3: usize) -> Option<()> {
        ipv6::take_hop(linear, l3)
    }

    #[inline(always)]
    fn length(linear: Linear, l3: usize) -> Result<Option<usize>, Short> {
        ipv6::length(linear, l3)
    }

    #[inline(always)]
    fn write_header(linear: Linear, l3: usize, header: &Header<'_, Addr6>) -> Result<(), Short> {
        ipv6::write_header(linear, l3, header)
    }

    #[inline(always)]
    fn write_vip(linear: Linear, l3: usize, address: Addr6, port: Port) -> Result<(), Short> {
        ipv6::write_vip(linear, l3, address, port)
    }

    #[inline(always)]
    fn read_vip(linear: Linear, l3: usize) -> Option<(Addr6, Port)> {
        ipv6::read_vip(linear, l3)
    }

    #[inline(always)]
    fn is_host(address: &Addr6) -> bool {
        ipv6::is_host(address)
    }
}
