//! `dsproxy events`, while a test lets things happen.

use std::{
    io::{self, Read as _},
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::eventually;

/// How long it may take to end.
const END: Duration = Duration::from_secs(5);

/// The process; it ends with this. What it prints beyond what fits into a pipe waits until it is looked at.
#[derive(Debug)]
pub struct Listener {
    child: Child,
}

/// What it has printed, and how it ended.
#[derive(Debug)]
pub struct Heard {
    /// How it ended.
    pub status: ExitStatus,
    /// A value for each line that is JSON.
    pub events: Vec<serde_json::Value>,
    /// What it said beside that.
    pub errors: String,
}

impl Listener {
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        Ok(Self { child })
    }

    /// Has `happen` happen again and again, until the process has heard enough and ended.
    ///
    /// # Errors
    ///
    /// When it has not within `patience`.
    pub fn hear(mut self, patience: Duration, mut happen: impl FnMut()) -> Result<Heard, String> {
        let status = eventually("waiting for `dsproxy events` to have heard enough", patience, || {
            happen();
            match self.child.try_wait() {
                Ok(Some(status)) => Ok(status),
                Ok(None) => Err("it still listens".to_owned()),
                Err(error) => Err(error.to_string()),
            }
        });
        let status = status.map_err(|error| error.to_string())?;
        self.heard(status).map_err(|error| error.to_string())
    }

    /// Ends it with SIGTERM.
    ///
    /// # Errors
    ///
    /// When it does not end.
    pub fn terminate(self) -> Result<Heard, String> {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM).map_err(|errno| errno.to_string())?;
        self.hear(END, || ())
    }

    fn heard(&mut self, status: ExitStatus) -> io::Result<Heard> {
        let (mut printed, mut errors) = (String::new(), String::new());
        if let Some(output) = &mut self.child.stdout {
            output.read_to_string(&mut printed)?;
        }
        if let Some(output) = &mut self.child.stderr {
            output.read_to_string(&mut errors)?;
        }
        // A process that was ended may have been in the middle of a line.
        let whole = printed.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let events = whole.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        Ok(Heard { status, events, errors })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may have ended, and been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
