//! Services, EndpointSlices, Nodes and ServiceCIDRs from a directory of manifests, watched for changes.
//!
//! What an API server does to an object before anyone sees it (a namespace, a protocol, the families of its
//! addresses) is done on reading. It does not know what the objects are for. A file that cannot be read, or
//! a directory that is gone, takes nothing away: only a file that is gone, or reads well without an object,
//! does.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use thiserror::Error;
use tracing::{info, warn};

use self::{changes::Changes, directory::Directory};
use super::{EventSender, SourceStatus};

mod changes;
mod directory;
mod document;
mod holdings;

/// How long the source waits for what.
#[derive(Clone, Debug)]
pub struct Pace {
    /// From the first sign of a change until the directory is read, so that changes made together are read
    /// together.
    pub debounce: Duration,
    /// A file that is being written is read when its writer closes it, or when nothing was written to it
    /// for this long.
    pub quiet: Duration,
    /// How often the directory is read without any sign of a change: targets of symbolic links change
    /// unnoticed.
    pub rescan: Duration,
    /// How soon a failed read is repeated.
    pub retry: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            debounce: Duration::from_millis(10),
            quiet: Duration::from_millis(500),
            rescan: Duration::from_secs(10),
            retry: Duration::from_millis(500),
        }
    }
}

/// Why a directory of manifests cannot be used.
#[derive(Debug, Error)]
pub enum ManifestsError {
    /// The directory cannot be read.
    #[error("--manifests {}: read the directory: {source}; name a readable directory", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file in it cannot be read.
    #[error("--manifests: read {}: {source}; its objects stay as they were", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A directory of manifests.
#[derive(Debug)]
pub struct Manifests {
    path: PathBuf,
    pace: Pace,
}

impl Manifests {
    /// The directory at `path`, which has to exist.
    pub fn open(path: &Path) -> Result<Self, ManifestsError> {
        std::fs::read_dir(path).map_err(|source| ManifestsError::Directory { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), pace: Pace::default() })
    }

    /// The same with other waiting times.
    #[must_use]
    pub fn with_pace(self, pace: Pace) -> Self {
        Self { pace, ..self }
    }

    /// Reads the directory, and again whenever it changes, until nobody listens to `events` any more.
    pub async fn run(self, events: EventSender, status: Arc<SourceStatus>) {
        let Self { path, pace } = self;
        let changes = Arc::new(Changes::new(&path, pace.quiet));
        let mut directory = Directory::new(path, Arc::clone(&status));
        let mut last_failure = None;
        loop {
            // Before the reading, so that no change falls between the two.
            changes.watch_again_if_moved();
            changes.take();
            // A directory may hold megabytes of YAML, on a disk that is slow.
            let signs = Arc::clone(&changes);
            let scan = tokio::task::spawn_blocking(move || {
                let scan = directory.scan(|| signs.being_written());
                (directory, scan)
            });
            let scan = match scan.await {
                Ok((returned, scan)) => {
                    directory = returned;
                    scan
                }
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime is shutting down.
                    Err(_) => return,
                },
            };

            for event in scan.events {
                if events.send(event).await.is_err() {
                    return;
                }
            }
            let failure = scan.failure.map(|error| error.to_string());
            match &failure {
                None => {
                    if last_failure.is_some() {
                        info!("the manifests can be read again");
                    }
                    status.set_connected();
                }
                Some(reason) => {
                    if last_failure.as_ref() != Some(reason) {
                        warn!(reason, "manifests");
                    }
                    status.count_failure(reason.clone());
                }
            }
            let wait = if failure.is_some() { pace.retry } else { pace.rescan };
            last_failure = failure;

            tokio::select! {
                () = events.closed() => return,
                () = changes.next(wait) => tokio::time::sleep(pace.debounce).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_directory_is_named_with_its_flag() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let missing = directory.path().join("missing");
        let error = Manifests::open(&missing).expect_err("opened a missing directory");
        let text = error.to_string();
        assert!(text.contains("--manifests"), "{text}");
        assert!(text.contains(&missing.display().to_string()), "{text}");
    }

    #[test]
    fn a_file_is_no_directory() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        Manifests::open(file.path()).expect_err("opened a file as a directory");
    }
}
