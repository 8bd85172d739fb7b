//! Sockets that were translated when they were connected or sent: what their programs believe to speak to.

use crate::{Port, record::family_record};

/// A translated socket and where its packets really go.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SocketKey<A> {
    /// The socket's cookie, which no other socket gets while the system runs.
    pub cookie: [u32; 2],
    /// The backend's address.
    pub address: A,
    /// The backend's port.
    pub port: Port,
    /// The IANA protocol number.
    pub protocol: u16,
}

/// What the socket's program believes to speak to.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketEntry<A> {
    /// The VIP.
    pub vip: A,
    /// The id of the service port.
    pub service: u32,
    /// The id of the backend.
    pub backend: u32,
    /// The generation that the backend's id had then.
    pub generation: u32,
    /// The port on the VIP.
    pub vip_port: Port,
    /// Zero.
    pub reserved: u16,
}

family_record! {
    SocketKey { cookie, address, port, protocol }
    SocketEntry { vip, service, backend, generation, vip_port, reserved }
}
