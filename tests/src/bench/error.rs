//! What can go wrong while measuring.

use std::{io, path::PathBuf};

use aya::{EbpfError, maps::MapError as AyaMapError, programs::ProgramError};
use dsproxy::{datapath::load::LoadError, maps::MapError};
use dsproxy_common::{IpFamily, count::Reason};
use thiserror::Error;

use super::{account::Fault, traffic::MeasureFailed};
use crate::{
    lab::LabError,
    prog::{ProgError, Verdict},
    rules::RulesError,
};

/// Why there is no figure.
#[derive(Debug, Error)]
pub enum BenchError {
    /// The programs that are measured could not be used.
    #[error(transparent)]
    Prog(#[from] ProgError),
    /// Programs or maps did not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// What the benchmark wrote as JSON is none.
    #[error("read objects: {0}")]
    Json(#[source] serde_json::Error),
    /// The maps could not be read.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The benchmark's own kernel programs did not load.
    #[error("load the benchmark's kernel programs: {0}; it takes root")]
    Wrapper(#[source] EbpfError),
    /// One of the benchmark's own kernel programs could not be used.
    #[error("use the benchmark's kernel program {name}: {source}")]
    WrapperProgram {
        /// Its name.
        name: &'static str,
        /// Why not.
        source: ProgramError,
    },
    /// The benchmark's own object lacks something.
    #[error("the benchmark's object has no {name}")]
    Missing {
        /// What.
        name: &'static str,
    },
    /// A map of the benchmark's own could not be written.
    #[error("write the benchmark's map {name}: {source}")]
    WrapperMap {
        /// Its name.
        name: &'static str,
        /// Why not.
        source: AyaMapError,
    },
    /// Packets did not go the way that was to be measured.
    #[error("{path}: of {repeat} packets {counted} were counted as {} {family}, the last one's verdict was {verdict:?}; counted: {all}", .reason.name())]
    WrongFate {
        /// What was measured.
        path: String,
        /// How many packets there were.
        repeat: u32,
        /// How many went the right way.
        counted: u64,
        /// Which way that is.
        reason: Reason,
        /// The family.
        family: IpFamily,
        /// What became of the last.
        verdict: Verdict,
        /// Everything that was counted.
        all: String,
    },
    /// The JIT is off.
    #[error("the kernel's JIT compiler for BPF is off: run `sysctl net.core.bpf_jit_enable=1` first")]
    NoJit,
    /// The machine does not tell something about itself.
    #[error("read {}: {source}", .path.display())]
    Machine {
        /// The file.
        path: PathBuf,
        /// Why it cannot be read.
        source: io::Error,
    },
    /// The process could not be bound to a processor.
    #[error("bind the benchmark to one processor: {0}")]
    Pin(nix::Error),
    /// A child process failed.
    #[error("run `{command}`: {reason}")]
    Child {
        /// What was run.
        command: String,
        /// What went wrong.
        reason: String,
    },
    /// The maps do not hold what they should.
    #[error("{found} {what} are in the maps in place of {wanted}")]
    Incomplete {
        /// What was counted.
        what: &'static str,
        /// How many there are.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// The reconciler did not take an event.
    #[error("the reconciler has ended before its events")]
    ReconcilerEnded,
    /// The thread that loads programs has ended by a fault of its own.
    #[error("the thread that loads the programs has ended before they were loaded")]
    VerifierEnded,
    /// No thread or runtime.
    #[error("start a thread with its runtime: {0}")]
    Thread(io::Error),
    /// The lab failed.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// The tests' API server could not be used.
    #[error("{0:#}")]
    ApiServer(anyhow::Error),
    /// Rules to compare with could not be loaded.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// Traffic failed.
    #[error(transparent)]
    Measure(#[from] MeasureFailed),
    /// A device is not there.
    #[error("look up the device that packets are sent by: {0}")]
    Device(nix::Error),
    /// The kernel has no packet generator.
    #[error(
        "{} is not there, so this kernel has no pktgen: `modprobe pktgen` as root, or `cargo xtask bench pktgen`, which finds one", .path.display()
    )]
    NoPktgen {
        /// Where it should be.
        path: PathBuf,
    },
    /// The packet generator did not do what it was told.
    #[error("tell pktgen {command:?} at {}: {reason}", .path.display())]
    Pktgen {
        /// The file.
        path: PathBuf,
        /// What was written.
        command: String,
        /// What went wrong.
        reason: String,
    },
    /// Packets that were sent are not where they should be.
    #[error("{variant}: of {sent} packets only {arrived} arrived, which is no rate to be compared")]
    Lost {
        /// What stood between.
        variant: &'static str,
        /// How many were sent.
        sent: u32,
        /// How many arrived.
        arrived: u64,
    },
    /// The clock cannot be read.
    #[error("read the clock: {0}")]
    Clock(nix::Error),
    /// A program could not be followed.
    #[error("follow the program for {path}: {source}")]
    Follow {
        /// What was followed.
        path: String,
        /// Why not.
        source: Fault,
    },
    /// What was followed came out otherwise than in the kernel.
    #[error("{path}: followed, the packet came out as {followed}, in the kernel as {kernel}")]
    Unlike {
        /// What was followed.
        path: String,
        /// What became of the packet here.
        followed: String,
        /// What became of it there.
        kernel: String,
    },
    /// A program whose calls are measured did not do what it should.
    #[error("a call of {name} did not succeed, so it says nothing of what one costs")]
    Price {
        /// The program.
        name: &'static str,
    },
    /// A processor time clock cannot be read.
    #[error("read a processor time clock: {0}")]
    ProcessorTime(nix::Error),
}
