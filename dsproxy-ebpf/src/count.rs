//! Counters: one a packet by reason, a few by service port, and drops by both; all of them per CPU.

use core::hint::cold_path;

use aya_ebpf::bindings::BPF_NOEXIST;
use dsproxy_common::{
    IpFamily,
    count::{Reason, ServiceCounters, ServiceDrops, counter_index},
    flow::NO_SERVICE,
};

use crate::maps;

/// Counts a packet.
#[inline(always)]
pub(crate) fn packet(reason: Reason, family: Option<IpFamily>) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(counter_index(reason, family)) {
        // SAFETY: this CPU's own value; the programs run with bottom halves disabled, so none interrupts another on a CPU.
        unsafe { *counter += 1 };
    }
}

/// Counts a packet of `bytes` to a backend of `service`.
#[inline(always)]
pub(crate) fn forward(service: u32, bytes: u32, opened: bool) {
    with(service, |counters| {
        counters.packets += 1;
        counters.bytes += u64::from(bytes);
        if opened {
            counters.connections += 1;
        }
    });
}

/// Counts a packet of `bytes` from a backend of `service`.
#[inline(always)]
pub(crate) fn reply(service: u32, bytes: u32) {
    with(service, |counters| {
        counters.reply_packets += 1;
        counters.reply_bytes += u64::from(bytes);
    });
}

/// Counts a drop of `service`, if it is one and the service port is known. A packet's or a socket's call's: both may be at it on
/// one CPU.
///
/// Should the kernel have no memory for the entry just now, the drop is counted by its reason alone, and the next one asks again.
#[inline(always)]
pub(crate) fn drop(service: u32, reason: Reason) {
    let Some(index) = ServiceDrops::index(reason) else { return };
    cold_path();
    if service == NO_SERVICE {
        return;
    }
    let held = maps::SERVICE_DROPS.get_ptr_mut(service);
    let drops = match held {
        Some(drops) => drops,
        None => {
            let Some(none) = maps::NO_DROPS.get(0) else { return };
            // Whoever was here meanwhile has entered it.
            let _ = maps::SERVICE_DROPS.insert(service, none, BPF_NOEXIST.into());
            let Some(drops) = maps::SERVICE_DROPS.get_ptr_mut(service) else { return };
            drops
        }
    };
    // SAFETY: this CPU's own value, which has a counter for every index.
    unsafe { add_one(drops.cast::<u64>().add(index)) };
}

/// Counts what became of a socket's call.
#[inline(always)]
pub(crate) fn socket(reason: Reason, family: IpFamily) {
    if let Some(counter) = maps::COUNTERS.get_ptr_mut(counter_index(reason, Some(family))) {
        // SAFETY: this CPU's own value.
        unsafe { add_one(counter) };
    }
}

/// Counts a socket that was led to a backend of `service`. Its packets pass by uncounted.
#[inline(always)]
pub(crate) fn socket_opened(service: u32) {
    if let Some(counters) = maps::SERVICE_COUNTERS.get_ptr_mut(service) {
        // SAFETY: this CPU's own value.
        unsafe { add_one(&raw mut (*counters).connections) };
    }
}

/// Adds one in a single instruction: a program of a system call may be interrupted, on its CPU, by those of packets and by
/// another of its own kind.
///
/// # Safety
///
/// The counter must be writable.
#[cfg(target_arch = "bpf")]
#[inline(always)]
pub(crate) unsafe fn add_one(counter: *mut u64) {
    // SAFETY: given by the caller.
    unsafe {
        core::arch::asm!(
            "lock *(u64 *)({counter} + 0) += {one}",
            counter = in(reg) counter,
            one = in(reg) 1u64,
            options(nostack, preserves_flags),
        );
    }
}

#[cfg(not(target_arch = "bpf"))]
pub(crate) unsafe fn add_one(counter: *mut u64) {
    // SAFETY: given by the caller.
    unsafe { *counter += 1 };
}

#[inline(always)]
fn with(service: u32, change: impl FnOnce(&mut ServiceCounters)) {
    if let Some(counters) = maps::SERVICE_COUNTERS.get_ptr_mut(service) {
        // SAFETY: as in `packet`.
        change(unsafe { &mut *counters });
    }
}
