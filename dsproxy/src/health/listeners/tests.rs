//! Real sockets, at ports of the loopback addresses that the kernel gives out.

use std::{net::Ipv4Addr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{sleep, timeout},
};

use super::*;
use crate::{
    model::IpFamily,
    progress::{Progress, Snapshot},
    resolve::HealthCheck,
    source::SourceStatus,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// The task, and what it goes by.
struct Running {
    checks: watch::Sender<HealthChecks>,
    addresses: watch::Sender<BTreeSet<IpAddr>>,
    report: Arc<Report>,
}

fn loopback() -> [IpAddr; 2] {
    [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
}

fn start(everywhere: bool) -> Running {
    let progress = Arc::new(Progress::default());
    progress.publish(Snapshot { synced: true, ..Snapshot::default() }, std::time::Instant::now(), Duration::ZERO);
    let checks = watch::Sender::default();
    let addresses = watch::Sender::new(loopback().into());
    let places = if everywhere { Places::All } else { Places::These(addresses.subscribe()) };
    let report = Arc::new(Report::default());
    tokio::spawn(follow(
        Health::new(progress, SourceStatus::new(), Arc::default()),
        checks.subscribe(),
        places,
        Arc::clone(&report),
    ));
    Running { checks, addresses, report }
}

impl Running {
    fn put(&self, service: &str, port: u16, count: usize) {
        let local_endpoints = IpFamily::ALL.map(|family| (family, count)).into();
        self.checks.send_modify(|checks| {
            checks.insert(ObjectName::new("default", service), HealthCheck { port, local_endpoints });
        });
    }

    fn remove(&self, service: &str) {
        self.checks.send_modify(|checks| {
            checks.remove(&ObjectName::new("default", service));
        });
    }
}

/// A port that is free in both families, for all that is known.
async fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).await.expect("a port");
    listener.local_addr().expect("an address").port()
}

async fn ask(address: IpAddr, port: u16, request: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect((address, port)).await.ok()?;
    let request = format!("{request} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    let status = text.split(' ').nth(1)?.parse().ok()?;
    Some((status, text))
}

async fn eventually<F: Future<Output = bool>>(what: &str, holds: impl Fn() -> F) {
    let wait = async {
        while !holds().await {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}"));
}

async fn answers(address: IpAddr, port: u16, status: u16) -> bool {
    ask(address, port, "GET /").await.is_some_and(|(answered, _)| answered == status)
}

#[tokio::test]
async fn both_families_any_path_and_method_from_one_socket() {
    let (running, port) = (start(true), free_port().await);
    running.put("web", port, 2);
    for address in loopback() {
        eventually("it answers", || answers(address, port, 200)).await;
        for request in ["GET /healthz?x=1", "POST /", "DELETE /any/path", "OPTIONS *"] {
            let (status, text) = ask(address, port, request).await.expect("an answer");
            assert_eq!(status, 200, "{request}");
            assert!(text.ends_with(
                r#"{"service":{"namespace":"default","name":"web"},"localEndpoints":2,"serviceProxyHealthy":true}"#
            ));
        }
    }
    // With the very next request.
    running.put("web", port, 0);
    assert!(answers(loopback()[0], port, 503).await);
    running.put("web", port, 1);
    assert!(answers(loopback()[1], port, 200).await);
}

#[tokio::test]
async fn a_service_that_goes_takes_its_port_and_idle_connections_along() {
    let (running, port) = (start(true), free_port().await);
    let [address, _] = loopback();
    running.put("web", port, 1);
    eventually("it answers", || answers(address, port, 200)).await;
    let mut idle = TcpStream::connect((address, port)).await.expect("connected");
    idle.write_all(b"GET / HTTP/1.1\r\nHost: node\r\n\r\n").await.expect("asked");
    let mut answer = [0; 8];
    idle.read_exact(&mut answer).await.expect("answered");
    running.remove("web");
    let refused = || async { TcpStream::connect((address, port)).await.is_err() };
    eventually("it is closed", refused).await;
    let mut rest = Vec::new();
    timeout(PATIENCE, idle.read_to_end(&mut rest)).await.expect("it ends").expect("in good order");
    running.put("web", port, 1);
    eventually("it answers again", || answers(address, port, 200)).await;
}

#[tokio::test]
async fn addresses_are_followed() {
    let (running, port) = (start(false), free_port().await);
    let [v4, v6] = loopback();
    let closed = |address: IpAddr| async move { TcpStream::connect((address, port)).await.is_err() };
    running.put("web", port, 1);
    for address in loopback() {
        eventually("it answers", || answers(address, port, 200)).await;
    }
    running.addresses.send_replace([v6].into());
    eventually("it is closed", || closed(v4)).await;
    assert!(answers(v6, port, 200).await);
    running.addresses.send_replace([v4].into());
    eventually("it answers", || answers(v4, port, 200)).await;
    eventually("it is closed", || closed(v6)).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_tried_again() {
    let running = start(true);
    let taken = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).await.expect("a port");
    let (port, other) = (taken.local_addr().expect("an address").port(), free_port().await);
    running.put("web", port, 1);
    running.put("other", other, 1);
    let [address, _] = loopback();
    eventually("the other is not held up", || answers(address, other, 200)).await;
    let (failing, failures) = running.report.failures();
    assert!(failing == 1 && failures >= 1, "{failing} {failures}");
    drop(taken);
    eventually("it answers", || answers(address, port, 200)).await;
    eventually("it is told", || async { running.report.failures().0 == 0 }).await;
}

#[tokio::test]
async fn one_of_two_services_with_one_port_has_it() {
    let (running, port) = (start(true), free_port().await);
    let [address, _] = loopback();
    running.put("b", port, 0);
    eventually("it answers", || answers(address, port, 503)).await;
    assert_eq!(running.report.conflicts(), 0);
    running.put("a", port, 1);
    eventually("it is told", || async { running.report.conflicts() == 1 }).await;
    assert!(answers(address, port, 200).await, "the first by name");
    running.remove("a");
    eventually("it is told", || async { running.report.conflicts() == 0 }).await;
    assert!(answers(address, port, 503).await);
}
