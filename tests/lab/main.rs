//! Tests with real sockets in a lab of network namespaces. They need root, and the daemon's binary; `cargo
//! xtask test` sees to both.

mod balancer;
mod bystanders;
mod change;
mod cleanup;
mod cluster;
mod commands;
mod direct;
mod events;
mod fast_path;
mod hints;
mod host_network;
mod large;
mod loopback;
mod masquerade;
mod matrix;
mod outside;
mod refusals;
mod restart;
mod rules;
mod sctp;
mod serve;
mod shortcut;
mod topology;
mod upgrade;
mod uplink;
