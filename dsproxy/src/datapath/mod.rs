//! Everything about having the data path in the kernel.

pub mod attach;
pub(crate) mod batches;
pub mod bpffs;
pub mod carry;
pub mod charge;
pub mod load;
pub mod map_entries;
pub mod map_memory;
pub mod open_connections;
pub mod probe;
mod raw_map;
