//! Calling cargo, and where it puts what it builds.

use std::{
    env, fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::run;

/// A cargo command in the workspace.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/..")).args(arguments);
    command
}

/// How the daemon is built.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    /// Quickly, for tests and the demo.
    Development,
    /// Optimised.
    Release,
}

impl Profile {
    /// The name of its directory.
    fn directory(self) -> &'static str {
        match self {
            Self::Development => "debug",
            Self::Release => "release",
        }
    }

    /// What cargo is told of it.
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Development => &[],
            Self::Release => &["--release"],
        }
    }
}

/// Where the daemon of `profile` is once it is built.
pub(crate) fn daemon(profile: Profile) -> anyhow::Result<PathBuf> {
    Ok(target_directory()?.join(profile.directory()).join("dsproxy"))
}

/// Builds the daemon.
pub(crate) fn build_daemon(profile: Profile) -> anyhow::Result<()> {
    run::succeed(cargo(&["build", "-p", "dsproxy"]).args(profile.flags()))
}

/// Builds the daemon for tests, and beside it, as `dsproxy-next-layout`, one whose maps have another layout: what both are made of
/// is compiled once.
pub(crate) fn build_daemons() -> anyhow::Result<()> {
    let profile = Profile::Development;
    run::succeed(cargo(&["build", "-p", "dsproxy", "--features", "next-layout"]).args(profile.flags()))?;
    let daemon = daemon(profile)?;
    let next = daemon.with_file_name("dsproxy-next-layout");
    // Where it stood, cargo now puts the other: a name would lead there.
    fs::copy(&daemon, &next).with_context(|| format!("copy {} to {}", daemon.display(), next.display()))?;
    build_daemon(profile)
}

/// Builds the binary `name` of the test crate and returns where it is.
pub(crate) fn build_lab_binary(name: &str) -> anyhow::Result<PathBuf> {
    build_binary(name, Profile::Development)
}

/// The same in `profile`.
pub(crate) fn build_binary(name: &str, profile: Profile) -> anyhow::Result<PathBuf> {
    run::succeed(cargo(&["build", "--quiet", "-p", "dsproxy-tests", "--bin", name]).args(profile.flags()))?;
    let path = target_directory()?.join(profile.directory()).join(name);
    if path.is_file() { Ok(path) } else { bail!("cargo built {name}, but it is not at {}", path.display()) }
}

/// Builds the tests `names` of the test crate, and returns where the executable of each is.
pub(crate) fn build_tests(names: &[&str]) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let mut command = cargo(&["test", "--no-run", "--message-format=json-render-diagnostics", "-p", "dsproxy-tests"]);
    for name in names {
        command.args(["--test", name]);
    }
    let output = command.stderr(Stdio::inherit()).output().context("run cargo test --no-run")?;
    if !output.status.success() {
        bail!("cargo could not build the tests {}", names.join(", "));
    }
    let messages = String::from_utf8_lossy(&output.stdout);
    let executables = messages.lines().filter_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        Some((message["target"]["name"].as_str()?.to_owned(), PathBuf::from(message["executable"].as_str()?)))
    });
    let executables: Vec<_> = executables.filter(|(name, _)| names.contains(&name.as_str())).collect();
    if executables.len() == names.len() {
        return Ok(executables);
    }
    bail!("cargo built {} of the {} tests {}", executables.len(), names.len(), names.join(", "))
}

/// Where cargo puts what it builds.
pub(crate) fn target_directory() -> anyhow::Result<PathBuf> {
    let output = cargo(&["metadata", "--format-version=1", "--no-deps"])
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo metadata")?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("read cargo metadata")?;
    match metadata["target_directory"].as_str() {
        Some(path) => Ok(path.into()),
        None => bail!("cargo metadata names no target directory"),
    }
}
