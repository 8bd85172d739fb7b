//! The guest's file system: what the tests need of this machine, and the modules of the kernel that is booted.
//!
//! Programs are copied with the libraries that they are linked to, to where they are here, so that the guest needs no
//! distribution of its own.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use super::{archive::Archive, guest::Job, kernel::Kernel};
use crate::setup;

/// What runs first in the guest.
const INIT: &str = include_str!("init.sh");

/// Where tests and the daemon are in the guest.
pub(super) const PROGRAMS: &str = "/programs";

/// What the tests and the daemon call, and `busybox` and `modprobe` of the guest itself: the kernel calls the latter for each
/// module that it misses.
const TOOLS: [&str; 24] = [
    "busybox",
    "modprobe",
    "ip",
    "tc",
    "ethtool",
    "mount",
    "umount",
    "nsenter",
    "setpriv",
    "sleep",
    "nft",
    "iptables-nft",
    "iptables-nft-save",
    "iptables-nft-restore",
    "ip6tables-nft",
    "ip6tables-nft-save",
    "ip6tables-nft-restore",
    "iptables-legacy",
    "iptables-legacy-save",
    "iptables-legacy-restore",
    "ip6tables-legacy",
    "ip6tables-legacy-save",
    "ip6tables-legacy-restore",
    "sysctl",
];

/// The directories of modules that networks are made of.
const MODULES: [&str; 5] = ["kernel/net", "kernel/drivers/net", "kernel/lib", "kernel/crypto", "kernel/arch"];

/// Directories that are there for something to be mounted on or written to, and links as Debian has them.
const DIRECTORIES: [&str; 13] = [
    "/proc",
    "/sys",
    "/dev",
    "/run",
    "/tmp",
    "/mnt",
    "/root",
    "/etc",
    "/var",
    "/usr",
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
];
const LINKS: [(&str, &str); 5] =
    [("/bin", "usr/bin"), ("/sbin", "usr/sbin"), ("/lib", "usr/lib"), ("/lib64", "usr/lib64"), ("/var/run", "../run")];

/// Writes the file system to `path`: programs of this machine, `programs` by their names, and what is to be run.
pub(super) fn write(path: &Path, kernel: &Kernel, programs: &[(String, PathBuf)], jobs: &[Job]) -> anyhow::Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut root = Root { archive: Archive::new(BufWriter::new(file)), directories: BTreeSet::new() };
    root.fill(kernel, programs, jobs).with_context(|| format!("write the guest's files to {}", path.display()))?;
    root.archive.finish().with_context(|| format!("write {}", path.display()))
}

struct Root<W> {
    archive: Archive<W>,
    /// Those that are there.
    directories: BTreeSet<PathBuf>,
}

impl<W: Write> Root<W> {
    fn fill(&mut self, kernel: &Kernel, programs: &[(String, PathBuf)], jobs: &[Job]) -> anyhow::Result<()> {
        for directory in DIRECTORIES {
            self.ensure_directory(Path::new(directory))?;
        }
        for (link, to) in LINKS {
            self.archive.link(link, to)?;
        }
        self.archive.file("/init", INIT.as_bytes())?;
        let plan: String = jobs.iter().map(Job::line).collect();
        self.archive.file("/plan", plan.as_bytes())?;
        self.modules(kernel)?;

        let mut libraries = BTreeSet::new();
        for tool in TOOLS {
            let path = setup::program(tool)?;
            libraries.extend(libraries_of(&path)?);
            // To where it is called; what it is a link to is of no matter.
            self.copy(&path, &real_place(&path)?)?;
        }
        self.ensure_directory(Path::new(PROGRAMS))?;
        for (name, path) in programs {
            libraries.extend(libraries_of(path)?);
            self.copy(path, &Path::new(PROGRAMS).join(name))?;
        }
        for extension in iptables_extensions(&libraries)? {
            libraries.extend(libraries_of(&extension)?);
            libraries.insert(extension);
        }
        for library in libraries {
            self.copy(&library, &real_place(&library)?)?;
        }
        Ok(())
    }

    fn modules(&mut self, kernel: &Kernel) -> anyhow::Result<()> {
        let place = Path::new("/usr/lib/modules").join(&kernel.release);
        for path in entries(&kernel.modules)?.into_iter().filter(|path| path.is_file()) {
            self.copy(&path, &place.join(path.file_name().unwrap_or_default()))?;
        }
        for directory in MODULES {
            self.tree(&kernel.modules.join(directory), &place.join(directory))?;
        }
        Ok(())
    }

    fn tree(&mut self, from: &Path, to: &Path) -> anyhow::Result<()> {
        for path in entries(from)? {
            let place = to.join(path.file_name().unwrap_or_default());
            if path.is_dir() {
                self.tree(&path, &place)?;
            } else {
                self.copy(&path, &place)?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, from: &Path, to: &Path) -> anyhow::Result<()> {
        if let Some(parent) = to.parent() {
            self.ensure_directory(parent)?;
        }
        let content = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        Ok(self.archive.file(&to.to_string_lossy(), &content)?)
    }

    fn ensure_directory(&mut self, path: &Path) -> anyhow::Result<()> {
        let Some(parent) = path.parent() else { return Ok(()) };
        if self.directories.contains(path) {
            return Ok(());
        }
        self.ensure_directory(parent)?;
        self.directories.insert(path.to_owned());
        Ok(self.archive.directory(&path.to_string_lossy())?)
    }
}

/// A path with its directory's links followed: `/lib/x` is `/usr/lib/x`.
fn real_place(path: &Path) -> anyhow::Result<PathBuf> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("{} names no file", path.display())
    };
    let directory = directory.canonicalize().with_context(|| format!("find {}", directory.display()))?;
    Ok(directory.join(name))
}

/// The shared libraries that `program` is linked to, the loader among them.
fn libraries_of(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd, which is in the package libc-bin")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    // A static program has none, and ldd says so and fails.
    let mut libraries = Vec::new();
    for line in printed.lines() {
        if line.contains("not found") {
            bail!("{} needs a library that is not here: {}", program.display(), line.trim());
        }
        let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
        let path = path.split(' ').next().unwrap_or_default();
        if path.starts_with('/') {
            libraries.push(real_place(Path::new(path))?);
        }
    }
    Ok(libraries)
}

/// What iptables opens at run time: a library for each match and target.
fn iptables_extensions(libraries: &BTreeSet<PathBuf>) -> anyhow::Result<Vec<PathBuf>> {
    let is_iptables = |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains("xtables"));
    let directory = libraries.iter().find(is_iptables).and_then(|path| path.parent()).map(|path| path.join("xtables"));
    let directory = directory.context("iptables is not linked to libxtables, so its extensions cannot be found")?;
    entries(&directory)
}

fn entries(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let read = || fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<_>>>();
    let mut entries = read().with_context(|| format!("read the directory {}", directory.display()))?;
    entries.sort_unstable();
    Ok(entries)
}
