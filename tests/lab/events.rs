//! `dsproxy events` tells of packets as they come, and of those alone that are asked for.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use dsproxy::datapath::{bpffs::Bpffs, load};
use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{Daemon, DualStack, TcpSession, eventually};
use serde_json::Value;

use crate::cluster::{Cluster, PORT, SOON, TARGET, service, wait_until_answers};

/// How long what is listened for may take to come: it happens again and again.
const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster's daemon that serves two Services with the backend "local".
fn serve(cluster: &Cluster) -> (Daemon<'_>, [DualStack; 2]) {
    let vips = [1, 2].map(DualStack::cluster_ip);
    for (name, vip) in ["echo", "other"].into_iter().zip(vips) {
        cluster.write(&service(name, vip, &[cluster.backend("local")]));
    }
    let daemon = cluster.start_daemon();
    for vip in vips {
        wait_until_answers(cluster.client.namespace(), vip, "local");
    }
    (daemon, vips)
}

/// The filter that the programs go by.
fn until(daemon: &Daemon<'_>) -> u32 {
    let bpffs = Bpffs::existing(daemon.bpffs()).expect("a bpffs").expect("pins");
    load::open_pinned_events(&bpffs).expect("maps").filter().expect("a filter").until
}

#[track_caller]
fn with<'e>(events: &'e [Value], reason: &str) -> &'e Value {
    let found = events.iter().find(|event| event["reason"] == reason);
    found.unwrap_or_else(|| panic!("none is {reason}: {events:#?}"))
}

#[test]
fn a_connection_is_told_packet_by_packet_and_no_other() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let (daemon, vips) = serve(&cluster);
    for family in IpFamily::ALL {
        let [vip, other] = vips.map(|vip| vip.socket(family, PORT));
        let backend = cluster.backend("local").socket(family, TARGET);
        let listener = daemon.listen(&["--service", "default/echo", "--count", "20"]).expect("it starts");
        let heard = listener
            .hear(PATIENCE, || {
                for target in [vip, other] {
                    TcpSession::open(client, target)
                        .and_then(|mut session| session.exchange(b"hello"))
                        .expect("served");
                }
            })
            .expect("it hears enough");
        assert!(heard.status.success() && heard.errors.is_empty(), "{heard:?}");
        assert_eq!(heard.events.len(), 20);
        for event in &heard.events {
            assert!(event["name"].as_str().is_some_and(|name| name.contains("default/echo")), "{event}");
            assert_eq!(event["protocol"], "TCP", "{event}");
        }
        let opened = with(&heard.events, "opened");
        assert_eq!(opened["before"]["destination"], vip.to_string(), "{opened}");
        assert_eq!(opened["after"]["destination"], backend.to_string(), "{opened}");
        assert_eq!(opened["hook"], "pod-ingress", "{opened}");
        assert_eq!(opened["device"], cluster.client.host_interface(), "{opened}");
        let replied = with(&heard.events, "replied");
        assert_eq!(replied["before"]["source"], backend.to_string(), "{replied}");
        assert_eq!(replied["after"]["source"], vip.to_string(), "{replied}");
        with(&heard.events, "forwarded");
    }
}

#[test]
fn what_is_dropped_is_told_with_the_reason() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let (daemon, [vip, _]) = serve(&cluster);
    for family in IpFamily::ALL {
        let served = vip.socket(family, PORT);
        let not_served = vip.socket(family, PORT + 1);
        let listener = daemon.listen(&["--drops", "--count", "2"]).expect("it starts");
        let heard = listener
            .hear(PATIENCE, || {
                TcpSession::open(client, served).expect("served");
                TcpSession::open(client, not_served).expect_err("no such port");
            })
            .expect("it hears enough");
        assert!(heard.status.success() && heard.events.len() == 2, "{heard:?}");
        for event in &heard.events {
            assert_eq!((&event["reason"], &event["dropped"]), (&"no-port".into(), &true.into()), "{event}");
            assert_eq!(event["before"]["destination"], not_served.to_string(), "{event}");
            assert_eq!(event["after"], Value::Null, "{event}");
        }
    }
}

/// A program that is still attached must not end in one that was loaded since, which knows nothing of its packets.
#[test]
fn while_the_daemon_starts_anew_packets_that_are_listened_to_become_what_they_should() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let (mut daemon, [vip, _]) = serve(&cluster);
    let listener = daemon.listen(&[]).expect("it starts");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let rounds: Vec<_> = IpFamily::ALL
            .into_iter()
            .map(|family| {
                let (is_over, served, not_served) = (&is_over, vip.socket(family, PORT), vip.socket(family, PORT + 1));
                scope.spawn(move || {
                    let mut rounds = 0;
                    while !is_over.load(Ordering::Relaxed) {
                        TcpSession::open(client, served)
                            .and_then(|mut session| session.exchange(b"hello"))
                            .expect("served");
                        let asked = Instant::now();
                        TcpSession::open(client, not_served).expect_err("no such port");
                        // An answer that did not come back would be waited for.
                        assert!(asked.elapsed() < Duration::from_millis(900), "{not_served}: {:?}", asked.elapsed());
                        rounds += 1;
                        // No faster than refusals may be sent.
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    rounds
                })
            })
            .collect();
        for _ in 0..3 {
            daemon.kill().expect("it ends");
            daemon.start_again().expect("it starts again");
        }
        is_over.store(true, Ordering::Relaxed);
        for rounds in rounds {
            assert!(rounds.join().expect("every packet became what it should") > 10);
        }
    });
    // It does not wait for whoever reads, which is nobody here.
    let heard = listener.terminate().expect("it ends");
    assert!(heard.status.success(), "{heard:?}");
}

#[test]
fn one_listens_at_a_time_and_with_its_end_nobody_does() {
    let cluster = Cluster::build();
    let (mut daemon, [vip, _]) = serve(&cluster);
    assert_eq!(until(&daemon), 0, "nobody listens");
    let listens = |daemon: &Daemon<'_>| {
        eventually("waiting for the listener", SOON, || if until(daemon) == 0 { Err("not yet") } else { Ok(()) })
            .expect("it asks");
    };
    let first = daemon.listen(&["--reason", "not-ip"]).expect("it starts");
    listens(&daemon);
    let second = daemon.listen(&[]).expect("it starts").hear(SOON, || ()).expect("it ends");
    assert!(!second.status.success() && second.errors.contains("another `dsproxy events` listens"), "{second:?}");
    // A restart of the daemon is not noticed.
    daemon.kill().expect("it ends");
    daemon.start_again().expect("it starts again");
    assert_ne!(until(&daemon), 0);
    let first = first.terminate().expect("it ends");
    assert!(first.status.success() && first.errors.is_empty(), "{first:?}");
    assert_eq!(until(&daemon), 0, "nobody is told any more");

    // With the maps it ends by itself.
    let third = daemon.listen(&["--reason", "not-ip"]).expect("it starts");
    listens(&daemon);
    daemon.terminate().expect("it ends");
    let cleaned = daemon.command(&["cleanup"]).expect("the command runs");
    assert!(cleaned.status.success(), "{cleaned:?}");
    let third = third.hear(SOON, || ()).expect("it ends");
    assert!(!third.status.success() && third.errors.contains("cleanup"), "{third:?}");
    let client = cluster.client.namespace();
    TcpSession::open(client, vip.socket(IpFamily::V4, PORT)).expect_err("nobody serves");
}
