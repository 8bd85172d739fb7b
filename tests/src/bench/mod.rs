//! The benchmark: what one packet costs in the kernel, and what it takes to bring a cluster's Services into the maps.
//!
//! No traffic leaves the kernel's test facility, and nothing is attached or pinned. Figures are differences: a program that does
//! nothing is measured in the same rounds and taken off.

mod control_plane;
mod error;
mod figure;
mod machine;
mod packets;
mod path;
mod services;
mod wrapper;

pub use control_plane::{ColdStart, cold_start, measure_control_plane};
pub use error::BenchError;
pub use figure::{Aim, Figure, Report};
pub use machine::Machine;
pub use packets::{Effort, measure_packets, measure_scale};
