//! How much processor time traffic takes, wherever the kernel spends it.
//!
//! Clients and servers are threads of this process, and between network namespaces a packet travels in the sender's system call and the
//! softirq at its end, which the kernel accounts to the thread that they interrupt. So the process's own clock
//! (`CLOCK_PROCESS_CPUTIME_ID`, in ns) has nearly all of it; what softirqs put off is in the clocks of the `ksoftirqd` threads, which are
//! added, as are those of the kernel's packet generator, which are there once it has been started. Other processes are not in it, however busy they are. Where the kernel accounts softirqs apart from threads
//! (`CONFIG_IRQ_TIME_ACCOUNTING`; it then has `/proc/pressure/irq`), the `irq` and `softirq` columns of `/proc/stat` are added: those are the whole
//! machine's, in units of 10 ms.

use std::{fs, path::Path, time::Duration};

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_getcpuclockid, clock_gettime},
    unistd::{Pid, SysconfVar, sysconf},
};

use super::super::BenchError;

/// The clock of all that.
pub(super) struct ProcessorClock {
    kernel_threads: Vec<Pid>,
    softirqs_apart: bool,
}

impl ProcessorClock {
    pub(super) fn new() -> Result<Self, BenchError> {
        Ok(Self { kernel_threads: kernel_threads()?, softirqs_apart: Path::new("/proc/pressure/irq").exists() })
    }

    /// Processor time spent so far.
    pub(super) fn now(&self) -> Result<Duration, BenchError> {
        let mut total = read(ClockId::CLOCK_PROCESS_CPUTIME_ID)?;
        for thread in &self.kernel_threads {
            total += read(clock_getcpuclockid(*thread).map_err(BenchError::ProcessorTime)?)?;
        }
        if self.softirqs_apart {
            total += softirqs_apart()?;
        }
        Ok(total)
    }
}

fn read(clock: ClockId) -> Result<Duration, BenchError> {
    clock_gettime(clock).map(Duration::from).map_err(BenchError::ProcessorTime)
}

/// The kernel's threads for softirqs that were put off, one a processor, and those that make packets.
fn kernel_threads() -> Result<Vec<Pid>, BenchError> {
    let directory = "/proc";
    let failed = |source| BenchError::Machine { path: directory.into(), source };
    let mut threads = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let id = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        // A process may end meanwhile; these do not.
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let is_counted = ["ksoftirqd/", "kpktgend_"].iter().any(|start| name.starts_with(start));
        if let (Some(id), true) = (id, is_counted) {
            threads.push(Pid::from_raw(id));
        }
    }
    Ok(threads)
}

fn softirqs_apart() -> Result<Duration, BenchError> {
    let path = "/proc/stat";
    let text = fs::read_to_string(path).map_err(|source| BenchError::Machine { path: path.into(), source })?;
    // cpu user nice system idle iowait irq softirq
    let ticks = text
        .lines()
        .next()
        .map_or(0, |line| line.split_whitespace().skip(6).take(2).filter_map(|field| field.parse::<u64>().ok()).sum());
    let a_second = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100).unsigned_abs();
    Ok(Duration::from_micros(ticks * 1_000_000 / a_second))
}

/// Which processors this process has until it is dropped.
pub(super) struct Confined {
    before: CpuSet,
}

impl Confined {
    /// Puts every thread of this process on one processor: the last that it may use, which interrupts are least fond of.
    pub(super) fn to_one() -> Result<Self, BenchError> {
        let before = sched_getaffinity(Pid::from_raw(0)).map_err(BenchError::Pin)?;
        let last = (0..CpuSet::count()).rev().find(|number| before.is_set(*number).unwrap_or(false)).unwrap_or(0);
        let mut one = CpuSet::new();
        one.set(last).map_err(BenchError::Pin)?;
        let confined = Self { before };
        put_all_threads(&one)?;
        Ok(confined)
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        if let Err(error) = put_all_threads(&self.before) {
            eprintln!("the benchmark stays on one processor: {error}");
        }
    }
}

fn put_all_threads(set: &CpuSet) -> Result<(), BenchError> {
    let directory = "/proc/self/task";
    let failed = |source| BenchError::Machine { path: directory.into(), source };
    for entry in fs::read_dir(directory).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        match sched_setaffinity(Pid::from_raw(id), set) {
            // It has just ended.
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(errno) => return Err(BenchError::Pin(errno)),
        }
    }
    Ok(())
}
