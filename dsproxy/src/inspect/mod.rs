//! `dsproxy status`, `services`, `backends`, `connections`, `top`, `trace`, `events` and `dump`: read from the live maps, whether a daemon runs or not.

mod columns;
pub mod dump;
mod end_signals;
pub mod events;
mod fill;
pub mod filter;
mod human;
pub mod top;
pub mod trace;
mod views;

use std::{
    io::{self, IsTerminal as _, Write as _},
    thread,
};

use anyhow::Context as _;
use serde::Serialize;

pub use self::views::{backends, connections, services, status};
use crate::{
    cli::{InspectArguments, OutputFormat},
    config::flags::BpffsFlag,
    datapath::{bpffs::Bpffs, load},
    maps::kernel::KernelMaps,
};

/// What a view is made from.
pub struct Live {
    bpffs: Bpffs,
    maps: KernelMaps,
}

impl Live {
    /// What is pinned where the flag says.
    ///
    /// # Errors
    ///
    /// When nothing is, or it is another version's.
    pub fn open(BpffsFlag { directory }: &BpffsFlag) -> anyhow::Result<Self> {
        let nothing =
            || format!("no dsproxy maps are pinned at {}; is this the --bpffs of `dsproxy run`?", directory.display());
        let bpffs = Bpffs::existing(directory)?.with_context(nothing)?;
        let maps = load::open_pinned(&bpffs).with_context(nothing)?;
        Ok(Self { bpffs, maps })
    }
}

/// Something that can be printed for people and for programs.
pub trait View: Serialize {
    /// The tables, as text.
    fn table(&self) -> String;
}

/// Clears a terminal and goes to its upper left corner (ECMA-48, sections 8.3.39 and 8.3.21).
const CLEAR: &str = "\x1b[2J\x1b[H";

/// Prints what `view` makes of the live maps, once or until the user has seen enough.
///
/// # Errors
///
/// When there are none, or they cannot be read.
pub fn print<V: View>(arguments: &InspectArguments, view: impl Fn(&Live) -> anyhow::Result<V>) -> anyhow::Result<()> {
    let InspectArguments { bpffs, output, watch } = arguments;
    let mut output_stream = io::stdout().lock();
    let clears = watch.is_some() && *output == OutputFormat::Table && output_stream.is_terminal();
    loop {
        // Anew each time: an upgrade or `cleanup` leaves maps behind that nobody writes to any more.
        let view = view(&Live::open(bpffs)?)?;
        let text = match (output, watch) {
            (OutputFormat::Table, _) => view.table(),
            (OutputFormat::Json, None) => serde_json::to_string_pretty(&view).context("write JSON")? + "\n",
            (OutputFormat::Json, Some(_)) => serde_json::to_string(&view).context("write JSON")? + "\n",
        };
        let written = output_stream
            .write_all(if clears { CLEAR.as_bytes() } else { b"" })
            .and_then(|()| output_stream.write_all(text.as_bytes()))
            .and_then(|()| output_stream.flush());
        match written {
            // Whoever reads has seen enough, as `head` does.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            written => written.context("write to standard output")?,
        }
        let Some(interval) = watch else { return Ok(()) };
        thread::sleep(*interval);
    }
}
