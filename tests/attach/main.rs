//! Interfaces and attachment, against the kernel: each test makes network namespaces of its own.
//! They need root, `ip` and `tc`.

mod bpffs;
mod clsact;
mod interfaces;
mod kernel;
mod namespace;
mod tcx;
mod unexamined;
