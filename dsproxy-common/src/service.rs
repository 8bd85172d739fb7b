//! Service lookup: frontends, the slots that name their backends, and the backends.
//!
//! A packet's destination finds a [`Frontend`] in one hash lookup; the frontend names a run of slots in one
//! flat array; a slot holds a backend's id, which indexes the array of [`Backend`]s.

use crate::{
    Port,
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

/// One address, port and protocol at which a service port is reached.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Frontend {
    /// The id of the service port: it indexes the per-service counters and the names.
    pub service: u32,
    /// The index of the first slot; when there is one slot only, the id of the one backend itself.
    pub slots: u32,
    /// How many slots there are. Zero: the service port has no endpoint to send a new connection to.
    pub slot_count: u32,
    /// Zero.
    pub flags: u32,
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
    /// Zero.
    pub reserved: u8,
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
    FrontendKey = [1 addresses, 2, 1, 1];
    Backend = [1 addresses, 4, 4, 2, 1, 1];
}

record! {
    Frontend = [4, 4, 4, 4];
    ServiceName = [SERVICE_NAME_BYTES];
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
