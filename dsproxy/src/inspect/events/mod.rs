//! `dsproxy events`: what becomes of packets, told as it happens. The programs tell of those alone that are asked for, and of none
//! when nobody asks.
//!
//! ```text
//!   ask --- EVENT_FILTER ... programs ... EVENTS --- row
//! ```

mod alone;
mod ask;
mod output;
mod row;

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use dsproxy_common::{
    count::Reason,
    event::{EventFilter, LEASE},
};
use tokio::{
    sync::mpsc::{OwnedPermit, Sender},
    time::MissedTickBehavior,
};

use self::{
    alone::Alone,
    output::Output,
    row::{Names, Row},
};
use super::{Live, end_signals::EndSignals, filter::FlowFilter};
use crate::{cli::OutputFormat, config::flags::BpffsFlag, datapath::load, jiffies, maps::events::EventMaps};

/// How often it is said that somebody listens.
const RENEWAL: Duration = Duration::from_secs(1);

/// How often it is looked whether there are events. The programs wake nobody, which would cost them more than the event does; what comes
/// in that time has room, unless it is more than a hundred thousand packets a second.
const LOOK: Duration = Duration::from_millis(50);

/// How many events are written at once.
const BATCH: usize = 1024;

/// What `dsproxy events` is told.
#[derive(Debug, Args)]
pub struct EventsArguments {
    /// Where pins are.
    #[command(flatten)]
    pub bpffs: BpffsFlag,

    /// The form of the output; as JSON, one line for each event
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub output: OutputFormat,

    /// End after so many events
    #[arg(short, long, value_name = "N")]
    pub count: Option<u64>,

    /// Those that are dropped alone
    #[arg(long, help_heading = "Which are shown", conflicts_with = "reason")]
    pub drops: bool,

    /// Those of which this becomes, as `dsproxy status` names it; may be given more than once
    #[arg(long, value_name = "REASON", value_parser = ask::reason, help_heading = "Which are shown")]
    pub reason: Vec<Reason>,

    // Last, for its heading holds for what follows.
    /// Which are shown.
    #[command(flatten)]
    pub filter: FlowFilter,
}

/// Tells of packets until the user has seen enough.
///
/// # Errors
///
/// When there are no maps, another process listens, or what is pinned goes.
pub fn events(arguments: &EventsArguments) -> anyhow::Result<()> {
    let live = Live::open(&arguments.bpffs)?;
    let alone = Alone::take(&live.bpffs)?;
    let maps = load::open_pinned_events(&live.bpffs)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("begin to listen")?;
    let mut listener = Listener::new(live, alone, maps, arguments)?;
    if arguments.output == OutputFormat::Table && io::stderr().is_terminal() {
        say("Listening. Nothing is shown until something is as asked; Ctrl-C ends it.");
    }
    let outcome = runtime.block_on(listener.listen());
    // Should that fail, nobody is listened to any more within seconds.
    let _ = listener.maps.ask_for(&EventFilter::default());
    outcome.and_then(|()| listener.tell_of_losses())
}

/// Says something to whoever reads the errors, if anybody does.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

struct Listener<'a> {
    live: Live,
    alone: Alone,
    maps: EventMaps,
    arguments: &'a EventsArguments,
    names: Names,
    /// How many events are still to be printed.
    left: u64,
    /// How many had been lost when it was last looked at.
    lost: u64,
    /// Whether the programs have been asked.
    has_asked: bool,
}

impl<'a> Listener<'a> {
    fn new(live: Live, alone: Alone, mut maps: EventMaps, arguments: &'a EventsArguments) -> anyhow::Result<Self> {
        let names = Names::read(&live, Instant::now())?;
        // What one before has asked for, and left behind.
        maps.ask_for(&EventFilter::default())?;
        while maps.pop()?.is_some() {}
        let lost = maps.lost()?;
        let left = arguments.count.unwrap_or(u64::MAX);
        Ok(Self { live, alone, maps, arguments, names, left, lost, has_asked: false })
    }

    async fn listen(&mut self) -> anyhow::Result<()> {
        let mut signals = EndSignals::follow()?;
        let Output { texts, mut ended } = Output::begin()?;
        let (mut texts, mut pending) = (Some(texts), None);
        let mut renewal = tokio::time::interval(RENEWAL);
        let mut look = tokio::time::interval(LOOK);
        for interval in [&mut renewal, &mut look] {
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                biased;
                () = signals.any() => return Ok(()),
                ended = &mut ended => return ended.unwrap_or(Ok(())),
                _ = renewal.tick(), if texts.is_some() => {
                    if output::is_read_by_nobody() {
                        return Ok(());
                    }
                    self.renew()?;
                }
                _ = look.tick(), if pending.is_none() => {
                    let (text, is_all) = self.take()?;
                    if !is_all {
                        look.reset_immediately();
                    }
                    pending = Some(text).filter(|text| !text.is_empty());
                }
                // While whoever reads is slow nothing is taken from the ring; what then has no room there is counted.
                room = room(texts.clone()), if pending.is_some() => {
                    if let (Some(room), Some(text)) = (room, pending.take()) {
                        room.send(text);
                    }
                    if self.left == 0 {
                        texts = None;
                    }
                }
            }
        }
    }

    /// Asks for packets once more, and looks at what has become of those asked for.
    fn renew(&mut self) -> anyhow::Result<()> {
        if !self.alone.is_in_place() {
            anyhow::bail!("the maps are pinned no more: another version has taken over, or `dsproxy cleanup` was run");
        }
        let part = self.arguments.filter.row.service.as_deref();
        self.names.refresh(&self.live, Instant::now(), part.is_some())?;
        if self.has_asked && self.maps.filter()?.until == 0 {
            say("events were missed: this process was stopped for some seconds");
        }
        let settings = self.live.maps.settings()?;
        let now = jiffies::now(settings.jiffies_per_second).context("read the clock")?;
        let until = now.wrapping_add(LEASE.saturating_mul(settings.jiffies_per_second)).max(1);
        let services = ask::services(self.names.all(), part);
        self.maps.ask_for(&ask::filter(self.arguments, &services, until))?;
        self.has_asked = true;
        self.tell_of_losses()
    }

    fn tell_of_losses(&mut self) -> anyhow::Result<()> {
        let lost = self.maps.lost()?;
        if lost != self.lost {
            say(&format!("{} events were lost: they came faster than they were read", lost.wrapping_sub(self.lost)));
            self.lost = lost;
        }
        Ok(())
    }

    /// Takes some of what waits, as text, and says whether that is all.
    fn take(&mut self) -> anyhow::Result<(String, bool)> {
        let mut text = String::new();
        for _ in 0..BATCH {
            if self.left == 0 {
                break;
            }
            let Some(event) = self.maps.pop()? else { return Ok((text, true)) };
            let row = Row::new(&event, &mut self.names, &self.live)?;
            if !row.is_of(self.arguments.filter.row.service.as_deref()) {
                continue;
            }
            self.left -= 1;
            match self.arguments.output {
                OutputFormat::Table => text += &row.line(),
                OutputFormat::Json => text += &serde_json::to_string(&row).context("write JSON")?,
            }
            text.push('\n');
        }
        Ok((text, false))
    }
}

/// Room for a text, as soon as there is some. None if nothing is written any more.
async fn room(texts: Option<Sender<String>>) -> Option<OwnedPermit<String>> {
    texts?.reserve_owned().await.ok()
}
