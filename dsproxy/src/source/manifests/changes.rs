//! Signs of change in the directory of manifests, from inotify.
//!
//! It does not read the directory. It tells which files are being written at the moment: half a YAML file
//! may well be sound YAML that says something else.

use std::{
    collections::{HashMap, HashSet},
    ffi::OsString,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use notify::{
    EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode, CreateKind, ModifyKind},
};
use tokio::sync::Notify;
use tracing::warn;

/// The signs seen since the directory was last read.
pub(super) struct Changes {
    path: PathBuf,
    quiet: Duration,
    shared: Arc<Shared>,
    watch: Mutex<Option<Watch>>,
}

/// An inotify watch, and the directory that it is on: the one at the path may become another.
struct Watch {
    _watcher: RecommendedWatcher,
    directory: (u64, u64),
}

#[derive(Default)]
struct Shared {
    signs: Mutex<Signs>,
    something: Notify,
}

#[derive(Default)]
struct Signs {
    /// Something that has to be read changed.
    dirty: bool,
    /// Files that a writer has open, and when it last wrote.
    writing: HashMap<OsString, Instant>,
}

impl Changes {
    pub(super) fn new(path: &Path, quiet: Duration) -> Self {
        Self { path: path.to_owned(), quiet, shared: Arc::default(), watch: Mutex::new(None) }
    }

    /// Watches the directory that stands at the path now. Without a watch, as when inotify's limits are
    /// reached, changes are found by reading the directory from time to time.
    pub(super) fn watch_again_if_moved(&self) {
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(metadata) = std::fs::metadata(&self.path) else {
            *watch = None;
            return;
        };
        let directory = (metadata.dev(), metadata.ino());
        if watch.as_ref().is_some_and(|watch| watch.directory == directory) {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let watcher = notify::recommended_watcher(move |event| shared.note(event)).and_then(|mut watcher| {
            watcher.watch(&self.path, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        *watch = match watcher {
            Ok(watcher) => Some(Watch { _watcher: watcher, directory }),
            Err(error) => {
                let path = self.path.display();
                warn!(%path, %error, "no inotify watch; changes of manifests are seen late");
                None
            }
        };
    }

    /// The directory is about to be read, so the signs up to now are taken as seen.
    pub(super) fn take(&self) {
        let mut signs = self.shared.lock();
        signs.dirty = false;
        signs.writing.retain(|_, last| last.elapsed() < self.quiet);
    }

    /// The files to leave alone for now.
    pub(super) fn being_written(&self) -> HashSet<OsString> {
        self.shared.lock().writing.keys().cloned().collect()
    }

    /// Returns when there is something to be read, after `longest` at the latest.
    pub(super) async fn next(&self, longest: Duration) {
        let deadline = Instant::now() + longest;
        loop {
            let wake = {
                let signs = self.shared.lock();
                if signs.dirty {
                    return;
                }
                let quiet = signs.writing.values().min().map(|&last| last + self.quiet);
                quiet.map_or(deadline, |quiet| quiet.min(deadline))
            };
            let sign = self.shared.something.notified();
            if tokio::time::timeout_at(wake.into(), sign).await.is_err() {
                return;
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Signs> {
        self.signs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, event: notify::Result<notify::Event>) {
        {
            let mut signs = self.lock();
            match event {
                Ok(event) => signs.note(&event),
                // Events were lost, or the watch was: the directory tells.
                Err(_) => signs.dirty = true,
            }
        }
        self.something.notify_one();
    }
}

impl Signs {
    fn note(&mut self, event: &notify::Event) {
        let names = || event.paths.iter().filter_map(|path| path.file_name());
        match event.kind {
            // Our own reading.
            EventKind::Access(AccessKind::Open(_) | AccessKind::Read)
            | EventKind::Access(AccessKind::Close(AccessMode::Read | AccessMode::Execute)) => {}
            EventKind::Modify(ModifyKind::Data(_)) => {
                self.writing.extend(names().map(|name| (name.to_owned(), Instant::now())));
            }
            // A new file is empty until its writer closes it. A symbolic link is complete.
            EventKind::Create(CreateKind::File) if !event.paths.iter().any(|path| path.is_symlink()) => {
                self.writing.extend(names().map(|name| (name.to_owned(), Instant::now())));
            }
            EventKind::Access(_)
            | EventKind::Any
            | EventKind::Create(_)
            | EventKind::Modify(_)
            | EventKind::Other
            | EventKind::Remove(_) => {
                for name in names() {
                    self.writing.remove(name);
                }
                self.dirty = true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    const QUIET: Duration = Duration::from_millis(300);
    const PATIENCE: Duration = Duration::from_secs(20);

    fn watched(directory: &Path) -> Changes {
        let changes = Changes::new(directory, QUIET);
        changes.watch_again_if_moved();
        changes
    }

    async fn next_within_patience(changes: &Changes) {
        let started = Instant::now();
        changes.next(PATIENCE).await;
        assert!(started.elapsed() < PATIENCE, "no sign of the change");
    }

    #[tokio::test]
    async fn a_file_is_left_alone_until_its_writer_closes_it() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let changes = Changes::new(directory.path(), PATIENCE);
        changes.watch_again_if_moved();
        let mut file = fs::File::create(directory.path().join("a.yaml")).expect("create");
        file.write_all(b"half").expect("write");
        while changes.being_written().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(changes.being_written().contains(&OsString::from("a.yaml")));
        drop(file);
        next_within_patience(&changes).await;
        changes.take();
        assert!(changes.being_written().is_empty());
    }

    #[tokio::test]
    async fn a_writer_that_falls_asleep_is_not_waited_for() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let changes = watched(directory.path());
        let mut file = fs::File::create(directory.path().join("a.yaml")).expect("create");
        file.write_all(b"half").expect("write");
        next_within_patience(&changes).await;
        changes.take();
        assert!(changes.being_written().is_empty());
        drop(file);
    }

    #[tokio::test]
    async fn a_rename_is_complete_at_once() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let elsewhere = tempfile::tempdir().expect("a temporary directory");
        fs::write(elsewhere.path().join("a"), "whole").expect("write");
        let changes = watched(directory.path());
        fs::rename(elsewhere.path().join("a"), directory.path().join("a.yaml")).expect("rename");
        next_within_patience(&changes).await;
        changes.take();
        assert!(changes.being_written().is_empty());
    }

    #[tokio::test]
    async fn the_directory_at_the_path_may_become_another() {
        let parent = tempfile::tempdir().expect("a temporary directory");
        let path = parent.path().join("current");
        for version in ["1", "2"] {
            fs::create_dir(parent.path().join(version)).expect("make a directory");
        }
        std::os::unix::fs::symlink("1", &path).expect("link");
        let changes = watched(&path);
        std::os::unix::fs::symlink("2", parent.path().join("next")).expect("link");
        fs::rename(parent.path().join("next"), &path).expect("swap");
        changes.watch_again_if_moved();
        changes.take();
        fs::write(parent.path().join("2").join("a.yaml"), "whole").expect("write");
        next_within_patience(&changes).await;
    }

    #[tokio::test]
    async fn reading_is_no_change() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join("a.yaml"), "whole").expect("write");
        let changes = watched(directory.path());
        fs::read(directory.path().join("a.yaml")).expect("read");
        // The removal comes after the reading, and is the only sign that there is.
        fs::remove_file(directory.path().join("a.yaml")).expect("remove");
        next_within_patience(&changes).await;
        let mut signs = Signs::default();
        let read = EventKind::Access(AccessKind::Open(AccessMode::Any));
        signs.note(&notify::Event::new(read).add_path(directory.path().join("a.yaml")));
        assert!(!signs.dirty && signs.writing.is_empty());
    }
}
