//! The names and sizes of the maps, and the version of the whole layout.

use crate::IpFamily;

/// The version of the map layout; it is part of the pin path. A change to a key, a value or the meaning of a map
/// takes a new number.
pub const LAYOUT_VERSION: u32 = 10 + cfg!(feature = "next-layout") as u32;

/// The name of the map of settings.
pub const SETTINGS: &str = "SETTINGS";
/// The name of the map of packet counters by reason.
pub const COUNTERS: &str = "COUNTERS";
/// The name of the map of counters by service port.
pub const SERVICE_COUNTERS: &str = "SERVICE_COUNTERS";
/// The name of the map of drops by service port.
pub const SERVICE_DROPS: &str = "SERVICE_DROPS";
/// The name of the map of service port names.
pub const SERVICE_NAMES: &str = "SERVICE_NAMES";

/// The name of the per-CPU budget of refusals.
pub const REFUSALS: &str = "REFUSALS";
/// The name of the map that holds `Routing`.
pub const ROUTING: &str = "ROUTING";
/// The name of the map from a node device's index to its `XdpDevice`.
pub const XDP_DEVICES: &str = "XDP_DEVICES";
/// The name of the map that holds `DaemonRecord`.
pub const DAEMON: &str = "DAEMON";
/// The name of the map that holds `EventFilter`.
pub const EVENT_FILTER: &str = "EVENT_FILTER";
/// The name of the ring of `Event`.
pub const EVENTS: &str = "EVENTS";
/// The name of the per-CPU count of events for which the ring had no room.
pub const EVENTS_LOST: &str = "EVENTS_LOST";
/// The name of the array of programs that tell of packets, by what their device puts in front of them.
pub const OBSERVERS: &str = "OBSERVERS";
/// As `OBSERVERS`, of the one for XDP.
pub const XDP_OBSERVERS: &str = "XDP_OBSERVERS";
/// The name of the array of the program that sends packets past the stack.
pub const SHORTCUTS: &str = "SHORTCUTS";
/// The name of the map from a device's index to its `PodDevice`, which is nobody's but the loaded programs'.
pub const POD_DEVICES: &str = "POD_DEVICES";

/// The names of the maps that exist once for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyMapNames {
    /// `FrontendKey` -> `Frontend`.
    pub frontends: &'static str,
    /// Bits of the frontend filter.
    pub filter: &'static str,
    /// Bits of the filter of backends.
    pub egress_filter: &'static str,
    /// Cells of the filter of backends towards which packets are rewritten as they leave.
    pub leaving_filter: &'static str,
    /// Slot -> id of a backend.
    pub slots: &'static str,
    /// Id -> `Backend`.
    pub backends: &'static str,
    /// `FlowKey` of packets that enter -> `ForwardEntry`, for TCP that both sides have confirmed.
    pub forward: &'static str,
    /// `FlowKey` of packets that leave -> `EgressEntry`, likewise.
    pub egress: &'static str,
    /// As `forward`, for TCP that is opening and for all that is not TCP.
    pub forward_brief: &'static str,
    /// As `egress`, likewise.
    pub egress_brief: &'static str,
    /// `FlowKey` of packets that enter -> `SnatEntry`.
    pub snat: &'static str,
    /// `AffinityKey` -> `Affinity`.
    pub affinity: &'static str,
    /// Trie of `SourceRange` -> one.
    pub ranges: &'static str,
    /// Trie of addresses -> `NetworkFlags`.
    pub networks: &'static str,
    /// Index of a device, or zero for all others -> the address that masqueraded packets leave it with.
    pub masquerade: &'static str,
    /// `FragmentKey` -> `Fragment`.
    pub fragments: &'static str,
    /// `SocketKey` -> `SocketEntry`, of all but TCP.
    pub sockets: &'static str,
    /// Likewise, of TCP.
    pub tcp_sockets: &'static str,
}

/// The name of the map of flows that each CPU remembers, which is nobody's but the loaded program's.
pub const fn cached_flows(family: IpFamily) -> &'static str {
    match family {
        IpFamily::V4 => "FLOWS_V4",
        IpFamily::V6 => "FLOWS_V6",
    }
}

impl FamilyMapNames {
    /// All of them.
    pub const fn all(&self) -> [&'static str; 18] {
        let Self {
            frontends,
            filter,
            egress_filter,
            leaving_filter,
            slots,
            backends,
            forward,
            egress,
            forward_brief,
            egress_brief,
            snat,
            affinity,
            ranges,
            networks,
            masquerade,
            fragments,
            sockets,
            tcp_sockets,
        } = *self;
        [
            frontends,
            filter,
            egress_filter,
            leaving_filter,
            slots,
            backends,
            forward,
            egress,
            forward_brief,
            egress_brief,
            snat,
            affinity,
            ranges,
            networks,
            masquerade,
            fragments,
            sockets,
            tcp_sockets,
        ]
    }
}

/// The names of one family's maps. Kept within the 15 characters that the kernel remembers.
pub const fn family_maps(family: IpFamily) -> FamilyMapNames {
    match family {
        IpFamily::V4 => FamilyMapNames {
            frontends: "FRONTENDS_V4",
            filter: "FILTER_V4",
            egress_filter: "EGRESS_FLT_V4",
            leaving_filter: "LEAVING_FLT_V4",
            slots: "SLOTS_V4",
            backends: "BACKENDS_V4",
            forward: "FORWARD_V4",
            egress: "EGRESS_V4",
            forward_brief: "FORWARD_B_V4",
            egress_brief: "EGRESS_B_V4",
            snat: "SNAT_V4",
            affinity: "AFFINITY_V4",
            ranges: "RANGES_V4",
            networks: "NETWORKS_V4",
            masquerade: "MASQUERADE_V4",
            fragments: "FRAGMENTS_V4",
            sockets: "SOCKETS_V4",
            tcp_sockets: "TCP_SOCKETS_V4",
        },
        IpFamily::V6 => FamilyMapNames {
            frontends: "FRONTENDS_V6",
            filter: "FILTER_V6",
            egress_filter: "EGRESS_FLT_V6",
            leaving_filter: "LEAVING_FLT_V6",
            slots: "SLOTS_V6",
            backends: "BACKENDS_V6",
            forward: "FORWARD_V6",
            egress: "EGRESS_V6",
            forward_brief: "FORWARD_B_V6",
            egress_brief: "EGRESS_B_V6",
            snat: "SNAT_V6",
            affinity: "AFFINITY_V6",
            ranges: "RANGES_V6",
            networks: "NETWORKS_V6",
            masquerade: "MASQUERADE_V6",
            fragments: "FRAGMENTS_V6",
            sockets: "SOCKETS_V6",
            tcp_sockets: "TCP_SOCKETS_V6",
        },
    }
}

/// How many entries the maps have unless told otherwise, for each family where a map exists twice.
pub mod capacity {
    /// Service ports: counters, drops and names.
    pub const SERVICES: u32 = 65_536;
    /// Frontends.
    pub const FRONTENDS: u32 = 131_072;
    /// Backends. An entry is an endpoint of a service port.
    pub const BACKENDS: u32 = 262_144;
    /// Slots.
    pub const SLOTS: u32 = 1_048_576;
    /// Connections: confirmed TCP; and all masqueraded ones.
    pub const CONNECTIONS: u32 = 262_144;
    /// Connections that are opening or not TCP.
    pub const BRIEF_CONNECTIONS: u32 = 131_072;
    /// Clients that are remembered for session affinity.
    pub const AFFINITIES: u32 = 65_536;
    /// Source ranges.
    pub const RANGES: u32 = 65_536;
    /// Networks that are told from others: of pods, of services, those not masqueraded, and every ClusterIP.
    pub const NETWORKS: u32 = 131_072;
    /// Devices with an address of their own for masqueraded packets.
    pub const DEVICES: u32 = 4096;
    /// Node devices, with XDP and without.
    pub const XDP_DEVICES: u32 = 4096;
    /// Devices that lead to pods.
    pub const POD_DEVICES: u32 = 4096;
    /// Flows that each CPU remembers for XDP; a power of two.
    pub const CACHED_FLOWS: u32 = 16_384;
    /// Packets in fragments that are under way.
    pub const FRAGMENTS: u32 = 8192;
    /// Sockets that were translated: of TCP, and of all else.
    pub const SOCKETS: u32 = 65_536;
}
