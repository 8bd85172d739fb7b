//! `cargo xtask soak`: builds the daemon and the soak, and runs the one in the other's lab.

use std::{path::PathBuf, process::Command};

use crate::{
    cargo::{self, Profile},
    run,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long.
    #[arg(long, default_value_t = 30)]
    minutes: u64,
    /// What is planned by, and packets follow from; without it, the time. A run prints its own.
    #[arg(long)]
    seed: Option<u64>,
    /// How many packets are thrown at the kernel programs first.
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    packets: u64,
    /// How many seconds of 100 changes a second among 10,000 Services come before the load.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    churn: u64,
    /// Write the whole report to this file, as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
    /// With the optimised daemon, for figures of its memory.
    #[arg(long)]
    release: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let Options { minutes, seed, packets, churn, json, release } = options;
    run::pass_on_signals()?;
    let profile = if *release { Profile::Release } else { Profile::Development };
    cargo::build_daemon(profile)?;
    // The clients may be what they are: where the kernel is measured they only wait.
    let mut soak = Command::new(cargo::build_lab_binary("dsproxy-soak")?);
    soak.env("DSPROXY_BIN", cargo::daemon(profile)?).args(["--minutes", &minutes.to_string()]);
    soak.args(["--packets", &packets.to_string(), "--churn", &churn.to_string()]);
    if let Some(seed) = seed {
        soak.args(["--seed", &seed.to_string()]);
    }
    if let Some(json) = json {
        soak.arg("--json").arg(json);
    }
    run::succeed(&mut soak)
}
