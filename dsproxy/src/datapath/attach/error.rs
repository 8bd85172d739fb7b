//! What can go wrong in attaching, in words for whoever has to put it right.

use std::{fmt, io, path::PathBuf};

use aya::programs::ProgramError;
use thiserror::Error;

use crate::{maps::MapError, netlink::NetlinkError, routing::RoutingError};

/// Why something could not be attached or detached.
#[derive(Debug, Error)]
pub enum AttachError {
    /// A program is missing from the object, or was not loaded.
    #[error("take the program {name}: {source}; it has to be loaded before it can be attached")]
    Program {
        /// The program's name.
        name: &'static str,
        /// What aya says.
        #[source]
        source: ProgramError,
    },
    /// The object has no such program.
    #[error("the object has no program {name}: it is not of this version of dsproxy")]
    NoProgram {
        /// The program's name.
        name: &'static str,
    },
    /// The program is not loaded.
    #[error("the program {name} is not loaded: devices of this kind are not served until it is")]
    NotLoaded {
        /// The program's name.
        name: &'static str,
    },
    /// A bpf(2) command failed.
    #[error("{operation} {object}: {source}")]
    Bpf {
        /// What was attempted.
        operation: &'static str,
        /// On what.
        object: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel has no tcx.
    #[error(
        "attach to {hook} with tcx: the kernel has none (6.6 or later is needed); \
         --attach auto or --attach clsact works without"
    )]
    NoTcx {
        /// The hook.
        hook: String,
    },
    /// A netlink request failed.
    #[error("{operation} {object}: {source}")]
    Netlink {
        /// What was attempted.
        operation: &'static str,
        /// On what.
        object: String,
        /// The kernel's answer.
        #[source]
        source: NetlinkError,
    },
    /// Something else than clsact sits where clsact would.
    #[error(
        "attach to {hook} with clsact: the interface has an `ingress` qdisc instead, which has no \
         egress; remove it (tc qdisc del dev {interface} ingress) or use --attach tcx"
    )]
    IngressQdisc {
        /// The hook.
        hook: String,
        /// The interface.
        interface: String,
    },
    /// Filters of others hold all the priorities that ours could have.
    #[error("attach to {hook} with clsact: filters of others have the priorities {from} to {to}; free one")]
    PrioritiesTaken {
        /// The hook.
        hook: String,
        /// The first priority that was tried.
        from: u16,
        /// The last one.
        to: u16,
    },
    /// There is no cgroup v2 file system.
    #[error(
        "find the cgroup v2 file system: none is mounted here; sockets are led to backends below one (mount -t cgroup2 none \
         DIR, and --cgroup DIR; in a container, share the host's /sys/fs/cgroup with a hostPath volume), or do without: \
         --socket-lb off"
    )]
    NoCgroups,
    /// What was to be the cgroup is none.
    #[error("--cgroup {}: {source}; it has to be a directory of a cgroup v2 file system", path.display())]
    Cgroup {
        /// The directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// A program of someone else's tolerates none beside it.
    #[error(
        "attach to {hook} of the cgroup {}: a program of someone else's is there, attached so that no other may be; have it \
         attached with BPF_F_ALLOW_MULTI or by a link, or do without: --socket-lb off", path.display()
    )]
    CgroupTaken {
        /// The hook.
        hook: &'static str,
        /// The cgroup.
        path: PathBuf,
    },
    /// The programs could not be told of a device.
    #[error(transparent)]
    Map(MapError),
    /// The programs could not be told of a change.
    #[error(transparent)]
    Routing(RoutingError),
    /// A pin could not be read, written or removed.
    #[error("{operation} {}: {source}", path.display())]
    Pin {
        /// What was attempted.
        operation: &'static str,
        /// The pin or its directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

impl AttachError {
    /// Whether the interface is simply not there any more.
    pub(super) fn is_gone(&self) -> bool {
        let errno = match self {
            Self::Bpf { source, .. } => source.raw_os_error(),
            Self::Netlink { source, .. } => source.errno(),
            _ => None,
        };
        errno == Some(libc::ENODEV)
    }

    /// Whether the kernel lacks the only way to attach that is allowed: trying again would not help.
    pub fn is_hopeless(&self) -> bool {
        matches!(self, Self::NoTcx { .. })
    }
}

/// An error of a bpf(2) command, to be mapped over.
pub(super) fn bpf_error(operation: &'static str, object: impl fmt::Display) -> impl FnOnce(io::Error) -> AttachError {
    let object = object.to_string();
    move |source| AttachError::Bpf { operation, object, source }
}
