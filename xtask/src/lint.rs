//! `cargo xtask lint`: formatting and clippy, for the crates of the host and for the kernel programs.

use std::process::Command;

use crate::{cargo, run, setup};

pub(crate) fn run() -> anyhow::Result<()> {
    run::pass_on_signals()?;
    run::succeed(&mut cargo::cargo(&["fmt", "--all", "--check"]))?;
    run::succeed(&mut cargo::cargo(&[
        "clippy",
        "--quiet",
        "--workspace",
        "--exclude",
        "dsproxy-ebpf",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))?;
    kernel_programs()?;
    println!("xtask lint: formatted, and clippy finds nothing");
    Ok(())
}

/// The kernel programs compile for the bpf target only, so they are linted by the toolchain that has it. What
/// `cargo clippy` does is spelled out, because that toolchain has no cargo of its own.
fn kernel_programs() -> anyhow::Result<()> {
    let setup::Linter { compiler, driver } = setup::ensure_linter()?;
    let separator = "__CLIPPY_HACKERY__";
    let mut check: Command =
        cargo::cargo(&["check", "--quiet", "-p", "dsproxy-ebpf", "--bins", "--target", setup::BPF_TARGET]);
    check
        .args(["--target-dir", "target/lint"])
        .env("RUSTC", compiler)
        .env("RUSTC_WORKSPACE_WRAPPER", driver)
        .env("CLIPPY_ARGS", ["-D", "warnings", ""].join(separator))
        .env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{}\"", std::env::consts::ARCH));
    run::succeed(&mut check)
}
