//! The signals that ask a command to end, for commands that have something to put right before they do.

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGINT, SIGTERM and SIGHUP, which end the process no more by themselves.
pub(super) struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl EndSignals {
    /// Follows them from now on. To be called within a tokio runtime.
    pub(super) fn follow() -> anyhow::Result<Self> {
        let follow = |kind| signal(kind).context("follow signals");
        Ok(Self {
            interrupt: follow(SignalKind::interrupt())?,
            terminate: follow(SignalKind::terminate())?,
            hangup: follow(SignalKind::hangup())?,
        })
    }

    /// Waits for one of them. None is lost if this is given up.
    pub(super) async fn any(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
