//! Programs of somebody else's, beside those under test: they count what they meet, and change nothing.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// On the host the crate is only checked: nothing calls the programs there.
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code))]
// The program attribute makes public functions without documentation around ours.
#![allow(missing_docs, unreachable_pub)]

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, xdp_action::XDP_PASS},
    btf_maps::Array,
    macros::{btf_map, cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use dsproxy_bench_ebpf::{BYSTANDERS, Bystander};

/// How often each has run. Two at once may count as one.
#[btf_map]
static RUNS: Array<u64, { BYSTANDERS.len() }> = Array::new();

#[classifier]
pub fn seen_ingress(_: TcContext) -> i32 {
    count(Bystander::Ingress);
    TC_ACT_UNSPEC
}

#[classifier]
pub fn seen_egress(_: TcContext) -> i32 {
    count(Bystander::Egress);
    TC_ACT_UNSPEC
}

#[cgroup_sock_addr(connect4)]
pub fn seen_connect4(_: SockAddrContext) -> i32 {
    count(Bystander::Connect4);
    GO_ON
}

#[cgroup_sock_addr(connect6)]
pub fn seen_connect6(_: SockAddrContext) -> i32 {
    count(Bystander::Connect6);
    GO_ON
}

#[xdp]
pub fn seen_frame(_: XdpContext) -> u32 {
    count(Bystander::Frame);
    XDP_PASS
}

/// The system call is allowed.
const GO_ON: i32 = 1;

#[inline(always)]
fn count(bystander: Bystander) {
    if let Some(runs) = RUNS.get_ptr_mut(bystander as u32) {
        // SAFETY: a map value, valid until the program ends.
        unsafe { *runs = (*runs).wrapping_add(1) };
    }
}

dsproxy_common::kernel_object!();
