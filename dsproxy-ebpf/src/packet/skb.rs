//! Packets at the tc hooks: `struct __sk_buff` (include/uapi/linux/bpf.h).

use core::hint::cold_path;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        __sk_buff, BPF_F_INVALIDATE_HASH, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_REDIRECT,
        bpf_adj_room_mode::{BPF_ADJ_ROOM_MAC, BPF_ADJ_ROOM_NET},
        bpf_check_mtu_flags::BPF_MTU_CHK_SEGS,
        bpf_fib_lookup as FibLookup, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1,
    },
    helpers::{
        bpf_check_mtu, bpf_csum_update, bpf_fib_lookup, bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh,
        bpf_skb_adjust_room, bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes,
    },
    programs::TcContext,
};
use dsproxy_common::{Address, IpFamily, Port, checksum, flow::FlowKey};

use super::{BufferContext, Linear, Neighbour, PacketContext, Refused, Short, TransportChange, View};

/// The flag of `bpf_l4_csum_replace` that tells an IPv6 pseudo-header from IPv4's (include/uapi/linux/bpf.h, 6.16);
/// aya's bindings are older.
const BPF_F_IPV6: u64 = 1 << 7;

/// The numbers of the families (include/linux/socket.h).
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// How a checksum that comes out as zero is written where zero means that there is none (RFC 768).
const CHECKSUM_OF_ZERO: u16 = 0xffff;

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
}

impl BufferContext for TcContext {
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
        // A checksum of the packet goes down by what the address adds, the sum of a pseudo-header goes up by it.
        let change = checksum::word_difference(before, after);
        if checksum::is_nothing(address) || (change != address && change != !address) {
            cold_path();
            // That says nothing (or UDP goes without).
            return replace_port(self, offset, (old, new), zero_means_none);
        }
        if change != address {
            let port = checksum::word_difference(old.wire(), new.wire());
            let mut sum = checksum::update(after, port);
            if sum == 0 {
                cold_path();
                sum = if zero_means_none { CHECKSUM_OF_ZERO } else { sum };
            }
            field.write::<u16, 0>(sum);
        }
        Ok(())
    }

    #[inline(always)]
    fn ingress_device(&self) -> u32 {
        // SAFETY: the context that the kernel gave us.
        unsafe { (*self.skb.skb).ingress_ifindex }
    }

    #[inline(always)]
    fn is_aggregate(&self) -> bool {
        // SAFETY: the context that the kernel gave us.
        unsafe { (*self.skb.skb).gso_size != 0 }
    }

    #[inline(always)]
    fn was_sent_to_many(&self) -> bool {
        // PACKET_BROADCAST and PACKET_MULTICAST (include/uapi/linux/if_packet.h).
        // SAFETY: the context that the kernel gave us.
        matches!(unsafe { (*self.as_ptr().cast::<__sk_buff>()).pkt_type }, 1 | 2)
    }

    #[inline(always)]
    fn resize(&self, length: u32) -> Result<(), Refused> {
        // SAFETY: a helper that takes integers and the context that the kernel gave us.
        made(unsafe { bpf_skb_change_tail(self.as_ptr().cast(), length, 0) })
    }

    #[inline(always)]
    fn make_room(&self, count: u32) -> Result<(), Refused> {
        let mut length = 0;
        // SAFETY: as in `resize`; the length of zero asks for the packet's own, and the device's number of zero for its own.
        made(unsafe { bpf_check_mtu(self.as_ptr(), 0, &raw mut length, count.cast_signed(), 0) })?;
        // SAFETY: as in `resize`.
        made(unsafe { bpf_skb_adjust_room(self.as_ptr().cast(), count.cast_signed(), BPF_ADJ_ROOM_NET, 0) })
    }

    #[inline(always)]
    fn cut(&self, count: u32) -> Result<(), Refused> {
        // SAFETY: as in `resize`.
        made(unsafe { bpf_skb_adjust_room(self.as_ptr().cast(), -count.cast_signed(), BPF_ADJ_ROOM_MAC, 0) })
    }

    #[inline(always)]
    unsafe fn copy_out(&self, offset: usize, to: *mut u8, length: usize) -> Result<(), Refused> {
        // SAFETY: given by the caller.
        made(unsafe { bpf_skb_load_bytes(self.as_ptr().cast_const(), offset as u32, to.cast(), length as u32) })
    }

    #[inline(always)]
    unsafe fn copy_in(&self, offset: usize, from: *const u8, length: usize) -> Result<(), Refused> {
        let flags = BPF_F_INVALIDATE_HASH.into();
        // SAFETY: given by the caller.
        made(unsafe { bpf_skb_store_bytes(self.as_ptr().cast(), offset as u32, from.cast(), length as u32, flags) })
    }

    #[inline(always)]
    fn send_back(&self) -> i32 {
        // SAFETY: as in `was_sent_to_many` and `resize`.
        unsafe { bpf_redirect((*self.as_ptr().cast::<__sk_buff>()).ifindex, 0) as i32 }
    }

    #[inline(always)]
    fn has_tag(&self) -> bool {
        // SAFETY: the context that the kernel gave us.
        unsafe { (*self.skb.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn route<A: Address>(&self, key: &FlowKey<A>, length: u16) -> Option<Neighbour> {
        const SUCCESS: i64 = BPF_FIB_LKUP_RET_SUCCESS as i64;
        // Nobody has asked for the neighbour's link-layer address yet: the kernel will.
        const NO_NEIGHBOUR: i64 = BPF_FIB_LKUP_RET_NO_NEIGH as i64;
        // SAFETY: integers alone, of which any are valid.
        let mut lookup: FibLookup = unsafe { core::mem::zeroed() };
        lookup.family = match A::FAMILY {
            IpFamily::V4 => AF_INET,
            IpFamily::V6 => AF_INET6,
        };
        lookup.l4_protocol = key.protocol as u8;
        (lookup.sport, lookup.dport) = (key.source_port.wire(), key.destination_port.wire());
        lookup.__bindgen_anon_1.tot_len = length;
        lookup.ifindex = self.device();
        // SAFETY: all are views of the same integers; of IPv4's the first counts.
        let (source, destination) =
            unsafe { (&mut lookup.__bindgen_anon_3.ipv6_src, &mut lookup.__bindgen_anon_4.ipv6_dst) };
        copy_words(source, &key.source);
        copy_words(destination, &key.destination);
        // SAFETY: the kernel reads and writes the value within the call, and is told its size.
        let found = unsafe { bpf_fib_lookup(self.as_ptr(), &raw mut lookup, size_of::<FibLookup>() as i32, 0) };
        // SAFETY: as for the addresses above.
        let address = unsafe { lookup.__bindgen_anon_4.ipv6_dst };
        matches!(found, SUCCESS | NO_NEIGHBOUR).then_some(Neighbour {
            device: lookup.ifindex,
            family: lookup.family.into(),
            address,
        })
    }

    #[inline(always)]
    fn fits(&self, device: u32) -> bool {
        let mut length = 0;
        // SAFETY: as in `make_room`.
        unsafe { bpf_check_mtu(self.as_ptr(), device, &raw mut length, 0, BPF_MTU_CHK_SEGS.into()) == 0 }
    }

    #[inline(always)]
    fn hand_to(&self, neighbour: &Neighbour) -> Result<(), Refused> {
        let mut next = bpf_redir_neigh {
            nh_family: neighbour.family,
            __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: neighbour.address },
        };
        // SAFETY: the kernel copies the value within the call, and is told its size.
        let verdict =
            unsafe { bpf_redirect_neigh(neighbour.device, &raw mut next, size_of::<bpf_redir_neigh>() as i32, 0) };
        if verdict == i64::from(TC_ACT_REDIRECT) { Ok(()) } else { Err(Refused) }
    }
}

#[inline(always)]
fn copy_words<A: Address>(to: &mut [u32; 4], address: &A) {
    let words = address.words();
    let mut index = 0;
    while index < words.len() && index < to.len() {
        to[index] = words[index];
        index += 1;
    }
}

#[inline(always)]
fn made(result: i64) -> Result<(), Refused> {
    if result == 0 { Ok(()) } else { Err(Refused) }
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
