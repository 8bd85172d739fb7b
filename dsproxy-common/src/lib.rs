//! What the kernel programs and user space agree on: map keys and values, constants, and the pure
//! arithmetic on packets.
//!
//! Wire rules: addresses and ports stand in network byte order, everything else in the host's. No type has
//! padding that the compiler inserted, so every byte of a key is defined.

#![cfg_attr(not(test), no_std)]

mod address;
pub mod cached_flow;
pub mod checksum;
pub mod count;
pub mod daemon;
pub mod event;
pub mod filter;
pub mod flow;
pub mod fragment;
pub mod hash;
mod kernel_object;
pub mod layout;
pub mod next_hop;
pub mod pod_device;
pub mod record;
pub mod refusal;
pub mod service;
pub mod settings;
pub mod socket;

pub use address::{Addr4, Addr6, Address, IpFamily, Port, Protocol};
