//! Running a program to its end, with Ctrl-C and SIGTERM passed on to it and all its children.
//!
//! xtask itself survives the signal, so that it can tidy up after the program.

use std::{
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Child, Command, ExitStatus},
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{SigSet, Signal, killpg},
    unistd::Pid,
};

/// How long an interrupted program may take to tidy up.
const TAKING_DOWN: Duration = Duration::from_secs(20);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// The process group that signals go to; 0 when none runs.
static FOREGROUND: AtomicI32 = AtomicI32::new(0);

/// Starts to pass signals on. Call it before any other thread exists, for threads inherit the blocked set.
pub(crate) fn pass_on_signals() -> anyhow::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block().context("block SIGINT and SIGTERM")?;
    thread::spawn(move || {
        while let Ok(signal) = signals.wait() {
            INTERRUPTED.store(true, Ordering::SeqCst);
            let group = FOREGROUND.load(Ordering::SeqCst);
            if group != 0 {
                // The group may just have ended by itself.
                let _ = killpg(Pid::from_raw(group), signal);
            }
        }
    });
    Ok(())
}

/// Whether a signal has come.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Runs `command` to its end.
pub(crate) fn status(command: &mut Command) -> anyhow::Result<ExitStatus> {
    let shown = shown(command);
    follow(command, |child| child.wait().with_context(|| format!("wait for `{shown}`")))
}

/// Runs `command` to its end, or for `limit` and then ends it; `None` is the latter.
pub(crate) fn status_within(command: &mut Command, limit: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let shown = shown(command);
    let waiting = || format!("wait for `{shown}`");
    let started = Instant::now();
    follow(command, |child| {
        while started.elapsed() < limit {
            if let Some(status) = child.try_wait().with_context(waiting)? {
                return Ok(Some(status));
            }
            thread::sleep(Duration::from_millis(50));
        }
        child.kill().with_context(|| format!("end `{shown}`"))?;
        child.wait().with_context(waiting)?;
        Ok(None)
    })
}

/// Starts `command` as what signals are passed on to, and has `wait` wait for it.
fn follow<T>(command: &mut Command, wait: impl FnOnce(&mut Child) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let shown = shown(command);
    command.process_group(0);
    // SAFETY: between fork and exec only async-signal-safe functions may be called, and setting the signal
    // mask is one. A child inherits the mask, and with it would never see the signals passed on to it.
    unsafe {
        command.pre_exec(|| SigSet::empty().thread_set_mask().map_err(std::io::Error::from));
    }
    let mut child = command.spawn().with_context(|| format!("start `{shown}`"))?;
    let group = child.id().cast_signed();
    FOREGROUND.store(group, Ordering::SeqCst);
    let status = wait(&mut child);
    FOREGROUND.store(0, Ordering::SeqCst);
    if interrupted() {
        await_end_of(Pid::from_raw(group));
    }
    status
}

/// Waits for what an interrupted program has left running: cargo ends at once, while the test that it ran
/// still takes its lab down.
fn await_end_of(group: Pid) {
    let started = Instant::now();
    while killpg(group, None).is_ok() && started.elapsed() < TAKING_DOWN {
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs `command` to its end and fails unless it succeeds.
pub(crate) fn succeed(command: &mut Command) -> anyhow::Result<()> {
    if interrupted() {
        bail!("interrupted");
    }
    let status = status(command)?;
    if status.success() {
        return Ok(());
    }
    match status.signal() {
        Some(signal) => bail!("`{}` was ended by signal {signal}", shown(command)),
        None => bail!("`{}` failed with status {}", shown(command), status.code().unwrap_or(-1)),
    }
}

fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|part| part.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}
