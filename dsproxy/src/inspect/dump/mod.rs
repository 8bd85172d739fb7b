//! `dsproxy dump`: one archive with everything that somebody needs who is to find out what is wrong, and who cannot look himself.
//!
//! A part that cannot be had leaves an entry that says why, and the others go on. Nothing in it is secret: no key, token or
//! kubeconfig is ever read. Addresses, names of Services and of interfaces are in it.

mod archive;
mod endpoint;
mod kernel;
mod network;
mod parts;
mod shorten;

use std::{
    fs::OpenOptions,
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use chrono::Utc;
use clap::Args;

use self::archive::Archive;
use crate::config::flags::BpffsFlag;

/// For the archive on standard output.
const STANDARD_OUTPUT: &str = "-";

/// How long it may take to find out all of it: parts that are not begun by then are left out, and nobody is waited for any more.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `dsproxy dump` is told.
#[derive(Debug, Args)]
pub struct DumpArguments {
    /// The archive to write, which must not exist yet; - is standard output [default: dsproxy-NODE-TIME.tar.gz]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Where pins are.
    #[command(flatten)]
    pub bpffs: BpffsFlag,
}

/// Writes the archive, and says where it is.
///
/// # Errors
///
/// When the file cannot be written. What cannot be found out is told in the archive.
pub fn dump(arguments: &DumpArguments) -> anyhow::Result<()> {
    let now = Utc::now();
    let node =
        nix::unistd::gethostname().map_or_else(|_| "node".to_owned(), |name| name.to_string_lossy().into_owned());
    let name = format!("dsproxy-{node}-{}", now.format("%Y%m%dT%H%M%SZ"));
    if arguments.file.as_deref() == Some(Path::new(STANDARD_OUTPUT)) {
        return write(io::stdout().lock(), &name, arguments).context("write the archive to standard output");
    }
    let path = arguments.file.clone().unwrap_or_else(|| format!("{name}.tar.gz").into());
    let failed =
        || format!("write the archive {}; name one that can be made, or - for standard output", path.display());
    // Whatever names and addresses are in it are for whoever asked for it.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).with_context(failed)?;
    write(file, &name, arguments).with_context(failed)?;
    println!("{}", path.display());
    Ok(())
}

fn write(to: impl Write, directory: &str, arguments: &DumpArguments) -> io::Result<()> {
    let mut archive = Archive::new(to, directory, Utc::now().timestamp());
    archive.add("README.txt", parts::read_me().as_bytes())?;
    let mut sink = |name: &str, outcome: anyhow::Result<Vec<u8>>| match outcome {
        Ok(content) => archive.add(name, &content),
        Err(why) => archive.add(&format!("{name}.failed"), format!("{why:#}\n").as_bytes()),
    };
    parts::collect(&arguments.bpffs, Instant::now() + PATIENCE, &mut sink)?;
    archive.finish()
}
