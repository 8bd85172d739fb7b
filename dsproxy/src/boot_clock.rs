//! The clock by which one process tells another when something was: nobody sets it, and it goes on while the machine sleeps.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// How long ago the machine was started.
///
/// # Errors
///
/// When the clock cannot be read.
pub fn now() -> Result<Duration, nix::Error> {
    Ok(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into())
}
