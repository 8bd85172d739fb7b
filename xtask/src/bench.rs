//! `cargo xtask bench`: builds the daemon and the benchmarks optimised, and hands the arguments on.

use crate::{cargo, run};

pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    run::pass_on_signals()?;
    // What only reads earlier runs needs no daemon.
    if !matches!(arguments.first().map(String::as_str), Some("compare" | "plots")) {
        cargo::build_daemon(cargo::Profile::Release)?;
    }
    let mut command = cargo::cargo(&["run", "--release", "-p", "dsproxy-tests", "--bin", "dsproxy-bench", "--"]);
    run::succeed(command.args(arguments))
}
