//! Which interfaces the data path sits on, and as what. Pure: a snapshot in, roles out.
//!
//! What an interface *is* (its kind) does not tell. In a nested node or a lab the NIC itself is a
//! veth whose other end is elsewhere, and some CNIs put an address on the host side of every pod's
//! veth. What it *carries* tells:
//!
//! - A **node device** carries a route for more than one host (default or subnet) or a global
//!   address of a subnet. Link-local and multicast prefixes, host routes and the `local` table
//!   count for nothing. Tunnels (vxlan, ipip, wireguard, tun) are no exception.
//! - A **pod interface** is the host side of a veth or netkit whose other end is in another network
//!   namespace, and that is not a node device.
//!
//! Special places:
//!
//! - Loopback, dummy and ifb devices pass no traffic of others. A VRF device only groups its
//!   ports, which are IP interfaces of their own and judged as such.
//! - A port of a bond, a team or an Open vSwitch hands its packets to its master; the master is the
//!   place to be.
//! - A **port of a bridge** takes no part in routing, so routes say nothing about it: a veth with
//!   its other end elsewhere is a pod interface. This holds for a bridge with the node's uplink,
//!   and the default route, too: what is behind one port answers what is behind another without
//!   passing the bridge's own device, so ports must be hooks. Where a bridge that is a node device
//!   has pods' ports, its other ports (the uplink) are node devices as well: a pod answers a client
//!   on its own network that way. Packets that pass both are translated at the first. An uplink that
//!   is itself a veth with its other end elsewhere (of a node that is a container) cannot be told
//!   from a pod's port: what comes by it counts as from inside, and is not masqueraded, until the
//!   user names it as a node device.
//! - A veth as a port of an Open vSwitch is a pod's as well: tc sees its packets before the switch.
//! - A **bridge** whose ports are all pod interfaces needs no hook: its packets pass the ports'. It
//!   is a node device if it also has another port (the NIC enslaved to it, a VM's tap) or the
//!   default route, through which packets of the world come and go.
//!
//! An override replaces the detection of its role and of that role alone. A name that the user gave
//! as a node device is one even if the pod pattern matches it; a pod pattern wins over a detected
//! node device. A veth that carries routes is not detected as a pod interface, even when an override
//! has taken its role as a node device away.

use super::{Interface, Interfaces, IpDevice, Link, LinkLayer, Overrides, Role, Snapshot};

/// Decides the role of every interface; those that the data path leaves alone are not in the result.
pub fn classify(snapshot: &Snapshot, overrides: &Overrides) -> Interfaces {
    let judge = Judge { snapshot, overrides };
    snapshot
        .links
        .values()
        .filter_map(|link| {
            let link_layer = link_layer(link.hardware)?;
            let role = judge.role(link)?;
            let interface = Interface {
                index: link.index,
                name: link.name.clone(),
                role,
                link_layer,
                address: link.address.clone(),
                mtu: link.mtu,
                ip_device: (role == Role::PodInterface).then(|| judge.ip_device(link)).flatten(),
            };
            Some((link.index, interface))
        })
        .collect()
}

/// What packets begin with, by hardware type; none for those the data path cannot read.
///
/// The types without a header are those of the kernel's own list (`dev_is_mac_header_xmit` in
/// include/linux/if_arp.h).
fn link_layer(hardware: u16) -> Option<LinkLayer> {
    const ARPHRD_RAWIP: u16 = 519;
    const ARPHRD_IP6GRE: u16 = 823;
    match hardware {
        libc::ARPHRD_ETHER => Some(LinkLayer::Ethernet),
        libc::ARPHRD_NONE
        | libc::ARPHRD_TUNNEL
        | libc::ARPHRD_TUNNEL6
        | libc::ARPHRD_SIT
        | libc::ARPHRD_IPGRE
        | ARPHRD_IP6GRE
        | ARPHRD_RAWIP
        | libc::ARPHRD_PPP => Some(LinkLayer::None),
        _ => None,
    }
}

/// What a link is a port of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Master {
    /// Nothing that would take its packets away.
    Free,
    Bridge,
    Switch,
    Bond,
}

struct Judge<'a> {
    snapshot: &'a Snapshot,
    overrides: &'a Overrides,
}

impl Judge<'_> {
    fn role(&self, link: &Link) -> Option<Role> {
        if link.loopback {
            return None;
        }
        if self.is_named_node_device(link) {
            return Some(Role::NodeDevice);
        }
        if self.is_pod_interface(link) {
            return Some(Role::PodInterface);
        }
        let is_node_device = self.overrides.node_devices.is_none() && self.looks_like_node_device(link);
        is_node_device.then_some(Role::NodeDevice)
    }

    /// The device that has the IP layer of a pod's interface, if only pods are behind it.
    fn ip_device(&self, link: &Link) -> Option<IpDevice> {
        let device = match self.master(link) {
            Master::Free => link,
            Master::Bridge => {
                let bridge = self.snapshot.links.get(&link.master?)?;
                let is_of_pods = self.master(bridge) == Master::Free && !self.bridge_leads_out(bridge);
                (is_of_pods && self.role(bridge).is_none()).then_some(bridge)?
            }
            Master::Switch | Master::Bond => return None,
        };
        Some(IpDevice { index: device.index, address: device.address.clone() })
    }

    fn is_named_node_device(&self, link: &Link) -> bool {
        self.overrides.node_devices.as_ref().is_some_and(|names| names.contains(&link.name))
    }

    fn is_pod_interface(&self, link: &Link) -> bool {
        !self.is_named_node_device(link)
            && match &self.overrides.pod_interfaces {
                Some(patterns) => patterns.is_match(&link.name),
                None => self.looks_like_pod_interface(link),
            }
    }

    fn looks_like_pod_interface(&self, link: &Link) -> bool {
        link.is_end_of_pair()
            && link.peer_elsewhere
            && match self.master(link) {
                Master::Free => !self.snapshot.is_routed(link.index),
                Master::Bridge | Master::Switch => true,
                Master::Bond => false,
            }
    }

    fn looks_like_node_device(&self, link: &Link) -> bool {
        match self.master(link) {
            Master::Free => self.leads_out(link),
            Master::Bridge => self.looks_like_uplink(link),
            Master::Switch | Master::Bond => false,
        }
    }

    /// Whether a link that is nobody's port does.
    fn leads_out(&self, link: &Link) -> bool {
        !matches!(link.kind.as_str(), "dummy" | "ifb" | "nlmon" | "vrf")
            && self.snapshot.is_routed(link.index)
            && (link.kind != "bridge" || self.bridge_leads_out(link))
    }

    fn bridge_leads_out(&self, bridge: &Link) -> bool {
        self.snapshot.has_default_route(bridge.index) || self.ports(bridge).any(|port| !self.is_pod_interface(port))
    }

    /// Whether a port of a bridge is the way out of it for the pods behind other ports.
    fn looks_like_uplink(&self, port: &Link) -> bool {
        let bridge = port.master.and_then(|bridge| self.snapshot.links.get(&bridge));
        bridge.is_some_and(|bridge| {
            port.kind != "dummy"
                && self.master(bridge) == Master::Free
                && self.leads_out(bridge)
                && self.ports(bridge).any(|other| self.is_pod_interface(other))
        })
    }

    /// The ports of a bridge, but for dummies, which only lend it their MAC address.
    fn ports(&self, bridge: &Link) -> impl Iterator<Item = &Link> {
        let index = bridge.index;
        self.snapshot.links.values().filter(move |port| port.master == Some(index) && port.kind != "dummy")
    }

    fn master(&self, link: &Link) -> Master {
        let Some(master) = link.master else {
            return Master::Free;
        };
        match self.snapshot.links.get(&master).map_or("", |master| master.kind.as_str()) {
            "vrf" => Master::Free,
            "bridge" => Master::Bridge,
            "openvswitch" => Master::Switch,
            // Bond, team, and whatever else takes its ports' packets.
            _ => Master::Bond,
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
