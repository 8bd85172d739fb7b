//! `cargo xtask lint`: formatting and clippy, for the crates of the host and for the kernel programs.

use std::process::Command;

use anyhow::bail;

use crate::{cargo, run, setup};

pub(crate) fn run() -> anyhow::Result<()> {
    run::pass_on_signals()?;
    let host = ["clippy", "--quiet", "--workspace", "--exclude", "dsproxy-ebpf", "--all-targets", "--keep-going"];
    // All of them, so that one run shows all there is to mend.
    let checks = [
        ("formatting", run::succeed(&mut cargo::cargo(&["fmt", "--all", "--check"]))),
        ("the crates of the host", run::succeed(cargo::cargo(&host).args(["--", "-D", "warnings"]))),
        ("the kernel programs", kernel_programs()),
    ];
    let mut failed = Vec::new();
    for (what, outcome) in checks {
        if let Err(error) = outcome {
            eprintln!("{what}: {error:#}");
            failed.push(what);
        }
    }
    if !failed.is_empty() {
        bail!("lint: {} not clean", failed.join(", "));
    }
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
