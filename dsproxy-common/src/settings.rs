//! What user space tells the running programs, in a map so that it can change without loading them anew.

use crate::{flow::FlowState, record::record};

/// The one entry of the settings map. Times are in jiffies, the kernel's clock tick, which costs the
/// programs a memory read where a clock in nanoseconds costs a call.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The kernel's HZ. Never zero: without it every packet would refresh its entry.
    pub jiffies_per_second: u32,
    /// How long a connection counts without a packet, by the number of its `FlowState`.
    pub lifetimes: [u32; FlowState::COUNT],
}

record! {
    Settings = [4, 4 * FlowState::COUNT];
}
