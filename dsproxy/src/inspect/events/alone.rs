//! One process listens at a time: of two, each would hear half.

use std::{fs::File, path::PathBuf};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};

use crate::datapath::{
    bpffs::Bpffs,
    charge::{Other, holder, is_at},
    load,
};

/// Being the one that listens; it ends when this is dropped.
pub(super) struct Alone {
    directory: Flock<File>,
    path: PathBuf,
}

impl Alone {
    /// Keeps others from listening.
    pub(super) fn take(bpffs: &Bpffs) -> anyhow::Result<Self> {
        let path = load::map_directory(bpffs);
        let directory = File::open(&path).with_context(|| format!("open the directory {}", path.display()))?;
        match Flock::lock(directory, FlockArg::LockExclusiveNonblock) {
            Ok(directory) => Ok(Self { directory, path }),
            Err((directory, Errno::EWOULDBLOCK)) => {
                let other = Other { process: holder(&directory) };
                bail!("another `dsproxy events` listens on this node, {other}; one at a time can")
            }
            Err((_, errno)) => Err(anyhow::Error::new(errno).context(format!("lock the directory {}", path.display()))),
        }
    }

    /// Whether the maps still stand where they stood.
    pub(super) fn is_in_place(&self) -> bool {
        is_at(&self.directory, &self.path).unwrap_or_default()
    }
}
