//! Which addresses are the node's own, so that NodePorts are served there. Pure: a snapshot in, addresses out.
//!
//! Those of global scope on any device, be it down: the kernel takes packets to them in. Left out are
//!
//! - loopback, link-local and multicast addresses,
//! - what another node may have: an address whose duplicates are still being looked for, or were found,
//! - what stands on the host side of a pod's interface, the same on each of thousands,
//! - `kube-ipvs0`, where kube-proxy's IPVS mode holds every VIP of the cluster.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Address, Interfaces, Role, Snapshot};

const IPVS_DEVICE: &str = "kube-ipvs0";

/// The node's own addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// All of them.
    pub all: BTreeSet<IpAddr>,
    /// Those that the node would open connections from, by the index of the node device that carries them. Addresses without a network
    /// around them come last: such a one is a VIP more often than not, and moves to another node when this one fails.
    pub of_devices: BTreeMap<u32, Vec<IpAddr>>,
}

/// The node's own addresses in `snapshot`, in which interfaces have the roles of `interfaces`.
pub fn node_addresses(snapshot: &Snapshot, interfaces: &Interfaces) -> NodeAddresses {
    let mut addresses = NodeAddresses::default();
    for link in snapshot.links().values().filter(|link| link.name != IPVS_DEVICE) {
        let role = interfaces.get(&link.index).map(|interface| interface.role);
        if role == Some(Role::PodInterface) {
            continue;
        }
        let mut preferred = BTreeSet::new();
        for address in snapshot.addresses_of(link.index).filter(|address| is_own(address)) {
            addresses.all.insert(address.address);
            if address.preferred && role == Some(Role::NodeDevice) {
                preferred.insert((is_alone(address), address.address));
            }
        }
        if !preferred.is_empty() {
            addresses.of_devices.insert(link.index, preferred.into_iter().map(|(_, address)| address).collect());
        }
    }
    addresses
}

/// Whether there is no network around an address.
fn is_alone(Address { address, prefix_len, .. }: &Address) -> bool {
    *prefix_len == if address.is_ipv4() { 32 } else { 128 }
}

fn is_own(Address { address, global, usable, .. }: &Address) -> bool {
    let link_local = match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    };
    *global && *usable && !link_local && !address.is_loopback() && !address.is_multicast()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interfaces::{Overrides, classify, classify::tests::node};

    fn addresses(text: &str) -> NodeAddresses {
        let snapshot = node(text);
        node_addresses(&snapshot, &classify(&snapshot, &Overrides::default()))
    }

    fn all(text: &str) -> Vec<String> {
        addresses(text).all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn those_of_every_device_but_a_pods() {
        let node = "
            lo loopback addr=127.0.0.1/8 addr=::1/128 addr=203.0.113.1/32 addr=2001:db8:9::1/128
            eth0 nic addr=192.0.2.10/24 addr=192.0.2.11/24 addr=2001:db8::10/64 addr=fe80::1/64 route=0.0.0.0/0
            eth1 nic down addr=198.51.100.1/24
            cni0 bridge addr=10.244.1.1/24 addr=fd00:10:244:1::1/64
            veth1 veth peer master=cni0 addr=fe80::2/64
            lxc2 veth peer addr=10.1.0.1/32 addr=169.254.1.1/32 route=10.1.0.5/32
            nodelocaldns dummy addr=169.254.20.10/32
            kube-ipvs0 dummy addr=10.96.0.1/32 addr=fd00:96::1/128
        ";
        assert_eq!(
            all(node),
            [
                "10.244.1.1",
                "192.0.2.10",
                "192.0.2.11",
                "198.51.100.1",
                "203.0.113.1",
                "2001:db8::10",
                "2001:db8:9::1",
                "fd00:10:244:1::1"
            ]
        );
    }

    #[test]
    fn an_address_on_a_pods_interface_counts_where_another_device_has_it() {
        let node = "
            eth0 nic addr=192.0.2.10/24
            lxc2 veth peer addr=192.0.2.10/32 route=10.1.0.5/32
        ";
        assert_eq!(all(node), ["192.0.2.10"]);
    }

    #[test]
    fn what_another_node_may_have_is_none_and_what_is_deprecated_still_is() {
        assert_eq!(all("eth0 nic tentative=2001:db8::1/64 deprecated=2001:db8::2/64"), ["2001:db8::2"]);
    }

    #[test]
    fn connections_are_opened_from_preferred_addresses_of_node_devices() {
        let node = "
            eth0 nic addr=192.0.2.10/24 addr=2001:db8::10/64 deprecated=2001:db8::2/64
            dummy0 dummy addr=203.0.113.1/32
            wg0 wireguard type=65534 addr=10.8.0.1/32 addr=10.8.0.9/24 addr=2001:db8:8::1/128 addr=2001:db8:8::9/64
        ";
        let of_devices: Vec<_> = addresses(node)
            .of_devices
            .into_iter()
            .flat_map(|(device, addresses)| addresses.into_iter().map(move |address| (device, address.to_string())))
            .collect();
        let expected = [
            (1, "192.0.2.10"),
            (1, "2001:db8::10"),
            (3, "10.8.0.9"),
            (3, "2001:db8:8::9"),
            (3, "10.8.0.1"),
            (3, "2001:db8:8::1"),
        ];
        assert_eq!(of_devices, expected.map(|(device, address)| (device, address.to_owned())));
    }
}
