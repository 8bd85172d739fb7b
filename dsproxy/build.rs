//! Builds the kernel programs, which end up inside the daemon.

use anyhow::Context as _;

/// The rustup toolchain that can compile for the bpf target; `cargo xtask setup` makes it.
const TOOLCHAIN: &str = "dsproxy-ebpf";

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-env-changed=DSPROXY_EBPF_TOOLCHAIN");
    println!("cargo:rerun-if-changed=../dsproxy-common");
    // The inner build reports each crate it compiles, which cargo would show as warnings of this one.
    // SAFETY: nothing else runs in this process.
    unsafe { std::env::set_var("CARGO_TERM_QUIET", "true") };
    let toolchain = std::env::var("DSPROXY_EBPF_TOOLCHAIN").unwrap_or_else(|_| TOOLCHAIN.to_owned());
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../dsproxy-ebpf");
    let features = [("CARGO_FEATURE_PACKET_LOG", "log"), ("CARGO_FEATURE_NEXT_LAYOUT", "next-layout")];
    let features: Vec<&str> = features
        .into_iter()
        .filter(|(variable, _)| std::env::var_os(variable).is_some())
        .map(|(_, name)| name)
        .collect();
    let package =
        aya_build::Package { name: "dsproxy-ebpf", root_dir: root, no_default_features: false, features: &features };
    aya_build::build_ebpf([package], aya_build::Toolchain::Custom(&toolchain)).with_context(|| {
        format!("build the kernel programs with the toolchain {toolchain}; `cargo xtask setup` makes it")
    })
}
