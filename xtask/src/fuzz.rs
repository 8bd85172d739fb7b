//! `cargo xtask fuzz`: builds `dsproxy-fuzz` optimised and hands the arguments on.

use crate::{cargo, run};

pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    run::pass_on_signals()?;
    let mut command = cargo::cargo(&["run", "--release", "-p", "dsproxy-tests", "--bin", "dsproxy-fuzz", "--"]);
    run::succeed(command.args(arguments))
}
