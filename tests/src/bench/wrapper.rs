//! The kernel programs in front of those that are measured: loaded, pointed at one of them, and run.

use aya::{
    Ebpf,
    maps::{Array, MapData, ProgramArray},
    programs::{ProgramFd, SchedClassifier, Xdp},
};
use dsproxy_bench_ebpf::{Plan, TEMPLATE_WORDS};
use dsproxy_common::{IpFamily, Protocol};

use super::BenchError;
use crate::prog::{self, TestRun};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dsproxy-bench-ebpf"));

const PROGRAMS: [&str; 5] = ["tcp_v4", "udp_v4", "tcp_v6", "udp_v6", EMPTY];
const EMPTY: &str = "empty";
const XDP_PROGRAMS: [&str; 5] = ["xdp_tcp_v4", "xdp_udp_v4", "xdp_tcp_v6", "xdp_udp_v6", XDP_EMPTY];
const XDP_EMPTY: &str = "xdp_empty";

const TARGET: &str = "TARGET";
const XDP_TARGET: &str = "XDP_TARGET";
const TEMPLATE: &str = "TEMPLATE";
const PLAN: &str = "PLAN";
const SEQUENCE: &str = "SEQUENCE";

/// The programs and their maps.
pub(super) struct Wrapper {
    object: Ebpf,
    target: ProgramArray<MapData>,
    xdp_target: ProgramArray<MapData>,
    template: Array<MapData, [u32; TEMPLATE_WORDS]>,
    plan: Array<MapData, Plan>,
    sequence: Array<MapData, u32>,
}

impl Wrapper {
    pub(super) fn load() -> Result<Self, BenchError> {
        let mut object = Ebpf::load(OBJECT).map_err(BenchError::Wrapper)?;
        let mut take = |name| object.take_map(name).ok_or(BenchError::Missing { name });
        let failed = |name| move |source| BenchError::WrapperMap { name, source };
        let target = take(TARGET)?.try_into().map_err(failed(TARGET))?;
        let xdp_target = take(XDP_TARGET)?.try_into().map_err(failed(XDP_TARGET))?;
        let template = take(TEMPLATE)?.try_into().map_err(failed(TEMPLATE))?;
        let plan = take(PLAN)?.try_into().map_err(failed(PLAN))?;
        let sequence = take(SEQUENCE)?.try_into().map_err(failed(SEQUENCE))?;
        for name in PROGRAMS {
            let failed = |source| BenchError::WrapperProgram { name, source };
            let program: &mut SchedClassifier =
                object.program_mut(name).ok_or(BenchError::Missing { name })?.try_into().map_err(failed)?;
            program.load().map_err(failed)?;
        }
        for name in XDP_PROGRAMS {
            let failed = |source| BenchError::WrapperProgram { name, source };
            let program: &mut Xdp =
                object.program_mut(name).ok_or(BenchError::Missing { name })?.try_into().map_err(failed)?;
            program.load().map_err(failed)?;
        }
        Ok(Self { object, target, xdp_target, template, plan, sequence })
    }

    /// As `run`, at XDP.
    pub(super) fn run_frame(
        &mut self,
        (family, protocol): (IpFamily, Protocol),
        target: Option<&ProgramFd>,
        plan: &Plan,
        packet: &[u8],
        repeat: u32,
    ) -> Result<TestRun, BenchError> {
        let failed = |name| move |source| BenchError::WrapperMap { name, source };
        self.template.set(0, template_of(packet), 0).map_err(failed(TEMPLATE))?;
        self.plan.set(0, plan, 0).map_err(failed(PLAN))?;
        self.sequence.set(0, 0, 0).map_err(failed(SEQUENCE))?;
        let Self { object, xdp_target: slot, .. } = self;
        let target = match target {
            Some(target) => target,
            None => xdp_program(object, XDP_EMPTY)?,
        };
        slot.set(0, target, 0).map_err(failed(XDP_TARGET))?;
        let name = match (family, protocol) {
            (IpFamily::V4, Protocol::Tcp) => "xdp_tcp_v4",
            (IpFamily::V4, Protocol::Udp | Protocol::Sctp) => "xdp_udp_v4",
            (IpFamily::V6, Protocol::Tcp) => "xdp_tcp_v6",
            (IpFamily::V6, Protocol::Udp | Protocol::Sctp) => "xdp_udp_v6",
        };
        Ok(prog::repeat_frame(xdp_program(object, name)?, packet, repeat)?)
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

fn xdp_program<'a>(object: &'a Ebpf, name: &'static str) -> Result<&'a ProgramFd, BenchError> {
    let failed = |source| BenchError::WrapperProgram { name, source };
    let program: &Xdp = object.program(name).ok_or(BenchError::Missing { name })?.try_into().map_err(failed)?;
    program.fd().map_err(failed)
}

/// The beginning of `packet`, as the kernel programs put it in place.
pub(super) fn template_of(packet: &[u8]) -> [u32; TEMPLATE_WORDS] {
    let mut template = [0; TEMPLATE_WORDS];
    for (word, bytes) in template.iter_mut().zip(packet.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    template
}
