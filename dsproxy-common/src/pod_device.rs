//! Devices behind which there are pods of this node and nothing else: the only ones between which packets pass the stack by.

use crate::{next_hop::Mac, record::record};

/// What is known of such a device, by its index.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodDevice {
    /// The MAC address that pods behind it reach the node's IP layer by: its own, or that of the bridge it is a port of. Zero where
    /// packets have no link-layer header.
    pub address: Mac,
    /// Zero.
    pub reserved: u16,
}

record! {
    PodDevice { address, reserved }
}
