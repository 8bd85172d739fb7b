//! What nobody serves: refused where the address is a Service's, silent where it is nobody's yet.

use std::time::{Duration, Instant};

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{DualStack, ExchangeError, Namespace, Side, TcpSession, UdpSession};

use crate::cluster::{Cluster, PORT, service, wait_until_answers};

const VIP: DualStack = DualStack::cluster_ip(1);

/// Longer than it takes to be refused, shorter than the second after which a SYN is sent again.
const AT_ONCE: Duration = Duration::from_millis(800);

/// What a client gets over TCP and over UDP.
fn failures(client: &Namespace, family: IpFamily, vip: DualStack, port: u16) -> [ExchangeError; 2] {
    let target = vip.socket(family, port);
    let tcp = TcpSession::open_within(client, target, AT_ONCE).expect_err("nobody serves it");
    let udp = UdpSession::open(client, target, true)
        .and_then(|socket| socket.with_patience(AT_ONCE))
        .and_then(|mut socket| socket.ask())
        .expect_err("nobody serves it");
    [tcp, udp]
}

#[test]
fn a_port_that_the_service_has_not_is_refused_at_once() {
    let cluster = Cluster::build();
    cluster.manifests.write_service_cidr().expect("the manifest is written");
    cluster.write(&service("echo", VIP, &[cluster.backend("local")]));
    let _daemon = cluster.start_daemon_on(Side::A, &[]);
    for pod in [&cluster.client, &cluster.bridged_client] {
        wait_until_answers(pod.namespace(), VIP, "local");
        for family in IpFamily::ALL {
            let started = Instant::now();
            for error in failures(pod.namespace(), family, VIP, PORT + 1) {
                assert!(error.is_refused(), "{family}: {error}");
            }
            assert!(started.elapsed() < AT_ONCE, "{family}: refused after {:?}", started.elapsed());
        }
    }
}

#[test]
fn an_address_that_no_service_has_is_silent() {
    let cluster = Cluster::build();
    cluster.manifests.write_service_cidr().expect("the manifest is written");
    cluster.write(&service("echo", VIP, &[cluster.backend("local")]));
    let _daemon = cluster.start_daemon_on(Side::A, &[]);
    for pod in [&cluster.client, &cluster.bridged_client] {
        wait_until_answers(pod.namespace(), VIP, "local");
        for family in IpFamily::ALL {
            // Without the daemon the next router tells that there is no way.
            for error in failures(pod.namespace(), family, DualStack::cluster_ip(99), PORT) {
                assert!(error.is_silence(), "{family}: {error}");
            }
        }
    }
}

#[test]
fn a_service_without_endpoints_is_refused_at_once() {
    let cluster = Cluster::build();
    let other = DualStack::cluster_ip(2);
    cluster.write(&service("empty", VIP, &[]));
    cluster.write(&service("echo", other, &[cluster.backend("local")]));
    let _daemon = cluster.start_daemon_on(Side::A, &[]);
    for pod in [&cluster.client, &cluster.bridged_client] {
        wait_until_answers(pod.namespace(), other, "local");
        for family in IpFamily::ALL {
            for error in failures(pod.namespace(), family, VIP, PORT) {
                assert!(error.is_refused(), "{family}: {error}");
            }
        }
    }
}
