//! `cargo xtask demo`: builds the daemon and the demo, and runs the one in the other's lab.
//!
//! The development profile is used: it compiles fastest, and the kernel programs are optimised in either.

use std::process::Command;

use crate::{cargo, run};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Leave the lab and the daemon running, to look around.
    #[arg(long)]
    keep: bool,
    /// Remove what --keep left, and do nothing else.
    #[arg(long, conflicts_with = "keep")]
    remove: bool,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let Options { keep, remove } = options;
    run::pass_on_signals()?;
    if !remove {
        println!("Building the daemon and the demo (development profile).");
        cargo::build_daemon(cargo::Profile::Development)?;
    }
    let mut demo = Command::new(cargo::build_lab_binary("dsproxy-demo")?);
    if *remove {
        demo.arg("remove");
    } else {
        demo.arg("run").arg("--manifests").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/demo"));
        if *keep {
            demo.arg("--keep");
        }
    }
    run::succeed(&mut demo)
}
