//! What it takes the reconciler alone to bring a cluster into the maps: from nothing, and for one endpoint that changes. There is no API
//! server, and no packet; `daemon` has both, and the aims.
//!
//! A fresh process each time, so that its memory is that of this work alone.

use std::{
    env, fs,
    net::IpAddr,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use dsproxy::{
    allocator,
    datapath::load::{DatapathSettings, LoadError, Loaded, load_maps, load_programs_for, load_socket_programs},
    interfaces::{Interfaces, NodeAddresses},
    local_node::LocalNode,
    maps::{Capacities, Contents},
    model::{Endpoint, EndpointSlice, ObjectName, Service, ServicePort, SlicePort},
    progress::Progress,
    reconcile::Reconciler,
    source::{Delta, Event},
};
use dsproxy_common::{IpFamily, Protocol};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    runtime,
    sync::{mpsc, watch},
};

use super::{
    BenchError, Figure,
    services::{PORT, TARGET_PORT, background_vip, endpoint},
    statistics::Sorted,
};

/// The name of the part, by which plots and tables find these figures.
pub(super) const PART: &str = "control plane";

/// How many endpoint changes are timed.
const CHANGES: u32 = 100;

/// Before each of those that are not to come back to back: long enough for everything about the one before to be over.
const PAUSE: Duration = Duration::from_millis(20);

/// What one process has found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ColdStart {
    /// Until the maps were there.
    open_seconds: f64,
    /// From there until all programs were in the kernel that a node with Ethernet serves by.
    verify_seconds: f64,
    /// From there, at the same time, until the last Service was written.
    write_seconds: f64,
    /// Processor time of all that.
    processor_seconds: f64,
    /// Resident memory before, in MiB.
    resident_before: f64,
    /// Resident memory with everything written, in MiB.
    resident_after: f64,
    /// The most that it ever was.
    resident_peak: f64,
    /// Memory of all maps in the kernel, in MiB.
    map_memory: f64,
    /// That of the connection tables among them.
    connection_memory: f64,
    /// Endpoint changes with a pause before each.
    spaced: Changes,
    /// Endpoint changes, each as soon as the one before is in effect.
    back_to_back: Changes,
}

/// What single endpoint changes took, each of another Service.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Changes {
    /// From the event to the last map write, in milliseconds.
    milliseconds: Vec<f64>,
    /// Processor time for each, on average, in milliseconds.
    processor_time: f64,
}

/// Brings `services` Services with `endpoints` endpoints in each family into maps of the default sizes, or larger ones if these
/// hold less, in this process, and programs into the kernel meanwhile, as a start does.
///
/// # Errors
///
/// When something cannot be loaded, or does not end up in the maps.
pub fn cold_start(services: u32, endpoints: u32) -> Result<ColdStart, BenchError> {
    allocator::share_memory();
    let (list, slices) = list(services, endpoints);
    let resident_before = resident()?;

    let (started, before) = (Instant::now(), processor_time()?);
    let Loaded { mut object, maps, found: _ } =
        load_maps(&capacities(services, endpoints), &DatapathSettings::default())?;
    let opened = Instant::now();
    let progress = Arc::new(Progress::default());
    let mut reconciler =
        Reconciler::new(maps, &Contents::default(), LocalNode::default(), Arc::clone(&progress), opened);
    let (verified, written) = thread::scope(|scope| {
        let verifier = scope.spawn(|| {
            load_programs_for(&Interfaces::new(), &mut object)?;
            load_socket_programs(&mut object)?;
            Ok::<_, LoadError>(Instant::now())
        });
        reconciler.apply(Event::Services(Delta::Snapshot(list)));
        reconciler.apply(Event::EndpointSlices(Delta::Snapshot(slices)));
        reconciler.apply(Event::Nodes(Delta::Snapshot(Vec::new())));
        reconciler.reconcile(Instant::now());
        let written = Instant::now();
        (verifier.join(), written)
    });
    let verified = verified.map_err(|_| BenchError::VerifierEnded)??;
    let processor_seconds = processor_time()? - before;

    let (resident_after, resident_peak) = (resident()?, resident_at_most()?);
    let (map_memory, connection_memory) = map_memory()?;
    let failed = progress.snapshot().failed.len();
    let expected = services as usize;
    let complete = |what, found, wanted| {
        if found == wanted { Ok(()) } else { Err(BenchError::Incomplete { what, found, wanted }) }
    };
    complete("Services that failed", failed, 0)?;
    complete("service ports", reconciler.store().names()?.len(), expected)?;
    complete("frontends", reconciler.store().frontends()?.len(), 2 * expected)?;
    complete("backends", reconciler.store().backends()?.len(), 2 * expected * endpoints as usize)?;

    let [spaced, back_to_back] = measure_changes(reconciler, &progress, services, endpoints)?;
    drop(object);
    Ok(ColdStart {
        open_seconds: (opened - started).as_secs_f64(),
        verify_seconds: (verified - opened).as_secs_f64(),
        write_seconds: (written - opened).as_secs_f64(),
        processor_seconds,
        resident_before,
        resident_after,
        resident_peak,
        map_memory,
        connection_memory,
        spaced,
        back_to_back,
    })
}

/// The default sizes, and what an operator of a cluster that large would set.
pub(super) fn capacities(services: u32, endpoints: u32) -> Capacities {
    let default = Capacities::default();
    // Some room, for a change has an endpoint more at times.
    let endpoints = 2 * services * endpoints + services;
    Capacities {
        services: default.services.max(services),
        frontends: default.frontends.max(2 * services),
        backends: default.backends.max(endpoints),
        slots: default.slots.max(2 * endpoints),
        ..default
    }
}

/// Replaces one endpoint at a time, each of another Service, through the reconciler's own task: with pauses, and without.
fn measure_changes(
    reconciler: Reconciler<dsproxy::maps::kernel::KernelMaps>,
    progress: &Progress,
    services: u32,
    endpoints: u32,
) -> Result<[Changes; 2], BenchError> {
    let (sender, receiver) = mpsc::channel(16);
    let (_same_for_ever, addresses) = watch::channel(NodeAddresses::default());
    let runtime = runtime::Builder::new_current_thread().enable_time().build().map_err(BenchError::Thread)?;
    let task = thread::Builder::new()
        .name("reconciler".to_owned())
        .spawn(move || runtime.block_on(reconciler.run(receiver, addresses)))
        .map_err(BenchError::Thread)?;
    let mut measured = [Changes::default(), Changes::default()];
    for ((changes, pause), revision) in measured.iter_mut().zip([PAUSE, Duration::ZERO]).zip(1..) {
        let before = processor_time_of_others()?;
        for change in 0..CHANGES {
            let number = change * (services / CHANGES).max(1) % services;
            let event = Event::EndpointSlices(Delta::Apply(slice(IpFamily::V6, number, endpoints, revision)));
            thread::sleep(pause);
            let (writes, _) = progress.totals();
            let passes = progress.passes();
            let started = Instant::now();
            sender.blocking_send(event).map_err(|_| BenchError::ReconcilerEnded)?;
            while progress.passes() == passes {
                if task.is_finished() {
                    return Err(BenchError::ReconcilerEnded);
                }
                thread::sleep(Duration::from_micros(20));
            }
            changes.milliseconds.push(started.elapsed().as_secs_f64() * 1e3);
            let (after, _) = progress.totals();
            // At the least: the new endpoint, the slots, the frontend, and the old endpoint.
            if after < writes + 4 {
                return Err(BenchError::Incomplete { what: "writes", found: (after - writes) as usize, wanted: 4 });
            }
        }
        changes.processor_time = (processor_time_of_others()? - before) * 1e3 / f64::from(CHANGES);
    }
    drop(sender);
    task.join().map_err(|_| BenchError::ReconcilerEnded)?;
    Ok(measured)
}

/// Processor time, in seconds, of this process, the kernel's work for it included.
pub(super) fn processor_time() -> Result<f64, BenchError> {
    let time = clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_err(BenchError::ProcessorTime)?;
    Ok(Duration::from(time).as_secs_f64())
}

/// Processor time, in seconds, of this process without the calling thread, which does nothing but wait for the others.
fn processor_time_of_others() -> Result<f64, BenchError> {
    let own = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_err(BenchError::ProcessorTime)?;
    Ok(processor_time()? - Duration::from(own).as_secs_f64())
}

/// All Services and their slices.
pub(super) fn list(services: u32, endpoints: u32) -> (Vec<Service>, Vec<EndpointSlice>) {
    let slices = (0..services).flat_map(|number| IpFamily::ALL.map(|family| slice(family, number, endpoints, 0)));
    ((0..services).map(service).collect(), slices.collect())
}

pub(super) fn name(number: u32) -> ObjectName {
    ObjectName::new("bench", &format!("service-{number}"))
}

fn service(number: u32) -> Service {
    Service {
        name: name(number),
        cluster_ips: IpFamily::ALL.map(|family| background_vip(family, number)).to_vec(),
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: PORT, node_port: None }],
        ..Service::default()
    }
}

/// The slice of one Service and family; a later `revision` has as many new endpoints in place of old ones.
fn slice(family: IpFamily, number: u32, endpoints: u32, revision: u32) -> EndpointSlice {
    let address = |index: u32| -> IpAddr { endpoint(family, number * 64 + index).ip() };
    EndpointSlice {
        name: ObjectName::new("bench", &format!("service-{number}-{family}")),
        service: name(number),
        family,
        ports: vec![SlicePort { name: "http".into(), protocol: Protocol::Tcp, port: TARGET_PORT }],
        endpoints: (revision..revision + endpoints).map(|index| Endpoint::new(address(index))).collect(),
        triggered: None,
    }
}

/// Resident memory of this process, in MiB.
pub(super) fn resident() -> Result<f64, BenchError> {
    of_status("VmRSS:")
}

/// The most that it ever was.
fn resident_at_most() -> Result<f64, BenchError> {
    of_status("VmHWM:")
}

fn of_status(field: &str) -> Result<f64, BenchError> {
    let path = "/proc/self/status";
    let status = fs::read_to_string(path).map_err(|source| BenchError::Machine { path: path.into(), source })?;
    Ok(field_of_status(&status, field))
}

/// A field of a process's `status`, in MiB.
pub(super) fn field_of_status(status: &str, field: &str) -> f64 {
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kibibytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kibibytes.unwrap_or(f64::NAN) / 1024.0
}

/// What the kernel says its maps that this process holds take: all of them, and the connection tables alone, in MiB.
fn map_memory() -> Result<(f64, f64), BenchError> {
    let directory = "/proc/self/fdinfo";
    let failed = |source| BenchError::Machine { path: directory.into(), source };
    let (mut all, mut connections) = (0.0, 0.0);
    for entry in fs::read_dir(directory).map_err(failed)? {
        // The descriptor of this very listing is among them, and is gone when it is read.
        let Ok(text) = fs::read_to_string(entry.map_err(failed)?.path()) else { continue };
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":"));
            line.and_then(|line| line.trim().parse::<u32>().ok())
        };
        if let (Some(kind), Some(bytes)) = (field("map_type"), field("memlock")) {
            let mebibytes = f64::from(bytes) / (1024.0 * 1024.0);
            all += mebibytes;
            /// `BPF_MAP_TYPE_LRU_HASH`.
            const LRU_HASH: u32 = 9;
            if kind == LRU_HASH {
                connections += mebibytes;
            }
        }
    }
    Ok((all, connections))
}

/// What the benchmark's own command `what` prints, in a fresh process.
pub(super) fn child<T: DeserializeOwned>(what: &str, services: u32, endpoints: u32) -> Result<T, BenchError> {
    let mut command = Command::new(env::current_exe().map_err(BenchError::Thread)?);
    command.args([what, "--services", &services.to_string(), "--endpoints", &endpoints.to_string()]);
    let failed = |command: &Command, reason: String| BenchError::Child { command: format!("{command:?}"), reason };
    let output = command.output().map_err(|error| failed(&command, error.to_string()))?;
    if !output.status.success() {
        return Err(failed(&command, String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(&command, error.to_string()))
}

/// Runs `cold_start` in `processes` fresh processes, one after the other.
///
/// # Errors
///
/// When one of them fails.
pub fn measure_control_plane(services: u32, endpoints: u32, processes: u32) -> Result<Vec<Figure>, BenchError> {
    let mut runs: Vec<ColdStart> = Vec::new();
    for _ in 0..processes {
        runs.push(child("cold-start", services, endpoints)?);
    }
    let what = format!("the reconciler alone, {services} Services x {endpoints} endpoints, both families");
    let figure = |name: &str, unit, value: &dyn Fn(&ColdStart) -> f64| {
        Figure::of_samples(format!("{what}: {name}"), unit, runs.iter().map(value))
            .at("part", PART)
            .at("services", services)
            .at("what", name)
    };
    let mut figures = vec![
        figure("empty maps into the kernel", "s", &|run| run.open_seconds),
        figure("from there until the programs are loaded", "s", &|run| run.verify_seconds),
        figure("meanwhile, from the events to the last write", "s", &|run| run.write_seconds),
        figure("cold start, all of it", "s", &|run| run.open_seconds + run.verify_seconds.max(run.write_seconds)),
        figure("processor time of a cold start", "s", &|run| run.processor_seconds),
        figure("resident memory", "MiB", &|run| run.resident_after),
        figure("resident memory at its most", "MiB", &|run| run.resident_peak),
        figure("resident memory before, the objects themselves", "MiB", &|run| run.resident_before),
        figure("maps in the kernel", "MiB", &|run| run.map_memory),
        figure("maps of connections among them", "MiB", &|run| run.connection_memory),
    ];
    type Kind = fn(&ColdStart) -> &Changes;
    let kinds: [(&str, Kind); 2] = [("spaced", |run| &run.spaced), ("back to back", |run| &run.back_to_back)];
    for (kind, changes) in kinds {
        let share =
            |share| move |run: &ColdStart| Sorted::new(changes(run).milliseconds.iter().copied()).quantile(share);
        figures.extend([
            figure(&format!("one endpoint change to its last write, {kind}, p50"), "ms", &share(0.5)),
            figure(&format!("one endpoint change to its last write, {kind}, p99"), "ms", &share(0.99)),
            figure(&format!("processor time of one endpoint change, {kind}"), "ms", &|run| changes(run).processor_time),
        ]);
    }
    Ok(figures)
}
