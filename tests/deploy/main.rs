//! What `deploy/` holds, against what it is about: the chart against helm and the API's types, the manifests against the daemon's
//! flags, the image and its restrictions in a real container, dashboard and alerts against real metrics. `cargo xtask test`
//! installs what that takes.

mod chart;
mod container;
mod flags;
mod helm;
mod in_cluster;
mod manifests;
mod podman;
mod queries;
mod restricted;

// The small cluster of pods, which the tests of traffic start from as well.
#[allow(dead_code, reason = "what the tests of traffic alone need of it")]
#[path = "../lab/cluster.rs"]
mod cluster;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A path in the workspace.
fn workspace(path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests are a directory of the workspace");
    root.join(path)
}

/// A file of the workspace.
fn read(path: &str) -> String {
    fs::read_to_string(workspace(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Where cargo puts what it builds: this test is target/PROFILE/deps/TEST.
fn target() -> PathBuf {
    let own = std::env::current_exe().expect("this test is a file");
    own.ancestors().nth(3).expect("three levels").to_owned()
}
