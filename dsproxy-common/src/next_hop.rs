//! Where a connection's packets go next when XDP sends them on, and for how long that can be believed.
//!
//! The kernel's own routing is asked once, and its answer kept with the connection. User space, which is told of every change of
//! routes, rules, neighbours and devices, counts them: an answer is good for as long as the count stands still. Should user
//! space be gone, nobody would count, so it also says how far its word reaches.

use crate::record::record;

/// A MAC address as it stands in a frame.
pub type Mac = [u16; 3];

/// What user space says of the kernel's routing: the one entry of its map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// The count of changes. Zero: nobody counts.
    pub epoch: u32,
    /// Until when this holds: the low half of the jiffies.
    pub lease: u32,
}

impl Routing {
    /// Whether somebody counted the changes up to `now`.
    #[inline(always)]
    pub const fn holds(&self, now: u32) -> bool {
        self.epoch != 0 && self.lease.wrapping_sub(now) <= u32::MAX / 2
    }
}

/// A device that XDP programs take packets from, or send them to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpDevice {
    /// Its MAC address.
    pub address: Mac,
    /// [`XdpDeviceFlags`].
    pub flags: u16,
}

/// Bits of [`XdpDevice::flags`].
pub struct XdpDeviceFlags;

impl XdpDeviceFlags {
    /// What a program sends back out of it leaves it.
    pub const TRANSMITS: u16 = 1 << 0;
    /// What programs of other devices redirect to it leaves it.
    pub const TAKES_REDIRECTED: u16 = 1 << 1;
}

impl XdpDevice {
    /// Whether frames leave it that came by it (`is_same`), or by another.
    #[inline(always)]
    pub const fn sends(&self, is_same: bool) -> bool {
        let flag = if is_same { XdpDeviceFlags::TRANSMITS } else { XdpDeviceFlags::TAKES_REDIRECTED };
        self.flags & flag != 0
    }
}

/// The kernel's answer: the device and the link-layer header that packets of a connection leave with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// The [`Routing::epoch`] when it was given. Zero: it was not.
    pub epoch: u32,
    /// The index of the device. Zero: the stack has to send them.
    pub device: u32,
    /// The destination and the source address of frames that leave, as they stand there one behind the other.
    pub addresses: [u32; 3],
    /// The destination address of the frames that arrive: the node's own.
    pub arrival: Mac,
    /// The longest IP packet that can go this way, in bytes.
    pub mtu: u16,
}

/// A neighbour that XDP sends frames to. The kernel does not see them, and would not notice that the neighbour is there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NeighbourKey {
    /// The index of the device that it is behind.
    pub device: u32,
    /// Its MAC address.
    pub address: Mac,
    /// Zero.
    pub reserved: u16,
}

record! {
    Routing = [4, 4];
    XdpDevice = [6, 2];
    NextHop = [4, 4, 12, 6, 2];
    NeighbourKey = [4, 6, 2];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_holds_until_its_lease_ends_across_the_end_of_the_clock() {
        for lease in [1000, 5, u32::MAX] {
            let routing = Routing { epoch: 1, lease };
            assert!(routing.holds(lease.wrapping_sub(1000)) && routing.holds(lease), "{lease}");
            assert!(!routing.holds(lease.wrapping_add(1)) && !routing.holds(lease.wrapping_add(100_000)), "{lease}");
            assert!(!Routing { epoch: 0, lease }.holds(lease), "nobody counts");
        }
    }
}
