//! Service lookup: frontends, the slots that name their backends, and the backends.
//!
//! A packet's destination finds a [`Frontend`] in one hash lookup; the frontend names two runs of slots in one
//! flat array, for clients inside and outside the cluster; a slot holds a backend's id, which indexes the array of
//! [`Backend`]s.

use crate::{
    Address, Port,
    count::Reason,
    flow::FlowKey,
    hash,
    record::{family_record, record},
};

/// What a packet to a Service is looked up by.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FrontendKey<A> {
    /// The VIP.
    pub address: A,
    /// The port on the VIP.
    pub port: Port,
    /// The IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub reserved: u8,
}

impl<A> FrontendKey<A> {
    /// The key of `address`, `port` and `protocol`.
    #[inline(always)]
    pub const fn new(address: A, port: Port, protocol: u8) -> Self {
        Self { address, port, protocol, reserved: 0 }
    }
}

/// A run of slots.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slots {
    /// The index of the first slot; when there is one slot only, the id of the one backend itself.
    pub first: u32,
    /// How many slots there are. Zero: there is no endpoint to send a new connection to.
    pub count: u32,
}

/// How many slots are tried when the backend on the first is not to be had.
pub const SLOT_TRIES: u32 = 4;

/// Where new connections of a frontend's clients go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The slots.
    pub slots: Slots,
    /// The bit of [`BackendFlags`] that each backend has that may be picked from them.
    pub list: u8,
    /// Whether clients are left without an answer when there are no slots.
    pub drops: bool,
}

impl Run {
    /// Why a client goes nowhere when there are no slots.
    #[inline(always)]
    pub const fn nobody(&self) -> Reason {
        if self.drops { Reason::NoLocalEndpoint } else { Reason::NoEndpoint }
    }
}

/// One address, port and protocol at which a service port is reached.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// The id of the service port: it indexes the per-service counters and the names.
    pub service: u32,
    /// Where new connections of clients inside the cluster go: pods, and the node itself.
    pub inside: Slots,
    /// Where new connections of everybody else go.
    pub outside: Slots,
    /// How long a client stays with its endpoint after its last new connection, in seconds. Zero: no affinity.
    pub affinity: u32,
    /// A [`FrontendKind`] and [`FrontendFlags`].
    pub flags: u32,
}

/// What makes an address and port a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FrontendKind {
    /// A ClusterIP and a port of its Service.
    ClusterIp = 0,
    /// An address of the node and a port of its own.
    NodePort = 1,
    /// An ingress address of a load balancer.
    LoadBalancer = 2,
    /// One of `spec.externalIPs`.
    ExternalIp = 3,
}

impl FrontendKind {
    /// All kinds.
    pub const ALL: [Self; 4] = [Self::ClusterIp, Self::NodePort, Self::LoadBalancer, Self::ExternalIp];
}

/// Bits of [`Frontend::flags`] above the kind.
pub struct FrontendFlags;

impl FrontendFlags {
    /// The bits that hold the [`FrontendKind`].
    pub const KIND: u32 = 0x7;
    /// The endpoints for clients inside are those of this node alone.
    pub const INSIDE_LOCAL: u32 = 1 << 3;
    /// The endpoints for clients outside are those of this node alone.
    pub const OUTSIDE_LOCAL: u32 = 1 << 4;
    /// Without an endpoint, clients inside are not answered: there are some on other nodes.
    pub const INSIDE_DROPS: u32 = 1 << 5;
    /// Without an endpoint, clients outside are not answered: there are some on other nodes.
    pub const OUTSIDE_DROPS: u32 = 1 << 6;
    /// Only clients within the service port's source ranges are let through.
    pub const SOURCE_RANGES: u32 = 1 << 7;
}

impl Frontend {
    /// What kind it is, if it is one that this version knows.
    pub fn kind(&self) -> Option<FrontendKind> {
        FrontendKind::ALL.into_iter().find(|kind| *kind as u32 == self.flags & FrontendFlags::KIND)
    }

    /// Where new connections of clients inside the cluster go, or of all others.
    #[inline(always)]
    pub const fn run(&self, is_inside: bool) -> Run {
        let (slots, local, drops) = if is_inside {
            (self.inside, FrontendFlags::INSIDE_LOCAL, FrontendFlags::INSIDE_DROPS)
        } else {
            (self.outside, FrontendFlags::OUTSIDE_LOCAL, FrontendFlags::OUTSIDE_DROPS)
        };
        let list = if self.has(local) { BackendFlags::IN_LOCAL_LIST } else { BackendFlags::IN_CLUSTER_LIST };
        Run { slots, list, drops: self.has(drops) }
    }

    /// What a new connection of `key` is spread over the slots by. With affinity it is the client's address alone, so that nodes
    /// that have not seen the client agree.
    #[inline(always)]
    pub fn spread<A: Address>(&self, key: &FlowKey<A>) -> u32 {
        if self.affinity == 0 { hash::flow_hash(key) } else { hash::client_hash(&key.source) }
    }

    /// Whether one of the [`FrontendFlags`] is set.
    #[inline(always)]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// Where a backend stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BackendState {
    /// The id names no endpoint. Established TCP still goes to the address that stands in the record, until the
    /// id is given to another endpoint; all other traffic picks anew.
    Gone = 0,
    /// Takes new connections.
    Active = 1,
    /// Answers, but takes no new connections.
    Draining = 2,
}

impl BackendState {
    /// The state with this number; a number from a later version counts as gone.
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Active,
            2 => Self::Draining,
            _ => Self::Gone,
        }
    }

    /// The number stored in the map.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// One endpoint of one service port.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend<A> {
    /// The endpoint's address.
    pub address: A,
    /// Counts the endpoints that this id has named. A connection entry remembers the generation it was made
    /// with, so that an id given to another endpoint is noticed at the next packet. Zero: never used.
    pub generation: u32,
    /// The id of the service port.
    pub service: u32,
    /// The endpoint's port.
    pub port: Port,
    /// A [`BackendState`].
    pub state: u8,
    /// [`BackendFlags`].
    pub flags: u8,
}

/// Bits of [`Backend::flags`].
pub struct BackendFlags;

impl BackendFlags {
    /// The endpoint is on this node, so that its replies pass this node by themselves.
    pub const LOCAL: u8 = 1 << 0;
    /// It is one of the endpoints for the whole cluster that take new connections.
    pub const IN_CLUSTER_LIST: u8 = 1 << 1;
    /// It is one of this node's endpoints that take new connections.
    pub const IN_LOCAL_LIST: u8 = 1 << 2;
    /// The endpoint is on a node, which may answer its clients directly.
    pub const ON_NODE: u8 = 1 << 3;
}

/// What a client's endpoint is remembered by where a service port has session affinity.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey<A> {
    /// The client's address as this node sees it.
    pub client: A,
    /// The id of the service port: all of its frontends share it.
    pub service: u32,
}

/// The endpoint a client stays with.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// The id of the backend.
    pub backend: u32,
    /// The generation that the backend's id had then.
    pub generation: u32,
    /// When the client last opened a connection: the low half of the jiffies.
    pub last_opened: u32,
}

/// The data of a key in the trie of source ranges, behind its prefix length in bits: the service port's
/// 32 bits always count, the address's as far as the range goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SourceRange<A> {
    /// The id of the service port.
    pub service: u32,
    /// The client's address, or the range's.
    pub client: A,
}

/// The most bytes a service port's name may have: namespace, name and port name at their longest
/// (63 + 63 + 63), and the separators and protocol between them.
pub const SERVICE_NAME_BYTES: usize = 200;

/// The name of a service port, `namespace/name:port/PROTOCOL`, for whoever reads the maps without the daemon.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ServiceName {
    bytes: [u8; SERVICE_NAME_BYTES],
}

impl ServiceName {
    /// `name`, cut off at `SERVICE_NAME_BYTES`.
    pub fn new(name: &str) -> Self {
        let mut bytes = [0; SERVICE_NAME_BYTES];
        let length = name.len().min(SERVICE_NAME_BYTES);
        bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
        Self { bytes }
    }

    /// The name, or nothing when the bytes are not text.
    pub fn as_str(&self) -> &str {
        let length = self.bytes.iter().position(|byte| *byte == 0).unwrap_or(SERVICE_NAME_BYTES);
        core::str::from_utf8(&self.bytes[..length]).unwrap_or_default()
    }
}

family_record! {
    FrontendKey { address, port, protocol, reserved }
    Backend { address, generation, service, port, state, flags }
    AffinityKey { client, service }
    SourceRange { service, client }
}

record! {
    Slots { first, count }
    Frontend { service, inside, outside, affinity, flags }
    Affinity { backend, generation, last_opened }
    ServiceName { bytes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_the_map_and_is_cut_at_the_end() {
        assert_eq!(ServiceName::new("default/web:http/TCP").as_str(), "default/web:http/TCP");
        let long = "x".repeat(SERVICE_NAME_BYTES + 10);
        assert_eq!(ServiceName::new(&long).as_str().len(), SERVICE_NAME_BYTES);
    }
}
