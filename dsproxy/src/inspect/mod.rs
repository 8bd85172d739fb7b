//! `dsproxy status`, `services`, `backends`, `connections` and `trace`: read from the live maps, whether a daemon runs or not.

mod columns;
pub mod trace;
mod views;

use std::io::{self, Write as _};

use anyhow::Context as _;
use serde::Serialize;

pub use self::views::{backends, connections, services, status};
use crate::{
    cli::{InspectArguments, OutputFormat},
    datapath::{bpffs::Bpffs, load},
    maps::kernel::KernelMaps,
};

/// What a view is made from.
pub struct Live {
    bpffs: Bpffs,
    maps: KernelMaps,
}

/// Something that can be printed for people and for programs.
pub trait View: Serialize {
    /// The tables, as text.
    fn table(&self) -> String;
}

/// Prints what `view` makes of the live maps.
///
/// # Errors
///
/// When there are none, or they cannot be read.
pub fn print<V: View>(
    arguments: &InspectArguments,
    view: impl FnOnce(&Live) -> anyhow::Result<V>,
) -> anyhow::Result<()> {
    let InspectArguments { bpffs, output } = arguments;
    let directory = &bpffs.directory;
    let nothing =
        || format!("no dsproxy maps are pinned at {}; is this the --bpffs of `dsproxy run`?", directory.display());
    let bpffs = Bpffs::existing(directory)?.with_context(nothing)?;
    let maps = load::open_pinned(&bpffs).with_context(nothing)?;
    let view = view(&Live { bpffs, maps })?;
    let text = match output {
        OutputFormat::Table => view.table(),
        OutputFormat::Json => serde_json::to_string_pretty(&view).context("write JSON")? + "\n",
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever reads has seen enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write to standard output"),
    }
}
