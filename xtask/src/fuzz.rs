//! `cargo xtask fuzz`: packets for the kernel programs, which `dsproxy-fuzz` throws, and garbled text for the readers of files and objects, which
//! are tests of the daemon's crate.

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
    /// Manifests, API objects and kube-proxy's file, to those who read them.
    Readers {
        /// How many texts each reader gets.
        #[arg(long, default_value_t = 100_000)]
        count: u32,
    },
}

/// Says how many texts each reader gets (`dsproxy/src/garbled.rs`).
const CASES: &str = "DSPROXY_FUZZ_CASES";

pub(crate) fn run(target: &Target) -> anyhow::Result<()> {
    run::pass_on_signals()?;
    match target {
        Target::Packets { count, seed } => {
            let mut command = cargo::cargo(&["run", "--release", "-p", "dsproxy-tests", "--bin", "dsproxy-fuzz", "--"]);
            let (count, seed) = (count.to_string(), seed.to_string());
            run::succeed(command.args(["packets", "--count", &count, "--seed", &seed]))
        }
        Target::Readers { count } => {
            let mut command = cargo::cargo(&["test", "--release", "-p", "dsproxy", "--lib", "--", "garbled"]);
            run::succeed(command.env(CASES, count.to_string()))
        }
    }
}
