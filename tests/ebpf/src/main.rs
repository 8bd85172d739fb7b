//! The benchmark's kernel programs: each puts a packet's headers back to what they were, and goes on with the program that
//! is measured.
//!
//! The kernel runs a program over and over on one packet, with whatever it made of it the last time. Without these,
//! a program that translates would be measured once and then see packets that are not for it. What they cost is
//! measured too, with a program behind them that does nothing.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
// On the host the crate is only checked: nothing calls the programs there.
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code))]
// The program attribute makes public functions without documentation around ours.
#![allow(missing_docs, unreachable_pub)]

mod headers;
#[path = "../../../dsproxy-ebpf/src/wire.rs"]
#[allow(dead_code, reason = "headers are written here, never read")]
mod wire;

use aya_ebpf::{
    bindings::{TC_ACT_STOLEN, TC_ACT_UNSPEC},
    btf_maps::{Array, ProgramArray},
    macros::{btf_map, classifier},
    programs::TcContext,
};
use dsproxy_bench_ebpf::Plan;

use crate::headers::{Shape, TcpV4, TcpV6, UdpV4, UdpV6};

/// The program that is measured.
#[btf_map]
static TARGET: ProgramArray<1> = ProgramArray::new();
#[btf_map]
static PLAN: Array<Plan, 1> = Array::new();
/// The number of the next run.
#[btf_map]
static SEQUENCE: Array<u32, 1> = Array::new();

macro_rules! programs {
    ($($program:ident: $shape:ident;)+) => {
        $(
            #[classifier]
            pub fn $program(context: TcContext) -> i32 {
                run::<$shape>(&context)
            }
        )+
    };
}

programs! {
    tcp_v4: TcpV4;
    udp_v4: UdpV4;
    tcp_v6: TcpV6;
    udp_v6: UdpV6;
}

/// What the programs above cost by themselves is measured with this one behind them.
#[classifier]
pub fn empty(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[inline(always)]
fn run<S: Shape>(context: &TcContext) -> i32 {
    if restore::<S>(context).is_some() {
        // SAFETY: nothing here needs to be dropped.
        unsafe { TARGET.tail_call(context, 0) };
    }
    // The packet is too short, or there is no program to measure.
    TC_ACT_STOLEN
}

#[inline(always)]
fn restore<S: Shape>(context: &TcContext) -> Option<()> {
    let plan = PLAN.get(0)?;
    let counter = SEQUENCE.get_ptr_mut(0)?;
    // SAFETY: a map value, valid until the program ends; one program runs at a time.
    let sequence = unsafe { *counter };
    // SAFETY: as above.
    unsafe { *counter = sequence.wrapping_add(1) };

    let start = context.data();
    if start + S::LENGTH > context.data_end() {
        return None;
    }
    // SAFETY: the length of the shape was just compared with that of the packet.
    unsafe { headers::write::<S>(start as *mut u8, plan, sequence) };
    Some(())
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // Nothing in the programs panics; the verifier would refuse an endless loop.
    loop {}
}

#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(target_arch = "bpf"))]
fn main() {}
