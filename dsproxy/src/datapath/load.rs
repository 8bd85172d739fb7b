//! The kernel programs and maps brought into the kernel: maps pinned and found again, programs loaded.

mod programs;
mod settings;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapData, MapError as AyaMapError, MapInfo},
    programs::ProgramError,
};
use dsproxy_common::{
    IpFamily, cached_flow,
    layout::{self, family_maps},
    settings::Settings,
};
use thiserror::Error;
use tracing::warn;

use self::settings::{namespace_cookie, settings};
pub use self::{
    programs::{
        OBSERVERS, PROGRAMS, SHORTCUT, XDP_OBSERVER, XDP_PROGRAM, load_observers, load_program, load_programs,
        load_programs_for, load_rest, load_shortcut, load_socket_programs, load_xdp_program, without_observers,
    },
    settings::{DatapathSettings, Lifetimes},
};
use super::bpffs::Bpffs;
use crate::{
    jiffies,
    maps::{
        Capacities, MapError, MapStore as _,
        daemon::DaemonMap,
        events::EventMaps,
        kernel::{KernelMaps, OpenError},
        next_hops::NextHopMaps,
    },
};

/// The kernel programs, as the build script compiled them.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dsproxy-ebpf"));

/// What the kernel does not take objects and programs without.
const NEEDS: &str = "it takes CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON (or root) and kernel 6.1 or later, and in a container a seccomp profile and, \
                     where SELinux is enforced, a type that allow bpf(2)";

/// Why the data path cannot be had.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The kernel did not take the object.
    #[error("load the kernel programs: {}; {NEEDS}", chain(.0))]
    Object(#[source] EbpfError),
    /// The kernel did not take a program.
    #[error("load the kernel program {name}: {}; {NEEDS}", chain(.source))]
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
    /// The kernel did not take programs where others look for them.
    #[error("enter programs in the map {name}: {}", chain(.source))]
    Enter {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        source: AyaMapError,
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
    /// The pin of a map that is made anew could not be removed.
    #[error("remove the pin {}: {source}", path.display())]
    Pin {
        /// The pin.
        path: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
    /// The kernel does not tell how long its clock tick is.
    #[error("find the length of the kernel's clock tick: {0}")]
    Clock(nix::Error),
    /// The kernel does not tell how many CPUs there may be.
    #[error("count the CPUs: {0}")]
    Cpus(io::Error),
    /// XDP is to remember more flows than a map can hold.
    #[error("--max-cached-flows={flows} for each of {cpus} CPUs is more than a map can hold; give fewer")]
    CachedFlows {
        /// Of each CPU.
        flows: u32,
        /// The CPUs.
        cpus: usize,
    },
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
    without_observers(load_observers(&mut loaded.object));
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
    if let Some(directory) = directory {
        // What a program leaves for those that come after it is in memory of their own: each object has its own of these, and
        // programs of an earlier one, which end in none any more, go on by themselves.
        for name in [layout::OBSERVERS, layout::XDP_OBSERVERS, layout::SHORTCUTS] {
            let path = directory.join(name);
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(LoadError::Pin { path, source: error });
                }
                _ => {}
            }
        }
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
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| LoadError::Cpus(error))?;
    // Should the numbers of CPUs have gaps, the last ones have no part, and XDP leaves all that comes to them to the stack.
    let places = u32::try_from(cpus).ok().and_then(|cpus| cached_flow::places_of_all(wanted.cached_flows, cpus));
    let places = places.ok_or(LoadError::CachedFlows { flows: wanted.cached_flows, cpus })?;
    for family in IpFamily::ALL {
        loader.map_max_entries(layout::cached_flows(family), places);
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
/// As [`settings_for`], or when the map cannot be written.
pub(super) fn tell(maps: &mut KernelMaps, wanted: &DatapathSettings) -> Result<(), LoadError> {
    let settings = settings_for(maps, wanted)?;
    Ok(maps.set_settings(&settings)?)
}

/// What the programs of `maps` are to be told.
///
/// # Errors
///
/// When the kernel does not say what its clock and this network namespace are, or the map cannot be read.
pub(super) fn settings_for(maps: &KernelMaps, wanted: &DatapathSettings) -> Result<Settings, LoadError> {
    let jiffies_per_second = jiffies::per_second().map_err(LoadError::Clock)?;
    let host_namespace = namespace_cookie().map_err(LoadError::Namespace)?;
    let before = Some(maps.settings()?).filter(|before| before.jiffies_per_second != 0);
    Ok(settings(wanted, jiffies_per_second, host_namespace, before.as_ref()))
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

/// Opens the map that is pinned on `bpffs` in which the daemon tells of itself.
///
/// # Errors
///
/// As `open_pinned`.
pub fn open_pinned_daemon(bpffs: &Bpffs) -> Result<DaemonMap, OpenError> {
    let directory = map_directory(bpffs);
    DaemonMap::open(|name| pinned(&directory, name).ok())
}

/// Opens the maps that are pinned on `bpffs` by which the programs tell of packets.
///
/// # Errors
///
/// As `open_pinned`.
pub fn open_pinned_events(bpffs: &Bpffs) -> Result<EventMaps, OpenError> {
    let directory = map_directory(bpffs);
    EventMaps::open(|name| pinned(&directory, name).ok())
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

pub(crate) fn map_directory(bpffs: &Bpffs) -> PathBuf {
    bpffs.layout().join("maps")
}

fn map_names() -> impl Iterator<Item = &'static str> {
    let families = IpFamily::ALL.into_iter().flat_map(|family| family_maps(family).all());
    [
        layout::SETTINGS,
        layout::COUNTERS,
        layout::SERVICE_COUNTERS,
        layout::SERVICE_DROPS,
        layout::SERVICE_NAMES,
        layout::ROUTING,
        layout::XDP_DEVICES,
        layout::DAEMON,
        layout::EVENT_FILTER,
        layout::EVENTS,
        layout::EVENTS_LOST,
        layout::OBSERVERS,
        layout::XDP_OBSERVERS,
        layout::SHORTCUTS,
    ]
    .into_iter()
    .chain(families)
}

fn sizes(capacities: &Capacities) -> Vec<(&'static str, u32)> {
    let Capacities { services, frontends, backends, slots, connections, brief_connections, affinities, source_ranges } =
        *capacities;
    let of_services = [layout::SERVICE_COUNTERS, layout::SERVICE_DROPS, layout::SERVICE_NAMES];
    let mut sizes: Vec<_> = of_services.into_iter().map(|name| (name, services)).collect();
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
    use super::*;

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
}
