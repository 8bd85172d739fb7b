//! Builds the kernel programs that the benchmark and the lab put beside the real ones.

use anyhow::Context as _;

/// The rustup toolchain that can compile for the bpf target; `cargo xtask setup` makes it.
const TOOLCHAIN: &str = "dsproxy-ebpf";

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-env-changed=DSPROXY_EBPF_TOOLCHAIN");
    println!("cargo:rerun-if-changed=../dsproxy-ebpf/src/wire.rs");
    println!("cargo:rerun-if-changed=../dsproxy-common/src/checksum.rs");
    // As in dsproxy/build.rs: the inner build would report each crate as a warning of this one.
    // SAFETY: nothing else runs in this process.
    unsafe { std::env::set_var("CARGO_TERM_QUIET", "true") };
    let toolchain = std::env::var("DSPROXY_EBPF_TOOLCHAIN").unwrap_or_else(|_| TOOLCHAIN.to_owned());
    let package = aya_build::Package {
        name: "dsproxy-bench-ebpf",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/ebpf"),
        ..aya_build::Package::default()
    };
    aya_build::build_ebpf([package], aya_build::Toolchain::Custom(&toolchain)).with_context(|| {
        format!("build the kernel programs of benchmark and lab with the toolchain {toolchain}; `cargo xtask setup` makes it")
    })
}
