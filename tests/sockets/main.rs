//! Real sockets of a node, led to backends where their programs name a VIP.
//!
//! The daemon's programs are attached to the lab's own cgroup; a client is a thread that is in it, and in a network namespace.

mod ask;
mod backends;
mod connected;
mod host;
mod life;
mod load;
mod policy;
mod refuse;
