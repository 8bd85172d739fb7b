//! Programs of somebody else's at the hooks where the daemon's are. They count how often they run, and change nothing.

use aya::{
    Ebpf,
    maps::{Array, MapData},
    programs::{CgroupAttachMode, CgroupSockAddr, LinkOrder, SchedClassifier, TcAttachType, Xdp, tc, xdp::XdpMode},
};
use dsproxy_bench_ebpf::Bystander as Program;

use super::{Attach, Cgroup, LabError, Namespace};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dsproxy-bystander-ebpf"));

/// The priority of the filter in front of all others, and of that behind them.
const PRIORITIES: [u16; 2] = [1, 60_000];

/// Where a program is among those that are there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// In front of them.
    First,
    /// Behind them.
    Last,
}

/// Programs at some hooks, which stay there until this is dropped; filters of clsact stay as long as the interface.
#[derive(Debug)]
pub struct Bystander {
    object: Ebpf,
    programs: Vec<Program>,
}

impl Bystander {
    /// Counts the packets of `interface`, both ways.
    pub fn of_packets(namespace: &Namespace, interface: &str, attach: Attach, order: Order) -> Result<Self, LabError> {
        let mut bystander = Self::load([Program::Ingress, Program::Egress])?;
        for (program, hook) in [(Program::Ingress, TcAttachType::Ingress), (Program::Egress, TcAttachType::Egress)] {
            let failed = |error: &dyn std::fmt::Display| failure(program, error);
            let classifier: &mut SchedClassifier = bystander.program(program)?;
            classifier.load().map_err(|error| failed(&error))?;
            let options = match (attach, order) {
                (Attach::Clsact, _) => tc::TcAttachOptions::Netlink(tc::NlOptions {
                    priority: PRIORITIES[usize::from(order == Order::Last)],
                    ..tc::NlOptions::default()
                }),
                (Attach::Auto | Attach::Tcx, Order::First) => tc::TcAttachOptions::TcxOrder(LinkOrder::first()),
                (Attach::Auto | Attach::Tcx, Order::Last) => tc::TcAttachOptions::TcxOrder(LinkOrder::last()),
            };
            namespace
                .run(|| {
                    let link = classifier.attach_with_options(interface, hook, options)?;
                    if attach == Attach::Clsact {
                        // Dropped it would take away a filter of the namespace that the dropping thread is in.
                        std::mem::forget(classifier.take_link(link)?);
                    }
                    Ok(())
                })?
                .map_err(|error: aya::programs::ProgramError| failed(&error))?;
        }
        Ok(bystander)
    }

    /// Counts the frames that come in by `interface`, by XDP in its driver.
    pub fn of_frames(namespace: &Namespace, interface: &str) -> Result<Self, LabError> {
        let mut bystander = Self::load([Program::Frame])?;
        let frames: &mut Xdp = bystander.program(Program::Frame)?;
        let attach = || frames.load().and_then(|()| frames.attach(interface, XdpMode::Driver));
        namespace.run(attach)?.map_err(|error| failure(Program::Frame, &error))?;
        Ok(bystander)
    }

    /// Counts the sockets of `cgroup` that are connected.
    pub fn of_sockets(cgroup: &Cgroup) -> Result<Self, LabError> {
        let mut bystander = Self::load([Program::Connect4, Program::Connect6])?;
        let directory = cgroup.directory();
        let directory = std::fs::File::open(directory).map_err(|source| LabError::file("open", directory, source))?;
        for program in bystander.programs.clone() {
            let socket: &mut CgroupSockAddr = bystander.program(program)?;
            // A link has no flags, and tolerates others by itself.
            let mode = CgroupAttachMode::Single;
            let attached = socket.load().and_then(|()| socket.attach(&directory, mode));
            attached.map_err(|error| failure(program, &error))?;
        }
        Ok(bystander)
    }

    /// How often each of its programs has run, by the program's name.
    pub fn runs(&self) -> Result<Vec<(&'static str, u64)>, LabError> {
        let failed = |error: &dyn std::fmt::Display| LabError::Bystander { what: "RUNS", reason: error.to_string() };
        let map = self.object.map("RUNS").ok_or_else(|| failed(&"there is no such map"))?;
        let map: Array<&MapData, u64> = map.try_into().map_err(|error| failed(&error))?;
        let runs =
            |program: Program| Ok((program.program(), map.get(&(program as u32), 0).map_err(|error| failed(&error))?));
        self.programs.iter().copied().map(runs).collect()
    }

    fn load(programs: impl Into<Vec<Program>>) -> Result<Self, LabError> {
        let object = Ebpf::load(OBJECT)
            .map_err(|error| LabError::Bystander { what: "the object", reason: error.to_string() })?;
        Ok(Self { object, programs: programs.into() })
    }

    fn program<'a, P>(&'a mut self, program: Program) -> Result<&'a mut P, LabError>
    where
        &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
    {
        let found = self.object.program_mut(program.program());
        let found = found.ok_or_else(|| failure(program, &"there is no such program"))?;
        found.try_into().map_err(|error| failure(program, &error))
    }
}

fn failure(program: Program, error: &dyn std::fmt::Display) -> LabError {
    LabError::Bystander { what: program.program(), reason: error.to_string() }
}
