//! `dsproxy top`: what passes by the Services just now, and what is dropped.
//!
//! ```text
//!   sample --- rates --- happenings --- terminal --- screen, draw        at a terminal
//!                    \-- plain                                           for scripts
//! ```
//!
//! `happenings` has what happens meanwhile, keys and signals, as well.

mod draw;
mod happenings;
mod plain;
mod rates;
mod sample;
mod screen;
mod terminal;

use std::{
    io::{self, IsTerminal as _, Write as _},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use self::{plain::Plain, rates::Rates, sample::Sample};
use super::{Live, View as _, filter::FlowFilter};
use crate::{
    cli::{OutputFormat, seconds},
    config::flags::BpffsFlag,
};

/// Service ports that are printed, unless told otherwise.
const LIMIT: usize = 20;

/// What `dsproxy top` is told.
#[derive(Debug, Args)]
pub struct TopArguments {
    /// Where pins are.
    #[command(flatten)]
    pub bpffs: BpffsFlag,

    /// Over how many seconds rates are taken
    #[arg(short, long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub interval: Duration,

    /// Print one interval as text and end; without a terminal it is always so
    #[arg(long)]
    pub once: bool,

    /// The form of what is printed; json is printed once, at a terminal as well
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub output: OutputFormat,

    /// What the rows are sorted by, the most first
    #[arg(long, value_name = "COLUMN", default_value = "bytes")]
    pub sort: SortBy,

    /// How many service ports --once prints at most
    #[arg(long, value_name = "N", default_value_t = LIMIT)]
    pub limit: usize,

    // Last, for its heading holds for what follows.
    /// Which are shown.
    #[command(flatten)]
    pub filter: FlowFilter,
}

/// What service ports are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SortBy {
    /// Bytes of both directions.
    #[default]
    Bytes,
    /// Packets to endpoints.
    Packets,
    /// Packets from endpoints.
    Replies,
    /// New connections.
    Connections,
    /// Connections that are open.
    Open,
    /// Packets that were dropped, and calls of sockets that were refused.
    Drops,
    /// The name.
    Name,
}

/// Shows what passes until the user has seen enough, or prints it once.
///
/// # Errors
///
/// When there are no maps, they cannot be read, or the terminal cannot be used.
pub fn top(arguments: &TopArguments) -> anyhow::Result<()> {
    let live = Live::open(&arguments.bpffs)?;
    if arguments.is_printed(io::stdout().is_terminal()) {
        once(&live, arguments)
    } else {
        terminal::show(live, arguments)
    }
}

impl TopArguments {
    /// Whether one interval is printed as text.
    fn is_printed(&self, at_a_terminal: bool) -> bool {
        self.once || self.output == OutputFormat::Json || !at_a_terminal
    }
}

/// What passes within a second, as text.
///
/// # Errors
///
/// When the maps cannot be read.
pub(super) fn for_a_second(live: &Live) -> anyhow::Result<String> {
    let rates = measure(live, &FlowFilter::default(), Duration::from_secs(1))?;
    Ok(Plain::new(&rates, SortBy::default(), LIMIT, sample::fill(live)?).table())
}

fn measure(live: &Live, filter: &FlowFilter, interval: Duration) -> anyhow::Result<Rates> {
    let before = Sample::read(live, filter)?;
    thread::sleep(interval);
    Ok(Rates::between(&before, &Sample::read(live, filter)?))
}

fn once(live: &Live, arguments: &TopArguments) -> anyhow::Result<()> {
    let rates = measure(live, &arguments.filter, arguments.interval)?;
    let plain = Plain::new(&rates, arguments.sort, arguments.limit, sample::fill(live)?);
    let text = match arguments.output {
        OutputFormat::Table => plain.table(),
        OutputFormat::Json => serde_json::to_string_pretty(&plain).context("write JSON")? + "\n",
    };
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough, as `head` does.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("write to standard output"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        top: TopArguments,
    }

    #[test]
    fn a_view_is_for_people_at_a_terminal() {
        let is_printed = |arguments: &[&str], at_a_terminal| {
            let arguments = std::iter::once("top").chain(arguments.iter().copied());
            Command::try_parse_from(arguments).expect("valid").top.is_printed(at_a_terminal)
        };
        assert!(!is_printed(&[], true));
        assert!(!is_printed(&["-o", "table"], true));
        assert!(is_printed(&[], false));
        assert!(is_printed(&["--once"], true));
        assert!(is_printed(&["-o", "json"], true));
    }
}
