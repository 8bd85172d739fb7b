//! Where a connection's packets go next when XDP sends them on, and for how long that can be believed.
//!
//! What the stack makes of a packet, tc sees on its way out: the device and the link-layer addresses are noted with the connection,
//! for XDP to do alike with packets that come by the same device. User space, which is told of every change of routes, rules,
//! neighbours and devices, counts them: a note is good for as long as the count stands still. It counts one more every
//! [`TURN`], so that the stack sees each connection now and then: what tracks connections there goes on knowing them, as the
//! kernel does its neighbours, and what has come to forbid or to encrypt them is met. Should user space be gone, nobody would
//! count, so it also says how far its word reaches.

use crate::record::record;

/// How often the stack has its turn with every connection, in seconds. Less than any tracker of connections forgets one after (30 s
/// for UDP that nobody has answered, `nf_conntrack_udp_timeout`), or the kernel a neighbour.
pub const TURN: u32 = 16;

/// A MAC address as it stands in a frame.
pub type Mac = [u16; 3];

/// What user space says of the kernel's routing: the one entry of its map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// The count of changes. Zero: nobody counts.
    pub epoch: u32,
    /// Until when this holds: the low half of the jiffies, and at most [`Routing::LONGEST_LEASE`] from now.
    pub lease: u32,
    /// How many places for flows either half of a CPU's part has, a power of two, less one (`cached_flow`).
    pub flow_mask: u32,
}

impl Routing {
    /// In jiffies: two minutes at the fastest tick. What is farther ahead lies in the past, the clock having gone round.
    pub const LONGEST_LEASE: u32 = 1 << 17;

    /// Whether somebody counted the changes up to `now`.
    #[inline(always)]
    pub const fn holds(&self, now: u32) -> bool {
        self.epoch != 0 && self.lease.wrapping_sub(now) <= Self::LONGEST_LEASE
    }
}

/// A node device: one that XDP takes packets from, or sends them to; or one that it leaves alone, with no flags then.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpDevice {
    /// Its MAC address.
    pub address: Mac,
    /// [`XdpDeviceFlags`].
    pub flags: u16,
    /// The longest IP packet that it takes, in bytes.
    pub mtu: u32,
    /// Why XDP leaves it alone: a number of user space's, which no program reads. Zero: it is served.
    pub why_not: u32,
    /// What there is to say of that besides.
    pub detail: u32,
}

impl XdpDevice {
    /// Whether XDP serves it.
    pub const fn is_served(&self) -> bool {
        self.why_not == 0
    }
}

/// Bits of [`XdpDevice::flags`] and [`NextHop::flags`].
pub struct XdpDeviceFlags;

impl XdpDeviceFlags {
    /// What a program sends back out of it leaves it.
    pub const TRANSMITS: u16 = 1 << 0;
    /// What programs of other devices redirect to it leaves it.
    pub const TAKES_REDIRECTED: u16 = 1 << 1;
}

/// How the stack sent a packet of a connection on: the device, and the link-layer addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NextHop {
    /// The [`Routing::epoch`] then. Zero: it has sent none.
    pub epoch: u32,
    /// The index of the device.
    pub device: u32,
    /// The index of the device that the packet had come by. What the stack thinks of others, nobody has seen.
    pub ingress: u32,
    /// The destination and the source address of the frame, as they stand there one behind the other.
    pub addresses: [u32; 3],
    /// The longest IP packet that the device takes, in bytes.
    pub mtu: u16,
    /// The [`XdpDeviceFlags`] of the device; none if XDP may not use it.
    pub flags: u16,
}

impl NextHop {
    /// Whether frames leave its device that came by it (`is_same`), or by another.
    #[inline(always)]
    pub const fn takes(&self, is_same: bool) -> bool {
        let flag = if is_same { XdpDeviceFlags::TRANSMITS } else { XdpDeviceFlags::TAKES_REDIRECTED };
        self.flags & flag != 0
    }

    /// The source address of the frame: the device's own.
    #[inline(always)]
    pub const fn source(&self) -> Mac {
        let [_, second, third] = self.addresses;
        let ([.., a, b], [c, d, e, f]) = (second.to_ne_bytes(), third.to_ne_bytes());
        [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])]
    }
}

record! {
    Routing { epoch, lease, flow_mask }
    XdpDevice { address, flags, mtu, why_not, detail }
    NextHop { epoch, device, ingress, addresses, mtu, flags }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routing_holds_until_its_lease_ends_across_the_end_of_the_clock() {
        for lease in [1000, 5, u32::MAX] {
            let routing = Routing { epoch: 1, lease, flow_mask: 0 };
            assert!(routing.holds(lease.wrapping_sub(1000)) && routing.holds(lease), "{lease}");
            for later in [1, 100_000, u32::MAX / 2 + 10, u32::MAX - Routing::LONGEST_LEASE] {
                assert!(!routing.holds(lease.wrapping_add(later)), "{lease} {later}");
            }
            assert!(!Routing { epoch: 0, ..routing }.holds(lease), "nobody counts");
        }
    }

    #[test]
    fn the_source_stands_behind_the_destination() {
        let frame: [u8; 12] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 9];
        let word = |at: usize| u32::from_ne_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
        let next = NextHop { addresses: [word(0), word(4), word(8)], ..NextHop::default() };
        assert_eq!(next.source().map(u16::to_ne_bytes), [[2, 0], [0, 0], [0, 9]]);
    }
}
