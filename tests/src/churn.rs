//! Many Services, of which some change all the time: whether the daemon keeps up, and what it takes for it.
//!
//! Everything goes the whole way: from an API server through the daemon into the kernel, where a client finds what is new.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use dsproxy_common::{IpFamily, Protocol};

use crate::{
    lab::{
        Daemon, DaemonOptions, DualStack, EchoServer, Lab, Pod, ServiceManifest, Side, TcpSession, Wiring, eventually,
    },
    soak::plane::{NAMESPACE, Plane},
};

/// The port of the VIPs, and that of the backends.
const PORT: u16 = 80;
const TARGET: u16 = 8080;

/// The VIPs of the Services, and of those by which it is seen how far the daemon has come.
const FIRST: u16 = 1000;
const FIRST_MARKER: u16 = 60_000;

/// How long is waited for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// By how much markers of the second half may be later than those of the first in the soak, which is long enough for a backlog to show.
pub const LATER: Duration = Duration::from_millis(250);
/// How long a marker of the second half may take there.
pub const LAG: Duration = Duration::from_secs(1);

/// What the daemon's memory may grow by from the middle to the end, in KiB.
const GROWTH: u64 = 4 * 1024;

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Churn {
    /// How many Services there are, each with two endpoints of each family.
    pub services: u16,
    /// How many changes there are a second.
    pub rate: u32,
    /// How long it goes on.
    pub length: Duration,
}

/// How it went.
#[derive(Clone, Debug)]
pub struct Churned {
    /// From the start of the daemon until everything was served.
    pub started_in: Duration,
    /// How many changes there were.
    pub changes: u64,
    /// How long each marker took from the API server to the client; there is one a second.
    pub lags: Vec<Duration>,
    /// The daemon's memory after each second, in KiB.
    pub memory: Vec<u64>,
    /// Changes that were not in the maps at the end.
    pub pending: f64,
}

impl Churned {
    /// Whether the daemon kept up, in memory that stays the same: no marker of the second half took longer than `lag`, nor by more than
    /// `later` than those of the first.
    ///
    /// # Errors
    ///
    /// When not, with what is wrong.
    pub fn judge(&self, lag: Duration, later: Duration) -> anyhow::Result<()> {
        let half = self.lags.len() / 2;
        let worst = |lags: &[Duration]| lags.iter().max().copied().unwrap_or_default();
        let (first, last) = (worst(&self.lags[..half]), worst(&self.lags[half..]));
        ensure!(last <= lag, "changes came {last:?} late: {self:?}");
        ensure!(last <= first + later, "a backlog grows, from {first:?} to {last:?}: {self:?}");
        let half = self.memory.len() / 2;
        let [middle, end] = [self.memory.get(half), self.memory.last()].map(|kib| kib.copied().unwrap_or_default());
        ensure!(end <= middle + GROWTH, "memory grows, from {middle} to {end} KiB: {self:?}");
        ensure!(self.pending == 0.0, "{} changes are left: {self:?}", self.pending);
        Ok(())
    }
}

/// The Service of this number after so many changes: its endpoints are others each time, and now and then it has another port.
fn service(number: u16, changes: u64) -> ServiceManifest {
    let endpoint = |of: u64| {
        let host = number * 4 + of as u16;
        let [high, low] = host.to_be_bytes();
        DualStack { v4: [10, 250, high, low].into(), v6: [0xfd00, 0x10, 0x250, 0, 0, 0, 0, host].into() }
    };
    let service = ServiceManifest::new(NAMESPACE, &format!("unused-{number}"))
        .dual_stack(DualStack::cluster_ip(FIRST + number))
        .port(Protocol::Tcp, PORT, TARGET)
        .backends([changes, changes + 1].map(|of| endpoint(of % 4)));
    if changes % 10 == 9 { service.port(Protocol::Udp, PORT, TARGET) } else { service }
}

fn marker(vip: DualStack, number: u16, backend: &Pod) -> ServiceManifest {
    ServiceManifest::new(NAMESPACE, &format!("marker-{number}"))
        .dual_stack(vip)
        .port(Protocol::Tcp, PORT, TARGET)
        .backends([backend.addresses()])
}

/// Does it in a lab of its own.
///
/// # Errors
///
/// When the lab fails, or the daemon does not serve at all.
pub fn run(churn: Churn) -> anyhow::Result<Churned> {
    let Churn { services, rate, length } = churn;
    let lab = Lab::new()?;
    let plane = Plane::start(lab.node(Side::A).namespace())?;
    let (client, backend) =
        (lab.add_pod(Side::A, Wiring::Routed, "client")?, lab.add_pod(Side::A, Wiring::Routed, "backend")?);
    let _server = EchoServer::start(&backend, TARGET, "backend")?;
    let first = DualStack::cluster_ip(FIRST_MARKER);
    for number in 0..services {
        plane.apply(&service(number, 0))?;
    }
    plane.apply(&marker(first, 0, &backend))?;
    plane.compact();
    let started = Instant::now();
    let options = DaemonOptions {
        // Their memory is not what this is about.
        arguments: ["--max-connections", "4096"].map(str::to_owned).into(),
        ..DaemonOptions::default()
    };
    let daemon = Daemon::start_by_kubeconfig(&lab, plane.kubeconfig(), options)?;
    is_reached(&client, first, started).context("the Services are served")?;
    let started_in = started.elapsed();

    let mut churned = Churned { started_in, changes: 0, lags: Vec::new(), memory: Vec::new(), pending: 0.0 };
    let begun = Instant::now();
    let mut vip = FIRST_MARKER;
    std::thread::scope(|scope| {
        let changing = scope.spawn(|| {
            let mut changes = 0;
            while begun.elapsed() < length {
                let due = begun + Duration::from_secs(1) / rate * u32::try_from(changes).unwrap_or(u32::MAX);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let turn = changes / u64::from(services);
                let number = u16::try_from(changes * 7919 % u64::from(services)).unwrap_or_default();
                if changes % 20 == 19 {
                    plane.delete(&format!("unused-{number}"));
                }
                plane.apply(&service(number, turn + changes % 10 + 1))?;
                changes += 1;
            }
            anyhow::Ok(changes)
        });
        while begun.elapsed() < length {
            vip += 1;
            let (address, made) = (DualStack::cluster_ip(vip), Instant::now());
            plane.apply(&marker(address, vip - FIRST_MARKER, &backend))?;
            churned.lags.push(is_reached(&client, address, made).context("a new Service in the churn")?);
            churned.memory.push(resident(&daemon)?);
            std::thread::sleep(Duration::from_secs(1).saturating_sub(made.elapsed()));
        }
        churned.changes = changing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        anyhow::Ok(())
    })?;
    // What came last is in the maps when a marker is that came after it.
    let (address, made) = (DualStack::cluster_ip(vip + 1), Instant::now());
    plane.apply(&marker(address, vip + 1 - FIRST_MARKER, &backend))?;
    churned.lags.push(is_reached(&client, address, made)?);
    churned.memory.push(resident(&daemon)?);
    let metrics = daemon.metrics()?.body;
    let sum = |name: &str| -> f64 {
        let values = metrics.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
        values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    churned.pending =
        ["service", "endpoint"].map(|of| sum(&format!("kubeproxy_sync_proxy_rules_{of}_changes_pending"))).iter().sum();
    let there = sum("dsproxy_services ");
    // And the API server's own.
    let wanted = f64::from(services) + f64::from(vip + 2 - FIRST_MARKER) + 1.0;
    ensure!((there - wanted).abs() < 0.5, "{there} Services are there instead of {wanted}");
    Ok(churned)
}

/// How long after `since` a client reached the VIP in both families.
fn is_reached(client: &Pod, vip: DualStack, since: Instant) -> anyhow::Result<Duration> {
    for family in IpFamily::ALL {
        let open = || {
            TcpSession::open_within(client.namespace(), vip.socket(family, PORT), Duration::from_millis(50)).map(drop)
        };
        eventually("the VIP", PATIENCE, open)?;
    }
    Ok(since.elapsed())
}

fn resident(daemon: &Daemon<'_>) -> anyhow::Result<u64> {
    let id = daemon.id().context("the daemon runs")?;
    let status = fs::read_to_string(format!("/proc/{id}/status")).context("read the daemon's memory")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("the daemon has memory")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
