//! The BPF file system that holds what outlives the daemon: pinned maps and links.
//!
//! A file system that this module mounts bears our name as its source, so that it is known again,
//! and only such a one is ever unmounted. Nothing here knows what is pinned.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use dsproxy_common::layout::LAYOUT_VERSION;
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};
use thiserror::Error;
use tracing::info;

/// Where the kernel's documentation, and everybody, has it.
pub const DEFAULT_DIRECTORY: &str = "/sys/fs/bpf";

/// Our directory within a bpffs, and the source of a mount that we made.
const NAME: &str = "dsproxy";

/// Why the file system cannot be used.
#[derive(Debug, Error)]
pub enum BpffsError {
    /// The directory could not be made.
    #[error("--bpffs {}: make the directory: {source}; name one that is, or can be made, on a bpffs", path.display())]
    Create {
        /// The directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// What the directory is on could not be found out.
    #[error("--bpffs {}: find its file system: {source}", path.display())]
    Examine {
        /// The directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The file system could not be mounted.
    #[error(
        "--bpffs {}: mount a bpffs there: {source}; it takes a directory and CAP_SYS_ADMIN, or a mount made beforehand \
         (mount -t bpf bpf {}); in a container, share the host's with a hostPath volume",
        path.display(), path.display()
    )]
    Mount {
        /// The directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// Something could not be removed.
    #[error("remove {}: {source}", path.display())]
    Remove {
        /// The file or directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
    /// The file system could not be unmounted.
    #[error("unmount {}: {source}", path.display())]
    Unmount {
        /// The directory.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: io::Error,
    },
}

/// A directory on a bpffs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bpffs {
    directory: PathBuf,
}

impl Bpffs {
    /// Sees to it that `directory` exists and is on a bpffs; mounts one only if it is not.
    pub fn ensure(directory: &Path) -> Result<Self, BpffsError> {
        let path = || directory.to_owned();
        fs::create_dir_all(directory).map_err(|source| BpffsError::Create { path: path(), source })?;
        if !is_bpffs(directory)? {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            // Programs and maps are for root alone.
            mount(Some(NAME), directory, Some("bpf"), flags, Some("mode=0700"))
                .map_err(|errno| BpffsError::Mount { path: path(), source: errno.into() })?;
            info!(directory = %directory.display(), "mounted a bpffs");
        }
        Ok(Self { directory: path() })
    }

    /// The bpffs at `directory`, if there is one: for those who only read or remove.
    pub fn existing(directory: &Path) -> Result<Option<Self>, BpffsError> {
        match is_bpffs(directory) {
            Ok(found) => Ok(found.then(|| Self { directory: directory.to_owned() })),
            Err(BpffsError::Examine { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The bpffs at `directory`, which is not looked at.
    #[cfg(test)]
    pub(super) fn at(directory: &Path) -> Self {
        Self { directory: directory.to_owned() }
    }

    /// The directory of everything that is ours, whatever its layout.
    pub fn ours(&self) -> PathBuf {
        self.directory.join(NAME)
    }

    /// The directory of this version's layout.
    pub fn layout(&self) -> PathBuf {
        self.ours().join(format!("v{LAYOUT_VERSION}"))
    }

    /// The directory of the pinned links.
    pub fn links(&self) -> PathBuf {
        self.layout().join("links")
    }

    /// Removes everything that is ours: all pins of all layouts, then the mount if we made it and
    /// nobody else put anything there.
    pub fn remove(self) -> Result<(), BpffsError> {
        let ours = self.ours();
        match fs::remove_dir_all(&ours) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(BpffsError::Remove { path: ours, source }),
        }
        if self.is_our_mount()? && self.is_empty()? {
            match umount2(&self.directory, MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => info!(directory = %self.directory.display(), "unmounted the bpffs"),
                // Someone is at home there; it is no longer ours alone.
                Err(Errno::EBUSY) => info!(directory = %self.directory.display(), "left the bpffs, in use"),
                // It is empty, and the next run takes it as it is.
                Err(Errno::EPERM) => {
                    info!(directory = %self.directory.display(), "left the bpffs, empty: to unmount it takes CAP_SYS_ADMIN");
                }
                Err(errno) => {
                    return Err(BpffsError::Unmount { path: self.directory, source: errno.into() });
                }
            }
        }
        Ok(())
    }

    /// Whether nobody has anything there. Files with a dot in their name are the kernel's own
    /// (`maps.debug`), for it lets no one else make such.
    fn is_empty(&self) -> Result<bool, BpffsError> {
        let failed = |source| BpffsError::Examine { path: self.directory.clone(), source };
        for entry in fs::read_dir(&self.directory).map_err(failed)? {
            if !entry.map_err(failed)?.file_name().to_string_lossy().contains('.') {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the topmost mount at the directory bears our name.
    fn is_our_mount(&self) -> Result<bool, BpffsError> {
        let failed = |source| BpffsError::Examine { path: self.directory.clone(), source };
        let directory = self.directory.canonicalize().map_err(failed)?;
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").map_err(failed)?;
        Ok(source_of_mount(&mounts, &directory).is_some_and(|source| source == NAME))
    }
}

/// The source of the last mount at `directory`, from the text of mountinfo: fields up to a lone
/// dash, the mount point being the fifth; after it type and source.
fn source_of_mount<'a>(mountinfo: &'a str, directory: &Path) -> Option<&'a str> {
    mountinfo.lines().rev().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        let point = unescape(place.split(' ').nth(4)?);
        (Path::new(&point) == directory).then(|| kind.split(' ').nth(1))?
    })
}

/// Undoes the kernel's octal escapes of space, tab, newline and backslash.
pub(super) fn unescape(field: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(field.to_owned(), |text, (escape, plain)| text.replace(escape, plain))
}

fn is_bpffs(directory: &Path) -> Result<bool, BpffsError> {
    statfs(directory)
        .map(|found| found.filesystem_type() == BPF_FS_MAGIC)
        .map_err(|errno| BpffsError::Examine { path: directory.to_owned(), source: errno.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_counts() {
        let mountinfo = "\
            30 23 0:26 / /sys/fs/bpf rw,nosuid shared:9 - bpf bpf rw,mode=700\n\
            31 23 0:27 / /run/a\\040b rw - bpf dsproxy rw\n\
            32 30 0:28 / /sys/fs/bpf rw,nosuid - bpf dsproxy rw,mode=700\n";
        let source = |path: &str| source_of_mount(mountinfo, Path::new(path));
        assert_eq!(source("/sys/fs/bpf"), Some("dsproxy"));
        assert_eq!(source("/run/a b"), Some("dsproxy"));
        assert_eq!(source("/run"), None);
    }

    #[test]
    fn everything_lives_below_one_directory() {
        let bpffs = Bpffs::at(Path::new("/b"));
        assert_eq!(bpffs.links(), Path::new(&format!("/b/dsproxy/v{LAYOUT_VERSION}/links")));
        assert!(bpffs.links().starts_with(bpffs.ours()));
    }

    #[test]
    fn a_directory_elsewhere_is_no_bpffs() {
        let directory = tempfile::tempdir().expect("directory");
        assert_eq!(Bpffs::existing(directory.path()).expect("examined"), None);
        assert_eq!(Bpffs::existing(&directory.path().join("none")).expect("examined"), None);
    }
}
