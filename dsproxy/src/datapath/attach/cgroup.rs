//! Attaching the programs of sockets to a cgroup: one pinned link for each hook.
//!
//! As with tcx a link keeps its program attached for as long as its pin exists, and the next run replaces the program in
//! place, so that no socket is ever without. Such a link has its place beside the programs of others. Nothing here knows of
//! interfaces.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use aya::programs::CgroupSockAddr;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use serde::Serialize;

use super::{AttachError, Outcome, bpf, bpf_error};

/// A hook of sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SocketHook {
    /// The source of datagrams, as programs of IPv4 sockets hear it.
    Recvmsg4,
    /// Of IPv6 sockets.
    Recvmsg6,
    /// The other end, as programs of IPv4 sockets hear it.
    Getpeername4,
    /// Of IPv6 sockets.
    Getpeername6,
    /// Where datagrams go, IPv4.
    Sendmsg4,
    /// IPv6.
    Sendmsg6,
    /// Where IPv4 sockets are connected to.
    Connect4,
    /// IPv6 sockets.
    Connect6,
}

impl SocketHook {
    /// All hooks, in the order in which they are attached: what is led to a backend needs its answers told apart, so these
    /// come first.
    pub const ALL: [Self; 8] = [
        Self::Recvmsg4,
        Self::Recvmsg6,
        Self::Getpeername4,
        Self::Getpeername6,
        Self::Sendmsg4,
        Self::Sendmsg6,
        Self::Connect4,
        Self::Connect6,
    ];

    /// Whether it is where sockets are led to a backend; the others tell who has answered.
    pub const fn leads(self) -> bool {
        match self {
            Self::Sendmsg4 | Self::Sendmsg6 | Self::Connect4 | Self::Connect6 => true,
            Self::Recvmsg4 | Self::Recvmsg6 | Self::Getpeername4 | Self::Getpeername6 => false,
        }
    }

    /// The name of the hook.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Recvmsg4 => "recvmsg4",
            Self::Recvmsg6 => "recvmsg6",
            Self::Getpeername4 => "getpeername4",
            Self::Getpeername6 => "getpeername6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
        }
    }

    /// The name of the program for it, as in the kernel's object.
    pub const fn program(self) -> &'static str {
        match self {
            Self::Recvmsg4 => "socket_recvmsg4",
            Self::Recvmsg6 => "socket_recvmsg6",
            Self::Getpeername4 => "socket_getpeername4",
            Self::Getpeername6 => "socket_getpeername6",
            Self::Sendmsg4 => "socket_sendmsg4",
            Self::Sendmsg6 => "socket_sendmsg6",
            Self::Connect4 => "socket_connect4",
            Self::Connect6 => "socket_connect6",
        }
    }

    /// Its number (`enum bpf_attach_type` in include/uapi/linux/bpf.h).
    const fn attach_type(self) -> u32 {
        match self {
            Self::Connect4 => 10,
            Self::Connect6 => 11,
            Self::Sendmsg4 => 14,
            Self::Sendmsg6 => 15,
            Self::Recvmsg4 => 19,
            Self::Recvmsg6 => 20,
            Self::Getpeername4 => 29,
            Self::Getpeername6 => 30,
        }
    }

    /// The pin of its link. No dots: bpffs reserves names with one.
    fn pin(self, pins: &Path) -> PathBuf {
        pins.join(format!("cgroup-{}", self.name()))
    }
}

/// A program at a hook of sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SocketAttachment {
    /// The name of the hook.
    pub hook: &'static str,
    /// The id of the cgroup, which is the number of its directory's inode.
    pub cgroup: u64,
    /// The id of the program.
    pub program_id: u32,
    /// The id of the link.
    pub link_id: u32,
}

/// A cgroup.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    directory: File,
    id: u64,
}

impl Cgroup {
    /// The inode of the root of all cgroups, whatever of them can be seen (`kernfs_create_root` in fs/kernfs/dir.c).
    const ROOT: u64 = 1;

    /// The cgroup at `path`; without one, the root of the first cgroup v2 file system that is mounted.
    ///
    /// # Errors
    ///
    /// When there is none, or it cannot be opened.
    pub fn open(path: Option<&Path>) -> Result<Self, AttachError> {
        let path = match path {
            Some(path) => path.to_owned(),
            None => {
                let mounts = Path::new("/proc/thread-self/mounts");
                let failed = |source| AttachError::Cgroup { path: mounts.to_owned(), source };
                mounted(&std::fs::read_to_string(mounts).map_err(failed)?).ok_or(AttachError::NoCgroups)?
            }
        };
        let failed = |source| AttachError::Cgroup { path: path.clone(), source };
        let directory = File::open(&path).map_err(failed)?;
        let kind = fstatfs(&directory).map_err(|errno| failed(errno.into()))?.filesystem_type();
        if kind != CGROUP2_SUPER_MAGIC {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not on a cgroup v2 file system")));
        }
        let id = directory.metadata().map_err(failed)?.ino();
        Ok(Self { path, directory, id })
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether every process of the machine is below it.
    pub fn is_root(&self) -> bool {
        self.id == Self::ROOT
    }
}

/// The first mount point of a cgroup v2 file system, from the text of /proc/mounts.
fn mounted(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then(|| crate::datapath::bpffs::unescape(point).into())
    })
}

/// The loaded programs of sockets.
#[derive(Debug)]
pub struct SocketPrograms {
    programs: Vec<(SocketHook, OwnedFd, u32)>,
}

impl SocketPrograms {
    /// Takes the programs of an object; they have to be loaded. The object need not be kept.
    ///
    /// # Errors
    ///
    /// When one is missing or not loaded.
    pub fn of(object: &aya::Ebpf) -> Result<Self, AttachError> {
        let take = |hook: SocketHook| {
            let name = hook.program();
            let program = object.program(name).ok_or(AttachError::NoProgram { name })?;
            let failed = |source| AttachError::Program { name, source };
            let program: &CgroupSockAddr = program.try_into().map_err(failed)?;
            let descriptor = program.fd().map_err(failed)?.as_fd().try_clone_to_owned();
            let descriptor = descriptor.map_err(|error| failed(error.into()))?;
            let id = bpf::program_id(descriptor.as_fd()).map_err(|error| failed(error.into()))?;
            Ok((hook, descriptor, id))
        };
        Ok(Self { programs: SocketHook::ALL.into_iter().map(take).collect::<Result<_, _>>()? })
    }

    /// Sees to it that `cgroup` runs them, with links pinned in the directory `pins`. The result is what is attached, and
    /// how many of the hooks that took a change.
    ///
    /// # Errors
    ///
    /// At the first hook that cannot be had.
    pub fn attach(&self, cgroup: &Cgroup, pins: &Path) -> Result<(Vec<SocketAttachment>, usize), AttachError> {
        std::fs::create_dir_all(pins).map_err(|source| AttachError::Pin {
            operation: "make the directory",
            path: pins.to_owned(),
            source,
        })?;
        let mut attached = Vec::new();
        let mut changed = 0;
        for (hook, descriptor, id) in &self.programs {
            let (link, outcome) = attach(*hook, descriptor, *id, cgroup, pins)?;
            changed += usize::from(outcome != Outcome::Unchanged);
            attached.push(SocketAttachment { hook: hook.name(), cgroup: cgroup.id, program_id: *id, link_id: link });
        }
        Ok((attached, changed))
    }
}

fn attach(
    hook: SocketHook,
    program: &OwnedFd,
    program_id: u32,
    cgroup: &Cgroup,
    pins: &Path,
) -> Result<(u32, Outcome), AttachError> {
    let held = open_pin(hook, pins)?;
    if let Some((link, info)) = &held
        && info.cgroup == cgroup.id
    {
        if info.program_id == program_id {
            return Ok((info.id, Outcome::Unchanged));
        }
        bpf::replace(link.as_fd(), program.as_fd()).map_err(bpf_error("replace the program at", hook.name()))?;
        return Ok((info.id, Outcome::Replaced));
    }
    let link = bpf::attach_to_cgroup(program.as_fd(), cgroup.directory.as_fd(), hook.attach_type());
    let link = link.map_err(|error| match error.raw_os_error() {
        // What the kernel says of programs that tolerate no other (`__cgroup_bpf_attach` in kernel/bpf/cgroup.c).
        Some(libc::EPERM) => AttachError::CgroupTaken { hook: hook.name(), path: cgroup.path.clone() },
        _ => bpf_error("attach to", format!("{} of the cgroup {}", hook.name(), cgroup.path.display()))(error),
    })?;
    // The new one first, so that no socket meets none. One that meets both is led once, for a backend is no VIP; the second program
    // may forget what the first has noted, and a datagram's program then hears the endpoint.
    if held.is_some() {
        detach(hook, pins)?;
    }
    let path = hook.pin(pins);
    // Should this fail, the link goes with its descriptor.
    bpf::pin(link.as_fd(), &path).map_err(|source| AttachError::Pin { operation: "pin the link", path, source })?;
    let info = bpf::cgroup_link_info(link.as_fd()).map_err(bpf_error("read the link of", hook.name()))?;
    Ok((info.map_or(0, |info| info.id), Outcome::Attached))
}

/// Opens the pinned link of a hook, if there is one.
fn open_pin(hook: SocketHook, pins: &Path) -> Result<Option<(OwnedFd, bpf::CgroupLinkInfo)>, AttachError> {
    let path = hook.pin(pins);
    let link = match bpf::pinned(&path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(AttachError::Pin { operation: "open the link", path, source }),
    };
    match bpf::cgroup_link_info(link.as_fd()) {
        Ok(Some(info)) if info.attach_type == hook.attach_type() => Ok(Some((link, info))),
        Ok(_) => {
            let source = io::Error::new(io::ErrorKind::InvalidData, "not a link of this hook; remove the file");
            Err(AttachError::Pin { operation: "use the link", path, source })
        }
        Err(source) => Err(AttachError::Pin { operation: "read the link", path, source }),
    }
}

/// Detaches the pinned link of a hook and removes the pin. False if there was none.
pub(super) fn detach(hook: SocketHook, pins: &Path) -> Result<bool, AttachError> {
    let Some((link, info)) = open_pin(hook, pins)? else { return Ok(false) };
    // A cgroup of zero says that it is gone, and with it the attachment.
    if info.cgroup != 0 {
        bpf::detach_link(link.as_fd()).map_err(bpf_error("detach the link", info.id))?;
    }
    let path = hook.pin(pins);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(AttachError::Pin { operation: "remove", path, source }),
    }
}

/// Detaches what an earlier run attached. The result is how many hooks that were.
///
/// # Errors
///
/// At the first hook whose link cannot be detached. What leads to backends goes first.
pub fn detach_all(pins: &Path) -> Result<usize, AttachError> {
    let mut detached = 0;
    for hook in SocketHook::ALL.into_iter().rev() {
        detached += usize::from(detach(hook, pins)?);
    }
    Ok(detached)
}

/// What is attached.
///
/// # Errors
///
/// When a link cannot be read.
pub fn list(pins: &Path) -> Result<Vec<SocketAttachment>, AttachError> {
    let mut attached = Vec::new();
    for hook in SocketHook::ALL {
        if let Some((_, bpf::CgroupLinkInfo { id, program_id, cgroup, attach_type: _ })) = open_pin(hook, pins)?
            && cgroup != 0
        {
            attached.push(SocketAttachment { hook: hook.name(), cgroup, program_id, link_id: id });
        }
    }
    Ok(attached)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cgroup_v2_mount_counts() {
        let mounts = "\
            cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
            cgroup2 /sys/fs/cgroup/uni\\040fied cgroup2 rw,relatime 0 0\n\
            none /mnt cgroup2 rw 0 0\n";
        assert_eq!(mounted(mounts), Some(PathBuf::from("/sys/fs/cgroup/uni fied")));
        assert_eq!(mounted("cgroup2 /sys/fs/cgroup tmpfs rw 0 0\n"), None);
    }

    #[test]
    fn every_hook_has_a_pin_of_its_own_that_no_interface_has() {
        let names: std::collections::BTreeSet<PathBuf> =
            SocketHook::ALL.into_iter().map(|hook| hook.pin(Path::new("/x"))).collect();
        assert_eq!(names.len(), SocketHook::ALL.len());
        assert!(names.iter().all(|path| !path.to_string_lossy().contains('.')));
    }

    #[test]
    fn another_directory_is_no_cgroup() {
        let directory = tempfile::tempdir().expect("directory");
        let error = Cgroup::open(Some(directory.path())).expect_err("not one");
        assert!(error.to_string().contains("not on a cgroup v2 file system"), "{error}");
        let missing = directory.path().join("none");
        Cgroup::open(Some(&missing)).expect_err("nothing there");
    }
}
