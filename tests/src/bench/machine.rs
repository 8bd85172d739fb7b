//! The machine that the figures are about, in one line.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};
use serde::{Deserialize, Serialize};

use super::BenchError;
use crate::prog::kernel_release;

/// What it says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// The processor.
    pub processor: String,
    /// How many of them.
    pub processors: usize,
    /// The kernel's release.
    pub kernel: String,
    /// What the kernel does against the processor's weaknesses, where it does something.
    pub mitigations: Vec<String>,
    /// The value of `net.core.bpf_jit_enable`.
    pub jit: u8,
    /// Processes that wanted to run over the last minute, on average: above zero, something else was going on.
    pub load: f64,
}

impl Machine {
    /// This machine, now.
    ///
    /// # Errors
    ///
    /// When it does not tell, or its JIT is off.
    pub fn look() -> Result<Self, BenchError> {
        let cpuinfo = read("/proc/cpuinfo")?;
        let models = || cpuinfo.lines().filter_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let jit = read("/proc/sys/net/core/bpf_jit_enable")?.trim().parse().unwrap_or_default();
        if jit == 0 {
            return Err(BenchError::NoJit);
        }
        let load = read("/proc/loadavg")?;
        Ok(Self {
            processor: models().next().map_or("unknown", |(_, model)| model).to_owned(),
            processors: models().count(),
            kernel: kernel_release()?,
            mitigations: mitigations()?,
            jit,
            load: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or_default(),
        })
    }

    /// Whether another run was on a machine like this one, however busy it was.
    pub fn is_like(&self, other: &Self) -> bool {
        let Self { processor, processors, kernel, mitigations, jit, load: _ } = self;
        (processor, processors, kernel, mitigations, jit)
            == (&other.processor, &other.processors, &other.kernel, &other.mitigations, &other.jit)
    }

    /// Binds this process to one processor: the last, which interrupts are least fond of.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn pin(&self) -> Result<(), BenchError> {
        let mut set = CpuSet::new();
        set.set(self.processors.saturating_sub(1)).map_err(BenchError::Pin)?;
        sched_setaffinity(Pid::from_raw(0), &set).map_err(BenchError::Pin)
    }
}

fn mitigations() -> Result<Vec<String>, BenchError> {
    let directory = Path::new("/sys/devices/system/cpu/vulnerabilities");
    let failed = |source| BenchError::Machine { path: directory.to_owned(), source };
    let mut mitigations = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some(mitigation) = read(&path)?.trim().strip_prefix("Mitigation: ") {
            mitigations.push(format!("{name}: {mitigation}"));
        }
    }
    mitigations.sort();
    Ok(mitigations)
}

fn read(path: impl Into<PathBuf>) -> Result<String, BenchError> {
    let path = path.into();
    fs::read_to_string(&path).map_err(|source| BenchError::Machine { path, source })
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, processors, kernel, mitigations, jit, load } = self;
        write!(
            f,
            "{processors} x {processor}, kernel {kernel}, bpf_jit_enable {jit}, load {load}, mitigations: {}",
            if mitigations.is_empty() { "none".to_owned() } else { mitigations.join("; ") }
        )
    }
}
