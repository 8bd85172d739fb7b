//! The kernel's clock tick, by which its programs tell the time.

use std::time::Duration;

use nix::time::{ClockId, clock_getres, clock_gettime};

/// The kernel's HZ: its coarse clocks advance by one tick at a time, and say so.
///
/// # Errors
///
/// When the kernel does not tell.
pub fn per_second() -> Result<u32, nix::Error> {
    let tick = Duration::from(clock_getres(ClockId::CLOCK_MONOTONIC_COARSE)?);
    Ok(u32::try_from(Duration::from_secs(1).as_nanos() / tick.as_nanos().max(1)).unwrap_or(1).max(1))
}

/// The low half of the kernel's jiffies now, to within a part of a second: they follow the monotonic clock from a start of
/// minus five minutes (`INITIAL_JIFFIES` in include/linux/jiffies.h), and some ticks late at that, for they start later.
///
/// # Errors
///
/// When the clock cannot be read.
pub fn now(per_second: u32) -> Result<u32, nix::Error> {
    let uptime = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
    let seconds = u64::try_from(uptime.tv_sec()).unwrap_or_default();
    let nanoseconds = u64::try_from(uptime.tv_nsec()).unwrap_or_default();
    let ticks = seconds * u64::from(per_second) + nanoseconds * u64::from(per_second) / 1_000_000_000;
    Ok((ticks as u32).wrapping_sub(300 * per_second))
}
