//! What user space tells the running programs, in a map so that it can change without loading them anew.

use crate::{
    Addr4, Addr6, Address,
    flow::FlowState,
    record::{family_record, record},
};

/// The one entry of the settings map. Times are in jiffies, the kernel's clock tick, which costs the
/// programs a memory read where a clock in nanoseconds costs a call.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The kernel's HZ. Never zero: without it every packet would refresh its entry.
    pub jiffies_per_second: u32,
    /// How long a connection counts without a packet, by the number of its `FlowState`.
    pub lifetimes: [u32; FlowState::COUNT],
    /// [`SettingFlags`].
    pub flags: u32,
    /// The first and the last port that masqueraded packets leave with, host byte order.
    pub snat_ports: [u16; 2],
    /// How many refusals a CPU sends in a second.
    pub refusals_per_second: u32,
    /// The smallest network that holds every ClusterIP and every range of them.
    pub services_v4: Network<Addr4>,
    /// As `services_v4`.
    pub services_v6: Network<Addr6>,
    /// The cookie of the host's network namespace: the sockets of others are left alone unless `ALL_SOCKETS` is set.
    pub host_namespace: u64,
}

/// Bits of [`Settings::flags`].
pub struct SettingFlags;

impl SettingFlags {
    /// Everything sent to a ClusterIP is masqueraded.
    pub const MASQUERADE_ALL: u32 = 1 << 0;
    /// Traffic of pods that leaves the cluster is masqueraded.
    pub const MASQUERADE_EGRESS: u32 = 1 << 1;
    /// TCP whose backend has gone from its Service is reset.
    pub const RESET_GONE: u32 = 1 << 2;
    /// The sockets of every network namespace are translated, and not the host's alone.
    pub const ALL_SOCKETS: u32 = 1 << 3;
    /// A source within a network that has `NetworkFlags::POD` counts as inside, whatever device it comes by.
    pub const INSIDE_BY_NETWORK: u32 = 1 << 4;
}

/// A network: an address and its mask, both in network byte order. A mask of all ones with an address of zero holds nobody
/// of interest, a mask of zero everybody.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network<A> {
    /// The address, its host part zero.
    pub address: A,
    /// Ones where the address counts.
    pub mask: A,
}

impl<A: Address> Network<A> {
    /// Whether `address` is in the network.
    #[inline(always)]
    pub fn has(&self, address: &A) -> bool {
        let (wanted, mask, found) = (self.address.words(), self.mask.words(), address.words());
        let mut difference = 0;
        let mut index = 0;
        while index < found.len() && index < mask.len() && index < wanted.len() {
            difference |= (found[index] & mask[index]) ^ wanted[index];
            index += 1;
        }
        difference == 0
    }
}

/// Bits of the values in the trie of networks. A network's value tells of all that its addresses are in.
pub struct NetworkFlags;

impl NetworkFlags {
    /// Pods' addresses.
    pub const POD: u32 = 1 << 0;
    /// Not masqueraded when a pod sends there.
    pub const NOT_MASQUERADED: u32 = 1 << 1;
    /// A range from which ClusterIPs are given out: packets to addresses of it that no Service has are dropped.
    pub const SERVICE: u32 = 1 << 2;
    /// The ClusterIP of a Service: packets to ports that it does not have are refused.
    pub const CLUSTER_IP: u32 = 1 << 3;
}

family_record! {
    Network = [2 addresses];
}

record! {
    Settings = [4, 4 * FlowState::COUNT, 4, 4, 4, 8, 32, 8];
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn a_network_holds_what_its_mask_says() {
        let v4 = |text: &str| Addr4::from(text.parse::<Ipv4Addr>().expect("address"));
        let network = Network { address: v4("10.96.0.0"), mask: v4("255.240.0.0") };
        assert!(network.has(&v4("10.96.0.10")) && network.has(&v4("10.111.255.255")));
        assert!(!network.has(&v4("10.112.0.0")) && !network.has(&v4("11.96.0.0")));
        let v6 = |text: &str| Addr6::from(text.parse::<Ipv6Addr>().expect("address"));
        let network = Network { address: v6("fd00:96::"), mask: v6("ffff:ffff:ffff:ffff:ffff:ffff:ffff:0") };
        assert!(network.has(&v6("fd00:96::10")) && !network.has(&v6("fd00:96::1:10")));
        assert!(Network { address: Addr4::default(), mask: Addr4::default() }.has(&v4("192.0.2.1")));
    }
}
