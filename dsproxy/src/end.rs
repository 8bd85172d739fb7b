//! The end of the daemon, whenever it is told to.
//!
//! It may come at any moment, as SIGKILL may: the data path goes on as it is, and the kernel takes back the daemon's charge of it with
//! the process. What was about to change (`SettingFlags::ATTACHING`, an upgrade half-way) is put right by the next start. So nobody has to
//! be waited for either: not for a pass over large maps, nor for a program that the kernel's verifier is at.

use std::{
    io,
    os::unix::process::CommandExt as _,
    process::{self, Command},
    thread,
};

use anyhow::Context as _;
use nix::sys::signal::{SigSet, Signal};
use tracing::{error, info};

/// Has the process end when SIGTERM or SIGINT comes. No other thread hears of these any more: a signal would have the kernel give up a
/// program that it is verifying (`bpf_prog_load` says EAGAIN), which is then begun again. So there must be no other thread yet.
/// Processes that are started inherit that, and have to undo it (`hears_signals`).
///
/// # Errors
///
/// When there is no thread to be had.
pub(crate) fn when_told() -> anyhow::Result<()> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
    signals.thread_block().context("keep SIGTERM and SIGINT for one thread")?;
    let wait = move || {
        match signals.wait() {
            Ok(Signal::SIGINT) => info!("interrupted; the data path goes on"),
            Ok(_) => info!("told to end; the data path goes on"),
            Err(error) => return error!(%error, "cannot wait for SIGTERM: only SIGKILL ends this process"),
        }
        process::exit(0);
    };
    thread::Builder::new().name("end".to_owned()).spawn(wait).context("start the thread that waits for SIGTERM")?;
    Ok(())
}

/// Has what `command` starts hear the signals that are kept from the threads of this process.
pub(crate) fn hears_signals(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only async-signal-safe functions may be called, and setting the signal mask is one.
    unsafe { command.pre_exec(|| SigSet::empty().thread_set_mask().map_err(io::Error::from)) }
}
