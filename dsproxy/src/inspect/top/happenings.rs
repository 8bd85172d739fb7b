//! What happens at a terminal: keys, signals and readings of the maps, each from a thread of its own by one channel. So a key is not
//! kept waiting by maps, and nothing is asked again and again.

use std::{
    process,
    sync::mpsc::Sender,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Error};
use ratatui::crossterm::{
    event::{self, Event, KeyEvent, KeyEventKind},
    terminal::disable_raw_mode,
};

use super::{
    rates::Rates,
    sample::{self, Sample},
};
use crate::inspect::{Live, end_signals::EndSignals, fill::MapFill, filter::FlowFilter};

/// How often maps are counted: their entries are read one by one.
const FILL_EVERY: Duration = Duration::from_secs(10);

/// The first rates come soon, for an empty screen tells nothing.
const FIRST: Duration = Duration::from_secs(1);

/// How long the screen may take to be put away after a signal. Who has stopped the terminal's output keeps it for ever.
const PATIENCE: Duration = Duration::from_secs(2);

/// The exit status where it took longer.
const STUCK: i32 = 1;

/// Something has happened.
#[derive(Debug)]
pub(super) enum Happening {
    /// A key was pressed.
    Key(KeyEvent),
    /// The terminal has another size.
    Resized,
    /// The maps were read.
    Read(Reading),
    /// A signal asks for an end.
    Signalled,
    /// Something else cannot happen any more.
    Failed(Error),
}

/// What the maps have told.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) rates: Rates,
    /// How full the maps are, if they were counted.
    pub(super) maps: Option<Vec<MapFill>>,
}

/// Tells of signals that would end the process, from now on. To be called before the terminal is changed: the process has to live until
/// it is as it was.
pub(super) fn signals(to: Sender<Happening>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("follow signals")?;
    let entered = runtime.enter();
    let mut signals = EndSignals::follow()?;
    drop(entered);
    spawn("signals", move || {
        runtime.block_on(signals.any());
        // Who listens no more is about to end anyway.
        let _ = to.send(Happening::Signalled);
        thread::sleep(PATIENCE);
        let _ = disable_raw_mode();
        process::exit(STUCK);
    })
}

/// Tells of keys, and of the terminal's size.
pub(super) fn keys(to: Sender<Happening>) -> anyhow::Result<()> {
    spawn("keys", move || {
        loop {
            let happening = match event::read() {
                Ok(Event::Key(key)) if key.kind != KeyEventKind::Release => Happening::Key(key),
                Ok(Event::Resize(..)) => Happening::Resized,
                Ok(_) => continue,
                Err(error) => Happening::Failed(Error::new(error).context("read from the terminal")),
            };
            let is_last = matches!(happening, Happening::Failed(_));
            if to.send(happening).is_err() || is_last {
                return;
            }
        }
    })
}

/// Tells of the maps, over each interval.
pub(super) fn readings(
    to: Sender<Happening>,
    live: Live,
    filter: FlowFilter,
    interval: Duration,
) -> anyhow::Result<()> {
    spawn("readings", move || {
        if let Err(error) = read(&to, &live, &filter, interval) {
            let _ = to.send(Happening::Failed(error));
        }
    })
}

fn read(to: &Sender<Happening>, live: &Live, filter: &FlowFilter, interval: Duration) -> anyhow::Result<()> {
    let mut before = Sample::read(live, filter)?;
    let mut rates = Rates::between(&before, &before);
    let mut pause = interval.min(FIRST);
    let mut counted: Option<Instant> = None;
    loop {
        let is_due = counted.is_none_or(|at| at.elapsed() >= FILL_EVERY);
        let maps = is_due.then(|| sample::fill(live)).transpose()?;
        if is_due {
            counted = Some(Instant::now());
        }
        if to.send(Happening::Read(Reading { rates, maps })).is_err() {
            return Ok(());
        }
        // Begun when the reading is over: one that takes longer than the interval is not followed by the next at once.
        thread::sleep(pause);
        pause = interval;
        let after = Sample::read(live, filter)?;
        rates = Rates::between(&before, &after);
        before = after;
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).with_context(|| format!("start a thread for {name}"))
}
