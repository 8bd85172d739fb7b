//! The time, as cheaply as it can be had.

use aya_ebpf::helpers::bpf_jiffies64;

/// The low half of the kernel's jiffies. The verifier turns the call into a memory read.
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_jiffies64() as u32 }
}
