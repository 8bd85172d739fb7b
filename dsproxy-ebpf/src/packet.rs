//! The packet in memory: the one place where bytes of it are read and written, for every kind of context.

mod frame;
mod skb;

use core::hint::cold_path;

use aya_ebpf::helpers::bpf_csum_diff;
use dsproxy_common::{Address, IpFamily, Port, flow::FlowKey};

use crate::wire::Wire;

/// The bytes asked for are not in the linear part of the packet: `end` is how long that would have to be.
#[derive(Clone, Copy)]
pub(crate) struct Short {
    pub(crate) end: usize,
}

/// The kernel refused to change the packet.
pub(crate) struct Refused;

/// A change of one end of a flow, as the transport checksum sees it.
pub(crate) struct TransportChange {
    /// The family, for the pseudo-header.
    pub(crate) family: IpFamily,
    /// The change of the address, as `checksum::difference` gives it.
    pub(crate) address: u16,
    /// The port before and after.
    pub(crate) port: (Port, Port),
    /// UDP: zero means that there is no checksum, and a sum of zero is written as all ones (RFC 768).
    pub(crate) zero_means_none: bool,
}

/// Where the kernel's routing sends a packet next.
#[derive(Clone, Copy)]
pub(crate) struct Neighbour {
    /// The index of the device.
    pub(crate) device: u32,
    /// `AF_INET` or `AF_INET6`: that of the neighbour's address, which may be another than the packet's.
    pub(crate) family: u32,
    /// The neighbour's address as it stands in packets, the first word of it alone where it is IPv4.
    pub(crate) address: [u32; 4],
}

/// What the pipeline needs of a packet, whatever hook it came from.
pub(crate) trait PacketContext {
    /// What of the packet can be read and written in place.
    fn linear(&self) -> Linear;
    /// The index of the device: the one it came by, or is about to leave by.
    fn device(&self) -> u32;
    /// The length of the whole packet in bytes, link-layer header included.
    fn length(&self) -> u32;
}

/// A packet as its device has received it, in front of the stack: a frame in one piece, all of it linear.
pub(crate) trait FrameContext: PacketContext {
    /// The verdict that sends the packet out of `device`.
    fn send_out(&self, device: u32) -> u32;
}

/// A packet in the kernel's own buffer, beside which stands what the kernel knows of its checksum, and which can change its size.
pub(crate) trait BufferContext: PacketContext {
    /// Moves the first `length` bytes into the linear part.
    fn pull(&self, length: u32) -> Result<(), Refused>;
    /// Makes the transport checksum at `offset` right after `change`.
    fn update_transport_checksum(&self, offset: usize, change: &TransportChange) -> Result<(), Refused>;
    /// The index of the device that the packet came by, where it goes through the node.
    fn ingress_device(&self) -> u32;
    /// Whether it is an aggregate of several packets.
    fn is_aggregate(&self) -> bool;
    /// Whether the link layer brought the packet to more than one host.
    fn was_sent_to_many(&self) -> bool;
    /// Makes the packet `length` bytes long at its end, all of it linear. It is no aggregate of segments any more.
    fn resize(&self, length: u32) -> Result<(), Refused>;
    /// Makes room for `count` bytes, whose content is any, behind the IP header without options or extensions. Refused, and the packet
    /// is as it was, if it would become longer than its device takes, or is an aggregate.
    fn make_room(&self, count: u32) -> Result<(), Refused>;
    /// Takes `count` bytes out behind the link-layer header.
    fn cut(&self, count: u32) -> Result<(), Refused>;
    /// Copies `length` bytes at `offset` to `to`.
    ///
    /// # Safety
    ///
    /// There must be room for them.
    unsafe fn copy_out(&self, offset: usize, to: *mut u8, length: usize) -> Result<(), Refused>;
    /// Copies `length` bytes at `from` into the packet at `offset`.
    ///
    /// # Safety
    ///
    /// They must be readable.
    unsafe fn copy_in(&self, offset: usize, from: *const u8, length: usize) -> Result<(), Refused>;
    /// The verdict that sends the packet out of the device it came by.
    fn send_back(&self) -> i32;
    /// Whether a VLAN tag was taken out of the packet.
    fn has_tag(&self) -> bool;
    /// Where the kernel's routing sends a packet of `key`, of `length` bytes from its IP header on, that came by this one's device;
    /// none if it does not send it on, or in smaller pieces. The length of an aggregate is zero: its MTU is not looked at.
    fn route<A: Address>(&self, key: &FlowKey<A>, length: u16) -> Option<Neighbour>;
    /// Whether the packet, or each segment of an aggregate, is as long as `device` takes at most.
    fn fits(&self, device: u32) -> bool;
    /// Has the kernel send the packet to a neighbour when the program returns the verdict for that, `TC_ACT_REDIRECT`.
    fn hand_to(&self, neighbour: &Neighbour) -> Result<(), Refused>;
}

/// The linear part of a packet.
///
/// It is good until the next helper that may move the packet; the verifier refuses a program that uses it later.
#[derive(Clone, Copy)]
pub(crate) struct Linear {
    start: usize,
    end: usize,
}

impl Linear {
    /// How many bytes there are.
    #[inline(always)]
    pub(crate) fn length(self) -> usize {
        self.end - self.start
    }

    /// A pointer to `length` bytes at `offset`.
    #[inline(always)]
    fn bytes(self, offset: usize, length: usize) -> Result<*mut u8, Short> {
        let start = self.start + offset;
        if start + length > self.end {
            cold_path();
            return Err(Short { end: offset + length });
        }
        Ok(start as *mut u8)
    }
}

/// `N` bytes of the linear part of a packet, as good as that for as long.
pub(crate) struct View<const N: usize> {
    start: *mut u8,
}

impl<const N: usize> View<N> {
    /// The `N` bytes at `offset`.
    #[inline(always)]
    pub(crate) fn at(linear: Linear, offset: usize) -> Result<Self, Short> {
        Ok(Self { start: linear.bytes(offset, N)? })
    }

    /// The integer at byte `OFFSET`, as it stands in the packet.
    #[inline(always)]
    pub(crate) fn read<T: Wire, const OFFSET: usize>(&self) -> T {
        const { assert!(OFFSET + size_of::<T>() <= N) };
        // SAFETY: within the bytes that `at` found to be in the packet.
        unsafe { T::load::<OFFSET>(self.start) }
    }

    /// Puts `value` at byte `OFFSET`, as it is to stand in the packet.
    #[inline(always)]
    pub(crate) fn write<T: Wire, const OFFSET: usize>(&self, value: T) {
        const { assert!(OFFSET + size_of::<T>() <= N) };
        // SAFETY: within the bytes that `at` found to be in the packet, whose head the kernel has made private
        // to us before a program that writes to it runs (bpf_unclone_prologue in net/core/filter.c).
        unsafe { T::store::<OFFSET>(self.start, value) };
    }

    /// Reads the address at byte `OFFSET`, straight to where it is to stand.
    #[inline(always)]
    pub(crate) fn read_address<A: Address, const OFFSET: usize>(&self, address: &mut A) {
        const { assert!(OFFSET + size_of::<A>() <= N) };
        let words = address.words_mut();
        let mut index = 0;
        while index < words.len() {
            // SAFETY: as in `read`; an address is as many words as it has indices.
            words[index] = unsafe { u32::load::<OFFSET>(self.start.add(index * 4)) };
            index += 1;
        }
    }

    /// Puts `address` at byte `OFFSET`.
    #[inline(always)]
    pub(crate) fn write_address<A: Address, const OFFSET: usize>(&self, address: A) {
        const { assert!(OFFSET + size_of::<A>() <= N) };
        let words = address.words();
        let mut index = 0;
        while index < words.len() {
            // SAFETY: as in `write`; an address is as many words as it has indices.
            unsafe { u32::store::<OFFSET>(self.start.add(index * 4), words[index]) };
            index += 1;
        }
    }
}

/// The sum of `seed` and the words in `length` bytes at `bytes`, a multiple of four.
///
/// # Safety
///
/// The bytes must be readable.
#[inline(always)]
pub(crate) unsafe fn sum(bytes: *const u8, length: u32, seed: u32) -> u32 {
    // SAFETY: given by the caller; the helper only reads.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, bytes.cast_mut().cast(), length, seed) as u32 }
}
