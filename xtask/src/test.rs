//! `cargo xtask test`: every test there is, and afterwards a look at what they left behind.

use std::{path::Path, process::Command, time::Instant};

use anyhow::bail;

use crate::{cargo, deploy_tools, run};

/// Crates whose tests need neither root nor a built daemon.
const CRATES: [&str; 3] = ["dsproxy-common", "dsproxy", "xtask"];

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run only tests whose name contains this.
    filter: Option<String>,
    /// How many tests run at a time; more than the cores can carry makes load tests slow, not wrong.
    #[arg(long, default_value_t = 2)]
    threads: u8,
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let started = Instant::now();
    run::pass_on_signals()?;
    if !nix::unistd::geteuid().is_root() {
        bail!("the tests make network namespaces and load kernel programs: run them as root");
    }
    deploy_tools::ensure()?;
    cargo::build_daemons()?;
    let lab = cargo::build_lab_binary("dsproxy-lab")?;
    run::succeed(Command::new(&lab).arg("reap"))?;

    let mut failed = Vec::new();
    let mut unprivileged = cargo::cargo(&["test"]);
    for name in CRATES {
        unprivileged.args(["-p", name]);
    }
    if let Some(filter) = &options.filter {
        unprivileged.arg("--").arg(filter);
    }
    note("the tests of the crates", run::succeed(&mut unprivileged), &mut failed);

    let threads = options.threads.to_string();
    let mut privileged = cargo::cargo(&["test", "-p", "dsproxy-tests", "--no-fail-fast", "--"]);
    privileged.args(["--test-threads", &threads]);
    privileged.args(&options.filter);
    if !run::interrupted() {
        note("the tests of traffic", run::succeed(&mut privileged), &mut failed);
    }
    note("nothing left behind", left_nothing(&lab), &mut failed);

    let took = started.elapsed().as_secs();
    if run::interrupted() {
        bail!("interrupted after {took} s");
    }
    if !failed.is_empty() {
        bail!("FAILED after {took} s: {}", failed.join("; "));
    }
    let which = options.filter.as_ref().map(|filter| format!(" matching {filter:?}")).unwrap_or_default();
    println!("xtask test: all tests{which} passed, nothing was left behind ({took} s)");
    Ok(())
}

fn note(what: &str, outcome: anyhow::Result<()>, failed: &mut Vec<String>) {
    if let Err(error) = outcome {
        eprintln!("{what}: {error:#}");
        failed.push(what.to_owned());
    }
}

/// Removes what is left of labs whose process has ended, and fails if there was anything.
fn left_nothing(lab: &Path) -> anyhow::Result<()> {
    // Also after an interruption, so not through `succeed`, which starts nothing then.
    let status = run::status(Command::new(lab).args(["reap", "--expect-none"]))?;
    if !status.success() {
        bail!("the tests left something behind; it is listed above and was removed");
    }
    Ok(())
}
