//! The kernel programs in front of those that are measured: loaded, pointed at one of them, and run.

use aya::{
    Ebpf,
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramFd, SchedClassifier},
};
use dsproxy_bench_ebpf::Plan;
use dsproxy_common::{IpFamily, Protocol};

use super::BenchError;
use crate::prog::{self, TestRun};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dsproxy-bench-ebpf"));

const PROGRAMS: [&str; 5] = ["tcp_v4", "udp_v4", "tcp_v6", "udp_v6", EMPTY];
const EMPTY: &str = "empty";

const TARGET: &str = "TARGET";
const PLAN: &str = "PLAN";
const SEQUENCE: &str = "SEQUENCE";

/// The programs and their maps.
pub(super) struct Wrapper {
    object: Ebpf,
    target: ProgramArray<MapData>,
    plan: Array<MapData, Plan>,
    sequence: Array<MapData, u32>,
}

impl Wrapper {
    pub(super) fn load() -> Result<Self, BenchError> {
        let mut object = Ebpf::load(OBJECT).map_err(BenchError::Wrapper)?;
        let mut take = |name| object.take_map(name).ok_or(BenchError::Missing { name });
        let failed = |name| move |source| BenchError::WrapperMap { name, source };
        let target = take(TARGET)?.try_into().map_err(failed(TARGET))?;
        let plan = take(PLAN)?.try_into().map_err(failed(PLAN))?;
        let sequence = take(SEQUENCE)?.try_into().map_err(failed(SEQUENCE))?;
        for name in PROGRAMS {
            let failed = |source| BenchError::WrapperProgram { name, source };
            let program: &mut SchedClassifier =
                object.program_mut(name).ok_or(BenchError::Missing { name })?.try_into().map_err(failed)?;
            program.load().map_err(failed)?;
        }
        Ok(Self { object, target, plan, sequence })
    }

    /// Runs `packet` `repeat` times through `target`, or through the program that does nothing; the headers are before each run
    /// what `plan` says for its number, the first of which is `sequence`.
    pub(super) fn run(
        &mut self,
        (family, protocol): (IpFamily, Protocol),
        target: Option<&ProgramFd>,
        plan: &Plan,
        sequence: u32,
        packet: &[u8],
        repeat: u32,
    ) -> Result<TestRun, BenchError> {
        let failed = |name| move |source| BenchError::WrapperMap { name, source };
        self.plan.set(0, plan, 0).map_err(failed(PLAN))?;
        self.sequence.set(0, sequence, 0).map_err(failed(SEQUENCE))?;
        let Self { object, target: slot, .. } = self;
        let target = match target {
            Some(target) => target,
            None => program(object, EMPTY)?,
        };
        slot.set(0, target, 0).map_err(failed(TARGET))?;
        let name = match (family, protocol) {
            (IpFamily::V4, Protocol::Tcp) => "tcp_v4",
            (IpFamily::V4, Protocol::Udp | Protocol::Sctp) => "udp_v4",
            (IpFamily::V6, Protocol::Tcp) => "tcp_v6",
            (IpFamily::V6, Protocol::Udp | Protocol::Sctp) => "udp_v6",
        };
        Ok(prog::repeat(program(object, name)?, packet, repeat)?)
    }
}

fn program<'a>(object: &'a Ebpf, name: &'static str) -> Result<&'a ProgramFd, BenchError> {
    let failed = |source| BenchError::WrapperProgram { name, source };
    let program: &SchedClassifier =
        object.program(name).ok_or(BenchError::Missing { name })?.try_into().map_err(failed)?;
    program.fd().map_err(failed)
}
