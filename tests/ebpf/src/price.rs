//! What one call of a program costs: each program here makes a key of the number of its run, as programs for packets make theirs, and does
//! one thing with it. What making the key takes is measured with one that does nothing more.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// On the host the crate is only checked: nothing calls the programs there.
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code))]
// The program attribute makes public functions without documentation around ours.
#![allow(missing_docs, unreachable_pub)]
// A program is given its context by value.
#![allow(clippy::needless_pass_by_value)]
#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied to the stack, of which there are 512 bytes"
)]

use core::hint::black_box;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_F_PSEUDO_HDR, TC_ACT_STOLEN, TC_ACT_UNSPEC},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray},
    helpers::{bpf_get_prandom_u32, bpf_l4_csum_replace},
    macros::{btf_map, classifier},
    programs::TcContext,
};
use dsproxy_bench_ebpf::Keys;
use dsproxy_common::{
    Addr4, Addr6, Address, Port,
    cached_flow::{CachedFlow, places_in_half},
    flow::{EgressEntry, FlowKey, ForwardEntry},
    layout::capacity,
    service::{Frontend, FrontendKey},
};

/// How many entries tables have unless user space says another number.
const ENTRIES: usize = 262_144;

/// How many places for flows XDP has by default in either half of a CPU's part.
const HALF: u32 = places_in_half(capacity::CACHED_FLOWS);
const PLACES: usize = 2 * HALF as usize;

/// Any odd numbers without a pattern.
const SPREAD: u32 = 0x9e37_79b1;
const OTHER_SPREAD: u32 = 0x85eb_ca77;

#[btf_map]
static KEYS: Array<Keys, 1> = Array::new();
/// The number of the next run.
#[btf_map]
static SEQUENCE: Array<u32, 1> = Array::new();

#[btf_map]
static FORWARD_V4: LruHashMap<FlowKey<Addr4>, ForwardEntry, ENTRIES> = LruHashMap::new();
#[btf_map]
static FORWARD_V6: LruHashMap<FlowKey<Addr6>, ForwardEntry, ENTRIES> = LruHashMap::new();
#[btf_map]
static EGRESS_V4: LruHashMap<FlowKey<Addr4>, EgressEntry<Addr4>, ENTRIES> = LruHashMap::new();
#[btf_map]
static EGRESS_V6: LruHashMap<FlowKey<Addr6>, EgressEntry<Addr6>, ENTRIES> = LruHashMap::new();
#[btf_map]
static FRONTENDS_V4: HashMap<FrontendKey<Addr4>, Frontend, ENTRIES, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static FRONTENDS_V6: HashMap<FrontendKey<Addr6>, Frontend, ENTRIES, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();
#[btf_map]
static FLOWS_V4: Array<CachedFlow<Addr4>, PLACES, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static FLOWS_V6: Array<CachedFlow<Addr6>, PLACES, { BPF_F_MMAPABLE as usize }> = Array::new();
#[btf_map]
static COUNTERS: PerCpuArray<u64, 64> = PerCpuArray::new();

macro_rules! flows {
    ($($address:ident: $key:ident, $miss:ident($one:ident, $other:ident) { $($table:ident, $find:ident, $enter:ident, $remove:ident, $value:ty;)+ })+) => {
        $(
            #[classifier]
            pub fn $key(_: TcContext) -> i32 {
                with_flow::<$address>(|key| {
                    black_box(key);
                    true
                })
            }

            /// Looks in two tables, as whoever looks for a connection does.
            #[classifier]
            pub fn $miss(_: TcContext) -> i32 {
                with_flow::<$address>(|key| $one.get_ptr_mut(key).is_none() && $other.get_ptr_mut(key).is_none())
            }

            $(
                #[classifier]
                pub fn $find(_: TcContext) -> i32 {
                    with_flow::<$address>(|key| $table.get_ptr_mut(key).is_some())
                }

                /// Looks for the key before, as whoever enters one does.
                #[classifier]
                pub fn $enter(_: TcContext) -> i32 {
                    // SAFETY: integers alone, of which any are valid.
                    let value: $value = unsafe { core::mem::zeroed() };
                    with_flow::<$address>(|key| {
                        black_box($table.get_ptr_mut(key));
                        $table.insert(key, &value, BPF_ANY.into()).is_ok()
                    })
                }

                #[classifier]
                pub fn $remove(_: TcContext) -> i32 {
                    with_flow::<$address>(|key| $table.remove(key).is_ok())
                }
            )+
        )+
    };
}

flows! {
    Addr4: key_v4, miss_v4(FORWARD_V4, EGRESS_V4) {
        FORWARD_V4, find_forward_v4, enter_forward_v4, remove_forward_v4, ForwardEntry;
        EGRESS_V4, find_egress_v4, enter_egress_v4, remove_egress_v4, EgressEntry<Addr4>;
    }
    Addr6: key_v6, miss_v6(FORWARD_V6, EGRESS_V6) {
        FORWARD_V6, find_forward_v6, enter_forward_v6, remove_forward_v6, ForwardEntry;
        EGRESS_V6, find_egress_v6, enter_egress_v6, remove_egress_v6, EgressEntry<Addr6>;
    }
}

macro_rules! others {
    ($($address:ident: $key:ident, $find:ident, $enter:ident, $frontends:ident; $look:ident, $flows:ident;)+) => {
        $(
            #[classifier]
            pub fn $key(_: TcContext) -> i32 {
                with_frontend::<$address>(|key| {
                    black_box(key);
                    true
                })
            }

            #[classifier]
            pub fn $find(_: TcContext) -> i32 {
                with_frontend::<$address>(|key| $frontends.get_ptr_mut(key).is_some())
            }

            #[classifier]
            pub fn $enter(_: TcContext) -> i32 {
                let value = Frontend::default();
                with_frontend::<$address>(|key| $frontends.insert(key, &value, BPF_ANY.into()).is_ok())
            }

            /// Looks at both places of a flow: a word of each cache line of the one, where it is found, and one of the other. Which come
            /// next is no pattern, as with the places of real flows.
            #[classifier]
            pub fn $look(_: TcContext) -> i32 {
                with_number(|number| {
                    let place = |spread| number.wrapping_mul(spread) % HALF;
                    let (Some(flow), Some(other)) =
                        ($flows.get_ptr_mut(place(SPREAD)), $flows.get_ptr_mut(HALF + place(OTHER_SPREAD)))
                    else {
                        return false;
                    };
                    let start = flow.cast::<u8>();
                    // SAFETY: the first word of a value that nobody writes to.
                    let mut all = unsafe { other.cast::<u32>().read_volatile() };
                    let mut at = 0;
                    while at < size_of::<CachedFlow<$address>>() {
                        // SAFETY: within a value that nobody writes to, and a multiple of a word from its beginning.
                        all |= unsafe { start.add(at).cast::<u32>().read_volatile() };
                        at += 64;
                    }
                    all == 0
                })
            }
        )+
    };
}

others! {
    Addr4: frontend_key_v4, find_frontend_v4, enter_frontend_v4, FRONTENDS_V4; look_at_flows_v4, FLOWS_V4;
    Addr6: frontend_key_v6, find_frontend_v6, enter_frontend_v6, FRONTENDS_V6; look_at_flows_v6, FLOWS_V6;
}

/// What finding out the number takes.
#[classifier]
pub fn number(_: TcContext) -> i32 {
    with_number(|number| {
        black_box(number);
        true
    })
}

#[classifier]
pub fn array(_: TcContext) -> i32 {
    with_number(|number| {
        let Some(counter) = COUNTERS.get_ptr_mut(number & 63) else { return false };
        // SAFETY: this CPU's own value, and one program runs at a time.
        unsafe { *counter += 1 };
        true
    })
}

#[classifier]
pub fn checksum(context: TcContext) -> i32 {
    with_number(|number| {
        let skb = context.as_ptr().cast();
        // The transport checksum of a TCP segment behind Ethernet and IPv4.
        let (offset, flags) = (14 + 20 + 16, BPF_F_PSEUDO_HDR.into());
        // SAFETY: a helper that takes integers and the context that the kernel gave us.
        unsafe { bpf_l4_csum_replace(skb, offset, 0, (number & 0xffff).into(), flags) == 0 }
    })
}

#[classifier]
pub fn random(_: TcContext) -> i32 {
    with_number(|number| {
        // SAFETY: a helper without arguments.
        black_box(unsafe { bpf_get_prandom_u32() } ^ number);
        true
    })
}

/// Does something with the number of the run. What did not succeed ends in another verdict.
#[inline(always)]
fn with_number(act: impl FnOnce(u32) -> bool) -> i32 {
    let (Some(keys), Some(counter)) = (KEYS.get(0), SEQUENCE.get_ptr_mut(0)) else { return TC_ACT_STOLEN };
    // SAFETY: a map value, valid until the program ends; one program runs at a time.
    let sequence = unsafe { *counter };
    // SAFETY: as above.
    unsafe { *counter = sequence.wrapping_add(1) };
    if act(keys.number(sequence)) { TC_ACT_UNSPEC } else { TC_ACT_STOLEN }
}

#[inline(always)]
fn with_flow<A: Address>(act: impl FnOnce(&FlowKey<A>) -> bool) -> i32 {
    with_number(|number| {
        let mut key = FlowKey::<A> {
            source_port: Port::new(number as u16),
            destination_port: Port::new(80),
            protocol: 6,
            ..FlowKey::default()
        };
        set_last(&mut key.source, number >> 16);
        set_last(&mut key.destination, 1);
        act(&key)
    })
}

#[inline(always)]
fn with_frontend<A: Address>(act: impl FnOnce(&FrontendKey<A>) -> bool) -> i32 {
    with_number(|number| {
        let mut key = FrontendKey::new(A::default(), Port::new(80), 6);
        set_last(&mut key.address, number);
        act(&key)
    })
}

#[inline(always)]
fn set_last<A: Address>(address: &mut A, number: u32) {
    if let Some(last) = address.words_mut().last_mut() {
        *last = number.to_be();
    }
}

dsproxy_common::kernel_object!();
