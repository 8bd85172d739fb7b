//! Everything about having the data path in the kernel.

pub mod load;
