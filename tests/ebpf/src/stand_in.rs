//! Programs with the names of dsproxy's own and next to nothing in them, for tests of how programs are attached: those load afresh again and
//! again, and what dsproxy's own take of the verifier's time would be all of theirs.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
// On the host the crate is only checked: nothing calls the programs there.
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code))]
// The program attribute makes public functions without documentation around ours.
#![allow(missing_docs, unreachable_pub)]

use aya_ebpf::{
    bindings::TC_ACT_UNSPEC,
    btf_maps::Array,
    macros::{btf_map, classifier},
    programs::TcContext,
};

/// By the name of one of dsproxy's own: that, with the program's name, is what it knows its programs by.
#[btf_map]
static FRONTENDS_V4: Array<u64, 1> = Array::new();

/// One program for each name.
macro_rules! stand_ins {
    ($($name:ident)*) => {$(
        #[classifier]
        pub fn $name(_: TcContext) -> i32 {
            count();
            TC_ACT_UNSPEC
        }
    )*};
}

/// Uses the map.
#[inline(always)]
fn count() {
    if let Some(runs) = FRONTENDS_V4.get_ptr_mut(0) {
        // SAFETY: a map value, valid until the program ends.
        unsafe { *runs = (*runs).wrapping_add(1) };
    }
}

stand_ins! {
    pod_ingress_ethernet pod_egress_ethernet node_ingress_ethernet node_egress_ethernet
    pod_ingress_ip pod_egress_ip node_ingress_ip node_egress_ip
}

dsproxy_common::kernel_object!();
