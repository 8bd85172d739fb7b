//! The kernel programs, packet by packet: each case says what goes in, and is compared byte by byte and counter by counter with
//! what comes out. Needs root; no interface and no namespace is touched.
//!
//! Every case runs for IPv4 and IPv6 and through the programs for devices with and without an Ethernet header.

mod account;
mod bypass;
mod choice;
mod clash;
mod connections;
mod direct;
mod drops;
mod events;
mod fast_path;
mod fragments;
mod fuzz;
mod icmp_errors;
mod load;
mod malformed;
mod maps;
mod masquerade;
mod offload;
mod parse;
mod policy;
mod property;
mod refuse;
mod reset;
mod shortcut;
mod termination;
mod trace;
mod translate;
mod world;
