//! What user space tells the running programs, in a map so that it can change without loading them anew.

use crate::{
    Addr4, Addr6, Address, Port, Protocol,
    count::Reason,
    flow::FlowState,
    record::{family_record, record},
    service::{BackendFlags, Frontend, FrontendFlags, FrontendKind},
};

/// Whether `port` is of those from `first` to `last`: one comparison, on the way of every packet that enters.
#[inline(always)]
fn is_within([first, last]: [u16; 2], port: Port) -> bool {
    port.number().wrapping_sub(first) <= last.wrapping_sub(first)
}

/// The one entry of the settings map. Times are in jiffies, the kernel's clock tick, which costs the
/// programs a memory read where a clock in nanoseconds costs a call.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// The kernel's HZ. Never zero: without it every packet would refresh its entry.
    pub jiffies_per_second: u32,
    /// How long a connection counts without a packet, by the number of its `FlowState`.
    pub lifetimes: [u32; FlowState::COUNT],
    /// How long a masqueraded connection that has fallen silent keeps its port from others, by the number of its `FlowState`; and from
    /// those that found no other.
    pub port_waits: [[u32; FlowState::COUNT]; 2],
    /// [`SettingFlags`].
    pub flags: u32,
    /// The first and the last port that masqueraded packets leave with, host byte order.
    pub snat_ports: [u16; 2],
    /// Those of them that new connections get: not all while programs of another layout, whose connections these do not know, give some
    /// to theirs.
    pub offered_ports: [u16; 2],
    /// How many refusals a CPU sends in a second.
    pub refusals_per_second: u32,
    /// The smallest network that holds every ClusterIP and every range of them.
    pub services_v4: Network<Addr4>,
    /// As `services_v4`.
    pub services_v6: Network<Addr6>,
    /// Zero: a record has no padding.
    pub reserved: u32,
    /// The cookie of the host's network namespace: the sockets of others are left alone unless `ALL_SOCKETS` is set.
    pub host_namespace: u64,
}

impl Settings {
    /// How long a connection in `state` counts without a packet.
    #[inline(always)]
    pub const fn lifetime(&self, state: FlowState) -> u32 {
        self.lifetimes[state.number() as usize & (FlowState::COUNT - 1)]
    }

    /// These settings, with the ports of `range` for masqueraded packets, all of them for new connections.
    #[must_use]
    pub const fn with_snat_ports(mut self, range: [u16; 2]) -> Self {
        self.snat_ports = range;
        self.offered_ports = range;
        self
    }

    /// These settings, with the times after which ports serve again, by lifetimes and the length of a second. Where XDP is used
    /// (`is_remembered`) another CPU may remember for as long as a second where the answers of what is over went (`cached_flow`).
    #[must_use]
    pub fn with_port_waits(mut self, is_remembered: bool) -> Self {
        /// Until a SYN is sent again, and some.
        const UNANSWERED: u32 = 3;
        /// What nf_conntrack gives a single exchange (`UDP_CT_UNREPLIED`, net/netfilter/nf_conntrack_proto_udp.c), and as much again as
        /// an entry may seem older than it is: XDP writes no times, and without the daemon goes on for so long without the stack's turn.
        const EXCHANGE: u32 = 30 + 20;
        let second = self.jiffies_per_second;
        // An entry of exactly that age has not expired.
        let mut waits = self.lifetimes.map(|lifetime| lifetime + 1);
        let mut shorten = |state: FlowState, wait: u32| {
            let held = &mut waits[usize::from(state.number())];
            *held = wait.min(*held);
            waits
        };
        for state in [FlowState::Closing, FlowState::Reset] {
            shorten(state, if is_remembered { second } else { 0 });
        }
        let at_first = shorten(FlowState::Opening, UNANSWERED * second);
        let in_need = shorten(FlowState::Stateless, EXCHANGE * second);
        self.port_waits = [at_first, in_need];
        self
    }

    /// Whether a masqueraded connection in the state of this number, last seen at `last_seen`, gives its port to another; `in_need`, to
    /// one that found no other.
    #[inline(always)]
    pub const fn gives_port_away(&self, state_number: u16, last_seen: u32, in_need: bool, now: u32) -> bool {
        let wait = self.port_waits[in_need as usize][state_number as usize & (FlowState::COUNT - 1)];
        let second = self.jiffies_per_second;
        // As `Age::of` has it: what another CPU has just written may seem to come from the future.
        now.wrapping_sub(last_seen).wrapping_add(second) >= wait.wrapping_add(second)
    }

    /// Whether `port` is one that masqueraded packets leave with.
    #[inline(always)]
    pub fn is_snat_port(&self, port: Port) -> bool {
        is_within(self.snat_ports, port)
    }

    /// Whether a new connection that is masqueraded may keep `port`.
    #[inline(always)]
    pub fn is_offered(&self, port: Port) -> bool {
        is_within(self.offered_ports, port)
    }

    /// The port that the low half of `number` falls on, of those that new connections get.
    #[inline(always)]
    pub const fn offered_port(&self, number: u32) -> Port {
        let [first, last] = self.offered_ports;
        let count = last.wrapping_sub(first) as u32 + 1;
        Port::new(first.wrapping_add((((number & 0xffff) * count) >> 16) as u16))
    }

    /// Whether a client within a network of these `NetworkFlags` counts as inside the cluster, whatever device it comes by.
    #[inline(always)]
    pub const fn knows_inside(&self, network: u32) -> bool {
        self.flags & SettingFlags::INSIDE_BY_NETWORK != 0 && network & NetworkFlags::POD != 0
    }

    /// How a connection of `protocol` to a backend of these `BackendFlags` leaves: masqueraded where its answers would not come
    /// back by themselves, because the client came by a node device and the backend is elsewhere, or because they are one and
    /// the same (`is_hairpin`). And where that is wanted for all ClusterIPs. The answers need not come back where they may go
    /// to the client directly.
    #[inline(always)]
    pub const fn passage(
        &self,
        frontend: &Frontend,
        backend: u8,
        protocol: u32,
        by_node_device: bool,
        is_hairpin: bool,
    ) -> Passage {
        let passes_by = by_node_device && backend & BackendFlags::LOCAL == 0;
        let is_of_cluster_ip = frontend.flags & FrontendFlags::KIND == FrontendKind::ClusterIp as u32;
        let is_wanted = self.flags & SettingFlags::MASQUERADE_ALL != 0 && is_of_cluster_ip;
        if is_hairpin || is_wanted {
            Passage::Masqueraded
        } else if !passes_by {
            Passage::Plain
        } else if !is_of_cluster_ip && backend & BackendFlags::ON_NODE != 0 && self.goes_directly(protocol) {
            Passage::Direct
        } else {
            Passage::Masqueraded
        }
    }

    /// Whether backends on other nodes answer clients of `protocol` directly.
    #[inline(always)]
    const fn goes_directly(&self, protocol: u32) -> bool {
        const TCP: u32 = Protocol::Tcp as u32;
        const UDP: u32 = Protocol::Udp as u32;
        match protocol {
            TCP => self.flags & SettingFlags::DIRECT_TCP != 0,
            UDP => self.flags & SettingFlags::DIRECT_UDP != 0,
            _ => false,
        }
    }
}

/// How a client's packets leave towards their backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// With the client's address: the answers pass this node by themselves.
    Plain,
    /// With an address of the node.
    Masqueraded,
    /// With the client's address, and those that open with the VIP: the backend's node answers the client by that.
    Direct,
}

impl Passage {
    /// The next best, where the client is not to be answered directly.
    #[must_use]
    pub const fn without_direct(self) -> Self {
        match self {
            Self::Direct => Self::Masqueraded,
            passage => passage,
        }
    }
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
    /// Backends on other nodes answer the TCP of clients outside directly.
    pub const DIRECT_TCP: u32 = 1 << 5;
    /// Likewise UDP.
    pub const DIRECT_UDP: u32 = 1 << 6;
    /// What other nodes send for backends here to answer directly is taken for that.
    pub const ACCEPT_DIRECT: u32 = 1 << 7;
    /// What goes through a VIP from pods to pods of this node passes the stack by.
    pub const POD_SHORTCUT: u32 = 1 << 8;
    /// Programs are being attached: for a moment a packet may meet two at one hook, the second of which sees what the first has made of it.
    pub const ATTACHING: u32 = 1 << 9;
    /// Programs of another layout serve what these do not know: TCP that goes on is left to them.
    pub const BESIDE_OTHERS: u32 = 1 << 10;
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

    /// Why a packet to an address of such a network, where no frontend is, goes no further, if it does not.
    #[inline(always)]
    pub const fn without_frontend(network: u32) -> Option<Reason> {
        if network & Self::CLUSTER_IP != 0 {
            Some(Reason::NoPort)
        } else if network & Self::SERVICE != 0 {
            Some(Reason::Unallocated)
        } else {
            None
        }
    }
}

family_record! {
    Network { address, mask }
}

record! {
    Settings { jiffies_per_second, lifetimes, port_waits, flags, snat_ports, offered_ports, refusals_per_second, services_v4, services_v6, reserved, host_namespace }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    #[test]
    fn a_port_serves_again_when_nobody_can_be_hurt() {
        let lifetimes = [60, 86_400, 3600, 3600, 120, 10, 120, 60];
        let settings = Settings { jiffies_per_second: 1, lifetimes, ..Settings::default() };
        let [without, with] = [false, true].map(|is_remembered| settings.with_port_waits(is_remembered));
        let after = |settings: &Settings, state: FlowState, in_need: bool| {
            let last_seen = u32::MAX - 50;
            let gives_away = |wait: &u32| {
                settings.gives_port_away(state.number(), last_seen, in_need, last_seen.wrapping_add(*wait))
            };
            (0..100_000).find(gives_away).expect("a time")
        };
        for state in [FlowState::Closing, FlowState::Reset] {
            assert_eq!(
                (after(&without, state, false), after(&with, state, true)),
                (0, 1),
                "another CPU may remember it"
            );
        }
        for (state, wait, in_need) in [
            (FlowState::Opening, 3, 3),
            (FlowState::Stateless, 121, 50),
            (FlowState::Answered, 61, 61),
            (FlowState::Established, 86_401, 86_401),
        ] {
            assert_eq!((after(&with, state, false), after(&without, state, true)), (wait, in_need), "{state:?}");
        }
        assert!(!with.gives_port_away(FlowState::Closing.number(), 7, false, 6), "it is of now");
        let weeks = u32::MAX / 2 + 2;
        assert!(with.gives_port_away(FlowState::Established.number(), 7, false, 7 + weeks), "not of what is to come");
        let brief = Settings { lifetimes: [2; 8], ..settings }.with_port_waits(false);
        assert_eq!(after(&brief, FlowState::Stateless, true), 3, "not longer than it counts");
    }

    #[test]
    fn every_port_of_the_range_is_fallen_on_and_no_other() {
        for offered_ports in [[49_152, 65_535], [60_000, 60_000], [1, 65_535], [40_000, 40_009]] {
            let settings = Settings { offered_ports, ..Settings::default() };
            let ports: std::collections::BTreeSet<u16> =
                (0..=u32::from(u16::MAX)).map(|number| settings.offered_port(number).number()).collect();
            assert!(ports.iter().all(|port| settings.is_offered(Port::new(*port))), "{offered_ports:?}");
            assert_eq!(ports.len(), usize::from(offered_ports[1] - offered_ports[0]) + 1, "{offered_ports:?}");
            assert_eq!(settings.offered_port(0x0001_0000), settings.offered_port(0), "the low half alone counts");
        }
    }

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
