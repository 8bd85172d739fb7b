//! Standard output, which may be slow: who listens must not wait for whoever reads.

use std::{
    io::{self, Write as _},
    thread,
};

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::{
    mpsc::{self, Sender},
    oneshot::{self, Receiver},
};

/// How many texts wait to be written.
const WAITING: usize = 4;

/// Text on its way out. It ends when all was written that was sent, or nobody reads any more.
pub(super) struct Output {
    /// Takes text when there is room.
    pub(super) texts: Sender<String>,
    /// Tells of the end.
    pub(super) ended: Receiver<anyhow::Result<()>>,
}

impl Output {
    /// Writes to standard output from now on, on a thread that nobody waits for.
    pub(super) fn begin() -> anyhow::Result<Self> {
        let (texts, mut waiting) = mpsc::channel::<String>(WAITING);
        let (end, ended) = oneshot::channel();
        let write = move || {
            let mut output = io::stdout().lock();
            let mut outcome = Ok(());
            while let Some(text) = waiting.blocking_recv() {
                outcome = output.write_all(text.as_bytes()).and_then(|()| output.flush());
                if outcome.is_err() {
                    break;
                }
            }
            let outcome = match outcome {
                // Whoever reads has seen enough, as `head` does.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
                outcome => outcome.context("write to standard output"),
            };
            // Who does not ask any more has ended before.
            let _ = end.send(outcome);
        };
        thread::Builder::new().name("output".to_owned()).spawn(write).context("begin to write")?;
        Ok(Self { texts, ended })
    }
}

/// Whether nobody reads standard output any more: a pipe tells, which is what it is in a container.
pub(super) fn is_read_by_nobody() -> bool {
    let output = io::stdout();
    let mut descriptors = [PollFd::new(std::os::fd::AsFd::as_fd(&output), PollFlags::empty())];
    let is_told = poll(&mut descriptors, PollTimeout::ZERO).is_ok_and(|count| count > 0);
    let gone = PollFlags::POLLERR | PollFlags::POLLHUP;
    is_told && descriptors[0].revents().is_some_and(|events| events.intersects(gone))
}
