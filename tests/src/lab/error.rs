//! What can go wrong while building or using a lab.

use std::{io, path::PathBuf, time::Duration};

/// A failure of the lab itself, as opposed to traffic that was not answered.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A file operation failed.
    #[error("cannot {operation} {}: {source}", .path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// `ip` or `tc` could not be run.
    #[error("cannot run `{program}`: {source}; it is in the package iproute2, which `cargo xtask setup` installs")]
    NoIpRoute {
        /// Which of them.
        program: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// `ip` or `tc` refused a command.
    #[error("`{commands}` failed: {reason}; the lab needs root")]
    IpRoute {
        /// The commands, as they were given.
        commands: String,
        /// What it printed.
        reason: String,
    },
    /// Entering a namespace failed.
    #[error("cannot enter the network namespace {name}: {source}; the lab needs root")]
    Enter {
        /// The namespace.
        name: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A node has as many pods as its network has addresses.
    #[error("{node} has no room for another pod")]
    NoRoom {
        /// The node.
        node: &'static str,
    },
    /// A process could not be started.
    #[error("cannot start {program} in {namespace}: {source}")]
    Spawn {
        /// The program.
        program: String,
        /// The namespace it was to run in.
        namespace: String,
        /// Why it failed.
        source: io::Error,
    },
    /// An echo server could not take its address.
    #[error("cannot listen on {address} in {namespace}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// The namespace.
        namespace: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The daemon's binary is not there.
    #[error(
        "no dsproxy binary at {}: `cargo xtask test` builds what tests run; DSPROXY_BIN names another", .path.display()
    )]
    NoDaemon {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The daemon ended or did not do what was asked of it.
    #[error("dsproxy {what}; the end of its log:\n{log}")]
    Daemon {
        /// What happened.
        what: String,
        /// The last lines of its log.
        log: String,
    },
    /// An object could not be written as YAML.
    #[error("cannot write the manifest {name}: {source}")]
    Manifest {
        /// The file's name.
        name: String,
        /// Why it failed.
        source: serde_yaml::Error,
    },
    /// A kernel query failed.
    #[error("cannot ask for the programs on {interface}: {reason}")]
    Attachments {
        /// The interface.
        interface: String,
        /// Why it failed.
        reason: String,
    },
    /// A program of somebody else's could not be put in its place, or asked.
    #[error("cannot use {what} of the programs beside dsproxy's: {reason}")]
    Bystander {
        /// The program or map.
        what: &'static str,
        /// Why it failed.
        reason: String,
    },
    /// Something did not happen in time.
    #[error("after {within:?}: {what}: {last}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        within: Duration,
        /// The last attempt's outcome.
        last: String,
    },
}

impl LabError {
    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File { operation, path: path.into(), source }
    }
}
