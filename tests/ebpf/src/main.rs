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
    bindings::{
        TC_ACT_STOLEN, TC_ACT_UNSPEC,
        xdp_action::{XDP_ABORTED, XDP_TX},
    },
    btf_maps::{Array, ProgramArray},
    macros::{btf_map, classifier, xdp},
    programs::{TcContext, XdpContext},
};
use dsproxy_bench_ebpf::{Plan, TEMPLATE_WORDS};

use crate::headers::{Shape, TcpV4, TcpV6, UdpV4, UdpV6};

/// The program that is measured.
#[btf_map]
static TARGET: ProgramArray<1> = ProgramArray::new();
/// The same at XDP.
#[btf_map]
static XDP_TARGET: ProgramArray<1> = ProgramArray::new();
/// The beginning of a frame, which an XDP program also makes another of.
#[btf_map]
static TEMPLATE: Array<[u32; TEMPLATE_WORDS], 1> = Array::new();
#[btf_map]
static PLAN: Array<Plan, 1> = Array::new();
/// The number of the next run.
#[btf_map]
static SEQUENCE: Array<u32, 1> = Array::new();

macro_rules! programs {
    ($($program:ident, $xdp:ident: $shape:ident;)+) => {
        $(
            #[classifier]
            pub fn $program(context: TcContext) -> i32 {
                run::<$shape>(&context)
            }

            #[xdp]
            pub fn $xdp(context: XdpContext) -> u32 {
                run_frame::<$shape>(&context)
            }
        )+
    };
}

programs! {
    tcp_v4, xdp_tcp_v4: TcpV4;
    udp_v4, xdp_udp_v4: UdpV4;
    tcp_v6, xdp_tcp_v6: TcpV6;
    udp_v6, xdp_udp_v6: UdpV6;
}

/// What the programs above cost by themselves is measured with this one behind them.
#[classifier]
pub fn empty(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// As `empty`, at XDP.
#[xdp]
pub fn xdp_empty(_: XdpContext) -> u32 {
    XDP_TX
}

#[inline(always)]
fn run<S: Shape>(context: &TcContext) -> i32 {
    if restore::<S>(context.data(), context.data_end(), None).is_some() {
        // SAFETY: nothing here needs to be dropped.
        unsafe { TARGET.tail_call(context, 0) };
    }
    // The packet is too short, or there is no program to measure.
    TC_ACT_STOLEN
}

#[inline(always)]
fn run_frame<S: Shape>(context: &XdpContext) -> u32 {
    if restore::<S>(context.data(), context.data_end(), TEMPLATE.get(0)).is_some() {
        // SAFETY: as in `run`.
        unsafe { XDP_TARGET.tail_call(context, 0) };
    }
    XDP_ABORTED
}

#[inline(always)]
fn restore<S: Shape>(start: usize, end: usize, template: Option<&[u32; TEMPLATE_WORDS]>) -> Option<()> {
    let plan = PLAN.get(0)?;
    let counter = SEQUENCE.get_ptr_mut(0)?;
    // SAFETY: a map value, valid until the program ends; one program runs at a time.
    let sequence = unsafe { *counter };
    // SAFETY: as above.
    unsafe { *counter = sequence.wrapping_add(1) };

    let length = if template.is_some() { S::LENGTH.max(TEMPLATE_WORDS * 4) } else { S::LENGTH };
    if start + length > end {
        return None;
    }
    let start = start as *mut u8;
    // SAFETY: the lengths of template and shape were just compared with that of the packet.
    unsafe {
        if let Some(template) = template {
            headers::write_template(start, template);
        }
        headers::write::<S>(start, plan, sequence);
    }
    Some(())
}

dsproxy_common::kernel_object!();
