//! Rendering the chart, by helm itself.

use std::process::{Command, Output};

use crate::{target, workspace};

fn helm(arguments: &[&str]) -> Output {
    let program = target().join("tools/helm");
    let mut command = Command::new(&program);
    // Nothing of the user's own: neither plugins nor a cluster.
    command.args(arguments).env_clear().env("HOME", "/nowhere");
    command.output().unwrap_or_else(|error| panic!("{}: {error}; `cargo xtask test` puts it there", program.display()))
}

/// What `helm template` makes of the chart with further arguments, or why it does not.
pub(crate) fn template(arguments: &[&str]) -> Result<String, String> {
    let chart = workspace("deploy/chart").display().to_string();
    let fixed = ["template", "dsproxy", &chart, "--namespace", "kube-system"];
    let output = helm(&[&fixed, arguments].concat());
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).expect("the manifests are text"))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// What `helm lint --strict` says against the chart.
pub(crate) fn lint() -> Result<(), String> {
    let chart = workspace("deploy/chart").display().to_string();
    let output = helm(&["lint", "--strict", "--quiet", &chart]);
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stdout).into_owned()) }
}
