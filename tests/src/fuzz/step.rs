//! One thing that happens in a scene.

use std::{fmt, net::SocketAddr};

use dsproxy_common::IpFamily;

use crate::{
    packet::Link,
    prog::{Hook, SkBuff, program_name},
};

/// Where a packet meets a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At a tc hook.
    Tc(Hook, Link),
    /// At XDP.
    Xdp,
}

impl Place {
    pub(super) fn link(self) -> Link {
        match self {
            Self::Tc(_, link) => link,
            Self::Xdp => Link::Ethernet,
        }
    }
}

/// A change of what is served, by the number of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// An endpoint takes no new connections.
    Drains(usize, IpFamily, usize),
    /// An endpoint goes.
    Goes(usize, IpFamily, usize),
    /// A frontend goes.
    Closes(usize, IpFamily, usize),
    /// The service goes.
    Ends(usize),
    /// The kernel's routing changes.
    Routing,
}

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A packet meets a program.
    Packet {
        place: Place,
        bytes: Vec<u8>,
        /// At a tc hook, the buffer it stands in.
        buffer: SkBuff,
    },
    /// So many sixteenths of a second pass.
    Pass(u64),
    /// An entry is evicted.
    Evict {
        leaves: bool,
        protocol: u8,
        source: SocketAddr,
        destination: SocketAddr,
    },
    Change(Change),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packet { place, bytes, buffer } => {
                let name = match place {
                    Place::Tc(hook, link) => program_name(*hook, *link),
                    Place::Xdp => "node_xdp",
                };
                write!(f, "{name} ")?;
                if buffer.device != 0 {
                    write!(f, "by device {} ", buffer.device)?;
                }
                if let Some((size, count)) = buffer.segments {
                    write!(f, "{count} segments of {size} ")?;
                }
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
            Self::Evict { leaves, protocol, source, destination } => {
                let table = if *leaves { "egress" } else { "forward" };
                write!(f, "evict {table} {protocol} {source} -> {destination}")
            }
            Self::Pass(sixteenths) => write!(f, "{sixteenths} sixteenths of a second pass"),
            Self::Change(change) => write!(f, "{change:?}"),
        }
    }
}
