//! How a lab's namespaces and files are named, so that each can be traced to the process that made it.

use std::{
    fmt,
    path::{Path, PathBuf},
    process,
    str::FromStr,
    sync::atomic::{AtomicU32, Ordering},
};

const PREFIX: &str = "dsp-";

/// Every lab has a directory here, named like the lab.
pub(crate) const ROOT: &str = "/run/dsproxy-lab";

/// The name of a lab: `dsp-<pid of its maker>-<number>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabName {
    /// The process that made the lab.
    pub owner: u32,
    /// Tells the labs of one process apart.
    pub number: u32,
}

impl LabName {
    /// A name that no other lab has.
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        Self { owner: process::id(), number: NEXT.fetch_add(1, Ordering::Relaxed) }
    }

    /// The lab that a namespace or directory called `name` belongs to, when it is a lab's at all.
    pub(crate) fn of(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(PREFIX)?.splitn(3, '-');
        Some(Self { owner: parts.next()?.parse().ok()?, number: parts.next()?.parse().ok()? })
    }

    /// The network namespace of `role`.
    pub(crate) fn namespace(self, role: &str) -> String {
        format!("{self}-{role}")
    }

    /// The lab's directory.
    pub(crate) fn directory(self) -> PathBuf {
        Path::new(ROOT).join(self.to_string())
    }

    /// Lists the owner and every process the lab started.
    pub(crate) fn processes_file(self) -> PathBuf {
        self.directory().join("processes")
    }

    /// Its presence says that the lab is to outlive its owner.
    pub(crate) fn kept_file(self) -> PathBuf {
        self.directory().join("kept")
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}-{}", self.owner, self.number)
    }
}

/// The text is not the name of a lab.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not the name of a lab; they look like dsp-1234-0")]
pub struct NotALab(String);

impl FromStr for LabName {
    type Err = NotALab;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::of(text).filter(|name| name.to_string() == text).ok_or_else(|| NotALab(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_names_its_lab() {
        let lab = LabName { owner: 4711, number: 3 };
        assert_eq!(LabName::of(&lab.namespace("node-a")), Some(lab));
        assert_eq!(LabName::of(&lab.to_string()), Some(lab));
        assert_eq!("dsp-4711-3".parse::<LabName>().ok(), Some(lab));
    }

    #[test]
    fn foreign_names_are_not_labs() {
        for name in ["default", "dsp-", "dsp-x-1", "dsp-12", "cni-12-3", "dsp-1-x"] {
            assert_eq!(LabName::of(name), None, "{name}");
        }
        assert!("dsp-1-2-node-a".parse::<LabName>().is_err());
    }
}
