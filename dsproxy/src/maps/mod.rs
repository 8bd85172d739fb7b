//! The maps of the data path as user space writes and reads them: typed, both families alike.
//!
//! [`MapStore`] is the seam: `kernel` is the real thing, `memory` the same in memory for tests, with failures on demand.
//! Nothing here decides what to write.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use dsproxy_common::{
    IpFamily, Protocol,
    layout::capacity,
    service::{BackendState, Frontend},
};
use ipnet::IpNet;
use thiserror::Error;

pub mod daemon;
pub mod events;
pub mod kernel;
mod kernel_names;
pub mod memory;
pub mod next_hops;
pub mod pod_devices;
pub mod settings;

/// The address, port and protocol of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendAddress {
    /// The VIP.
    pub address: IpAddr,
    /// The port on the VIP, host byte order.
    pub port: u16,
    /// The transport protocol.
    pub protocol: Protocol,
}

impl FrontendAddress {
    /// The family of the VIP.
    pub fn family(&self) -> IpFamily {
        IpFamily::of(self.address)
    }
}

impl fmt::Display for FrontendAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", std::net::SocketAddr::new(self.address, self.port), self.protocol)
    }
}

/// The record of a backend id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendRecord {
    /// The endpoint's address.
    pub address: IpAddr,
    /// The endpoint's port, host byte order.
    pub port: u16,
    /// How many endpoints the id has named.
    pub generation: u32,
    /// The id of the service port.
    pub service: u32,
    /// Whether it takes connections.
    pub state: BackendState,
    /// `BackendFlags`.
    pub flags: u8,
}

/// What a filter's bits stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FilterOf {
    /// Addresses, ports and protocols of frontends.
    Frontends,
    /// Those of backends.
    Backends,
}

impl FilterOf {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Frontends, Self::Backends];
}

/// One write to one map. A slice of them, applied in order, takes the data path from one state to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Write {
    /// Names a service port, or takes its name away.
    Name {
        /// The id of the service port.
        service: u32,
        /// `namespace/name:port/PROTOCOL`.
        name: Option<String>,
    },
    /// Starts the counters of a service port at zero.
    ResetCounters {
        /// The id of the service port.
        service: u32,
    },
    /// Writes the record of a backend id.
    Backend {
        /// The family of its address.
        family: IpFamily,
        /// The id.
        id: u32,
        /// The record.
        record: BackendRecord,
    },
    /// Writes a run of slots that no frontend uses, or none but those of the same service port.
    Slots {
        /// The family.
        family: IpFamily,
        /// The index of the first slot.
        first: u32,
        /// The id of the service port the run is for.
        service: u32,
        /// The backend ids.
        backends: Vec<u32>,
    },
    /// Writes a word of a filter.
    FilterWord {
        /// The family.
        family: IpFamily,
        /// Which filter.
        filter: FilterOf,
        /// The index of the word.
        index: u32,
        /// Its new value.
        value: u64,
    },
    /// Adds or switches a frontend.
    Frontend {
        /// Where it is reached.
        address: FrontendAddress,
        /// What stands there.
        frontend: Frontend,
    },
    /// Removes a frontend.
    RemoveFrontend {
        /// Where it was reached.
        address: FrontendAddress,
    },
    /// Lets clients within `range` through to those frontends of a service port that check their source.
    SourceRange {
        /// The id of the service port.
        service: u32,
        /// The clients.
        range: IpNet,
    },
    /// Takes a source range of a service port away.
    RemoveSourceRange {
        /// The id of the service port.
        service: u32,
        /// The clients.
        range: IpNet,
    },
    /// Says what is known of all addresses of a network for which no smaller network says more.
    Network {
        /// The addresses.
        network: IpNet,
        /// `NetworkFlags`.
        flags: u32,
    },
    /// Leaves the addresses of a network to the larger networks that they are in.
    RemoveNetwork {
        /// The addresses.
        network: IpNet,
    },
    /// Says where all ClusterIPs and all ranges of them are.
    ServiceNetwork {
        /// The family.
        family: IpFamily,
        /// The smallest network that holds them; none when there are none.
        network: Option<IpNet>,
    },
    /// Gives the address that masqueraded packets leave a device with.
    Masquerade {
        /// The index of the device; zero stands for all others.
        device: u32,
        /// The address, whose family is that of the packets.
        address: IpAddr,
    },
    /// Leaves masqueraded packets of a device with the address of all others.
    RemoveMasquerade {
        /// The family of the packets.
        family: IpFamily,
        /// The index of the device.
        device: u32,
    },
}

/// What the maps hold, as read back at start.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// The names of service ports, by id.
    pub names: Vec<(u32, String)>,
    /// The frontends of both families.
    pub frontends: Vec<(FrontendAddress, Frontend)>,
    /// The backend records that were ever written, of both families, by id.
    pub backends: Vec<(IpFamily, u32, BackendRecord)>,
    /// What stands in the slots of the runs that frontends use, by family and first slot.
    pub runs: BTreeMap<(IpFamily, u32), Vec<u32>>,
    /// The words of the filters that are not zero.
    pub filter: Vec<(IpFamily, FilterOf, u32, u64)>,
    /// The source ranges, by service port.
    pub source_ranges: Vec<(u32, IpNet)>,
    /// The networks with their `NetworkFlags`.
    pub networks: Vec<(IpNet, u32)>,
    /// Where the programs were told that all ClusterIPs are, in each family.
    pub service_networks: Vec<(IpFamily, Option<IpNet>)>,
    /// The addresses of masqueraded packets, by device.
    pub masquerade: Vec<(u32, IpAddr)>,
}

/// How many entries the maps have. Where a map exists for each family, each of the two has as many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Service ports.
    pub services: u32,
    /// Frontends.
    pub frontends: u32,
    /// Backends.
    pub backends: u32,
    /// Slots.
    pub slots: u32,
    /// Connections: confirmed TCP, and of those that are masqueraded all.
    pub connections: u32,
    /// Connections that are opening or not TCP.
    pub brief_connections: u32,
    /// Clients that are remembered for session affinity.
    pub affinities: u32,
    /// Source ranges.
    pub source_ranges: u32,
}

impl Capacities {
    /// How many networks there may be: every ClusterIP that is served has a frontend at least, and the rest is for ranges, and for
    /// what other proxies serve within those that ClusterIPs are given out from.
    pub const fn networks(&self) -> u32 {
        self.frontends.saturating_add(1024)
    }

    /// How many entries a map has room for, in each family; none of those that are not filled.
    pub const fn of(&self, map: MapKind) -> Option<u32> {
        Some(match map {
            MapKind::Services => self.services,
            MapKind::Frontends => self.frontends,
            MapKind::Slots => self.slots,
            MapKind::Backends => self.backends,
            MapKind::Connections | MapKind::Masqueraded => self.connections,
            MapKind::BriefConnections => self.brief_connections,
            MapKind::Affinities => self.affinities,
            MapKind::Sockets | MapKind::TcpSockets => capacity::SOCKETS,
            MapKind::SourceRanges => self.source_ranges,
            MapKind::Networks => self.networks(),
            MapKind::Filter
            | MapKind::NodeAddresses
            | MapKind::Settings
            | MapKind::Routing
            | MapKind::XdpDevices
            | MapKind::Counters
            | MapKind::Daemon
            | MapKind::Events
            | MapKind::Fragments => return None,
        })
    }
}

impl Default for Capacities {
    fn default() -> Self {
        Self {
            services: capacity::SERVICES,
            frontends: capacity::FRONTENDS,
            backends: capacity::BACKENDS,
            slots: capacity::SLOTS,
            connections: capacity::CONNECTIONS,
            brief_connections: capacity::BRIEF_CONNECTIONS,
            affinities: capacity::AFFINITIES,
            source_ranges: capacity::RANGES,
        }
    }
}

/// A map, as errors and metrics name it, with the flag that sizes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MapKind {
    /// Names and counters of service ports.
    Services,
    /// Frontends.
    Frontends,
    /// The filters of frontends and of backends.
    Filter,
    /// Slots.
    Slots,
    /// Backends.
    Backends,
    /// The table of confirmed TCP connections.
    Connections,
    /// The table of all other connections.
    BriefConnections,
    /// Who is behind an address and port of the node.
    Masqueraded,
    /// Clients that stay with their endpoint.
    Affinities,
    /// Sockets that were led to backends, but for those of TCP.
    Sockets,
    /// Sockets of TCP that were.
    TcpSockets,
    /// Source ranges of service ports.
    SourceRanges,
    /// What is known of networks.
    Networks,
    /// The addresses that masqueraded packets leave with.
    NodeAddresses,
    /// The settings.
    Settings,
    /// What XDP is told of the kernel's routing.
    Routing,
    /// Node devices: what XDP may do with each, or why it leaves it alone.
    XdpDevices,
    /// Packet counters.
    Counters,
    /// What the daemon says of itself.
    Daemon,
    /// What the programs tell of packets while somebody listens.
    Events,
    /// Packets in fragments that are under way.
    Fragments,
}

impl MapKind {
    /// Whether its entries are what the programs have met, and not what they are told. When such a map is full, the least recently used
    /// gives way.
    pub const fn is_made_by_programs(self) -> bool {
        matches!(
            self,
            Self::Connections
                | Self::BriefConnections
                | Self::Masqueraded
                | Self::Affinities
                | Self::Sockets
                | Self::TcpSockets
        )
    }

    /// The name in messages and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Frontends => "frontends",
            Self::Filter => "filter",
            Self::Slots => "slots",
            Self::Backends => "backends",
            Self::Connections => "connections",
            Self::BriefConnections => "brief connections",
            Self::Masqueraded => "masqueraded connections",
            Self::Affinities => "affinities",
            Self::Sockets => "sockets",
            Self::TcpSockets => "TCP sockets",
            Self::SourceRanges => "source ranges",
            Self::Networks => "networks",
            Self::NodeAddresses => "node addresses",
            Self::Settings => "settings",
            Self::Routing => "routing",
            Self::XdpDevices => "XDP devices",
            Self::Counters => "counters",
            Self::Daemon => "the daemon's word",
            Self::Events => "events",
            Self::Fragments => "fragments",
        }
    }

    /// The flag that sets how many entries the map has; none for maps of a fixed size.
    pub fn flag(self) -> Option<&'static str> {
        match self {
            Self::Services => Some("--max-services"),
            // A network for each ClusterIP, which has a frontend at least.
            Self::Frontends | Self::Networks => Some("--max-frontends"),
            Self::Slots => Some("--max-slots"),
            Self::Backends => Some("--max-backends"),
            Self::Connections | Self::Masqueraded => Some("--max-connections"),
            Self::BriefConnections => Some("--max-brief-connections"),
            Self::Affinities => Some("--max-affinities"),
            Self::SourceRanges => Some("--max-source-ranges"),
            Self::Filter
            | Self::NodeAddresses
            | Self::Settings
            | Self::Routing
            | Self::XdpDevices
            | Self::Sockets
            | Self::TcpSockets
            | Self::Counters
            | Self::Daemon
            | Self::Events
            | Self::Fragments => None,
        }
    }
}

/// Why a map could not be read or written.
#[derive(Debug, Error)]
pub enum MapError {
    /// There is no room.
    #[error("the map of {} is full with {capacity} entries; {} sets its size", map.name(), map.flag().unwrap_or("nothing"))]
    Full {
        /// Which map.
        map: MapKind,
        /// How many entries it has.
        capacity: u32,
    },
    /// The kernel refused.
    #[error("{operation} the map of {}: {source}", map.name())]
    Kernel {
        /// What was tried.
        operation: &'static str,
        /// Which map.
        map: MapKind,
        /// What the kernel said.
        source: aya::maps::MapError,
    },
    /// A test asked for this failure.
    #[error("failure on demand")]
    OnDemand,
}

/// Where writes go.
pub trait MapStore {
    /// Applies one write. On an error nothing of it has happened, except that of a run of slots any part
    /// may have been written.
    fn write(&mut self, write: &Write) -> Result<(), MapError>;

    /// How many entries the maps have.
    fn capacities(&self) -> Capacities;
}
