//! The real kernel programs with maps of their own, run on packets made by hand: loaded, told what to serve, run, and
//! everything they counted.
//!
//! What is served goes through the daemon's own `diff` and `maps`, so tests see the maps as they really are. Nothing is
//! attached or pinned: all of it is gone with the value.

mod connections;
mod counted;
mod error;
mod programs;
mod run;

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use aya::programs::{ProgramFd, ProgramInfo};
use bytes::Bytes;
use dsproxy::{
    datapath::load::{DatapathSettings, LoadError, XDP_PROGRAM, load_maps},
    diff::Known,
    maps::{
        Capacities, Contents, FrontendAddress, MapStore as _, Write, events::EventMaps, kernel::KernelMaps,
        next_hops::NextHopMaps, pod_devices::PodDevices,
    },
    resolve::ResolvedPort,
};
use dsproxy_common::{IpFamily, flow::FlowState, service::Slots, settings::Settings};

pub use connections::{Connections, Entry, slot};
pub use counted::Counted;
pub use error::ProgError;
use programs::Programs;
use run::Input;
pub use run::{SkBuff, TestRun, Verdict};

use crate::packet::Link;

/// Where a packet meets the programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before the stack, from a pod.
    Ingress,
    /// After the stack, to a pod.
    Egress,
    /// Before the stack, from another node or the world.
    NodeIngress,
    /// After the stack, to another node or the world.
    NodeEgress,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ingress, Self::Egress, Self::NodeIngress, Self::NodeEgress];
}

/// The name of the program for `hook` on devices with `link`.
pub fn program_name(hook: Hook, link: Link) -> &'static str {
    match (hook, link) {
        (Hook::Ingress, Link::Ethernet) => "pod_ingress_ethernet",
        (Hook::Egress, Link::Ethernet) => "pod_egress_ethernet",
        (Hook::NodeIngress, Link::Ethernet) => "node_ingress_ethernet",
        (Hook::NodeEgress, Link::Ethernet) => "node_egress_ethernet",
        (Hook::Ingress, Link::None) => "pod_ingress_ip",
        (Hook::Egress, Link::None) => "pod_egress_ip",
        (Hook::NodeIngress, Link::None) => "node_ingress_ip",
        (Hook::NodeEgress, Link::None) => "node_egress_ip",
    }
}

/// Where a client is, as seen from the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// In it.
    Inside,
    /// Elsewhere.
    Outside,
}

const TWO_DAYS: Duration = Duration::from_secs(2 * 86_400);

/// What became of one packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the program returned.
    pub verdict: Verdict,
    /// The packet afterwards.
    pub packet: Bytes,
    /// By how much each counter went up.
    pub counted: Counted,
}

/// The data path: programs, maps, and what is known to be in them.
pub struct Datapath {
    programs: Programs,
    maps: KernelMaps,
    next_hops: NextHopMaps,
    events: EventMaps,
    pod_devices: PodDevices,
    known: Known,
    connections: Connections,
}

impl Datapath {
    /// Loads maps anew, and each program when it is first run.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn load(capacities: &Capacities) -> Result<Self, ProgError> {
        Self::load_with(capacities, &DatapathSettings::default())
    }

    /// The same with `settings`.
    ///
    /// # Errors
    ///
    /// As `load`.
    pub fn load_with(capacities: &Capacities, settings: &DatapathSettings) -> Result<Self, ProgError> {
        let mut loaded = load_maps(capacities, settings)?;
        let next_hops = NextHopMaps::open(|name| loaded.object.take_map(name)).map_err(LoadError::Maps)?;
        let events = EventMaps::open(|name| loaded.object.take_map(name)).map_err(LoadError::Maps)?;
        let pod_devices = PodDevices::open(|name| loaded.object.take_map(name)).map_err(LoadError::Maps)?;
        let known = Known::new(loaded.maps.capacities(), &Contents::default(), Instant::now());
        let programs = Programs::of(loaded.object);
        let connections = Connections::of(&programs.info("pod_ingress_ethernet")?)?;
        Ok(Self { programs, maps: loaded.maps, next_hops, events, pod_devices, known, connections })
    }

    /// The maps.
    pub fn maps(&self) -> &KernelMaps {
        &self.maps
    }

    /// What XDP is told of devices and routing.
    pub fn next_hops(&mut self) -> &mut NextHopMaps {
        &mut self.next_hops
    }

    /// The entries of the connection table.
    pub fn connections(&mut self) -> &mut Connections {
        &mut self.connections
    }

    /// Serves `port` as it says from now on, and returns its id.
    ///
    /// # Errors
    ///
    /// When there is no room or a write fails.
    pub fn serve(&mut self, port: &ResolvedPort) -> Result<u32, ProgError> {
        let plan = self.known.plan(port, &port.frontends().collect(), Instant::now())?;
        self.write(&plan.writes)?;
        let name = port.name.to_string();
        let names = self.maps.names()?;
        names.iter().find(|(_, held)| *held == name).map(|(id, _)| *id).ok_or(ProgError::NotServed { name })
    }

    /// Serves `ports` without looking for their ids.
    ///
    /// # Errors
    ///
    /// When there is no room or a write fails.
    pub fn serve_all(&mut self, ports: impl Iterator<Item = ResolvedPort>) -> Result<(), ProgError> {
        for port in ports {
            let plan = self.known.plan(&port, &port.frontends().collect(), Instant::now())?;
            self.write(&plan.writes)?;
        }
        Ok(())
    }

    /// Serves `port` no more.
    ///
    /// # Errors
    ///
    /// When a write fails.
    pub fn withdraw(&mut self, port: &ResolvedPort) -> Result<(), ProgError> {
        let writes = self.known.plan_removal(&port.name.to_string());
        self.write(&writes)
    }

    /// Takes the bits out of the filters that frontends and backends have left there, which they keep for a day.
    ///
    /// # Errors
    ///
    /// When a write fails.
    pub fn retire_filters(&mut self) -> Result<(), ProgError> {
        let writes = self.known.plan_filter_retirement(Instant::now() + TWO_DAYS);
        self.write(&writes)
    }

    /// Writes to the maps.
    ///
    /// # Errors
    ///
    /// When a write fails.
    pub fn write(&mut self, writes: &[Write]) -> Result<(), ProgError> {
        for write in writes {
            self.maps.write(write)?;
            self.known.applied(write, Instant::now());
        }
        Ok(())
    }

    /// The slots of the frontend at `address` for clients on `side`, with the endpoints on them in their order.
    ///
    /// # Errors
    ///
    /// When there is none, or the maps cannot be read.
    pub fn slots(&self, address: FrontendAddress, side: Side) -> Result<(Slots, Vec<(IpAddr, u16)>), ProgError> {
        let frontends = self.maps.frontends()?;
        let (_, frontend) =
            frontends.iter().find(|(held, _)| *held == address).ok_or(ProgError::NoFrontend { address })?;
        let slots = match side {
            Side::Inside => frontend.inside,
            Side::Outside => frontend.outside,
        };
        let backends = self.maps.backends()?;
        let family = address.family();
        let ids = self.maps.slots(family, slots)?;
        let endpoints = ids
            .iter()
            .filter_map(|id| backends.iter().find(|(of, held, _)| (of, held) == (&family, id)))
            .map(|(_, _, record)| (record.address, record.port))
            .collect();
        Ok((slots, endpoints))
    }

    /// Changes how long connections count, in jiffies.
    ///
    /// # Errors
    ///
    /// When the settings cannot be read or written.
    pub fn set_lifetimes(&mut self, lifetimes: [u32; FlowState::COUNT]) -> Result<(), ProgError> {
        let settings = Settings { lifetimes, ..self.maps.settings()? }.with_port_waits(true);
        Ok(self.maps.set_settings(&settings)?)
    }

    /// As `set_lifetimes`, where some are too short to be waited for: a second is one jiffy from now on, for no connection
    /// counts for less.
    ///
    /// # Errors
    ///
    /// When the settings cannot be read or written.
    pub fn shorten_lifetimes(&mut self, lifetimes: [u32; FlowState::COUNT]) -> Result<(), ProgError> {
        let settings = Settings { lifetimes, jiffies_per_second: 1, ..self.maps.settings()? }.with_port_waits(true);
        Ok(self.maps.set_settings(&settings)?)
    }

    /// Changes what the programs are told.
    ///
    /// # Errors
    ///
    /// When the settings cannot be written.
    pub fn set_settings(&mut self, settings: &Settings) -> Result<(), ProgError> {
        Ok(self.maps.set_settings(settings)?)
    }

    /// Runs one packet through the program of `hook` and `link`.
    ///
    /// # Errors
    ///
    /// When the kernel does not run the program on it, or the counters cannot be read.
    pub fn run(&self, hook: Hook, link: Link, packet: &[u8]) -> Result<Outcome, ProgError> {
        self.run_as(hook, link, packet, &SkBuff::default())
    }

    /// As `run`, for a packet in a buffer with these properties.
    ///
    /// # Errors
    ///
    /// As `run`.
    pub fn run_as(&self, hook: Hook, link: Link, packet: &[u8], buffer: &SkBuff) -> Result<Outcome, ProgError> {
        let before = self.counted()?;
        let TestRun { verdict, packet, .. } =
            run::test_run(self.program(hook, link)?, packet, Input::Buffer(*buffer), 1).map_err(ProgError::Run)?;
        Ok(Outcome { verdict, packet, counted: self.counted()?.since(&before) })
    }

    /// Runs one frame through the program at XDP.
    ///
    /// # Errors
    ///
    /// As `run`.
    pub fn run_frame(&self, packet: &[u8]) -> Result<Outcome, ProgError> {
        let before = self.counted()?;
        let TestRun { verdict, packet, .. } = repeat_frame(self.xdp_program()?, packet, 1)?;
        Ok(Outcome { verdict, packet, counted: self.counted()?.since(&before) })
    }

    /// The program at XDP, in the kernel.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn xdp_program(&self) -> Result<&ProgramFd, ProgError> {
        self.programs.get(XDP_PROGRAM)
    }

    /// How many instructions the verifier looked at before it took the program at XDP.
    ///
    /// # Errors
    ///
    /// As `verified_instructions`.
    pub fn verified_xdp_instructions(&self) -> Result<u32, ProgError> {
        Ok(self.programs.info(XDP_PROGRAM)?.verified_instruction_count().unwrap_or_default())
    }

    /// The maps by which the programs tell of packets; with them they find those that do.
    ///
    /// # Errors
    ///
    /// When the kernel refuses these.
    pub fn listen(&mut self) -> Result<&mut EventMaps, ProgError> {
        self.programs.let_observe()?;
        Ok(&mut self.events)
    }

    /// The same, once they do.
    pub fn events(&mut self) -> &mut EventMaps {
        &mut self.events
    }

    /// The map of the devices that lead to pods; with it the programs find those that send packets past the stack.
    ///
    /// # Errors
    ///
    /// When the kernel refuses these.
    pub fn shorten(&mut self) -> Result<&mut PodDevices, ProgError> {
        self.programs.let_shorten()?;
        Ok(&mut self.pod_devices)
    }

    /// The programs that others end in, with how many instructions the verifier looked at before it took them: as
    /// `verified_instructions`, once `listen`, `shorten` and `xdp_program` have loaded them.
    ///
    /// # Errors
    ///
    /// When one is not loaded, or the kernel does not tell.
    pub fn verified_ends(&self) -> Result<Vec<(&'static str, u32)>, ProgError> {
        self.programs.verified_ends()
    }

    /// Everything counted so far.
    ///
    /// # Errors
    ///
    /// When the counters cannot be read.
    pub fn counted(&self) -> Result<Counted, ProgError> {
        Counted::read(&self.maps)
    }

    /// How many instructions the verifier looked at before it took the program of `hook` and `link`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses the program, or does not tell.
    pub fn verified_instructions(&self, hook: Hook, link: Link) -> Result<u32, ProgError> {
        Ok(self.programs.info(program_name(hook, link))?.verified_instruction_count().unwrap_or_default())
    }

    /// What the kernel says of the program of `hook` and `link`.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it, or does not tell.
    pub fn info(&self, hook: Hook, link: Link) -> Result<ProgramInfo, ProgError> {
        self.programs.info(program_name(hook, link))
    }

    /// As `info`, of the program at XDP.
    ///
    /// # Errors
    ///
    /// As `info`.
    pub fn xdp_info(&self) -> Result<ProgramInfo, ProgError> {
        self.programs.info(XDP_PROGRAM)
    }

    /// The program of `hook` and `link`, in the kernel.
    ///
    /// # Errors
    ///
    /// When the kernel refuses it.
    pub fn program(&self, hook: Hook, link: Link) -> Result<&ProgramFd, ProgError> {
        self.programs.get(program_name(hook, link))
    }
}

/// As `repeat`, for a program at XDP.
///
/// # Errors
///
/// When the kernel refuses.
pub fn repeat_frame(program: &ProgramFd, packet: &[u8], repeat: u32) -> Result<TestRun, ProgError> {
    run::test_run(program, packet, Input::Frame, repeat).map_err(ProgError::Run)
}

/// Runs `program` on `packet`, `repeat` times over: each time on what the time before has left of it.
///
/// # Errors
///
/// When the kernel refuses.
pub fn repeat(program: &ProgramFd, packet: &[u8], repeat: u32) -> Result<TestRun, ProgError> {
    run::test_run(program, packet, Input::Buffer(SkBuff::default()), repeat).map_err(ProgError::Run)
}

/// Runs `program` on `packet` in a buffer with these properties.
///
/// # Errors
///
/// When the kernel refuses.
pub fn run_once(program: &ProgramFd, packet: &[u8], buffer: &SkBuff) -> Result<TestRun, ProgError> {
    run::test_run(program, packet, Input::Buffer(*buffer), 1).map_err(ProgError::Run)
}

/// The release of the running kernel.
///
/// # Errors
///
/// When the kernel does not tell.
pub fn kernel_release() -> Result<String, ProgError> {
    let name = nix::sys::utsname::uname().map_err(ProgError::KernelRelease)?;
    Ok(name.release().to_string_lossy().into_owned())
}

/// Whether the running kernel is one with tcx, which came with Linux 6.6. By its release: a question that is answered wrongly would pass
/// for a kernel without.
///
/// # Errors
///
/// When the kernel does not tell, or in another way than others.
pub fn kernel_has_tcx() -> Result<bool, ProgError> {
    let release = kernel_release()?;
    let mut numbers = release.split(|character: char| !character.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor) >= (6, 6)),
        _ => Err(ProgError::NoVersion { release }),
    }
}

/// The index of the loopback device, by which the kernel's test facility lets packets come and go.
pub const LOOPBACK: u32 = 1;

/// A family's address out of two that mean the same.
pub fn of_family<T>(family: IpFamily, v4: T, v6: T) -> T {
    match family {
        IpFamily::V4 => v4,
        IpFamily::V6 => v6,
    }
}
