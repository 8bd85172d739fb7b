//! What labs leave behind when their process is killed, and how it is found and removed.
//!
//! Everything is traced by the lab's name to the process that made it; a process is only ever ended when it
//! was recorded and still is the one that was recorded.

use std::{
    collections::BTreeSet,
    fmt, fs, io,
    path::{Path, PathBuf},
    process, thread,
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{LabError, LabName, cgroup, iproute, name::ROOT, namespace};

/// How long a process may take to vanish after SIGKILL.
const END_OF_PROCESS: Duration = Duration::from_secs(5);

/// Which labs are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// One lab.
    Lab(LabName),
    /// The labs of this process that were not told to stay.
    Own,
    /// Labs whose maker has ended, except those that were told to stay.
    Abandoned,
    /// Labs that were told to stay.
    Kept,
}

/// Something a lab made that is still there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leftover {
    /// A process, by id.
    Process(u32),
    /// A mounted file system.
    Mount(PathBuf),
    /// A cgroup.
    Cgroup(PathBuf),
    /// A network namespace, with every interface in it.
    Namespace(String),
    /// A lab's directory.
    Directory(PathBuf),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Process(id) => write!(f, "process {id}"),
            Self::Mount(path) => write!(f, "mount {}", path.display()),
            Self::Cgroup(path) => write!(f, "cgroup {}", path.display()),
            Self::Namespace(name) => write!(f, "network namespace {name}"),
            Self::Directory(path) => write!(f, "directory {}", path.display()),
        }
    }
}

/// Finds what the labs of `extent` have standing, in the order in which it has to be removed.
pub fn find(extent: &Extent) -> Vec<Leftover> {
    let mut found = BTreeSet::new();
    for lab in all_labs() {
        if extent_has(extent, lab) {
            find_of(lab, &mut found);
        }
    }
    found.into_iter().collect()
}

/// Removes what the labs of `extent` have standing; returns what could not be removed, and why.
pub fn remove(extent: &Extent) -> Vec<LabError> {
    find(extent).iter().filter_map(|leftover| remove_one(leftover).err()).collect()
}

/// Makes the directory of `lab`, and in it the list of processes, opened by its owner.
pub(crate) fn record_owner(lab: LabName) -> Result<fs::File, LabError> {
    use std::io::Write as _;

    let directory = lab.directory();
    let mut attempts = 3;
    while let Err(source) = fs::create_dir_all(&directory) {
        attempts -= 1;
        // The last lab of another process may just have taken the parent with it.
        if attempts == 0 || source.kind() != io::ErrorKind::NotFound {
            return Err(LabError::file("create", directory, source));
        }
    }
    let path = lab.processes_file();
    let record = process_record(process::id())?;
    fs::File::create(&path)
        .and_then(|mut file| writeln!(file, "{record}").map(|()| file))
        .map_err(|source| LabError::file("write", path, source))
}

/// A line that tells the running process `id` from any later one with the same id.
pub(crate) fn process_record(id: u32) -> Result<String, LabError> {
    start_time(id)
        .map(|started| format!("{id} {started}"))
        .map_err(|source| LabError::file("read", format!("/proc/{id}/stat"), source))
}

fn extent_has(extent: &Extent, lab: LabName) -> bool {
    let kept = lab.kept_file().exists();
    match extent {
        Extent::Lab(name) => *name == lab,
        Extent::Own => lab.owner == process::id() && !kept,
        Extent::Abandoned => !owner_lives(lab) && !kept,
        Extent::Kept => kept,
    }
}

fn all_labs() -> BTreeSet<LabName> {
    [namespace::DIRECTORY, ROOT].into_iter().flat_map(names_in).filter_map(|name| LabName::of(&name)).collect()
}

fn find_of(lab: LabName, found: &mut BTreeSet<Leftover>) {
    let directory = lab.directory();
    // The first record is the owner, who is not a leftover of its own lab.
    let started = fs::read_to_string(lab.processes_file()).unwrap_or_default();
    found.extend(started.lines().skip(1).filter_map(recorded_process).map(Leftover::Process));
    found.extend(mounts_below(&directory).into_iter().map(Leftover::Mount));
    found.extend(cgroup::of_lab(lab).map(Leftover::Cgroup));
    found.extend(
        names_in(namespace::DIRECTORY)
            .into_iter()
            .filter(|name| LabName::of(name) == Some(lab))
            .map(Leftover::Namespace),
    );
    if directory.exists() {
        found.insert(Leftover::Directory(directory));
    }
}

fn remove_one(leftover: &Leftover) -> Result<(), LabError> {
    match leftover {
        Leftover::Process(id) => end_process(*id),
        Leftover::Mount(path) => {
            umount2(path, MntFlags::MNT_DETACH).map_err(|errno| LabError::file("unmount", path, errno.into()))
        }
        Leftover::Cgroup(path) => remove_cgroup(path),
        Leftover::Namespace(name) => iproute::ip(&["netns", "del", name]).map(|_| ()),
        Leftover::Directory(path) => {
            fs::remove_dir_all(path).map_err(|source| LabError::file("remove", path, source))?;
            // Labs of other processes may share the parent; it goes with the last of them.
            let _ = fs::remove_dir(ROOT);
            Ok(())
        }
    }
}

/// A thread that has just ended may still count as being in it.
fn remove_cgroup(path: &Path) -> Result<(), LabError> {
    let started = Instant::now();
    loop {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && started.elapsed() < END_OF_PROCESS => {
                thread::sleep(Duration::from_millis(5));
            }
            Err(source) => return Err(LabError::file("remove", path, source)),
        }
    }
}

fn end_process(id: u32) -> Result<(), LabError> {
    let failed = |source: io::Error| LabError::file("end", format!("/proc/{id}"), source);
    let started = Instant::now();
    let pid = Pid::from_raw(id.cast_signed());
    match kill(pid, Signal::SIGKILL) {
        Ok(()) => {}
        Err(nix::errno::Errno::ESRCH) => return Ok(()),
        Err(errno) => return Err(failed(errno.into())),
    }
    while start_time(id).is_ok() {
        if started.elapsed() > END_OF_PROCESS {
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

fn owner_lives(lab: LabName) -> bool {
    match fs::read_to_string(lab.processes_file()) {
        Ok(records) => records.lines().next().and_then(recorded_process).is_some(),
        // Without a record the id alone has to do.
        Err(_) => start_time(lab.owner).is_ok(),
    }
}

/// The process of `record`, if it still runs.
fn recorded_process(record: &str) -> Option<u32> {
    let (id, started) = record.split_once(' ')?;
    let id = id.parse().ok()?;
    (start_time(id).ok()?.to_string() == started).then_some(id)
}

/// When process `id` was started, in clock ticks since boot. A process that has ended, but was not waited
/// for yet, counts as gone.
fn start_time(id: u32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // The program's name stands in parentheses and may hold spaces; the state follows it, and the start
    // time is the twentieth field from there.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect::<Vec<_>>();
    match (fields.first(), fields.get(19)) {
        (Some(&("Z" | "X")), _) => Err(io::ErrorKind::NotFound.into()),
        (Some(_), Some(started)) => started.parse().map_err(|_| io::ErrorKind::InvalidData.into()),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .filter(|path| path.starts_with(directory))
        .collect::<Vec<_>>();
    found.reverse();
    found
}

fn names_in(directory: &str) -> Vec<String> {
    fs::read_dir(directory).map_or_else(
        |_| Vec::new(),
        |entries| {
            entries.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
        },
    )
}
