//! The names and sizes of the maps, and the version of the whole layout.

use crate::IpFamily;

/// The version of the map layout; it is part of the pin path. A change to a key, a value or the meaning of a map
/// takes a new number.
pub const LAYOUT_VERSION: u32 = 1;

/// The name of the map of settings.
pub const SETTINGS: &str = "SETTINGS";
/// The name of the map of packet counters by reason.
pub const COUNTERS: &str = "COUNTERS";
/// The name of the map of counters by service port.
pub const SERVICE_COUNTERS: &str = "SERVICE_COUNTERS";
/// The name of the map of service port names.
pub const SERVICE_NAMES: &str = "SERVICE_NAMES";

/// The names of the maps that exist once for each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FamilyMapNames {
    /// `FrontendKey` -> `Frontend`.
    pub frontends: &'static str,
    /// Bits of the frontend filter.
    pub filter: &'static str,
    /// Slot -> id of a backend.
    pub slots: &'static str,
    /// Id -> `Backend`.
    pub backends: &'static str,
    /// `FlowKey` -> `ForwardEntry`.
    pub forward: &'static str,
    /// `FlowKey` -> `ReplyEntry`.
    pub reply: &'static str,
}

/// The names of one family's maps. Kept within the 15 characters that the kernel remembers.
pub const fn family_maps(family: IpFamily) -> FamilyMapNames {
    match family {
        IpFamily::V4 => FamilyMapNames {
            frontends: "FRONTENDS_V4",
            filter: "FILTER_V4",
            slots: "SLOTS_V4",
            backends: "BACKENDS_V4",
            forward: "FORWARD_V4",
            reply: "REPLY_V4",
        },
        IpFamily::V6 => FamilyMapNames {
            frontends: "FRONTENDS_V6",
            filter: "FILTER_V6",
            slots: "SLOTS_V6",
            backends: "BACKENDS_V6",
            forward: "FORWARD_V6",
            reply: "REPLY_V6",
        },
    }
}

/// How many entries the maps have unless told otherwise, for each family where a map exists twice.
pub mod capacity {
    /// Service ports: counters and names.
    pub const SERVICES: u32 = 65_536;
    /// Frontends.
    pub const FRONTENDS: u32 = 131_072;
    /// Backends. An entry is an endpoint of a service port.
    pub const BACKENDS: u32 = 262_144;
    /// Slots.
    pub const SLOTS: u32 = 1_048_576;
    /// Connections.
    pub const CONNECTIONS: u32 = 262_144;
}
