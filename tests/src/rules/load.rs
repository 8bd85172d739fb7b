//! Bringing rules into a network namespace with Debian's `nft` and `iptables`, one transaction a family.

use std::{
    io::{self, Write as _},
    process::{Command, Stdio},
    thread,
};

use dsproxy_common::IpFamily;
use thiserror::Error;

use super::{DesiredState, iptables, nftables};
use crate::lab::{LabError, Namespace};

/// What programs that fill tables of iptables are told: the legacy ones lock each other out in all namespaces, and others may be at work for
/// so many seconds.
pub const WAIT: [&str; 2] = ["--wait", "60"];

/// The shape of rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// That of kube-proxy's mode nftables.
    Nftables,
    /// That of its mode iptables. It is loaded with the legacy programs: the kernel walks such rules faster than the ones
    /// that iptables makes of nf_tables.
    Iptables,
}

/// Why rules were not loaded.
#[derive(Debug, Error)]
pub enum RulesError {
    /// The program is not there.
    #[error("run `{program}`: {source}; `cargo xtask setup` installs it")]
    NoProgram {
        /// Its name.
        program: &'static str,
        /// Why it cannot be run.
        source: io::Error,
    },
    /// The program refused the rules.
    #[error("`{command}` refused kube-proxy-shaped rules for {family}: {reason}")]
    Refused {
        /// How it was called.
        command: String,
        /// The family.
        family: IpFamily,
        /// What it printed, the beginning.
        reason: String,
    },
    /// The namespace could not be entered.
    #[error(transparent)]
    Lab(#[from] LabError),
}

impl Shape {
    /// The rules for `state` in `family`.
    pub fn text(self, state: &DesiredState, family: IpFamily) -> String {
        match self {
            Self::Nftables => nftables::generate(state, family),
            Self::Iptables => iptables::generate(state, family),
        }
    }

    /// Makes the rules of `namespace` those for `state`, in both families.
    ///
    /// # Errors
    ///
    /// When the program is missing, or refuses.
    pub fn load(self, namespace: &Namespace, state: &DesiredState) -> Result<(), RulesError> {
        IpFamily::ALL.into_iter().try_for_each(|family| self.give(namespace, state, family, &[]))
    }

    /// Whether the kernel in `namespace` would take the rules for `state`; nothing is changed.
    ///
    /// # Errors
    ///
    /// When it would not.
    pub fn check(self, namespace: &Namespace, state: &DesiredState) -> Result<(), RulesError> {
        let only_try: &[&str] = match self {
            Self::Nftables => &["--check"],
            Self::Iptables => &["--test"],
        };
        IpFamily::ALL.into_iter().try_for_each(|family| self.give(namespace, state, family, only_try))
    }

    fn give(
        self,
        namespace: &Namespace,
        state: &DesiredState,
        family: IpFamily,
        arguments: &[&str],
    ) -> Result<(), RulesError> {
        let (program, own): (&'static str, &[&str]) = match (self, family) {
            (Self::Nftables, _) => ("nft", &["-f", "-"]),
            (Self::Iptables, IpFamily::V4) => ("iptables-legacy-restore", &WAIT),
            (Self::Iptables, IpFamily::V6) => ("ip6tables-legacy-restore", &WAIT),
        };
        let mut command = Command::new(program);
        command.args(arguments).args(own).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let failed = |source| RulesError::NoProgram { program, source };
        let mut child = namespace.run(|| command.spawn())?.map_err(failed)?;
        let text = self.text(state, family);
        let stdin = child.stdin.take();
        // On a thread of its own: the program may complain at length before it has read everything.
        let writer = thread::spawn(move || stdin.map(|mut stdin| stdin.write_all(text.as_bytes())));
        let output = child.wait_with_output().map_err(failed)?;
        // A program that ended early has said why on its standard error.
        let _ = writer.join();
        if output.status.success() {
            return Ok(());
        }
        Err(RulesError::Refused {
            command: format!("{program} {}", [arguments, own].concat().join(" ")),
            family,
            reason: String::from_utf8_lossy(&output.stderr).lines().take(5).collect::<Vec<_>>().join("; "),
        })
    }
}
