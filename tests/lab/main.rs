//! Tests with real sockets in a lab of network namespaces. They need root, and the daemon's binary; `cargo
//! xtask test` sees to both.

mod topology;
