//! The benchmark: what one packet costs in the kernel, what traffic costs beside kube-proxy-shaped rules, and what it takes to
//! bring a cluster's Services into the maps.
//!
//! Single packets stay in the kernel's test facility, and nothing is attached or pinned for them; traffic stays in a lab's network
//! namespaces. Figures are differences where they can be: what does nothing is measured in the same rounds and taken off.

mod account;
mod compare;
mod control_plane;
mod daemon;
mod error;
mod fast_path;
mod figure;
mod flood;
mod machine;
mod node_port;
mod packets;
mod path;
mod plots;
mod probe;
mod scale;
mod services;
mod start;
mod statistics;
mod traffic;
mod wrapper;

pub use account::{Fault, Taken, follow_life, measure_account};
pub use compare::{Change, Comparison};
pub use control_plane::{ColdStart, cold_start, measure_control_plane};
pub use daemon::{DaemonAims, measure_daemon};
pub use error::BenchError;
pub use fast_path::measure_fast_path;
pub use figure::{Aim, Better, Figure, Report, Spread};
pub use flood::{Flood, Flooded};
pub use machine::Machine;
pub use packets::measure_packets;
pub use plots::{PlotError, write_documents};
pub use probe::Effort;
pub use scale::measure_scale;
pub use start::{StartAccount, account_for_start, measure_start};
pub use traffic::{
    ExchangeFailed, Measure, MeasureFailed, RateEffort, Source, TrafficEffort, measure_rate, measure_traffic,
};
