//! Packets made by the kernel itself, as live frames of XDP, and counted where they arrive.
//!
//! A frame comes back to its sender's program with whatever its receivers made of it, from the link-layer addresses to the hop limit,
//! so its headers are put in place each time.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
// On the host the crate is only checked: nothing calls the programs there.
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code))]
// A program is given its context by value.
#![allow(clippy::needless_pass_by_value)]
// The program attribute makes public functions without documentation around ours.
#![allow(missing_docs, unreachable_pub)]

#[path = "../../../dsproxy-common/src/checksum.rs"]
#[allow(dead_code, reason = "one change of a checksum is all that is needed here")]
mod checksum;
mod headers;
#[path = "../../../dsproxy-ebpf/src/wire.rs"]
mod wire;

use aya_ebpf::{
    bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX},
    btf_maps::{Array, PerCpuArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use dsproxy_bench_ebpf::{Plan, TEMPLATE_WORDS};

use crate::{
    headers::{Shape, TcpV4, TcpV6, UdpV4, UdpV6},
    wire::Wire,
};

/// The beginning of every packet, as it is sent.
#[btf_map]
static TEMPLATE: Array<[u32; TEMPLATE_WORDS], 1> = Array::new();
#[btf_map]
static PLAN: Array<Plan, 1> = Array::new();
/// The number of the next packet.
#[btf_map]
static SEQUENCE: Array<u32, 1> = Array::new();
/// The UDP port that packets have when they have been translated, as a number.
#[btf_map]
static TARGET_PORT: Array<u32, 1> = Array::new();
/// How many packets to that port have arrived.
#[btf_map]
static ARRIVED: PerCpuArray<u64, 1> = PerCpuArray::new();

const ETHERTYPE: usize = 12;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// Sends the next packet out of the device that it pretends to have come by.
#[xdp]
pub fn send_v4(context: XdpContext) -> u32 {
    send::<UdpV4>(&context).unwrap_or(XDP_ABORTED)
}

/// As `send_v4`.
#[xdp]
pub fn send_v6(context: XdpContext) -> u32 {
    send::<UdpV6>(&context).unwrap_or(XDP_ABORTED)
}

/// As `send_v4`, TCP.
#[xdp]
pub fn send_tcp_v4(context: XdpContext) -> u32 {
    send::<TcpV4>(&context).unwrap_or(XDP_ABORTED)
}

/// As `send_v4`, TCP.
#[xdp]
pub fn send_tcp_v6(context: XdpContext) -> u32 {
    send::<TcpV6>(&context).unwrap_or(XDP_ABORTED)
}

/// A device of a veth pair takes frames only if it has a program.
#[xdp]
pub fn take(_: XdpContext) -> u32 {
    XDP_PASS
}

/// Sends every packet back where it came from, with its link-layer addresses exchanged and otherwise as it is.
#[xdp]
pub fn reflect(context: XdpContext) -> u32 {
    let start = context.data();
    if start + ETHERTYPE > context.data_end() {
        return XDP_PASS;
    }
    let addresses = start as *mut [[u8; 6]; 2];
    // SAFETY: bytes that were just found to be in the packet, which have no alignment.
    unsafe { (*addresses).swap(0, 1) };
    XDP_TX
}

/// Counts what was translated, and ends it there.
#[xdp]
pub fn count(context: XdpContext) -> u32 {
    let arrived = match ethertype(&context) {
        Some(ETHERTYPE_IPV4) => is_target::<UdpV4>(&context),
        Some(ETHERTYPE_IPV6) => is_target::<UdpV6>(&context),
        _ => false,
    };
    match ARRIVED.get_ptr_mut(0) {
        Some(counter) if arrived => {
            // SAFETY: this CPU's own value, and one program runs at a time.
            unsafe { *counter += 1 };
            XDP_DROP
        }
        _ => XDP_PASS,
    }
}

#[inline(always)]
fn send<S: Shape>(context: &XdpContext) -> Option<u32> {
    let (template, plan) = (TEMPLATE.get(0)?, PLAN.get(0)?);
    let counter = SEQUENCE.get_ptr_mut(0)?;
    // SAFETY: a map value, valid until the program ends; one program runs at a time.
    let sequence = unsafe { *counter };
    // SAFETY: as above.
    unsafe { *counter = sequence.wrapping_add(1) };
    let start = context.data();
    if start + (TEMPLATE_WORDS * 4).max(S::LENGTH) > context.data_end() {
        return None;
    }
    let start = start as *mut u8;
    // The checksum of the plan is right for its first packet. Ports and the ends of addresses differ in the others.
    let mut sum = plan.transport_checksum as u16;
    let mut header_sum = plan.header_checksum as u16;
    for end in [&plan.source, &plan.destination] {
        sum = checksum::update(sum, checksum::word_difference(end.port_in(0).to_be(), end.port_in(sequence).to_be()));
        let (first, now) = (end.address_in(0), end.address_in(sequence));
        for shift in [16, 0] {
            let half = |address: u32| ((address >> shift) as u16).to_be();
            let difference = checksum::word_difference(half(first), half(now));
            sum = checksum::update(sum, difference);
            header_sum = checksum::update(header_sum, difference);
        }
    }
    // SAFETY: the lengths of template and shape were just compared with that of the packet.
    unsafe {
        headers::write_template(start, template);
        headers::write::<S>(start, plan, sequence);
        u16::store::<0>(start.add(S::TRANSPORT_CHECKSUM), sum);
        if let Some(offset) = S::HEADER_CHECKSUM {
            u16::store::<0>(start.add(offset), header_sum);
        }
    }
    Some(XDP_TX)
}

#[inline(always)]
fn ethertype(context: &XdpContext) -> Option<u16> {
    let start = context.data();
    if start + ETHERTYPE + 2 > context.data_end() {
        return None;
    }
    // SAFETY: two bytes that were just found to be in the packet.
    Some(u16::from_be(unsafe { u16::load::<ETHERTYPE>(start as *const u8) }))
}

/// Whether the packet is for the port of translated ones. Whatever else passes here is neighbour discovery.
#[inline(always)]
fn is_target<S: Shape>(context: &XdpContext) -> bool {
    let (Some(start), Some(target)) = (bytes::<S>(context), TARGET_PORT.get(0)) else { return false };
    // SAFETY: the length of the shape was just compared with that of the packet.
    let port = u16::from_be(unsafe { u16::load::<0>(start.add(S::DESTINATION_PORT)) });
    u32::from(port) == *target
}

/// The packet, if it is as long as the shape.
#[inline(always)]
fn bytes<S: Shape>(context: &XdpContext) -> Option<*mut u8> {
    let start = context.data();
    (start + S::LENGTH <= context.data_end()).then_some(start as *mut u8)
}

dsproxy_common::kernel_object!();
