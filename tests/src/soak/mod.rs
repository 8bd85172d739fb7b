//! A soak: everything that a node goes through, for as long as is wanted, all at once, under load. Not one connection may fail.
//!
//! `prelude` is what comes before; `plan` says what happens when, from a seed; `stage` is where; `plane` is the API server; `traffic` the clients; `watch` looks
//! at the daemon; `report` judges.

mod plan;
pub(crate) mod plane;
mod prelude;
mod report;
mod stage;
mod traffic;
mod watch;

use std::{
    path::PathBuf,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;

use self::{
    plan::{Act, Stream, plan},
    plane::Plane,
    prelude::Prelude,
    report::{Acts, Report},
    stage::Stage,
    traffic::Traffic,
    watch::{Fill, Sample},
};
use crate::{
    churn::Churn,
    lab::{Daemon, DaemonOptions, Extent, Lab, Side, attachments, find_leftovers},
};

/// How often the daemon is looked at, and every how manieth time its metrics: what it does for these is work as well.
const LOOK: Duration = Duration::from_millis(500);
const LOOKS_AT_METRICS: usize = 10;

/// What a soak is to be.
#[derive(Clone, Debug)]
pub struct Soak {
    /// How long.
    pub length: Duration,
    /// What it is planned by, and what the packets before it follow from.
    pub seed: u64,
    /// How many packets are thrown at the kernel programs first.
    pub packets: u64,
    /// What of many Services changes before the load, if anything does.
    pub churn: Option<Churn>,
    /// Where the whole report goes, as JSON.
    pub json: Option<PathBuf>,
}

/// Runs a soak and prints what happens and what came of it. False if it was not well.
///
/// # Errors
///
/// When the lab cannot be built, or the daemon does not start.
pub fn run(soak: &Soak) -> anyhow::Result<bool> {
    let streams = plan(soak.seed, soak.length);
    println!("A soak of {} s; --seed {} gives this plan again:", soak.length.as_secs(), soak.seed);
    let prelude = Prelude::play(soak.packets, soak.seed, soak.churn);
    print_plan(&streams);
    let (mut report, log) = {
        let lab = Lab::new()?;
        let plane = Plane::start(lab.node(Side::A).namespace())?;
        perform(soak, &streams, &lab, &plane)?
    };
    report.prelude = prelude;
    report.left_behind.extend(find_leftovers(&Extent::Own).iter().map(ToString::to_string));
    if let Some(path) = &soak.json {
        report.write(path)?;
        println!("\nThe whole report is in {}", path.display());
    }
    print!("{report}");
    let is_well = report.faults().is_empty();
    if !is_well {
        println!("dsproxy's log:\n{log}");
    }
    Ok(is_well)
}

fn print_plan(streams: &[Stream]) {
    let mut acts: Vec<_> = streams.iter().flat_map(|stream| &stream.acts).collect();
    acts.sort_by_key(|(time, _)| *time);
    for (time, act) in acts {
        println!("  {:>7.1} s  {act}", time.as_secs_f64());
    }
}

/// What all threads of a soak see.
struct Scene<'lab> {
    started: Instant,
    plane: &'lab Plane,
    stage: Stage<'lab>,
    daemon: Mutex<Daemon<'lab>>,
    is_over: AtomicBool,
}

impl<'lab> Scene<'lab> {
    fn daemon(&self) -> MutexGuard<'_, Daemon<'lab>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn act(&self, act: Act) -> anyhow::Result<()> {
        match act {
            Act::Daemon { killed, away } => {
                let mut daemon = self.daemon();
                if killed {
                    daemon.kill()?;
                } else {
                    daemon.terminate()?;
                }
                thread::sleep(away);
                // The API server may be away as well: it is healthy when that is back.
                daemon.start_unwatched()?;
                Ok(daemon.await_health()?)
            }
            Act::Api { outage, length } => self.plane.fail(outage, length),
            Act::Endpoint { number, state } => self.stage.list(number, state),
            Act::PodComes => self.stage.add_pod(),
            Act::PodGoes => self.stage.remove_pod(),
            Act::Service { number } => self.stage.toggle_service(number),
        }
    }

    /// Does what a stream has planned, each act at its time or as soon as the one before is done.
    fn play(&self, stream: &Stream, troubles: &mpsc::Sender<String>) -> Acts {
        let mut acts = Acts { name: stream.name, planned: stream.acts.len(), done: 0 };
        for (time, act) in &stream.acts {
            thread::sleep(time.saturating_sub(self.started.elapsed()));
            match self.act(*act) {
                Ok(()) => {
                    println!("{:>9.1} s  done: {act}", self.started.elapsed().as_secs_f64());
                    acts.done += 1;
                }
                Err(error) => {
                    let trouble = format!("{:.1?} after the start, {act}: {error:#}", self.started.elapsed());
                    println!("TROUBLE: {trouble}");
                    // Whoever collects them outlives this.
                    let _ = troubles.send(trouble);
                }
            }
        }
        acts
    }

    fn watch(&self) -> (Vec<Sample>, Fill) {
        let (mut samples, mut fill) = (Vec::new(), Fill::new());
        for look in 0.. {
            if self.is_over.load(Ordering::Relaxed) {
                break;
            }
            // While it is ended and started there is nothing to look at.
            if let Ok(daemon) = self.daemon.try_lock() {
                samples.extend(watch::sample(&daemon, self.started.elapsed()));
                if look % LOOKS_AT_METRICS == 0
                    && let Ok(metrics) = daemon.metrics()
                {
                    watch::note_fill(&metrics.body, &mut fill);
                }
            }
            thread::sleep(LOOK);
        }
        (samples, fill)
    }
}

fn perform(soak: &Soak, streams: &[Stream], lab: &Lab, plane: &Plane) -> anyhow::Result<(Report, String)> {
    let stage = Stage::set(lab, plane)?;
    let arguments = ["--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48", "--hostname-override", Side::A.role()];
    let options = DaemonOptions { arguments: arguments.map(str::to_owned).to_vec(), ..DaemonOptions::default() };
    let daemon = Daemon::start_by_kubeconfig(lab, plane.kubeconfig(), options)?;
    stage.await_service()?;
    let clients = stage.clients();
    let started = Instant::now();
    let scene = Scene { started, plane, stage, daemon: Mutex::new(daemon), is_over: AtomicBool::new(false) };
    println!("{} clients", clients.len());
    let traffic = Traffic::start(clients, started);
    let (sender, receiver) = mpsc::channel();
    let (acts, (samples, fill)) = thread::scope(|scope| {
        let watcher = scope.spawn(|| scene.watch());
        let players: Vec<_> = streams
            .iter()
            .map(|stream| {
                let (scene, sender) = (&scene, sender.clone());
                scope.spawn(move || scene.play(stream, &sender))
            })
            .collect();
        let mut left = soak.length.saturating_sub(started.elapsed());
        while !left.is_zero() {
            thread::sleep(left.min(Duration::from_secs(60)));
            left = soak.length.saturating_sub(started.elapsed());
        }
        let acts: Vec<Acts> = players.into_iter().map(joined).collect();
        scene.is_over.store(true, Ordering::Relaxed);
        (acts, joined(watcher))
    });
    drop(sender);
    let mut troubles: Vec<String> = receiver.iter().collect();
    // What was told during the last outage has to come through as well.
    if let Err(error) = scene.stage.await_mark() {
        troubles.push(format!("at the end: {error:#}"));
    }
    let traffic = traffic.finish()?;
    let seconds = started.elapsed().as_secs();
    let log = scene.daemon().whole_log();
    let left_behind = clean_up(lab, &mut scene.daemon())?;
    let growth = watch::growth(&samples);
    let prelude = Prelude::default();
    let report =
        Report { seed: soak.seed, seconds, prelude, acts, traffic, growth, fill, samples, left_behind, troubles };
    Ok((report, log))
}

/// Ends the daemon and has its command remove everything; the result is what is still there.
fn clean_up(lab: &Lab, daemon: &mut Daemon<'_>) -> anyhow::Result<Vec<String>> {
    daemon.terminate()?;
    let output = daemon.command(&["cleanup"])?;
    if !output.status.success() {
        bail!("dsproxy cleanup failed ({}): {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    let attached = attachments(lab.node(Side::A).namespace())?;
    let mut left: Vec<String> = attached.iter().map(|attachment| format!("{attachment:?}")).collect();
    let pins = std::fs::read_dir(daemon.bpffs()).into_iter().flatten().flatten();
    left.extend(pins.map(|pin| pin.path().display().to_string()));
    Ok(left)
}

fn joined<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
