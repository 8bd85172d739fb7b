//! Running a program to its end, with Ctrl-C and SIGTERM passed on to it and all its children.
//!
//! xtask itself survives the signal, so that it can tidy up after the program.

use std::{
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    process::{Command, ExitStatus},
    sync::atomic::{AtomicBool, AtomicI32, Ordering},
    thread,
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{SigSet, Signal, killpg},
    unistd::Pid,
};

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
    // The standard library starts children with no signal blocked, whatever the parent blocks.
    let mut child = command.process_group(0).spawn().with_context(|| format!("start `{shown}`"))?;
    FOREGROUND.store(child.id().cast_signed(), Ordering::SeqCst);
    let status = child.wait().with_context(|| format!("wait for `{shown}`"));
    FOREGROUND.store(0, Ordering::SeqCst);
    status
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
