//! What the tests, the demo and the benchmarks of dsproxy stand on: a lab of network namespaces for real traffic, and
//! an API server that fails as it is told.

pub mod apiserver;
pub mod lab;
pub mod packet;
pub mod prog;
