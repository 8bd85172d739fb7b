//! `cargo xtask docs`: the documents that are made from the code.

use std::{fs, process::Command};

use anyhow::{Context as _, bail};

use crate::cargo::{self, Profile};

/// The reference of flags and fields, which the daemon prints.
const CONFIGURATION: &str = "docs/configuration.md";

pub(crate) fn run() -> anyhow::Result<()> {
    let profile = Profile::Development;
    cargo::build_daemon(profile)?;
    let output = Command::new(cargo::daemon(profile)?).arg("reference").output().context("run dsproxy reference")?;
    if !output.status.success() {
        bail!("dsproxy reference: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    fs::write(CONFIGURATION, output.stdout).with_context(|| format!("write {CONFIGURATION}"))?;
    println!("xtask docs: {CONFIGURATION} is what the code says");
    Ok(())
}
