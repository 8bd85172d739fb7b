//! The network interfaces of the node: which of them the data path has to sit on, and as what.
//!
//! `snapshot` holds links, addresses and routes as the kernel tells them, `message` reads its
//! messages, `classify` (pure) decides, `addresses` (pure) says which addresses are the node's, `watch`
//! keeps it all current. Nothing here knows how a program is attached.

mod addresses;
mod classify;
mod message;
mod snapshot;
mod watch;

use std::collections::BTreeMap;

use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::Serialize;
use thiserror::Error;

pub use addresses::{NodeAddresses, node_addresses};
pub use classify::classify;
pub use snapshot::{Address, Link, Route, RouteKey, Snapshot};
pub use watch::{InterfaceError, Watch, read, watch};

/// The interfaces with a role, by interface index.
pub type Interfaces = BTreeMap<u32, Interface>;

/// What an interface is to the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The host side of a pod's veth or netkit.
    PodInterface,
    /// Carries a node address or a route towards other nodes or the world.
    NodeDevice,
}

/// What a packet on the interface begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkLayer {
    /// An Ethernet header.
    Ethernet,
    /// The IP header at once.
    None,
}

/// An interface that the data path sits on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Interface {
    /// The interface index, unique within the network namespace.
    pub index: u32,
    /// The name, which may change.
    pub name: String,
    /// What it is.
    pub role: Role,
    /// What its packets begin with.
    pub link_layer: LinkLayer,
    /// Its link-layer address, as long as its kind of device has them.
    pub address: Vec<u8>,
    /// The longest packet that it takes, in bytes.
    pub mtu: u32,
    /// Of a pod's interface, the device that has its IP layer, if only pods are behind that.
    pub ip_device: Option<IpDevice>,
}

/// A device that packets are routed to: an interface itself, or the bridge that it is a port of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct IpDevice {
    /// The interface index.
    pub index: u32,
    /// Its link-layer address, as long as its kind of device has them.
    pub address: Vec<u8>,
}

/// What the user said instead of leaving it to detection.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    node_devices: Option<Vec<String>>,
    pod_interfaces: Option<GlobSet>,
}

/// A pattern that cannot be used.
#[derive(Debug, Error)]
#[error("--pod-interfaces: {source}; write a name with * and ?, such as veth*")]
pub struct PatternError {
    #[from]
    source: globset::Error,
}

impl Overrides {
    /// The values of `--node-devices` and `--pod-interfaces`. An empty list is not given at all:
    /// the role is detected.
    pub fn new(node_devices: &[String], pod_interfaces: &[String]) -> Result<Self, PatternError> {
        let mut globs = GlobSetBuilder::new();
        for pattern in pod_interfaces {
            globs.add(Glob::new(pattern)?);
        }
        Ok(Self {
            node_devices: (!node_devices.is_empty()).then(|| node_devices.to_vec()),
            pod_interfaces: (!pod_interfaces.is_empty()).then(|| globs.build()).transpose()?,
        })
    }
}
