//! The kernel programs brought past the kernel's verifier, which takes a while over each: several at a time, and first those that
//! something waits for.

use std::{
    collections::HashMap,
    num::NonZero,
    panic,
    sync::{Mutex, PoisonError},
    thread,
};

use aya::{
    Ebpf,
    maps::{MapError as AyaMapError, ProgramArray},
    programs::{Program, ProgramError, ProgramFd},
};
use dsproxy_common::layout;
use tracing::warn;

use super::LoadError;
use crate::{
    datapath::attach::cgroup::SocketHook,
    interfaces::{Interfaces, LinkLayer},
};

/// The names of the programs of packets in the object.
pub const PROGRAMS: [&str; 8] = [
    "node_egress_ethernet",
    "node_ingress_ethernet",
    "pod_ingress_ethernet",
    "pod_egress_ethernet",
    "node_egress_ip",
    "node_ingress_ip",
    "pod_ingress_ip",
    "pod_egress_ip",
];

/// How many of `PROGRAMS` are for devices with an Ethernet header; they come first.
const FOR_ETHERNET: usize = 4;

/// The name of the program for XDP.
pub const XDP_PROGRAM: &str = "node_xdp";

/// The names of the programs that tell of packets, by their place in the array.
pub const OBSERVERS: [&str; 2] = ["observe_ethernet", "observe_ip"];

/// As `OBSERVERS`, for XDP.
pub const XDP_OBSERVER: &str = "observe_xdp";

/// The name of the program that sends packets past the stack. There is none for devices without a link-layer header: the kernel drops what
/// `bpf_redirect_neigh` takes from them (net/core/filter.c).
pub const SHORTCUT: &str = "shortcut";

/// How many programs are verified at the same time, at most. The kernel's memory for one goes into the megabytes.
const SIDE_BY_SIDE: usize = 4;

/// Loads all programs of packets, but for those that are loaded.
///
/// # Errors
///
/// When the kernel refuses.
pub fn load_programs(object: &mut Ebpf) -> Result<(), LoadError> {
    load_side_by_side(object, &PROGRAMS)
}

/// Loads what no device asked for when `load_programs_for` did: those of the programs of packets that are not loaded, and those that
/// tell of packets. One after the other, for what serves goes before.
///
/// # Errors
///
/// When the kernel refuses one of packets.
pub fn load_rest(object: &mut Ebpf) -> Result<(), LoadError> {
    let loaded = each_side_by_side(not_loaded(object, &PROGRAMS)?, 1, |(name, program)| load(name, program));
    without_observers(load_observers(object));
    loaded
}

/// Loads the programs of packets that one of `interfaces` has need of, but for those that are loaded. Few nodes have a device without
/// an Ethernet header, and the programs for those take half of the time.
///
/// # Errors
///
/// When the kernel refuses.
pub fn load_programs_for(interfaces: &Interfaces, object: &mut Ebpf) -> Result<(), LoadError> {
    load_side_by_side(object, needed(interfaces))
}

/// The programs that are attached to `interfaces`, and to others with an Ethernet header.
fn needed(interfaces: &Interfaces) -> &'static [&'static str] {
    let all_have_ethernet = interfaces.values().all(|interface| interface.link_layer == LinkLayer::Ethernet);
    if all_have_ethernet { &PROGRAMS[..FOR_ETHERNET] } else { &PROGRAMS }
}

/// Goes on without the programs that tell of packets, should the kernel not take them: packets have no need of them.
pub fn without_observers(loaded: Result<(), LoadError>) {
    if let Err(error) = loaded {
        warn!(%error, "`dsproxy events` will hear of nothing");
    }
}

/// Loads `OBSERVERS`, and enters them where the programs of packets look for them.
///
/// # Errors
///
/// When the kernel refuses.
pub fn load_observers(object: &mut Ebpf) -> Result<(), LoadError> {
    load_and_enter(object, &OBSERVERS, layout::OBSERVERS)
}

/// Loads `SHORTCUT`, and enters it where the programs of packets look for it.
///
/// # Errors
///
/// When the kernel refuses. Packets go through the stack then.
pub fn load_shortcut(object: &mut Ebpf) -> Result<(), LoadError> {
    load_and_enter(object, &[SHORTCUT], layout::SHORTCUTS)
}

/// Loads the programs of sockets. Apart from the others, so that a kernel without them (`CONFIG_CGROUP_BPF`) can do without.
///
/// # Errors
///
/// When the kernel refuses.
pub fn load_socket_programs(object: &mut Ebpf) -> Result<(), LoadError> {
    load_side_by_side(object, &SocketHook::ALL.map(SocketHook::program))
}

/// Loads the program for XDP. Apart from the others, for only a node that uses it has need of it.
///
/// # Errors
///
/// When the kernel refuses.
pub fn load_xdp_program(object: &mut Ebpf) -> Result<(), LoadError> {
    load_program(object, XDP_PROGRAM)?;
    without_observers(load_and_enter(object, &[XDP_OBSERVER], layout::XDP_OBSERVERS));
    Ok(())
}

/// Loads the program `name`.
///
/// # Errors
///
/// When the kernel refuses.
pub fn load_program(object: &mut Ebpf, name: &'static str) -> Result<(), LoadError> {
    load(name, object.program_mut(name).ok_or(LoadError::NoProgram { name })?)
}

/// Loads those of `names` that are not loaded yet, in this order, as many at a time as there are processors to do it.
fn load_side_by_side(object: &mut Ebpf, names: &[&'static str]) -> Result<(), LoadError> {
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    each_side_by_side(not_loaded(object, names)?, processors.min(SIDE_BY_SIDE), |(name, program)| load(name, program))
}

/// Those of `names` that are not loaded yet.
fn not_loaded<'o>(
    object: &'o mut Ebpf,
    names: &[&'static str],
) -> Result<Vec<(&'static str, &'o mut Program)>, LoadError> {
    let mut programs: HashMap<&str, &mut Program> = object.programs_mut().collect();
    let mut waiting = Vec::new();
    for name in names {
        let program = programs.remove(name).ok_or(LoadError::NoProgram { name })?;
        if program.fd().is_err() {
            waiting.push((*name, program));
        }
    }
    Ok(waiting)
}

/// Does `work` for each of `items`, in this order, by `threads` threads, of which this is one. After a failure no other item is
/// begun; gives one of the failures.
fn each_side_by_side<T: Send, E: Send>(
    items: Vec<T>,
    threads: usize,
    work: impl Fn(T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let others = threads.min(items.len()).saturating_sub(1);
    let waiting = Mutex::new(items.into_iter());
    let take = || waiting.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work_off = || {
        while let Some(item) = take() {
            if let Err(error) = work(item) {
                while take().is_some() {}
                return Err(error);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        let spawn = |_| thread::Builder::new().name("verifier".to_owned()).spawn_scoped(scope, work_off);
        // Where there can be no more threads, this one does it alone.
        let others: Vec<_> = (0..others).map_while(|number| spawn(number).ok()).collect();
        let own = work_off();
        let theirs = others.into_iter().map(|other| other.join().unwrap_or_else(|panic| panic::resume_unwind(panic)));
        theirs.fold(own, Result::and)
    })
}

fn load(name: &'static str, program: &mut Program) -> Result<(), LoadError> {
    let loaded = match program {
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::Xdp(program) => program.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    loaded.map_err(|source| LoadError::Program { name, source })
}

/// Loads `programs`, and enters them in the array `array`, from its first place on.
fn load_and_enter(object: &mut Ebpf, programs: &[&'static str], array: &'static str) -> Result<(), LoadError> {
    let mut descriptors = Vec::new();
    for name in programs {
        load_program(object, name)?;
        let program = object.program(name).ok_or(LoadError::NoProgram { name })?;
        let descriptor = program.fd().and_then(|descriptor| Ok(descriptor.try_clone()?));
        descriptors.push(descriptor.map_err(|source| LoadError::Program { name, source })?);
    }
    enter(object, array, &descriptors)
}

/// Enters programs in the array `name`, from its first place on.
fn enter(object: &mut Ebpf, name: &'static str, programs: &[ProgramFd]) -> Result<(), LoadError> {
    let failed = |source| LoadError::Enter { name, source };
    let missing = || failed(AyaMapError::InvalidName { name: name.to_owned() });
    let mut array = ProgramArray::try_from(object.map_mut(name).ok_or_else(missing)?).map_err(failed)?;
    (0..).zip(programs).try_for_each(|(place, program)| array.set(place, program, 0)).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Barrier};

    use super::*;
    use crate::interfaces::{Interface, Role};

    fn interfaces(layers: &[LinkLayer]) -> Interfaces {
        let interface = |index, link_layer| Interface {
            index,
            name: format!("device-{index}"),
            role: Role::NodeDevice,
            link_layer,
            address: Vec::new(),
            mtu: 1500,
            ip_device: None,
        };
        (1..).zip(layers).map(|(index, layer)| (index, interface(index, *layer))).collect()
    }

    #[test]
    fn one_device_without_a_link_layer_header_asks_for_all_programs() {
        let without = needed(&interfaces(&[LinkLayer::Ethernet]));
        assert!(without.len() == FOR_ETHERNET && without.iter().all(|name| name.ends_with("_ethernet")), "{without:?}");
        assert_eq!(needed(&Interfaces::new()), without, "those of pods are yet to come");
        assert_eq!(needed(&interfaces(&[LinkLayer::Ethernet, LinkLayer::None])), PROGRAMS);
    }

    #[test]
    fn each_is_done_once_and_two_at_the_same_time() {
        let done = Mutex::new(BTreeSet::new());
        // Neither of two passes it alone.
        let both = Barrier::new(2);
        let outcome = each_side_by_side((0..10).collect(), 2, |item| {
            both.wait();
            assert!(done.lock().expect("no panic").insert(item), "{item} came twice");
            Ok::<_, u32>(())
        });
        assert_eq!((outcome, done.into_inner().expect("no panic")), (Ok(()), (0..10).collect()));
    }

    #[test]
    fn the_first_failure_ends_it() {
        let done = Mutex::new(Vec::new());
        let outcome = each_side_by_side((0..10).collect(), 1, |item| {
            done.lock().expect("no panic").push(item);
            if item == 3 { Err(item) } else { Ok(()) }
        });
        assert_eq!((outcome, done.into_inner().expect("no panic")), (Err(3), vec![0, 1, 2, 3]));
        assert_eq!(each_side_by_side(Vec::<u32>::new(), 4, Err), Ok(()));
    }
}
