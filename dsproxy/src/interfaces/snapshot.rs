//! Links, addresses and routes of the network namespace, reduced to what roles depend on.
//!
//! Of the routes only a *witness* per link is kept: one route that makes the link a node device,
//! and one default route. A node that speaks BGP may hold a million routes and change thousands a
//! second; none of that matters here until a witness goes, and the witness is chosen among the
//! routes that stay (those the kernel made for an address, then those the administrator made).
//! When a witness goes, or may have gone, the routes are listed again, once, for all links.
//! Nothing here reads sockets or decides roles.

use std::{collections::BTreeMap, net::IpAddr};

/// A network link.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The interface index.
    pub index: u32,
    /// The name.
    pub name: String,
    /// The kind of a virtual link (`veth`, `bridge`); empty for hardware.
    pub kind: String,
    /// The hardware type (`ARPHRD_*`).
    pub hardware: u16,
    /// Whether it is a loopback.
    pub loopback: bool,
    /// Whether it is administratively up.
    pub up: bool,
    /// The bridge, bond or VRF that it is a port of.
    pub master: Option<u32>,
    /// The index of the other end of a veth or netkit, or of the link below.
    pub peer: Option<u32>,
    /// Whether `peer` is an index of another network namespace.
    pub peer_elsewhere: bool,
    /// The link-layer address.
    pub address: Vec<u8>,
    /// The longest packet that it takes, in bytes.
    pub mtu: u32,
}

impl Link {
    /// Whether it is one of two interfaces, each of which puts out what the other takes in.
    pub(super) fn is_end_of_pair(&self) -> bool {
        matches!(self.kind.as_str(), "veth" | "netkit")
    }
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// The interface index.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// The length of the connected prefix.
    pub prefix_len: u8,
    /// Whether its scope is global.
    pub global: bool,
    /// Whether the node takes packets to it: no other node has it, or is still being asked for it.
    pub usable: bool,
    /// Whether the node would open connections from it: it is neither deprecated nor an addition to another one.
    pub preferred: bool,
}

impl Address {
    fn is_wide(&self) -> bool {
        self.global && is_wide(self.address, self.prefix_len)
    }
}

/// What tells a route from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteKey {
    /// The routing table.
    pub table: u32,
    /// The destination's address.
    pub destination: IpAddr,
    /// The destination's prefix length.
    pub prefix_len: u8,
    /// The type of service it is for.
    pub tos: u8,
    /// The metric.
    pub priority: u32,
}

/// A unicast route that is not for a single host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its identity.
    pub key: RouteKey,
    /// Who made it (`RTPROT_*`).
    pub protocol: u8,
    /// The links it leads to; several with multipath.
    pub links: Vec<u32>,
}

/// Whether a prefix leads to more than one host, and beyond the link.
///
/// What some CNIs put on the host side of every pod's veth does not: 169.254.1.1/32, fe80::1, a
/// gateway address with a host prefix.
pub(super) fn is_wide(address: IpAddr, prefix_len: u8) -> bool {
    match address {
        IpAddr::V4(address) => prefix_len < 32 && !address.is_link_local() && !address.is_multicast(),
        IpAddr::V6(address) => prefix_len < 128 && !address.is_unicast_link_local() && !address.is_multicast(),
    }
}

/// A route that stands for all of a link's, with how likely it is to stay (lower is better).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Witness {
    key: RouteKey,
    rank: u8,
}

impl Witness {
    fn of(route: &Route) -> Self {
        let rank = match route.protocol {
            libc::RTPROT_KERNEL => 0,
            libc::RTPROT_BOOT | libc::RTPROT_STATIC | RTPROT_RA | RTPROT_DHCP => 1,
            _ => 2,
        };
        Self { key: route.key, rank }
    }
}

const RTPROT_RA: u8 = 9;
const RTPROT_DHCP: u8 = 16;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Routed {
    any: Option<Witness>,
    default: Option<Witness>,
}

impl Routed {
    fn rests_on(&self, key: &RouteKey) -> bool {
        [self.any, self.default].iter().flatten().any(|witness| witness.key == *key)
    }
}

/// The routes' part of a snapshot, built anew by each listing of the routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Routing {
    links: BTreeMap<u32, Routed>,
}

impl Routing {
    /// Notes a route. True when a link has become one that has routes, or a default route.
    pub(super) fn add(&mut self, route: &Route) -> bool {
        let witness = Witness::of(route);
        let mut news = false;
        for link in &route.links {
            let routed = self.links.entry(*link).or_default();
            let mut offer = |place: &mut Option<Witness>| {
                news |= place.is_none();
                if place.is_none_or(|present| witness.rank < present.rank) {
                    *place = Some(witness);
                }
            };
            offer(&mut routed.any);
            if route.key.prefix_len == 0 {
                offer(&mut routed.default);
            }
        }
        news
    }

    /// Whether some link other than `except` counts as routed because of this route.
    fn rests_on(&self, key: &RouteKey, except: &[u32]) -> bool {
        self.links.iter().any(|(link, routed)| !except.contains(link) && routed.rests_on(key))
    }
}

/// What has to be done after a change was taken in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Consequence {
    /// Roles may be different now, or the node's addresses.
    pub(super) reclassify: bool,
    /// A route that counted is gone, or may be: list the routes again.
    pub(super) list_routes: bool,
    /// These links have changed without an event of their own: ask for them.
    pub(super) ask_links: Vec<u32>,
}

/// The state of links, addresses and routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub(super) links: BTreeMap<u32, Link>,
    addresses: BTreeMap<(u32, IpAddr, u8), Address>,
    routing: Routing,
}

impl Snapshot {
    /// Builds a snapshot from complete lists.
    pub fn new(
        links: impl IntoIterator<Item = Link>,
        addresses: impl IntoIterator<Item = Address>,
        routes: impl IntoIterator<Item = Route>,
    ) -> Self {
        let mut snapshot = Self::default();
        for link in links {
            snapshot.set_link(link);
        }
        for address in addresses {
            snapshot.set_address(address);
        }
        for route in routes {
            snapshot.routing.add(&route);
        }
        snapshot
    }

    /// Whether the link carries a global address of a subnet, or a route wider than one host.
    pub(super) fn is_routed(&self, link: u32) -> bool {
        self.routing.links.get(&link).is_some_and(|routed| routed.any.is_some())
            || self.addresses_of(link).any(Address::is_wide)
    }

    /// Whether a default route leads to the link.
    pub(super) fn has_default_route(&self, link: u32) -> bool {
        self.routing.links.get(&link).is_some_and(|routed| routed.default.is_some())
    }

    /// The addresses of a link.
    pub fn addresses_of(&self, link: u32) -> impl Iterator<Item = &Address> {
        self.addresses.values().filter(move |address| address.link == link)
    }

    /// The links, by index.
    pub fn links(&self) -> &BTreeMap<u32, Link> {
        &self.links
    }

    pub(super) fn set_link(&mut self, link: Link) -> Consequence {
        let index = link.index;
        let up = link.up;
        let before = self.links.insert(index, link);
        let went_down = before.as_ref().is_some_and(|before| before.up) && !up;
        // A veth made from within another namespace is announced here before it has its other end,
        // and not again until it is set up.
        let unfinished = matches!(self.links.get(&index), Some(link) if link.is_end_of_pair() && link.peer.is_none());
        Consequence {
            reclassify: before.as_ref() != self.links.get(&index),
            // The kernel forgets the IPv4 routes of a link that goes down without saying so.
            list_routes: went_down && self.routing.links.contains_key(&index),
            ask_links: if unfinished { vec![index] } else { Vec::new() },
        }
    }

    pub(super) fn remove_link(&mut self, index: u32) -> Consequence {
        let known = self.links.remove(&index).is_some();
        self.addresses.retain(|(link, ..), _| *link != index);
        self.routing.links.remove(&index);
        // The other end of a veth that moves to another namespace is not told: it would stay
        // without a role until something else happened to it.
        let ask_links = self
            .links
            .values()
            .filter(|link| link.peer == Some(index) && !link.peer_elsewhere)
            .map(|link| link.index)
            .collect();
        Consequence { reclassify: known, list_routes: false, ask_links }
    }

    pub(super) fn set_address(&mut self, address: Address) -> Consequence {
        let before = self.addresses.insert((address.link, address.address, address.prefix_len), address);
        Consequence { reclassify: address.global && before != Some(address), ..Consequence::default() }
    }

    pub(super) fn remove_address(&mut self, address: &Address) -> Consequence {
        let gone = self.addresses.remove(&(address.link, address.address, address.prefix_len));
        Consequence {
            reclassify: gone.is_some_and(|gone| gone.global),
            // With an address go the routes that prefer it as source, silently.
            list_routes: gone.is_some() && self.routing.links.contains_key(&address.link),
            ask_links: Vec::new(),
        }
    }

    pub(super) fn set_route(&mut self, route: &Route, replaces: bool) -> Consequence {
        Consequence {
            reclassify: self.routing.add(route),
            list_routes: replaces && self.routing.rests_on(&route.key, &route.links),
            ask_links: Vec::new(),
        }
    }

    pub(super) fn remove_route(&mut self, route: &Route) -> Consequence {
        Consequence { list_routes: self.routing.rests_on(&route.key, &[]), ..Consequence::default() }
    }

    pub(super) fn set_routing(&mut self, routing: Routing) -> Consequence {
        let reclassify = routing != self.routing;
        self.routing = routing;
        Consequence { reclassify, ..Consequence::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(destination: &str, protocol: u8, links: &[u32]) -> Route {
        let (destination, prefix_len) = destination.split_once('/').expect("prefix");
        Route {
            key: RouteKey {
                table: 254,
                destination: destination.parse().expect("address"),
                prefix_len: prefix_len.parse().expect("length"),
                tos: 0,
                priority: 0,
            },
            protocol,
            links: links.to_vec(),
        }
    }

    const BGP: u8 = 186;

    #[test]
    fn churn_of_learned_routes_asks_for_nothing() {
        let mut snapshot = Snapshot::default();
        assert!(snapshot.set_route(&route("10.9.0.0/16", BGP, &[2]), false).reclassify);
        let connected = route("192.0.2.0/24", libc::RTPROT_KERNEL, &[2]);
        assert!(!snapshot.set_route(&connected, false).reclassify);
        for network in 0..=255 {
            let learned = route(&format!("10.{network}.0.0/16"), BGP, &[2]);
            assert_eq!(snapshot.set_route(&learned, true), Consequence::default());
            assert_eq!(snapshot.remove_route(&learned), Consequence::default());
        }
        assert!(snapshot.remove_route(&connected).list_routes);
    }

    #[test]
    fn a_route_that_moves_away_is_noticed() {
        let mut snapshot = Snapshot::default();
        snapshot.set_route(&route("::/0", RTPROT_RA, &[2, 3]), false);
        let moved = snapshot.set_route(&route("::/0", RTPROT_RA, &[3, 4]), true);
        assert!(moved.list_routes, "2 rested on it");
        assert!(snapshot.has_default_route(4));
        let kept = snapshot.set_route(&route("::/0", RTPROT_RA, &[2, 3, 4]), true);
        assert_eq!(kept, Consequence::default());
    }

    #[test]
    fn a_link_that_goes_down_takes_ipv4_routes_along() {
        let mut snapshot = Snapshot::default();
        let link = Link { index: 2, up: true, ..Link::default() };
        snapshot.set_link(link.clone());
        assert!(!snapshot.set_link(Link { up: false, ..link.clone() }).list_routes, "no routes");
        snapshot.set_link(link.clone());
        snapshot.set_route(&route("0.0.0.0/0", libc::RTPROT_STATIC, &[2]), false);
        assert!(snapshot.set_link(Link { up: false, ..link }).list_routes);
    }

    #[test]
    fn a_peer_that_leaves_makes_the_other_end_worth_asking() {
        let mut snapshot = Snapshot::default();
        snapshot.set_link(Link { index: 5, peer: Some(6), ..Link::default() });
        snapshot.set_link(Link { index: 6, peer: Some(5), ..Link::default() });
        snapshot.set_link(Link { index: 7, peer: Some(6), peer_elsewhere: true, ..Link::default() });
        assert_eq!(snapshot.remove_link(6).ask_links, [5]);
        assert!(!snapshot.remove_link(6).reclassify, "gone already");
    }

    #[test]
    fn what_counts_as_wide() {
        for (prefix, wide) in [
            ("0.0.0.0/0", true),
            ("10.0.0.0/31", true),
            ("10.0.0.1/32", false),
            ("169.254.0.0/16", false),
            ("224.0.0.0/4", false),
            ("::/0", true),
            ("2001:db8::/64", true),
            ("2001:db8::1/128", false),
            ("fe80::/64", false),
            ("ff00::/8", false),
        ] {
            let Route { key, .. } = route(prefix, 0, &[]);
            assert_eq!(is_wide(key.destination, key.prefix_len), wide, "{prefix}");
        }
    }
}
