//! A lab's own cgroup, so that its daemons look at the sockets of its own clients and at nobody else's.
//!
//! It is a threaded one below the cgroup of the process that made it: threads can be moved there one by one, as they can
//! enter namespaces.

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{errno::Errno, sys::statfs::CGROUP2_SUPER_MAGIC, unistd::gettid};

use super::{LabError, LabName};

/// A cgroup.
#[derive(Clone, Debug)]
pub struct Cgroup {
    directory: PathBuf,
}

impl Cgroup {
    pub(crate) fn create(lab: LabName) -> Result<Self, LabError> {
        let directory = parent()?.join(lab.to_string());
        fs::create_dir(&directory).map_err(|source| LabError::file("create", &directory, source))?;
        let cgroup = Self { directory };
        cgroup.write("cgroup.type", "threaded")?;
        Ok(cgroup)
    }

    /// Its directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Moves the calling thread into it. Sockets that it makes from then on are the cgroup's.
    pub fn enter(&self) -> Result<(), LabError> {
        self.write("cgroup.threads", &gettid().to_string())
    }

    fn write(&self, file: &str, text: &str) -> Result<(), LabError> {
        let path = self.directory.join(file);
        fs::write(&path, text).map_err(|source| LabError::file("write", path, source))
    }
}

/// The cgroup of `lab`, if it is there.
pub(crate) fn of_lab(lab: LabName) -> Option<PathBuf> {
    let directory = parent().ok()?.join(lab.to_string());
    directory.exists().then_some(directory)
}

/// The cgroup of this process, in the first cgroup v2 file system.
fn parent() -> Result<PathBuf, LabError> {
    let read = |path: &str| fs::read_to_string(path).map_err(|source| LabError::file("read", path, source));
    let mounts = read("/proc/self/mounts")?;
    let point = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (point, kind) = (fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some(point)
    });
    let point = PathBuf::from(point.unwrap_or("/sys/fs/cgroup"));
    let found = nix::sys::statfs::statfs(&point).map(|found| found.filesystem_type());
    if found != Ok(CGROUP2_SUPER_MAGIC) {
        return Err(LabError::file("find a cgroup v2 file system at", point, Errno::ENODEV.into()));
    }
    let own = read("/proc/self/cgroup")?;
    let below = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    Ok(point.join(below))
}
