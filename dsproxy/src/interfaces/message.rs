//! Netlink messages about links, addresses and routes, read into the terms of a snapshot.
//!
//! What cannot matter for a role is left out here, before any attribute is looked at: a flood of
//! host routes or of the kernel's cached routes costs a glance at each header. No sockets.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::snapshot::{Address, Link, Route, RouteKey, is_wide};
use crate::netlink::{Message, Request, attributes, number, text};

/// A change in terms of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A link is there, or is different.
    Link(Link),
    /// A link is gone from this namespace.
    LinkGone(u32),
    /// An address is there.
    Address(Address),
    /// An address is gone.
    AddressGone(Address),
    /// A route is there; if the flag is set it took the place of one with the same key.
    Route(Route, bool),
    /// A route is gone.
    RouteGone(Route),
}

const LINK_HEADER: usize = 16;
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;

/// The multicast groups that carry what `read` understands.
pub(super) const GROUPS: u32 = (libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_ROUTE) as u32;

/// A request for all links.
pub(super) fn all_links() -> Request {
    Request::dump(libc::RTM_GETLINK, &[0; LINK_HEADER]).attribute(libc::IFLA_EXT_MASK, &without_statistics())
}

/// A request for one link.
pub(super) fn one_link(index: u32) -> Request {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    Request::change(libc::RTM_GETLINK, 0, &header).attribute(libc::IFLA_EXT_MASK, &without_statistics())
}

fn without_statistics() -> [u8; 4] {
    const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
    RTEXT_FILTER_SKIP_STATS.to_ne_bytes()
}

/// A request for all addresses.
pub(super) fn all_addresses() -> Request {
    Request::dump(libc::RTM_GETADDR, &[0; ADDRESS_HEADER])
}

/// A request for all routes of a family: asked for without one, the kernel also lists the
/// multicast routing tables.
pub(super) fn all_routes(family: i32) -> Request {
    let mut header = [0; ROUTE_HEADER];
    header[0] = family as u8;
    Request::dump(libc::RTM_GETROUTE, &header)
}

/// What a message says; nothing if it cannot matter.
pub(super) fn read(message: &Message<'_>) -> Option<Event> {
    match message.kind {
        libc::RTM_NEWLINK => link(message.payload).map(Event::Link),
        libc::RTM_DELLINK => gone_link(message.payload).map(Event::LinkGone),
        libc::RTM_NEWADDR => address(message.payload).map(Event::Address),
        libc::RTM_DELADDR => address(message.payload).map(Event::AddressGone),
        libc::RTM_NEWROUTE => {
            let replaces = message.flags & libc::NLM_F_REPLACE as u16 != 0;
            route(message.payload).map(|route| Event::Route(route, replaces))
        }
        libc::RTM_DELROUTE => route(message.payload).map(Event::RouteGone),
        _ => None,
    }
}

fn link(payload: &[u8]) -> Option<Link> {
    // A bridge speaks of its ports with messages of its own family, which say little of the link,
    // and whose removal means that it left the bridge.
    if i32::from(*payload.first()?) != libc::AF_UNSPEC {
        return None;
    }
    let flags = number(payload.get(8..)?)?;
    let mut link = Link {
        index: number(payload.get(4..)?)?,
        hardware: u16::from_ne_bytes(payload.get(2..4)?.try_into().ok()?),
        up: flags & libc::IFF_UP as u32 != 0,
        loopback: flags & libc::IFF_LOOPBACK as u32 != 0,
        ..Link::default()
    };
    let mut named = false;
    for (kind, value) in attributes(payload, LINK_HEADER) {
        match kind {
            libc::IFLA_IFNAME => (link.name, named) = (text(value), true),
            libc::IFLA_ADDRESS => link.address = value.to_vec(),
            libc::IFLA_MTU => link.mtu = number(value).unwrap_or_default(),
            libc::IFLA_MASTER => link.master = number(value),
            libc::IFLA_LINK => link.peer = number(value).filter(|peer| *peer != 0),
            libc::IFLA_LINK_NETNSID => link.peer_elsewhere = true,
            libc::IFLA_LINKINFO => {
                let mut details = attributes(value, 0);
                if let Some((_, kind)) = details.find(|(kind, _)| *kind == libc::IFLA_INFO_KIND) {
                    link.kind = text(kind);
                }
            }
            _ => {}
        }
    }
    // Wireless events borrow the message type and say nothing else.
    named.then_some(link)
}

fn gone_link(payload: &[u8]) -> Option<u32> {
    (i32::from(*payload.first()?) == libc::AF_UNSPEC).then(|| number(payload.get(4..)?))?
}

fn address(payload: &[u8]) -> Option<Address> {
    let [family, prefix_len, flags, scope] = *payload.first_chunk()?;
    let link = number(payload.get(4..)?)?;
    let (mut local, mut peer) = (None, None);
    let mut flags = u32::from(flags);
    for (kind, value) in attributes(payload, ADDRESS_HEADER) {
        match kind {
            libc::IFA_LOCAL => local = ip(family, value),
            libc::IFA_ADDRESS => peer = ip(family, value),
            // The header has room for eight of them only.
            libc::IFA_FLAGS => flags = number(value)?,
            _ => {}
        }
    }
    let has = |flag| flags & flag != 0;
    // On a point-to-point link the prefix is that of the other end; without one, both are the same.
    Some(Address {
        link,
        address: local.or(peer)?,
        prefix_len,
        global: scope == libc::RT_SCOPE_UNIVERSE,
        usable: !has(libc::IFA_F_DADFAILED) && (!has(libc::IFA_F_TENTATIVE) || has(libc::IFA_F_OPTIMISTIC)),
        preferred: !has(libc::IFA_F_DEPRECATED) && !has(libc::IFA_F_SECONDARY),
    })
}

fn route(payload: &[u8]) -> Option<Route> {
    let [family, prefix_len, _source_len, tos, table, protocol, _scope, kind] = *payload.first_chunk()?;
    let flags = number(payload.get(8..)?)?;
    let host = match i32::from(family) {
        libc::AF_INET => 32,
        libc::AF_INET6 => 128,
        _ => return None,
    };
    if prefix_len >= host
        || kind != libc::RTN_UNICAST
        || table == libc::RT_TABLE_LOCAL
        || flags & libc::RTM_F_CLONED != 0
    {
        return None;
    }
    let mut key = RouteKey {
        table: u32::from(table),
        destination: if host == 32 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() },
        prefix_len,
        tos,
        priority: 0,
    };
    let mut links = Vec::new();
    for (kind, value) in attributes(payload, ROUTE_HEADER) {
        match kind {
            libc::RTA_DST => key.destination = ip(family, value)?,
            libc::RTA_TABLE => key.table = number(value)?,
            libc::RTA_PRIORITY => key.priority = number(value)?,
            libc::RTA_OIF => links.extend(number(value)),
            libc::RTA_MULTIPATH => links.extend(next_hops(value)),
            _ => {}
        }
    }
    (is_wide(key.destination, prefix_len) && key.table != u32::from(libc::RT_TABLE_LOCAL)).then_some(Route {
        key,
        protocol,
        links,
    })
}

/// The links of a multipath route: records of length, flags, weight and link, then attributes.
fn next_hops(mut records: &[u8]) -> impl Iterator<Item = u32> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*records.first_chunk()?));
        let link = number(records.get(4..)?)?;
        records = records.get(length.next_multiple_of(4).max(8)..).unwrap_or_default();
        Some(link)
    })
}

fn ip(family: u8, value: &[u8]) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::from(*value.first_chunk::<4>()?).into()),
        libc::AF_INET6 => Some(Ipv6Addr::from(*value.first_chunk::<16>()?).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::messages;

    fn read_back(kind: u16, fixed: &[u8], fill: impl FnOnce(Request) -> Request) -> Option<Event> {
        let bytes = fill(Request::change(kind, 0, fixed)).numbered(1);
        let message = messages(&bytes).next().expect("a message").expect("well formed");
        read(&message)
    }

    fn route_header(family: i32, prefix_len: u8, table: u8) -> [u8; ROUTE_HEADER] {
        let mut header = [0; ROUTE_HEADER];
        header[0] = family as u8;
        header[1] = prefix_len;
        header[4] = table;
        header[5] = libc::RTPROT_STATIC;
        header[7] = libc::RTN_UNICAST;
        header
    }

    #[test]
    fn a_multipath_route_leads_to_several_links() {
        let mut hops = Vec::new();
        for (link, gateway) in [(2u32, true), (3, false), (7, true)] {
            hops.extend_from_slice(&(if gateway { 16u16 } else { 8 }).to_ne_bytes());
            hops.extend_from_slice(&[0, 0]);
            hops.extend_from_slice(&link.to_ne_bytes());
            if gateway {
                hops.extend_from_slice(&[8, 0, 5, 0, 192, 0, 2, 1]);
            }
        }
        let event = read_back(libc::RTM_NEWROUTE, &route_header(libc::AF_INET, 0, 254), |request| {
            request.attribute(libc::RTA_MULTIPATH, &hops).attribute(libc::RTA_PRIORITY, &9u32.to_ne_bytes())
        });
        let Some(Event::Route(route, false)) = event else { panic!("a route, got {event:?}") };
        assert_eq!(route.links, [2, 3, 7]);
        assert_eq!((route.key.prefix_len, route.key.priority), (0, 9));
        assert_eq!(route.key.destination, IpAddr::from([0, 0, 0, 0]));
    }

    #[test]
    fn routes_that_cannot_matter_are_left_out() {
        let address = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0).octets();
        let oif = 2u32.to_ne_bytes();
        let of = |header: &[u8], destination: &[u8]| {
            read_back(libc::RTM_NEWROUTE, header, |request| {
                request.attribute(libc::RTA_DST, destination).attribute(libc::RTA_OIF, &oif)
            })
        };
        let global = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0).octets();
        assert!(of(&route_header(libc::AF_INET6, 64, 254), &global).is_some());
        assert_eq!(of(&route_header(libc::AF_INET6, 64, 254), &address), None, "link-local");
        assert_eq!(of(&route_header(libc::AF_INET6, 128, 254), &global), None, "host");
        assert_eq!(of(&route_header(libc::AF_INET6, 64, 255), &global), None, "local table");
        assert_eq!(of(&route_header(libc::AF_MPLS, 20, 254), &global), None, "other family");
        let mut cached = route_header(libc::AF_INET6, 64, 254);
        cached[8..12].copy_from_slice(&libc::RTM_F_CLONED.to_ne_bytes());
        assert_eq!(of(&cached, &global), None, "cached");
        let mut blackhole = route_header(libc::AF_INET6, 64, 254);
        blackhole[7] = libc::RTN_BLACKHOLE;
        assert_eq!(of(&blackhole, &global), None, "blackhole");
    }

    #[test]
    fn an_address_is_usable_when_nobody_else_can_have_it() {
        let of = |flags: u32| {
            let mut header = [0; ADDRESS_HEADER];
            [header[0], header[1], header[4]] = [libc::AF_INET6 as u8, 64, 2];
            let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).octets();
            let event = read_back(libc::RTM_NEWADDR, &header, |request| {
                request.attribute(libc::IFA_ADDRESS, &address).attribute(libc::IFA_FLAGS, &flags.to_ne_bytes())
            });
            let Some(Event::Address(Address { usable, preferred, global: true, .. })) = event else {
                panic!("an address, got {event:?}")
            };
            (usable, preferred)
        };
        assert_eq!(of(0), (true, true));
        assert_eq!(of(libc::IFA_F_PERMANENT | libc::IFA_F_NOPREFIXROUTE), (true, true));
        assert_eq!(of(libc::IFA_F_TENTATIVE), (false, true));
        assert_eq!(of(libc::IFA_F_TENTATIVE | libc::IFA_F_OPTIMISTIC), (true, true));
        assert_eq!(of(libc::IFA_F_TENTATIVE | libc::IFA_F_DADFAILED), (false, true));
        assert_eq!(of(libc::IFA_F_DEPRECATED), (true, false));
        assert_eq!(of(libc::IFA_F_SECONDARY), (true, false));
    }

    #[test]
    fn a_bridge_speaking_of_its_port_is_not_the_link() {
        let mut header = [0; LINK_HEADER];
        header[4] = 5;
        assert_eq!(read_back(libc::RTM_DELLINK, &header, |r| r), Some(Event::LinkGone(5)));
        assert_eq!(read_back(libc::RTM_NEWLINK, &header, |r| r), None, "no name: a wireless event");
        header[0] = libc::AF_BRIDGE as u8;
        assert_eq!(read_back(libc::RTM_DELLINK, &header, |r| r), None);
        let named = read_back(libc::RTM_NEWLINK, &header, |r| r.attribute(libc::IFLA_IFNAME, b"veth0\0"));
        assert_eq!(named, None);
    }

    #[test]
    fn short_messages_say_nothing() {
        for kind in [libc::RTM_NEWLINK, libc::RTM_DELLINK, libc::RTM_NEWADDR, libc::RTM_NEWROUTE] {
            for length in [0, 1, 3, 5] {
                assert_eq!(read_back(kind, &vec![0; length], |r| r), None);
            }
        }
    }
}
