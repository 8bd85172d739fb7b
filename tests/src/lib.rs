//! The test crate of dsproxy: a lab of network namespaces, and what the tests, the demo and the benchmarks
//! need to send real traffic through the kernel programs.
//!
//! It needs root and knows the daemon only by its command line, as a user does.

pub mod lab;
