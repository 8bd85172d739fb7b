//! Packets that the kernel makes by itself: live frames of XDP (`BPF_F_TEST_XDP_LIVE_FRAMES`), sent out of a device as fast as one
//! processor makes them, and counted where they arrive. Stays within network namespaces of a lab.

use std::time::{Duration, Instant};

use aya::{
    Ebpf, TestRun as _, TestRunAttrs, TestRunOptions,
    maps::{Array, MapData, PerCpuArray},
    programs::{Xdp, XdpMode},
};
use dsproxy_bench_ebpf::{Plan, TEMPLATE_WORDS};
use dsproxy_common::{IpFamily, Protocol};
use nix::net::if_::if_nametoindex;

use super::super::{BenchError, path::Path, wrapper::template_of};
use crate::lab::Namespace;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dsproxy-live-ebpf"));

const TAKE: &str = "take";
const COUNT: &str = "count";
const REFLECT: &str = "reflect";
const PROGRAMS: [&str; 7] = ["send_v4", "send_v6", "send_tcp_v4", "send_tcp_v6", TAKE, COUNT, REFLECT];

const TEMPLATE: &str = "TEMPLATE";
const PLAN: &str = "PLAN";
const SEQUENCE: &str = "SEQUENCE";
const TARGET_PORT: &str = "TARGET_PORT";
const ARRIVED: &str = "ARRIVED";

/// Frames that are made before the first of them goes: as many as the kernel's network stack takes at a time (`NAPI_POLL_WEIGHT`).
const BATCH: u32 = 64;

/// `struct xdp_md` (include/uapi/linux/bpf.h), as the kernel takes it in.
#[repr(C)]
#[derive(Default)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// The programs and their maps. What they are attached to is free again when this goes.
pub(in crate::bench) struct Live {
    object: Ebpf,
    template: Array<MapData, [u32; TEMPLATE_WORDS]>,
    plan: Array<MapData, Plan>,
    sequence: Array<MapData, u32>,
    target_port: Array<MapData, u32>,
    arrived: PerCpuArray<MapData, u64>,
}

/// What one measurement says.
#[derive(Clone, Copy, Debug)]
pub(in crate::bench) struct Sent {
    /// How many packets were made.
    pub(in crate::bench) sent: u32,
    /// How many arrived, translated.
    pub(in crate::bench) arrived: u64,
    /// How long it took.
    pub(in crate::bench) elapsed: Duration,
}

impl Live {
    pub(in crate::bench) fn load() -> Result<Self, BenchError> {
        let mut object = Ebpf::load(OBJECT).map_err(BenchError::Wrapper)?;
        let mut take = |name| object.take_map(name).ok_or(BenchError::Missing { name });
        let failed = |name| move |source| BenchError::WrapperMap { name, source };
        let template = take(TEMPLATE)?.try_into().map_err(failed(TEMPLATE))?;
        let plan = take(PLAN)?.try_into().map_err(failed(PLAN))?;
        let sequence = take(SEQUENCE)?.try_into().map_err(failed(SEQUENCE))?;
        let target_port = take(TARGET_PORT)?.try_into().map_err(failed(TARGET_PORT))?;
        let arrived = take(ARRIVED)?.try_into().map_err(failed(ARRIVED))?;
        for name in PROGRAMS {
            program(&mut object, name)?.load().map_err(|source| BenchError::WrapperProgram { name, source })?;
        }
        Ok(Self { object, template, plan, sequence, target_port, arrived })
    }

    /// Makes a device of a veth pair take frames, at its own end and at the other.
    pub(in crate::bench) fn take_at(&mut self, namespace: &Namespace, interface: &str) -> Result<(), BenchError> {
        self.attach(TAKE, namespace, interface)
    }

    /// Counts what arrives at a device for `port`, and ends it there.
    pub(in crate::bench) fn count_at(
        &mut self,
        namespace: &Namespace,
        interface: &str,
        port: u16,
    ) -> Result<(), BenchError> {
        let failed = |source| BenchError::WrapperMap { name: TARGET_PORT, source };
        self.target_port.set(0, u32::from(port), 0).map_err(failed)?;
        self.attach(COUNT, namespace, interface)
    }

    /// Has a device send back whatever it gets.
    pub(in crate::bench) fn reflect_at(&mut self, namespace: &Namespace, interface: &str) -> Result<(), BenchError> {
        self.attach(REFLECT, namespace, interface)
    }

    fn attach(&mut self, name: &'static str, namespace: &Namespace, interface: &str) -> Result<(), BenchError> {
        let program = program(&mut self.object, name)?;
        namespace
            .run(|| program.attach(interface, XdpMode::Driver).map(drop))?
            .map_err(|source| BenchError::WrapperProgram { name, source })
    }

    /// Sends `packets` packets as `path` says out of `interface`, and waits until they have arrived or are lost.
    pub(in crate::bench) fn send(
        &mut self,
        namespace: &Namespace,
        interface: &str,
        path: &Path,
        packets: u32,
    ) -> Result<Sent, BenchError> {
        self.send_from(0, namespace, interface, path, packets)
    }

    /// As `send`, beginning with the packet of the number `first`.
    pub(in crate::bench) fn send_from(
        &mut self,
        first: u32,
        namespace: &Namespace,
        interface: &str,
        path: &Path,
        packets: u32,
    ) -> Result<Sent, BenchError> {
        let failed = |name| move |source| BenchError::WrapperMap { name, source };
        self.template.set(0, template_of(&path.packet), 0).map_err(failed(TEMPLATE))?;
        self.plan.set(0, path.plan, 0).map_err(failed(PLAN))?;
        self.sequence.set(0, first, 0).map_err(failed(SEQUENCE))?;
        let before = self.count()?;
        let name = match (path.family, path.protocol) {
            (IpFamily::V4, Protocol::Tcp) => "send_tcp_v4",
            (IpFamily::V6, Protocol::Tcp) => "send_tcp_v6",
            (IpFamily::V4, Protocol::Udp | Protocol::Sctp) => "send_v4",
            (IpFamily::V6, Protocol::Udp | Protocol::Sctp) => "send_v6",
        };
        let program = program(&mut self.object, name)?;
        let elapsed = namespace.run(|| {
            let ingress_ifindex = if_nametoindex(interface).map_err(BenchError::Device)?;
            let context = Context { data_end: path.packet.len() as u32, ingress_ifindex, ..Context::default() };
            // SAFETY: integers only, without padding.
            let context =
                unsafe { core::slice::from_raw_parts((&raw const context).cast::<u8>(), size_of::<Context>()) };
            let options = TestRunOptions {
                data_in: Some(&path.packet),
                ctx_in: Some(context),
                repeat: packets,
                attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
                ..TestRunOptions::new()
            };
            let started = Instant::now();
            program.test_run(options).map_err(|source| BenchError::WrapperProgram { name, source })?;
            Ok::<_, BenchError>(started.elapsed())
        })??;
        // What the other processor still has in hand.
        std::thread::sleep(Duration::from_millis(5));
        Ok(Sent { sent: packets, arrived: self.count()? - before, elapsed })
    }

    /// How many have arrived so far.
    pub(in crate::bench) fn count(&self) -> Result<u64, BenchError> {
        let counted = self.arrived.get(&0, 0).map_err(|source| BenchError::WrapperMap { name: ARRIVED, source })?;
        Ok(counted.iter().sum())
    }
}

fn program<'a>(object: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, BenchError> {
    let failed = |source| BenchError::WrapperProgram { name, source };
    object.program_mut(name).ok_or(BenchError::Missing { name })?.try_into().map_err(failed)
}
