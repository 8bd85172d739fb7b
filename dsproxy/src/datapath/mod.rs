//! Everything about having the data path in the kernel.

pub mod attach;
pub mod bpffs;
pub mod charge;
pub mod load;
