//! What the tests, the demo and the benchmarks of dsproxy stand on: a lab of network namespaces for real traffic, an
//! API server that fails as it is told, packets for the kernel programs one by one, rules to measure beside them, and a
//! soak of all of it at once.

pub mod apiserver;
pub mod bench;
pub mod churn;
pub mod fuzz;
pub mod lab;
pub mod model;
pub mod packet;
pub mod prog;
pub mod rules;
pub mod soak;
