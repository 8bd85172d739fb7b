//! The kernel programs and maps brought into the kernel: maps pinned and found again, programs loaded.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapData, MapError as AyaMapError, MapInfo},
    programs::{CgroupSockAddr, ProgramError, SchedClassifier, Xdp},
};
use dsproxy_common::{
    IpFamily, cached_flow,
    flow::FlowState,
    layout::{self, family_maps},
    settings::Settings,
};
use thiserror::Error;
use tracing::warn;

use super::{attach::cgroup::SocketHook, bpffs::Bpffs};
use crate::{
    jiffies,
    maps::{
        Capacities, MapError, MapStore as _,
        kernel::{KernelMaps, OpenError, network_record},
        next_hops::NextHopMaps,
    },
};

/// The kernel programs, as the build script compiled them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dsproxy-ebpf"));

/// The names of the programs in the object.
pub const PROGRAMS: [&str; 8] = [
    "pod_ingress_ethernet",
    "pod_egress_ethernet",
    "node_ingress_ethernet",
    "node_egress_ethernet",
    "pod_ingress_ip",
    "pod_egress_ip",
    "node_ingress_ip",
    "node_egress_ip",
];

/// The name of the program for XDP.
pub const XDP_PROGRAM: &str = "node_xdp";

/// Why the data path cannot be had.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel did not take the object.
    #[error("load the kernel programs: {}; it takes CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or root) and kernel 6.1 or later", chain(.0))]
    Object(#[source] EbpfError),
    /// The kernel did not take a program.
    #[error("load the kernel program {name}: {}; it takes CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or root) and kernel 6.1 or later", chain(.source))]
    Program {
        /// Its name.
        name: &'static str,
        /// What the kernel said.
        source: ProgramError,
    },
    /// The object has no such program.
    #[error("the object has no program {name}")]
    NoProgram {
        /// Its name.
        name: &'static str,
    },
    /// The pinned maps are not ours, or another version's.
    #[error("{0}; `dsproxy cleanup` removes what is pinned, and with it the connections that are open")]
    Maps(#[from] OpenError),
    /// A map could not be written.
    #[error(transparent)]
    Write(#[from] MapError),
    /// The directory for pins could not be made or read.
    #[error("make the directory {}: {source}; --bpffs has to name a bpffs that can be written to", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The kernel does not tell how long its clock tick is.
    #[error("find the length of the kernel's clock tick: {0}")]
    Clock(nix::Error),
    /// The kernel does not tell which network namespace this is.
    #[error("ask for the cookie of this network namespace: {0}")]
    Namespace(io::Error),
}

/// Everything that loading gives.
pub struct Loaded {
    /// The programs; they stay loaded while they are attached, whatever becomes of this.
    pub object: Ebpf,
    /// The maps.
    pub maps: KernelMaps,
    /// Whether the maps were there before, with what another run left in them.
    pub found: bool,
}

/// How long connections count without a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// TCP whose client has sent nothing but its SYN.
    pub opening: Duration,
    /// Established TCP.
    pub established: Duration,
    /// TCP of which one side has sent its FIN.
    pub half_closed: Duration,
    /// TCP of which both sides have.
    pub closing: Duration,
    /// TCP after a RST.
    pub reset: Duration,
    /// Everything else.
    pub stateless: Duration,
}

impl Default for Lifetimes {
    /// As the kernel's own connection tracking has them (net/netfilter/nf_conntrack_proto_tcp.c), or kube-proxy sets them
    /// there: established and half closed.
    fn default() -> Self {
        Self {
            opening: Duration::from_secs(120),
            established: Duration::from_secs(24 * 60 * 60),
            half_closed: Duration::from_secs(60 * 60),
            closing: Duration::from_secs(120),
            reset: Duration::from_secs(10),
            stateless: Duration::from_secs(120),
        }
    }
}

/// What the programs go by, beside what they are to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatapathSettings {
    /// How long connections count without a packet.
    pub lifetimes: Lifetimes,
    /// `SettingFlags`.
    pub flags: u32,
    /// The first and the last port that masqueraded packets leave with.
    pub snat_ports: [u16; 2],
    /// How many refusals a CPU sends in a second.
    pub refusals_per_second: u32,
    /// How many flows each CPU remembers for XDP: a power of two.
    pub cached_flows: u32,
}

impl Default for DatapathSettings {
    fn default() -> Self {
        Self {
            lifetimes: Lifetimes::default(),
            flags: 0,
            // The dynamic ports (RFC 6335, section 6), beyond those of NodePorts and of Linux's own choice for the most part.
            snat_ports: [49_152, 65_535],
            // As the kernel's own for ICMP (net.ipv4.icmp_msgs_per_sec).
            refusals_per_second: 1000,
            cached_flows: layout::capacity::CACHED_FLOWS,
        }
    }
}

/// Where maps are pinned.
#[derive(Clone, Debug)]
pub struct Place {
    /// The directory.
    pub maps: PathBuf,
    /// That of other maps, whose sizes those have that are made now.
    pub sized_like: Option<PathBuf>,
}

/// Maps and the programs of packets, without any pins.
///
/// # Errors
///
/// When the kernel refuses.
pub fn load(capacities: &Capacities, wanted: &DatapathSettings) -> Result<Loaded, LoadError> {
    let mut loaded = load_maps(capacities, wanted)?;
    load_programs(&mut loaded.object)?;
    Ok(loaded)
}

/// The same without any program: each takes the kernel's verifier a while.
///
/// # Errors
///
/// When the kernel refuses.
pub fn load_maps(capacities: &Capacities, wanted: &DatapathSettings) -> Result<Loaded, LoadError> {
    let mut loaded = open_maps(None, capacities, wanted)?;
    tell(&mut loaded.maps, wanted)?;
    Ok(loaded)
}

/// Makes the maps, or opens those that are pinned at `place`: they are used as they are, so the data path that serves now
/// goes on.
///
/// # Errors
///
/// When the kernel refuses, or the pinned maps have another layout.
pub(super) fn open_maps(
    place: Option<&Place>,
    capacities: &Capacities,
    wanted: &DatapathSettings,
) -> Result<Loaded, LoadError> {
    let directory = place.map(|place| &place.maps);
    let found = directory.is_some_and(|directory| map_names().any(|name| directory.join(name).exists()));
    if let Some(directory) = directory {
        fs::create_dir_all(directory).map_err(|source| LoadError::Directory { path: directory.clone(), source })?;
    }
    let mut loader = EbpfLoader::new();
    let examples =
        || place.into_iter().flat_map(|Place { maps, sized_like }| [Some(maps), sized_like.as_ref()]).flatten();
    for (name, wanted) in sizes(capacities) {
        // A map that is there has the size it was made with, whatever is asked for.
        let entries = match examples().map(|directory| directory.join(name)).find(|pin| pin.exists()) {
            Some(pin) => MapInfo::from_pin(pin).map_err(|source| OpenError::Layout { name, source })?.max_entries(),
            None => wanted,
        };
        loader.map_max_entries(name, entries);
    }
    for family in IpFamily::ALL {
        loader.map_max_entries(layout::cached_flows(family), cached_flow::sets(wanted.cached_flows));
    }
    if let Some(directory) = directory {
        for name in map_names() {
            loader.map_pin_path(name, directory.join(name));
        }
    }
    let mut object = loader.load(OBJECT).map_err(LoadError::Object)?;
    // A pinned map is what the kernel says it is, and not what the object says it should be.
    let maps = match directory {
        Some(directory) => KernelMaps::open(|name| pinned(directory, name).ok())?,
        None => KernelMaps::open(|name| object.take_map(name))?,
    };
    let actual = maps.capacities();
    if actual != *capacities {
        warn!(
            ?actual,
            wanted = ?capacities,
            "the maps keep the sizes they were made with; `dsproxy cleanup` before a start makes them anew"
        );
    }
    Ok(Loaded { object, maps, found })
}

/// Tells the programs what they go by. Where ClusterIPs are stays as it was.
///
/// # Errors
///
/// When the kernel does not say what its clock and this network namespace are, or the map cannot be written.
pub(super) fn tell(maps: &mut KernelMaps, wanted: &DatapathSettings) -> Result<(), LoadError> {
    let jiffies_per_second = jiffies::per_second().map_err(LoadError::Clock)?;
    let host_namespace = namespace_cookie().map_err(LoadError::Namespace)?;
    let before = Some(maps.settings()?).filter(|before| before.jiffies_per_second != 0);
    Ok(maps.set_settings(&settings(wanted, jiffies_per_second, host_namespace, before.as_ref()))?)
}

/// Loads the programs of packets.
///
/// # Errors
///
/// When the kernel refuses.
pub(super) fn load_programs(object: &mut Ebpf) -> Result<(), LoadError> {
    PROGRAMS.into_iter().try_for_each(|name| load_program(object, name))
}

/// Loads one of `PROGRAMS`.
///
/// # Errors
///
/// When the kernel refuses.
pub fn load_program(object: &mut Ebpf, name: &'static str) -> Result<(), LoadError> {
    let program = object.program_mut(name).ok_or(LoadError::NoProgram { name })?;
    let failed = |source| LoadError::Program { name, source };
    let classifier: &mut SchedClassifier = program.try_into().map_err(failed)?;
    classifier.load().map_err(failed)
}

/// Loads the programs of sockets. Apart from the others, so that a kernel without them (`CONFIG_CGROUP_BPF`) can do without.
///
/// # Errors
///
/// When the kernel refuses.
pub fn load_socket_programs(object: &mut Ebpf) -> Result<(), LoadError> {
    for hook in SocketHook::ALL {
        let name = hook.program();
        let program = object.program_mut(name).ok_or(LoadError::NoProgram { name })?;
        let failed = |source| LoadError::Program { name, source };
        let program: &mut CgroupSockAddr = program.try_into().map_err(failed)?;
        program.load().map_err(failed)?;
    }
    Ok(())
}

/// Loads the program for XDP. Apart from the others, for only a node that uses it has need of it.
///
/// # Errors
///
/// When the kernel refuses.
pub fn load_xdp_program(object: &mut Ebpf) -> Result<(), LoadError> {
    let name = XDP_PROGRAM;
    let program = object.program_mut(name).ok_or(LoadError::NoProgram { name })?;
    let failed = |source| LoadError::Program { name, source };
    let program: &mut Xdp = program.try_into().map_err(failed)?;
    program.load().map_err(failed)
}

/// Opens the maps that are pinned on `bpffs` by which XDP is told of devices and routing.
///
/// # Errors
///
/// As `open_pinned`.
pub fn open_pinned_next_hops(bpffs: &Bpffs) -> Result<NextHopMaps, OpenError> {
    let directory = map_directory(bpffs);
    NextHopMaps::open(|name| pinned(&directory, name).ok())
}

/// Opens the maps that are pinned on `bpffs`.
///
/// # Errors
///
/// When there are none, or they have another layout.
pub fn open_pinned(bpffs: &Bpffs) -> Result<KernelMaps, OpenError> {
    let directory = map_directory(bpffs);
    KernelMaps::open(|name| pinned(&directory, name).ok())
}

fn pinned(directory: &Path, name: &str) -> Result<Map, AyaMapError> {
    Map::from_map_data(MapData::from_pin(directory.join(name))?)
}

fn map_directory(bpffs: &Bpffs) -> PathBuf {
    bpffs.layout().join("maps")
}

fn map_names() -> impl Iterator<Item = &'static str> {
    let families = IpFamily::ALL.into_iter().flat_map(|family| family_maps(family).all());
    [
        layout::SETTINGS,
        layout::COUNTERS,
        layout::SERVICE_COUNTERS,
        layout::SERVICE_NAMES,
        layout::ROUTING,
        layout::XDP_DEVICES,
    ]
    .into_iter()
    .chain(families)
}

fn sizes(capacities: &Capacities) -> Vec<(&'static str, u32)> {
    let Capacities { services, frontends, backends, slots, connections, brief_connections, affinities, source_ranges } =
        *capacities;
    let mut sizes = vec![(layout::SERVICE_COUNTERS, services), (layout::SERVICE_NAMES, services)];
    for family in IpFamily::ALL {
        let names = family_maps(family);
        sizes.extend([
            (names.frontends, frontends),
            (names.slots, slots),
            (names.backends, backends),
            (names.forward, connections),
            (names.egress, connections),
            (names.forward_brief, brief_connections),
            (names.egress_brief, brief_connections),
            (names.snat, connections),
            (names.affinity, affinities),
            (names.ranges, source_ranges),
            (names.networks, capacities.networks()),
        ]);
    }
    sizes
}

/// What the programs are told. Where ClusterIPs are stays as it was `before`, for that follows the Services.
fn settings(
    wanted: &DatapathSettings,
    jiffies_per_second: u32,
    host_namespace: u64,
    before: Option<&Settings>,
) -> Settings {
    let DatapathSettings { lifetimes, flags, snat_ports, refusals_per_second, cached_flows: _ } = *wanted;
    let jiffies = |time: Duration| {
        let jiffies = time.as_secs().saturating_mul(jiffies_per_second.into());
        // Half the range of the clock: beyond that an age could not be told from a younger one. And a second at least (`Age`).
        u32::try_from(jiffies).unwrap_or(u32::MAX).min(u32::MAX / 2).max(jiffies_per_second)
    };
    let Lifetimes { opening, established, half_closed, closing, reset, stateless } = lifetimes;
    let mut settings = Settings {
        jiffies_per_second,
        lifetimes: [0; FlowState::COUNT],
        flags,
        snat_ports,
        refusals_per_second,
        services_v4: before.map_or_else(|| network_record(None), |before| before.services_v4),
        services_v6: before.map_or_else(|| network_record(None), |before| before.services_v6),
        host_namespace,
    };
    for (state, time) in [
        (FlowState::Opening, opening),
        (FlowState::Answered, opening),
        (FlowState::Established, established),
        (FlowState::ClientClosed, half_closed),
        (FlowState::BackendClosed, half_closed),
        (FlowState::Closing, closing),
        (FlowState::Reset, reset),
        (FlowState::Stateless, stateless),
    ] {
        settings.lifetimes[usize::from(state.number())] = jiffies(time);
    }
    settings
}

/// The settings that a map of this layout holds as these bytes.
pub(super) fn settings_of(bytes: &[u8]) -> Option<Settings> {
    // SAFETY: as many bytes as the type has, which is made of integers only (`dsproxy_common::record`).
    (bytes.len() == size_of::<Settings>()).then(|| unsafe { bytes.as_ptr().cast::<Settings>().read_unaligned() })
}

/// The cookie of the network namespace that this process is in (`SO_NETNS_COOKIE`, since Linux 5.14).
fn namespace_cookie() -> io::Result<u64> {
    let socket =
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    let mut cookie = 0u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, and how many to `length`; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// What the verifier's log ends with, whether it took the program or not.
const STATISTICS: [&str; 3] = ["verification time", "stack depth", "processed"];

/// An error with its causes, in one line. The verifier's log, which is long, is cut to where it says what it refuses.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    let says = |line: &&str| !line.trim().is_empty() && !STATISTICS.iter().any(|start| line.starts_with(start));
    let lines: Vec<&str> = text.lines().filter(says).collect();
    match lines.as_slice() {
        [first, .., one, two, last] if lines.len() > 6 => format!("{first} ... {one} | {two} | {last}"),
        _ => lines.join(" | "),
    }
}

#[cfg(test)]
mod tests {
    use dsproxy_common::settings::SettingFlags;

    use super::*;

    #[test]
    fn settings_are_in_jiffies_and_keep_where_cluster_ips_are() {
        let wanted = DatapathSettings { flags: SettingFlags::MASQUERADE_ALL, ..DatapathSettings::default() };
        let first = settings(&wanted, 250, 7, None);
        assert_eq!(first.lifetimes[usize::from(FlowState::Opening.number())], 120 * 250);
        assert_eq!(first.lifetimes[usize::from(FlowState::Answered.number())], 120 * 250);
        assert_eq!(first.lifetimes[usize::from(FlowState::Reset.number())], 10 * 250);
        assert!(first.lifetimes.iter().all(|jiffies| *jiffies > 0), "{first:?}");
        assert_eq!((first.flags, first.snat_ports, first.host_namespace), (1, [49_152, 65_535], 7));
        assert!(!first.services_v4.has(&Ipv4Addr::new(10, 96, 0, 1).into()), "nobody before there are Services");
        let services = network_record(Some("10.96.0.0/12".parse().expect("network")));
        let second = settings(&wanted, 1000, 7, Some(&Settings { services_v4: services, ..first }));
        assert_eq!((second.jiffies_per_second, second.services_v4), (1000, services));
    }

    #[test]
    fn a_refusal_of_the_verifier_is_told_in_one_line() {
        let instructions: String = (0..100).map(|number| format!("{number}: (b7) r1 = 0\n")).collect();
        let log = format!(
            "Verifier output: {instructions}R4 min value is negative\nverification time 8 usec\nstack depth 264+0\n\
             processed 1175 insns (limit 1000000)\n"
        );
        let told = chain(&io::Error::other(log));
        assert_eq!(
            told,
            "Verifier output: 0: (b7) r1 = 0 ... 98: (b7) r1 = 0 | 99: (b7) r1 = 0 | R4 min value is negative"
        );
    }

    #[test]
    fn this_namespace_has_a_cookie() {
        assert_ne!(namespace_cookie().expect("Linux 5.14 or later"), 0);
    }
}
