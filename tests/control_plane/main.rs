//! The sources against what they read from: an API server that fails as told, and a directory.
//!
//! Each test asserts the exact events and the status; none of them knows what becomes of the events.

mod credentials;
mod doubt;
mod harness;
mod history;
mod hour;
mod malformed;
mod manifests;
mod manifests_broken;
mod node;
mod objects;
mod outages;
mod refusals;
mod start;
mod watching;
