//! `cargo xtask fuzz`: packets for the kernel programs, which `dsproxy-fuzz` throws, and garbled text for the readers of files and objects, which
//! are tests of the daemon's crate.

use std::time::{SystemTime, UNIX_EPOCH};

use clap::Subcommand;

use crate::{cargo, run};

/// What is garbled.
#[derive(Subcommand)]
pub(crate) enum Target {
    /// Packets, to every kernel program that can be run on one, held against the model. Needs root.
    Packets {
        /// How many.
        #[arg(long, default_value_t = 1_000_000)]
        count: u64,
        /// What they follow from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Manifests, API objects, kube-proxy's file and kubeconfigs, to those who read them.
    Readers {
        /// How many texts each reader gets.
        #[arg(long, default_value_t = 100_000)]
        count: u32,
        /// What they follow from; without it, the time, so that each run is another one. A run prints its own.
        #[arg(long)]
        seed: Option<u64>,
    },
}

/// Say how many texts each reader gets, and what they follow from (`dsproxy/src/garbled.rs`).
const CASES: &str = "DSPROXY_FUZZ_CASES";
const SEED: &str = "DSPROXY_FUZZ_SEED";

pub(crate) fn run(target: &Target) -> anyhow::Result<()> {
    run::pass_on_signals()?;
    match target {
        Target::Packets { count, seed } => {
            let mut command = cargo::cargo(&["run", "--release", "-p", "dsproxy-tests", "--bin", "dsproxy-fuzz", "--"]);
            let (count, seed) = (count.to_string(), seed.to_string());
            run::succeed(command.args(["packets", "--count", &count, "--seed", &seed]))
        }
        Target::Readers { count, seed } => {
            let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            let seed = seed.unwrap_or_else(now);
            println!("xtask fuzz readers --count {count} --seed {seed}");
            let mut command = cargo::cargo(&["test", "--release", "-p", "dsproxy", "--lib", "--", "garbled"]);
            run::succeed(command.env(CASES, count.to_string()).env(SEED, seed.to_string()))
        }
    }
}
