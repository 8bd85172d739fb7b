//! What a cluster takes of the daemon itself: its process, in a lab, told by the tests' API server, and seen by a client.
//!
//! API server, client and backends share the machine's processors with it, and a list has to be made before it can be read: what they
//! take meanwhile is a figure too.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use dsproxy::maps::Capacities;
use dsproxy_common::{IpFamily, Protocol};
use nix::{
    time::{clock_getcpuclockid, clock_gettime},
    unistd::Pid,
};

use super::{
    BenchError, Figure,
    control_plane::{field_of_status, list, processor_time},
    services::{PORT, TARGET_PORT},
    start::{service_json, slice_json},
    statistics::Sorted,
    traffic::wait_until_served,
};
use crate::{
    lab::{
        Daemon, DaemonOptions, DualStack, EchoServer, Lab, LabError, Pod, ServiceManifest, Side, TcpSession,
        UdpSession, Wiring,
    },
    soak::plane::{NAMESPACE, Plane},
};

/// The name of the part, by which plots and tables find these figures.
pub(super) const PART: &str = "daemon";

/// The Service that is served last: the daemon takes them in the order of their names.
const LAST: &str = "last";

/// Its ClusterIPs, which no other has.
const VIP: DualStack = DualStack {
    v4: std::net::Ipv4Addr::new(10, 111, 0, 1),
    v6: std::net::Ipv6Addr::new(0xfd00, 0x111, 0, 0, 0, 0, 0, 1),
};

/// Its endpoints, of which there is one at a time.
const ENDPOINTS: [&str; 2] = ["one", "other"];

/// How many endpoint changes are timed, the families in turn.
const CHANGES: usize = 100;

/// Before each of those that are not to come back to back.
const PAUSE: Duration = Duration::from_millis(20);

/// How long a client waits for one answer. What is served answers in a fraction of it.
const ANSWER: Duration = Duration::from_millis(50);

/// Between a client's attempts while nothing is served: the daemon has the processors meanwhile.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(5);

/// How long a start or a change may take at all: without optimisation, and on a machine that is busy, everything takes many times as long.
const PATIENCE: Duration = Duration::from_secs(900);

/// What the daemon should take at most.
#[derive(Clone, Copy, Debug)]
pub struct DaemonAims {
    /// From its start to the last Service, in seconds.
    pub cold_start: f64,
    /// Resident memory, in MiB.
    pub resident: f64,
}

impl DaemonAims {
    /// With 10,000 Services with 10 endpoints.
    pub const LARGE: Self = Self { cold_start: 2.0, resident: 150.0 };
    /// With 50,000 Services with 10 endpoints.
    pub const LARGEST: Self = Self { cold_start: 10.0, resident: 500.0 };
}

/// The p99 of one change to its effect, in milliseconds, should be no more.
const CHANGE_AIM: f64 = 20.0;

/// Nor its processor time, in milliseconds.
const CHANGE_PROCESSOR_TIME_AIM: f64 = 2.0;

/// What one process took.
#[derive(Clone, Debug)]
struct Run {
    /// From its start until the last Service was served, in seconds.
    start: f64,
    /// Its processor time until then, in seconds.
    start_processor_time: f64,
    /// That of this process, which is API server and client, in seconds.
    others: f64,
    /// Resident memory then, in MiB.
    resident: f64,
    /// The most that it ever was, changes included, in MiB.
    peak: f64,
    /// Changes with a pause before each.
    spaced: Changes,
    /// Changes, each as soon as the one before has its effect.
    back_to_back: Changes,
}

/// What single changes took.
#[derive(Clone, Debug, Default)]
struct Changes {
    /// From the API server to the first answer of the new endpoint, in milliseconds.
    milliseconds: Vec<f64>,
    /// The daemon's processor time for each, on average, in milliseconds.
    processor_time: f64,
}

/// A lab with an API server that knows all Services.
struct Site<'lab> {
    lab: &'lab Lab,
    plane: Plane,
    client: Pod,
    backends: [Pod; 2],
    /// Of `ENDPOINTS`.
    _servers: Vec<EchoServer>,
    services: u32,
    /// Arguments of the daemon.
    sizes: Vec<String>,
}

/// Starts the daemon `starts` times, each time with nothing of it in the kernel, and changes endpoints.
///
/// # Errors
///
/// When the lab or the daemon fails, or something is not served in time.
pub fn measure_daemon(
    services: u32,
    endpoints: u32,
    starts: u32,
    aims: DaemonAims,
    mut progress: impl FnMut(&str),
) -> Result<Vec<Figure>, BenchError> {
    let lab = Lab::new()?;
    let site = Site::build(&lab, services, endpoints)?;
    let mut runs = Vec::new();
    for start in 1..=starts {
        progress(&format!("the daemon with {services} Services, start {start} of {starts}"));
        runs.push(site.run()?);
    }
    Ok(figures(&runs, services, endpoints, aims))
}

impl<'lab> Site<'lab> {
    fn build(lab: &'lab Lab, services: u32, endpoints: u32) -> Result<Self, BenchError> {
        let plane = Plane::start(lab.node(Side::A).namespace()).map_err(BenchError::ApiServer)?;
        let pod = |role| lab.add_pod(Side::A, Wiring::Routed, role);
        let (client, backends) = (pod("client")?, [pod(ENDPOINTS[0])?, pod(ENDPOINTS[1])?]);
        let servers = backends.iter().zip(ENDPOINTS).map(|(pod, name)| EchoServer::start(pod, TARGET_PORT, name));
        let servers = servers.collect::<Result<Vec<_>, _>>()?;
        let (objects, slices) = list(services - 1, endpoints);
        plane.put_all(objects.iter().map(service_json));
        for some in slices.chunks(1000) {
            plane.put_all(some.iter().map(slice_json));
            // Its history holds every object once more.
            plane.compact();
        }
        Ok(Self { lab, plane, client, backends, _servers: servers, services, sizes: sizes(services, endpoints) })
    }

    /// One life of the daemon.
    fn run(&self) -> Result<Run, BenchError> {
        self.plane.apply(&self.last(0)).map_err(BenchError::ApiServer)?;
        self.plane.compact();
        let options = DaemonOptions { arguments: self.sizes.clone(), ..DaemonOptions::default() };
        let mut daemon = Daemon::by_kubeconfig(self.lab, self.plane.kubeconfig(), options)?;
        let others = processor_time()?;
        let started = Instant::now();
        daemon.start_unwatched()?;
        self.await_service(&daemon, started)?;
        let start = started.elapsed().as_secs_f64();
        let others = processor_time()? - others;
        let id = daemon.id().ok_or_else(|| failure(&daemon, "has ended"))?;
        let (start_processor_time, resident) = (processor_time_of(id)?, memory_of(id, "VmRSS:")?);
        // Those in the middle, one port each; the last, which has two; and the API server's own, which has one family.
        let ports = 2 * (self.services - 1) + 4 + 1;
        wait_until_served(&daemon, ports as usize)?;
        let spaced = self.change(id, PAUSE)?;
        let back_to_back = self.change(id, Duration::ZERO)?;
        let peak = memory_of(id, "VmHWM:")?;
        daemon.terminate()?;
        let cleaned = daemon.command(&["cleanup"])?;
        if !cleaned.status.success() {
            let why = String::from_utf8_lossy(&cleaned.stderr).into_owned();
            return Err(failure(&daemon, &format!("cleanup failed: {why}")));
        }
        Ok(Run { start, start_processor_time, others, resident, peak, spaced, back_to_back })
    }

    /// The last Service, with the endpoint of this place.
    fn last(&self, place: usize) -> ServiceManifest {
        let endpoint = self.backends.get(place).map(Pod::addresses);
        ServiceManifest::new(NAMESPACE, LAST)
            .dual_stack(VIP)
            .port(Protocol::Tcp, PORT, TARGET_PORT)
            .port(Protocol::Udp, PORT, TARGET_PORT)
            .backends(endpoint)
    }

    /// Waits until the last Service takes connections in both families, and the daemon has everything in its maps.
    fn await_service(&self, daemon: &Daemon<'_>, started: Instant) -> Result<(), BenchError> {
        let patient = |what: &str, attempt: &dyn Fn() -> Result<(), String>| -> Result<(), BenchError> {
            while let Err(last) = attempt() {
                if started.elapsed() > PATIENCE {
                    return Err(failure(daemon, &format!("after {PATIENCE:?}, {what}: {last}")));
                }
                thread::sleep(BETWEEN_ATTEMPTS);
            }
            Ok(())
        };
        self.client.namespace().run(|| {
            IpFamily::ALL.into_iter().try_for_each(|family| {
                let connect = || TcpSession::open_here_within(VIP.socket(family, PORT), ANSWER);
                patient("the last Service", &|| connect().map(drop).map_err(|error| error.to_string()))
            })
        })??;
        // It says so when the maps hold everything that was listed; its metrics would cost it more than that.
        patient("all Services", &|| match daemon.health() {
            Ok(answer) if answer.status == 200 => Ok(()),
            Ok(answer) => Err(answer.body),
            Err(error) => Err(error.to_string()),
        })
    }

    /// Changes the endpoint of one family after the other, and waits each time until a client meets the new one.
    fn change(&self, id: u32, pause: Duration) -> Result<Changes, BenchError> {
        // By family and place.
        let slice = |family, place| self.slice(family, place);
        let slices =
            [slice(IpFamily::V4, 0)?, slice(IpFamily::V4, 1)?, slice(IpFamily::V6, 0)?, slice(IpFamily::V6, 1)?];
        let plane = &self.plane;
        let before = processor_time_of(id)?;
        let milliseconds = self.client.namespace().run(|| {
            let one = |change: usize| {
                let (family, place) = (change % 2, (change / 2 + 1) % 2);
                let object = slices[2 * family + place].clone();
                thread::sleep(pause);
                let changed = Instant::now();
                plane.put_all([object]);
                await_answer(IpFamily::ALL[family], ENDPOINTS[place], changed)?;
                Ok::<_, BenchError>(changed.elapsed().as_secs_f64() * 1e3)
            };
            (0..CHANGES).map(one).collect::<Result<Vec<_>, _>>()
        })??;
        let processor_time = (processor_time_of(id)? - before) * 1e3 / CHANGES as f64;
        Ok(Changes { milliseconds, processor_time })
    }

    /// The EndpointSlice of one family.
    fn slice(&self, family: IpFamily, place: usize) -> Result<serde_json::Value, BenchError> {
        let objects = self.last(place).objects().map_err(BenchError::Json)?;
        let family = family.to_string();
        let slice = objects.into_iter().find(|object| object["addressType"].as_str() == Some(&family));
        slice.ok_or(BenchError::Missing { name: "EndpointSlice of the last Service" })
    }
}

/// Has a new socket ask, again and again, until this endpoint answers.
fn await_answer(family: IpFamily, endpoint: &str, changed: Instant) -> Result<(), BenchError> {
    loop {
        let asked = UdpSession::open_here(VIP.socket(family, PORT), true)
            .and_then(|session| session.with_patience(ANSWER)?.ask());
        let last = match asked {
            Ok(answered) if answered == endpoint => return Ok(()),
            Ok(answered) => format!("{answered} answered"),
            Err(error) => error.to_string(),
        };
        if changed.elapsed() > PATIENCE {
            let what = format!("{endpoint} is to answer, {family}");
            return Err(LabError::TimedOut { what, within: PATIENCE, last }.into());
        }
    }
}

fn failure(daemon: &Daemon<'_>, what: &str) -> BenchError {
    LabError::Daemon { what: what.to_owned(), log: daemon.end_of_log() }.into()
}

/// What an operator of a cluster that large would set, where it is more than what the daemon takes by itself. A change has some more for a
/// moment.
fn sizes(services: u32, endpoints: u32) -> Vec<String> {
    let default = Capacities::default();
    let backends = services * (endpoints + 1);
    [
        ("--max-services", default.services, services + services / 10),
        ("--max-frontends", default.frontends, services + services / 10),
        ("--max-backends", default.backends, backends),
        ("--max-slots", default.slots, 2 * backends),
    ]
    .into_iter()
    .filter(|(_, default, wanted)| wanted > default)
    .flat_map(|(flag, _, wanted)| [flag.to_owned(), wanted.to_string()])
    .collect()
}

/// Processor time of a process, in seconds.
fn processor_time_of(id: u32) -> Result<f64, BenchError> {
    let clock = clock_getcpuclockid(Pid::from_raw(id.cast_signed())).map_err(BenchError::ProcessorTime)?;
    let time = clock_gettime(clock).map_err(BenchError::ProcessorTime)?;
    Ok(Duration::from(time).as_secs_f64())
}

/// Memory of a process, in MiB.
fn memory_of(id: u32, field: &str) -> Result<f64, BenchError> {
    let path = format!("/proc/{id}/status");
    let status = fs::read_to_string(&path).map_err(|source| BenchError::Machine { path: path.into(), source })?;
    Ok(field_of_status(&status, field))
}

fn figures(runs: &[Run], services: u32, endpoints: u32, aims: DaemonAims) -> Vec<Figure> {
    let title = format!("the daemon, {services} Services x {endpoints} endpoints, both families");
    let figure = |what: &str, unit, value: &dyn Fn(&Run) -> f64| {
        Figure::of_samples(format!("{title}: {what}"), unit, runs.iter().map(value))
            .at("part", PART)
            .at("services", services)
            .at("what", what)
    };
    let mut figures = vec![
        figure("cold start, to connections through the last Service", "s", &|run| run.start)
            .median_at_most(aims.cold_start),
        figure("its processor time until then", "s", &|run| run.start_processor_time),
        figure("that of API server and client meanwhile", "s", &|run| run.others),
        figure("resident memory", "MiB", &|run| run.resident).median_at_most(aims.resident),
        figure("resident memory at its most", "MiB", &|run| run.peak).median_at_most(aims.resident),
    ];
    type Kind = fn(&Run) -> &Changes;
    let kinds: [(&str, Kind); 2] = [("spaced", |run| &run.spaced), ("back to back", |run| &run.back_to_back)];
    for (kind, changes) in kinds {
        let quantile = |share| move |run: &Run| Sorted::new(changes(run).milliseconds.iter().copied()).quantile(share);
        figures.extend([
            figure(&format!("one endpoint change to its first answer, {kind}, p50"), "ms", &quantile(0.5)),
            figure(&format!("one endpoint change to its first answer, {kind}, p99"), "ms", &quantile(0.99))
                .median_at_most(CHANGE_AIM),
            figure(&format!("its processor time for one endpoint change, {kind}"), "ms", &|run| {
                changes(run).processor_time
            })
            .median_at_most(CHANGE_PROCESSOR_TIME_AIM),
        ]);
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_more_than_the_daemon_takes_by_itself_is_set() {
        assert!(sizes(10_000, 10).is_empty());
        assert_eq!(sizes(50_000, 10), ["--max-backends", "550000", "--max-slots", "1100000"]);
    }
}
