//! The packet in memory: the one place where bytes of it are read and written, for every kind of context.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::{bpf_csum_update, bpf_l4_csum_replace},
    programs::TcContext,
};
use dsproxy_common::{Address, IpFamily, Port, checksum};

use crate::wire::Wire;

/// The flag of `bpf_l4_csum_replace` that tells an IPv6 pseudo-header from IPv4's (include/uapi/linux/bpf.h, 6.16);
/// aya's bindings are older.
const BPF_F_IPV6: u64 = 1 << 7;

/// How a checksum that comes out as zero is written where zero means that there is none (RFC 768).
const CHECKSUM_OF_ZERO: u16 = 0xffff;

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

/// What the pipeline needs of a packet, whatever hook it came from.
pub(crate) trait PacketContext {
    /// What of the packet can be read and written in place.
    fn linear(&self) -> Linear;
    /// The index of the device: the one it came by, or is about to leave by.
    fn device(&self) -> u32;
    /// The length of the whole packet in bytes, link-layer header included.
    fn length(&self) -> u32;
    /// Moves the first `length` bytes into the linear part.
    fn pull(&self, length: u32) -> Result<(), Refused>;
    /// Makes the transport checksum at `offset` right after `change`.
    fn update_transport_checksum(&self, offset: usize, change: &TransportChange) -> Result<(), Refused>;
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
    /// A pointer to `length` bytes at `offset`.
    #[inline(always)]
    fn bytes(self, offset: usize, length: usize) -> Result<*mut u8, Short> {
        let start = self.start + offset;
        if start + length > self.end {
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

impl PacketContext for TcContext {
    #[inline(always)]
    fn linear(&self) -> Linear {
        Linear { start: self.data(), end: self.data_end() }
    }

    #[inline(always)]
    fn device(&self) -> u32 {
        // SAFETY: the context that the kernel gave us.
        unsafe { (*self.skb.skb).ifindex }
    }

    #[inline(always)]
    fn length(&self) -> u32 {
        self.len()
    }

    #[inline(always)]
    fn pull(&self, length: u32) -> Result<(), Refused> {
        self.pull_data(length).map_err(|_| Refused)
    }

    /// Leaves the address to the kernel, which alone knows whether the checksum is complete, still to be finished by the
    /// device (then it covers the pseudo-header only), or given by the device for the whole packet.
    ///
    /// What the kernel then did tells which it is, so that for the port, which is in no pseudo-header, a second call can be
    /// spared: a call costs as much as the search for a connection.
    #[inline(always)]
    fn update_transport_checksum(&self, offset: usize, change: &TransportChange) -> Result<(), Refused> {
        let TransportChange { family, address, port: (old, new), zero_means_none } = *change;
        let field = |context: &Self| View::<2>::at(context.linear(), offset).map_err(|Short { .. }| Refused);
        let before = field(self)?.read::<u16, 0>();
        replace_address(self, offset, family, address, zero_means_none)?;
        if old == new {
            return Ok(());
        }
        let field = field(self)?;
        let after = field.read::<u16, 0>();
        let written = |sum: u16| if zero_means_none && sum == 0 { CHECKSUM_OF_ZERO } else { sum };
        let of_packet = written(checksum::update(before, address));
        let of_pseudo_header = written(checksum::add(before, address));
        if of_packet == of_pseudo_header || (after != of_packet && after != of_pseudo_header) {
            // The difference says nothing (or UDP goes without).
            return replace_port(self, offset, (old, new), zero_means_none);
        }
        if after == of_packet {
            let port = checksum::word_difference(old.wire(), new.wire());
            field.write::<u16, 0>(written(checksum::update(after, port)));
        }
        Ok(())
    }
}

/// Leaves it to the kernel to make the transport checksum at `offset` right after a change of an address.
#[inline(always)]
fn replace_address(
    context: &TcContext,
    offset: usize,
    family: IpFamily,
    difference: u16,
    zero_means_none: bool,
) -> Result<(), Refused> {
    let (skb, offset) = (context.as_ptr().cast(), offset as u32);
    let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled_zero(zero_means_none);
    // SAFETY: plain calls of helpers with integers and the context that the kernel gave us.
    let replaced = unsafe {
        match family {
            IpFamily::V4 => bpf_l4_csum_replace(skb, offset, 0, difference.into(), flags),
            IpFamily::V6 => {
                let flagged = bpf_l4_csum_replace(skb, offset, 0, difference.into(), flags | BPF_F_IPV6);
                if flagged == 0 {
                    0
                } else {
                    // A kernel without the flag (before 6.16) takes the address out of a device's sum over the
                    // packet, as is right for IPv4, whose header checksum has made up for it. In IPv6
                    // nothing has: put it back.
                    let replaced = bpf_l4_csum_replace(skb, offset, 0, difference.into(), flags);
                    bpf_csum_update(skb, difference.into());
                    replaced
                }
            }
        }
    };
    if replaced == 0 { Ok(()) } else { Err(Refused) }
}

/// Leaves it to the kernel to make the transport checksum at `offset` right after a change of a port.
#[inline(always)]
fn replace_port(
    context: &TcContext,
    offset: usize,
    (old, new): (Port, Port),
    zero_means_none: bool,
) -> Result<(), Refused> {
    let flags = mangled_zero(zero_means_none) | size_of::<Port>() as u64;
    // SAFETY: as in `replace_address`.
    let replaced = unsafe {
        bpf_l4_csum_replace(context.as_ptr().cast(), offset as u32, old.wire().into(), new.wire().into(), flags)
    };
    if replaced == 0 { Ok(()) } else { Err(Refused) }
}

#[inline(always)]
fn mangled_zero(zero_means_none: bool) -> u64 {
    if zero_means_none { u64::from(BPF_F_MARK_MANGLED_0) } else { 0 }
}
