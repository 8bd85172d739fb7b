//! Reads the directory: which files are manifests, which of them changed, and what that means.
//!
//! It blocks. It does not know when it is called, only which files to leave alone.

use std::{
    collections::{BTreeMap, HashSet},
    ffi::{OsStr, OsString},
    fs,
    hash::{BuildHasher, RandomState},
    io,
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tracing::{info, warn};

use super::{
    ManifestsError,
    document::{self, Contents, Format},
    holdings::{FileHolds, Holdings, Missing},
};
use crate::{
    model::{EndpointSlice, Node, Service, ServiceCidr},
    source::{
        Delta, Event, SourceStatus,
        convert::{Converted, FromObject, NotOurs},
        intake::{self, Taken},
    },
};

/// Two writes this close together may leave a file with one time stamp.
const TICK: Duration = Duration::from_millis(50);

/// How long word of a writer may take to arrive.
const WORD: Duration = Duration::from_millis(2);

/// The directory as it was last read.
pub(super) struct Directory {
    path: PathBuf,
    status: Arc<SourceStatus>,
    /// The files that were read.
    files: BTreeMap<Arc<Path>, LastRead>,
    hasher: RandomState,
    services: Holdings<Service>,
    endpoint_slices: Holdings<EndpointSlice>,
    nodes: Holdings<Node>,
    service_cidrs: Holdings<ServiceCidr>,
    /// Whether the complete sets were sent.
    complete: bool,
}

/// What one reading of the directory brought.
pub(super) struct Scan {
    pub(super) events: Vec<Event>,
    pub(super) failure: Option<ManifestsError>,
}

/// A file as it was last read.
struct LastRead {
    /// Without one the file has to be read again.
    stamp: Option<Stamp>,
    /// Of the contents, so that reading the same again tells nothing twice.
    digest: u64,
}

/// Equal stamps mean equal contents.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    /// Whether a later change would have another stamp for sure.
    fn is_old(&self) -> bool {
        let (seconds, nanoseconds) = self.changed;
        let changed = u64::try_from(seconds).unwrap_or(0);
        let nanoseconds = u32::try_from(nanoseconds).unwrap_or(0);
        let changed = SystemTime::UNIX_EPOCH + Duration::new(changed, nanoseconds);
        changed.elapsed().is_ok_and(|age| age > TICK)
    }
}

impl Directory {
    pub(super) fn new(path: PathBuf, status: Arc<SourceStatus>) -> Self {
        Self {
            path,
            status,
            files: BTreeMap::new(),
            hasher: RandomState::new(),
            services: Holdings::default(),
            endpoint_slices: Holdings::default(),
            nodes: Holdings::default(),
            service_cidrs: Holdings::default(),
            complete: false,
        }
    }

    /// Reads what changed. The files that are `being_written` are left as they were.
    pub(super) fn scan(&mut self, being_written: impl Fn() -> HashSet<OsString>) -> Scan {
        let mut present = match manifest_files(&self.path) {
            Ok(present) => present,
            Err(source) => {
                let path = self.path.clone();
                let failure = Some(ManifestsError::Directory { path, source });
                return Scan { events: Vec::new(), failure };
            }
        };
        let mut failure = None;
        let texts = self.read_changed(&mut present, &being_written, &mut failure);
        let (mut services, mut endpoint_slices) = (Vec::new(), Vec::new());
        let (mut nodes, mut service_cidrs) = (Vec::new(), Vec::new());
        for (file, format, text) in texts {
            let contents = self.read(&file, &text, format);
            let broken = !contents.broken.is_empty();
            services.push(self.holds(&file, contents.services, broken));
            endpoint_slices.push(self.holds(&file, contents.endpoint_slices, broken));
            nodes.push(self.holds(&file, contents.nodes, broken));
            service_cidrs.push(self.holds(&file, contents.service_cidrs, broken));
        }

        let here: HashSet<&Arc<Path>> = present.iter().map(|(file, _)| file).collect();
        self.files.retain(|file, _| here.contains(file));
        let complete = std::mem::replace(&mut self.complete, true);
        let mut events = changes(&mut self.nodes, nodes, &here, complete);
        events.extend(changes(&mut self.service_cidrs, service_cidrs, &here, complete));
        events.extend(changes(&mut self.services, services, &here, complete));
        events.extend(changes(&mut self.endpoint_slices, endpoint_slices, &here, complete));
        Scan { events, failure }
    }

    /// The texts of the files that changed.
    fn read_changed(
        &mut self,
        present: &mut Vec<(Arc<Path>, Format)>,
        being_written: &impl Fn() -> HashSet<OsString>,
        failure: &mut Option<ManifestsError>,
    ) -> Vec<(Arc<Path>, Format, Vec<u8>)> {
        let writing = being_written();
        let mut texts = Vec::new();
        present.retain(|(file, format)| {
            if writing.contains(file.as_os_str()) {
                return true;
            }
            match self.read_if_changed(file) {
                Ok(None) => {}
                Ok(Some(text)) => texts.push((Arc::clone(file), *format, text)),
                Err(source) => {
                    let path = self.path.join(file);
                    // Removed since the directory was read; unlike the target of a link that still stands.
                    if source.kind() == io::ErrorKind::NotFound && !path.is_symlink() {
                        return false;
                    }
                    failure.get_or_insert(ManifestsError::File { path, source });
                }
            }
            true
        });
        if !texts.is_empty() {
            // A writer that came while the files were read has told so by now.
            std::thread::sleep(WORD);
            let writing = being_written();
            texts.retain(|(file, ..)| {
                let written = writing.contains(file.as_os_str());
                if written {
                    self.files.remove(file);
                }
                !written
            });
        }
        texts
    }

    /// The contents of a file if they changed since it was last read.
    fn read_if_changed(&mut self, file: &Arc<Path>) -> io::Result<Option<Vec<u8>>> {
        let path = self.path.join(file);
        // The stamp before the contents: a change in between is read twice rather than never.
        let stamp = Stamp::of(&fs::metadata(&path)?);
        let last = self.files.get(file);
        if last.is_some_and(|last| last.stamp.as_ref() == Some(&stamp)) {
            return Ok(None);
        }
        let text = fs::read(&path)?;
        let digest = self.hasher.hash_one(&text);
        let same = last.is_some_and(|last| last.digest == digest);
        let stamp = stamp.is_old().then_some(stamp);
        self.files.insert(Arc::clone(file), LastRead { stamp, digest });
        Ok((!same).then_some(text))
    }

    fn read(&self, file: &Path, text: &[u8], format: Format) -> Contents {
        let path = self.path.join(file);
        let contents = document::read(text, format);
        for broken in &contents.broken {
            self.status.count_rejected();
            let file = path.display();
            warn!(%file, reason = %broken, "part of a manifest cannot be read; what the file held before stays");
        }
        contents
    }

    fn holds<T: FromObject>(&self, file: &Arc<Path>, objects: Vec<Converted<T>>, mut broken: bool) -> FileHolds<T> {
        let mut ours = Vec::with_capacity(objects.len());
        let mut but_for = HashSet::new();
        for object in objects {
            if let Converted::NotOurs { name, why: NotOurs::NoClusterIp } = &object {
                info!(kind = %T::KIND, object = %name, "without a clusterIP, which nobody assigns here");
            }
            match intake::take(object, &self.status) {
                Taken::Ours(object) => ours.push(object),
                Taken::NotOurs(_) => {}
                Taken::Bad(Some(name)) => {
                    but_for.insert(name);
                }
                Taken::Bad(None) => broken = true,
            }
        }
        let missing = if broken { Missing::Stay } else { Missing::Gone { but_for } };
        FileHolds { file: Arc::clone(file), objects: ours, missing }
    }
}

/// What there is to tell of one kind after the files that changed were read: everything, unless that was told before
/// (`complete`).
fn changes<T: FromObject>(
    holdings: &mut Holdings<T>,
    mut read: Vec<FileHolds<T>>,
    here: &HashSet<&Arc<Path>>,
    complete: bool,
) -> Vec<Event> {
    read.extend(gone(holdings, here));
    let changes = holdings.update(read);
    let deltas = if complete { changes } else { vec![Delta::Snapshot(holdings.all())] };
    deltas.into_iter().map(T::event).collect()
}

/// The files that held something and are no longer here.
fn gone<T: FromObject>(holdings: &Holdings<T>, here: &HashSet<&Arc<Path>>) -> Vec<FileHolds<T>> {
    let gone = holdings.files().filter(|file| !here.contains(file));
    gone.map(|file| FileHolds {
        file: Arc::clone(file),
        objects: Vec::new(),
        missing: Missing::Gone { but_for: HashSet::new() },
    })
    .collect()
}

/// The manifests in a directory, in the order of their names.
fn manifest_files(directory: &Path) -> io::Result<Vec<(Arc<Path>, Format)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(format) = format(&name) else {
            continue;
        };
        // A link to nowhere counts: it cannot be read, and what it held stays.
        let kind = entry.file_type()?;
        let regular = if kind.is_symlink() {
            fs::metadata(entry.path()).map_or(true, |target| target.is_file())
        } else {
            kind.is_file()
        };
        if regular {
            files.push((Path::new(&name).into(), format));
        }
    }
    files.sort_by(|(one, _): &(Arc<Path>, _), (other, _)| one.cmp(other));
    Ok(files)
}

/// How a file with this name is written; nothing when it is no manifest, or hidden.
fn format(name: &OsStr) -> Option<Format> {
    if name.as_bytes().starts_with(b".") {
        return None;
    }
    match Path::new(name).extension()?.to_str()? {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}
