//! Waiting for something that is to happen soon.

use std::{
    fmt::Display,
    thread,
    time::{Duration, Instant},
};

use super::LabError;

const PAUSE: Duration = Duration::from_millis(20);

/// Tries `attempt` until it succeeds, and fails with its last error after `within`.
pub fn eventually<T, E: Display>(
    what: &str,
    within: Duration,
    mut attempt: impl FnMut() -> Result<T, E>,
) -> Result<T, LabError> {
    let started = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(last) if started.elapsed() >= within => {
                return Err(LabError::TimedOut { what: what.to_owned(), within, last: last.to_string() });
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}
