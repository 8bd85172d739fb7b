//! `dsproxy events`: what becomes of packets, told as it happens. The programs tell of those alone that are asked for, and of none
//! when nobody asks.
//!
//! ```text
//!   ask --- EVENT_FILTER ... programs ... EVENTS --- row
//! ```

mod ask;
mod row;

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use clap::Args;
use dsproxy_common::{
    count::Reason,
    event::{EventFilter, LEASE},
    layout,
};
use nix::fcntl::{Flock, FlockArg};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::MissedTickBehavior,
};

use self::row::{Names, Row};
use super::{Live, filter::FlowFilter};
use crate::{
    cli::OutputFormat,
    config::flags::BpffsFlag,
    datapath::{bpffs::Bpffs, load},
    jiffies,
    maps::events::EventMaps,
};

/// How often it is said that somebody listens.
const RENEWAL: Duration = Duration::from_secs(1);

/// How often it is looked whether there are events. The programs wake nobody, which would cost them more than the event does; what comes
/// in that time has room, unless it is more than a hundred thousand packets a second.
const LOOK: Duration = Duration::from_millis(50);

/// How many events are printed before signals and the time are looked at again.
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
    let _alone = alone(&live.bpffs)?;
    let maps = load::open_pinned_events(&live.bpffs)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("begin to listen")?;
    let mut listener = Listener::new(live, maps, arguments)?;
    if arguments.output == OutputFormat::Table && io::stderr().is_terminal() {
        eprintln!("Listening. Nothing is shown until something is as asked; Ctrl-C ends it.");
    }
    let outcome = runtime.block_on(listener.listen());
    // Should that fail, nobody is listened to any more within seconds.
    let _ = listener.maps.ask_for(&EventFilter::default());
    outcome
}

/// Keeps others from listening: of two, each would hear half.
fn alone(bpffs: &Bpffs) -> anyhow::Result<Flock<File>> {
    let path = load::map_directory(bpffs);
    let directory = File::open(&path).with_context(|| format!("open the directory {}", path.display()))?;
    Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => {
            anyhow::anyhow!("another `dsproxy events` listens on this node; one at a time can")
        }
        errno => anyhow::Error::new(errno).context(format!("lock the directory {}", path.display())),
    })
}

/// When there is something to print again.
enum Next {
    Now,
    Later,
    /// The user has seen enough.
    Over,
}

struct Listener<'a> {
    live: Live,
    maps: EventMaps,
    arguments: &'a EventsArguments,
    names: Names,
    /// How many events are still to be printed.
    left: u64,
    /// How many had been lost when it was last looked at.
    lost: u64,
}

impl<'a> Listener<'a> {
    fn new(live: Live, mut maps: EventMaps, arguments: &'a EventsArguments) -> anyhow::Result<Self> {
        let names = Names::read(&live, Instant::now())?;
        let lost = maps.lost()?;
        // What one before has left behind.
        while maps.pop().is_some() {}
        Ok(Self { live, maps, arguments, names, left: arguments.count.unwrap_or(u64::MAX), lost })
    }

    async fn listen(&mut self) -> anyhow::Result<()> {
        let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
        let mut hangup = signal(SignalKind::hangup()).context("listen for SIGHUP")?;
        let mut renewal = tokio::time::interval(RENEWAL);
        let mut look = tokio::time::interval(LOOK);
        for interval in [&mut renewal, &mut look] {
            interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        }
        loop {
            tokio::select! {
                biased;
                _ = terminate.recv() => return Ok(()),
                _ = interrupt.recv() => return Ok(()),
                _ = hangup.recv() => return Ok(()),
                _ = renewal.tick() => self.renew()?,
                _ = look.tick() => match self.print()? {
                    Next::Over => return Ok(()),
                    Next::Now => look.reset_immediately(),
                    Next::Later => {}
                },
            }
        }
    }

    /// Asks for packets once more, and looks at what has become of those asked for.
    fn renew(&mut self) -> anyhow::Result<()> {
        if !load::map_directory(&self.live.bpffs).join(layout::EVENT_FILTER).exists() {
            anyhow::bail!("the maps are pinned no more: another version has taken over, or `dsproxy cleanup` was run");
        }
        self.names.refresh(&self.live, Instant::now())?;
        let settings = self.live.maps.settings()?;
        let now = jiffies::now(settings.jiffies_per_second).context("read the clock")?;
        let until = now.wrapping_add(LEASE.saturating_mul(settings.jiffies_per_second)).max(1);
        let services = ask::services(self.names.all(), self.arguments.filter.row.service.as_deref());
        self.maps.ask_for(&ask::filter(self.arguments, &services, until))?;
        let lost = self.maps.lost()?;
        if lost != self.lost {
            eprintln!("{} events were lost: they came faster than they were read", lost.wrapping_sub(self.lost));
            self.lost = lost;
        }
        Ok(())
    }

    /// Prints some of what waits.
    fn print(&mut self) -> anyhow::Result<Next> {
        let mut text = String::new();
        let mut next = Next::Now;
        for _ in 0..BATCH {
            if self.left == 0 {
                break;
            }
            let Some(event) = self.maps.pop() else {
                next = Next::Later;
                break;
            };
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
        let mut output = io::stdout().lock();
        match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
            // Whoever reads has seen enough, as `head` does.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Next::Over),
            written => written.context("write to standard output")?,
        }
        Ok(if self.left == 0 { Next::Over } else { next })
    }
}
