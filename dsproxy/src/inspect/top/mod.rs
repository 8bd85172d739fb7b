//! `dsproxy top`: what passes by the Services just now, and what is dropped.
//!
//! ```text
//!   sample --- rates --- screen --- draw        at a terminal
//!                    \-- plain                  for scripts
//! ```

mod draw;
mod plain;
mod rates;
mod sample;
mod screen;

use std::{
    io::{self, IsTerminal as _, Write as _},
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyEventKind},
};

use self::{plain::Plain, rates::Rates, sample::Sample, screen::Screen};
use super::{Live, View as _, fill::MapFill, filter::FlowFilter};
use crate::{
    cli::{OutputFormat, seconds},
    config::flags::BpffsFlag,
};

/// How often maps are counted at a terminal: their entries are read one by one.
const FILL_EVERY: Duration = Duration::from_secs(10);

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

    /// The form of what --once prints
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
    if arguments.once || !io::stdout().is_terminal() {
        return once(&live, arguments);
    }
    let mut terminal = ratatui::try_init().context("use the terminal; --once prints text instead")?;
    let outcome = show(&mut terminal, &live, arguments);
    ratatui::restore();
    outcome
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

fn show(terminal: &mut DefaultTerminal, live: &Live, arguments: &TopArguments) -> anyhow::Result<()> {
    let mut screen = Screen::new(arguments.sort);
    let mut before = Sample::read(live, &arguments.filter)?;
    let mut rates = Rates::between(&before, &before);
    let mut maps: (Instant, Vec<MapFill>) = (Instant::now(), sample::fill(live)?);
    // The first rates soon, for an empty screen tells nothing.
    let mut next = Instant::now() + arguments.interval.min(Duration::from_secs(1));
    loop {
        terminal.draw(|frame| draw::draw(frame, &mut screen, &rates, &maps.1)).context("draw on the terminal")?;
        let wait = next.saturating_duration_since(Instant::now());
        if event::poll(wait).context("read from the terminal")? {
            match event::read().context("read from the terminal")? {
                Event::Key(key) if key.kind != KeyEventKind::Release && screen.press(key) => return Ok(()),
                _ => {}
            }
        }
        if Instant::now() < next {
            continue;
        }
        next = Instant::now() + arguments.interval;
        let after = Sample::read(live, &arguments.filter)?;
        if !screen.is_paused() {
            rates = Rates::between(&before, &after);
            if maps.0.elapsed() >= FILL_EVERY {
                maps = (Instant::now(), sample::fill(live)?);
            }
        }
        before = after;
    }
}
