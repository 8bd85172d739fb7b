//! Who is in charge of a bpffs: one daemon at a time.
//!
//! Two would write the same maps, each its own truth. The one in charge holds a lock (`flock`) on our directory there, which the
//! kernel takes back however the process ends, and which reaches across containers that share the file system. Nothing here
//! knows what is pinned, or how long to wait.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::stat::{major, minor},
};
use thiserror::Error;

use super::bpffs::Bpffs;

/// Where the kernel lists locks, with the processes that hold them as far as they can be seen from here.
const LOCKS: &str = "/proc/locks";

/// Being in charge; it ends when this is dropped.
#[derive(Debug)]
pub struct InCharge {
    directory: Flock<File>,
    path: PathBuf,
}

/// Somebody else is in charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Other {
    /// Its process, if it can be seen from here.
    pub process: Option<u32>,
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.process {
            Some(process) => write!(f, "process {process}"),
            None => f.write_str("a process of another container, which cannot be seen from here"),
        }
    }
}

/// Why it cannot be found out who is in charge.
#[derive(Debug, Error)]
#[error("{operation} {}: {source}; --bpffs has to name a bpffs that can be written to", path.display())]
pub struct ChargeError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl InCharge {
    /// Takes charge of our directory on `bpffs`, which is made if need be; or tells who has it.
    ///
    /// # Errors
    ///
    /// When the directory cannot be made or locked.
    pub fn take(bpffs: &Bpffs) -> Result<Result<Self, Other>, ChargeError> {
        let path = bpffs.ours();
        let failed = |operation| {
            let path = path.clone();
            move |source| ChargeError { operation, path, source }
        };
        loop {
            fs::create_dir_all(&path).map_err(failed("make the directory"))?;
            let directory = OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&path);
            let directory = match directory {
                // `dsproxy cleanup` has just removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                directory => directory.map_err(failed("open the directory"))?,
            };
            let held = match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
                Ok(held) => held,
                Err((directory, Errno::EWOULDBLOCK)) => return Ok(Err(Other { process: holder(&directory) })),
                Err((_, errno)) => return Err(failed("lock the directory")(errno.into())),
            };
            // A lock on what was removed in between would keep nobody out.
            if is_at(&held, &path).map_err(failed("examine the directory"))? {
                return Ok(Ok(Self { directory: held, path }));
            }
        }
    }

    /// Whether there is still something to be in charge of. After `dsproxy cleanup` there is not.
    pub fn lasts(&self) -> bool {
        // Of what cannot be examined nobody knows that it has gone.
        is_at(&self.directory, &self.path).unwrap_or(true)
    }
}

/// Who is in charge of our directory on `bpffs`, if anybody is.
///
/// # Errors
///
/// When the directory cannot be opened or locked.
pub fn in_charge(bpffs: &Bpffs) -> Result<Option<Other>, ChargeError> {
    let path = bpffs.ours();
    let failed = |operation| {
        let path = path.clone();
        move |source| ChargeError { operation, path, source }
    };
    let directory = match OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        directory => directory.map_err(failed("open the directory"))?,
    };
    if let Some(process) = holder(&directory) {
        return Ok(Some(Other { process: Some(process) }));
    }
    // The lock of another container is not to be seen, but kept out by. A daemon that starts in this very moment tries again.
    match Flock::lock(directory, FlockArg::LockSharedNonblock) {
        Ok(_) => Ok(None),
        Err((_, Errno::EWOULDBLOCK)) => Ok(Some(Other { process: None })),
        Err((_, errno)) => Err(failed("lock the directory")(errno.into())),
    }
}

/// Whether `directory` still is what stands at `path`.
///
/// # Errors
///
/// When either cannot be examined.
pub(crate) fn is_at(directory: &File, path: &Path) -> io::Result<bool> {
    let held = directory.metadata()?;
    match fs::metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The process that holds the lock on `directory`. That it is not known is no reason to fail.
pub(crate) fn holder(directory: &File) -> Option<u32> {
    let metadata = directory.metadata().ok()?;
    let file = format!("{:02x}:{:02x}:{}", major(metadata.dev()), minor(metadata.dev()), metadata.ino());
    process_of(&fs::read_to_string(LOCKS).ok()?, &file)
}

/// The process that keeps all others out, from the text of /proc/locks: number, kind, manner, access, process, file and the range of
/// bytes. Those who wait have an arrow after the number. A lock to read is [`in_charge`]'s own, held for a moment by whoever asks.
fn process_of(locks: &str, file: &str) -> Option<u32> {
    locks.lines().find_map(|line| match line.split_whitespace().collect::<Vec<_>>()[..] {
        [_, "FLOCK", _, "WRITE", process, locked, ..] if locked == file => {
            process.parse().ok().filter(|process| *process > 0)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_is_told_from_who_waits_who_asks_and_from_locks_of_others() {
        let locks = "\
            1: POSIX  ADVISORY  WRITE 11 00:2a:7 0 EOF\n\
            2: FLOCK  ADVISORY  WRITE 12 00:2b:7 0 EOF\n\
            3: FLOCK  ADVISORY  WRITE 13 00:2a:7 0 EOF\n\
            3: -> FLOCK  ADVISORY  WRITE 14 00:2a:7 0 EOF\n\
            4: FLOCK  ADVISORY  READ 15 00:2d:7 0 EOF\n\
            5: FLOCK  ADVISORY  READ 16 00:2e:7 0 EOF\n\
            6: -> FLOCK  ADVISORY  WRITE 17 00:2e:7 0 EOF\n";
        assert_eq!(process_of(locks, "00:2a:7"), Some(13));
        assert_eq!(process_of(locks, "00:2b:7"), Some(12));
        assert_eq!(process_of(locks, "00:2c:7"), None);
        assert_eq!(process_of(locks, "00:2d:7"), None, "who asks is not in charge");
        assert_eq!(process_of(locks, "00:2e:7"), None, "nor is a daemon that waits for it");
        assert_eq!(
            process_of("1: FLOCK ADVISORY WRITE 0 00:2a:7 0 EOF\n", "00:2a:7"),
            None,
            "not to be seen from here"
        );
    }

    #[test]
    fn one_at_a_time_is_in_charge() {
        // Any file system can be locked.
        let directory = tempfile::tempdir().expect("a directory");
        let bpffs = Bpffs::at(directory.path());
        let first = InCharge::take(&bpffs).expect("it can be asked").expect("nobody is there");
        let other = InCharge::take(&bpffs).expect("it can be asked").expect_err("somebody is");
        assert_eq!(other.process, Some(std::process::id()));
        assert_eq!(in_charge(&bpffs).expect("it can be asked"), Some(other));
        drop(first);
        assert_eq!(in_charge(&bpffs).expect("it can be asked"), None);
        let directory = File::open(bpffs.ours()).expect("the directory");
        let asking = Flock::lock(directory, FlockArg::LockSharedNonblock).expect("nobody keeps it");
        assert_eq!(in_charge(&bpffs).expect("it can be asked"), None, "somebody else asks as well");
        drop(asking);
        let held = InCharge::take(&bpffs).expect("it can be asked").expect("nobody is there any more");
        fs::remove_dir(bpffs.ours()).expect("removed");
        assert_eq!(in_charge(&bpffs).expect("it can be asked"), None, "nothing is pinned");
        let _next = InCharge::take(&bpffs).expect("it can be asked").expect("what was removed keeps nobody out");
        drop(held);
    }
}
