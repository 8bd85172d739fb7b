//! Maps that are full: what fits is served and stays served, what does not is told and tried again.

use std::collections::BTreeMap;

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{DualStack, EchoServer, ExchangeError, Side, TcpSession, UdpSession, Wiring, eventually};

use crate::{
    cluster::{Cluster, PORT, SOON, TARGET, answers, is_silent, service, wait_until_answers},
    process::Daemon,
};

/// The room that two Services of two ports and two endpoints each take, and no third.
#[test]
fn a_full_map_of_services() {
    full("services", "--max-services", 4);
}

#[test]
fn a_full_map_of_frontends() {
    full("frontends", "--max-frontends", 5);
}

#[test]
fn a_full_map_of_backends() {
    full("backends", "--max-backends", 9);
}

#[test]
fn a_full_map_of_slots() {
    full("slots", "--max-slots", 8);
}

fn full(map: &str, flag: &str, size: u32) {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    // Each backend has a twin that answers under its name.
    let twins = [("local", Side::A), ("remote", Side::B), ("bridged", Side::A)].map(|(role, side)| {
        let pod = cluster.lab.add_pod(side, Wiring::Routed, &format!("{role}-twin")).expect("the pod is added");
        let server = EchoServer::start(&pod, TARGET, role).expect("the server listens");
        (role, pod.addresses(), server)
    });
    let twin = |role: &str| {
        let found = twins.iter().find(|(of, ..)| *of == role);
        found.unwrap_or_else(|| panic!("no twin of {role}")).1
    };
    let of = |role: &str, number| service(role, DualStack::cluster_ip(number), &[cluster.backend(role), twin(role)]);
    let vips = [1, 2, 3].map(DualStack::cluster_ip);
    let (first, second, third) = (of("local", 1), of("remote", 2), of("bridged", 3));
    let manifests = cluster.manifests.directory().display().to_string();
    let size = size.to_string();
    let options = ["--manifests", &manifests, flag, &size, "--log-drops-every", "1"];
    let daemon = Daemon::new(&cluster.lab, &options).started();
    cluster.write(&first);
    wait_until_answers(client, vips[0], "local");
    cluster.write(&second);
    wait_until_answers(client, vips[1], "remote");
    assert_eq!(daemon.metric("dsproxy_services_failed"), Some(0.0));

    cluster.write(&third);
    daemon.await_log(&["WARN", &format!("map of {map} is full with {size} entries"), flag, "default/bridged"]);
    eventually("the count", SOON, || match daemon.metric(&format!("dsproxy_map_full_total{{map=\"{map}\"}}")) {
        Some(count) if count >= 1.0 => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .expect("it is counted");
    daemon.await_log(&["WARN", "still not served", "default/bridged", &format!("map of {map} is full")]);
    eventually("the Service", SOON, || match daemon.metric("dsproxy_services_failed") {
        Some(1.0) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .expect("it is told of");
    assert_eq!(daemon.health("/healthz").0, 200, "the node serves what it can");
    for _ in 0..5 {
        answers(client, vips[0], PORT, "local").expect("what was served stays served");
        answers(client, vips[1], PORT, "remote").expect("what was served stays served");
    }

    // What is served can change in a full map.
    cluster.write(&service("local", vips[0], &[twin("local"), cluster.backend("bridged")]));
    let serves_both = || -> Result<(), String> {
        let mut seen = BTreeMap::new();
        for _ in 0..40 {
            let target = vips[0].socket(IpFamily::V6, PORT);
            let session = TcpSession::open(client, target).map_err(|error| error.to_string())?;
            *seen.entry(session.backend().to_owned()).or_insert(0) += 1;
        }
        if seen.len() == 2 && seen.contains_key("bridged") { Ok(()) } else { Err(format!("{seen:?}")) }
    };
    eventually("the change", SOON, serves_both).expect("the endpoints change");

    let mut established = IpFamily::ALL
        .map(|family| TcpSession::open(client, vips[1].socket(family, PORT)).expect("the Service is served"));
    cluster.manifests.remove(&first).expect("the manifest is removed");
    wait_until_answers(client, vips[2], "bridged");
    for family in IpFamily::ALL {
        is_silent(client, family, vips[0], PORT).expect("what was removed is gone");
    }
    for session in &mut established {
        session.exchange(b"still there?").expect("the connection stays");
    }
    assert_eq!(daemon.metric("dsproxy_services_failed"), Some(0.0));
    daemon.await_log(&["served as it should be again", "default/bridged"]);
}

#[test]
fn a_full_connection_table_turns_no_new_connection_away() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let vip = DualStack::cluster_ip(1);
    cluster.write(&service("echo", vip, &[cluster.backend("local"), cluster.backend("remote")]));
    let manifests = cluster.manifests.directory().display().to_string();
    let options = ["--manifests", &manifests, "--max-connections", "512", "--log-drops-every", "1"];
    let daemon = Daemon::new(&cluster.lab, &options).started();
    eventually("the Service", SOON, || TcpSession::open(client, vip.socket(IpFamily::V6, PORT)).map(drop))
        .expect("the Service is served");

    for family in IpFamily::ALL {
        let told = format!("family={family}");
        let is_told = |line: &str| line.contains("open connections give way") && line.contains(&told);
        assert!(!daemon.log().lines().any(is_told), "there is room for {family}");
        let target = vip.socket(family, PORT);
        let mut connections = Vec::new();
        let mut sockets = Vec::new();
        // Two entries each are more than there is room for. A table much smaller than this would not even keep the newest:
        // each CPU sets 128 entries aside (kernel/bpf/bpf_lru_list.c).
        for number in 0..300 {
            // The newest always works, and what it gets is its own: both sessions check whom and what they hear.
            let mut connection = TcpSession::open(client, target).unwrap_or_else(|error| panic!("{number}: {error}"));
            connection
                .exchange(format!("connection {number}").as_bytes())
                .unwrap_or_else(|error| panic!("{number}: {error}"));
            connections.push(connection);
            let mut socket = UdpSession::open(client, target, false).expect("the socket opens");
            let backend = socket.ask().unwrap_or_else(|error| panic!("{number}: {error}"));
            assert!(["local", "remote"].contains(&backend.as_str()), "{backend}");
            sockets.push(socket);
        }
        // The old ones may have lost their entry, and with it their backend; none hears another's answer.
        let mut forgotten = 0;
        for (number, connection) in connections.iter_mut().enumerate().rev().take(100) {
            match connection.exchange(format!("again {number}").as_bytes()) {
                Ok(()) => {}
                Err(ExchangeError::NoAnswer { .. }) => forgotten += 1,
                Err(error) => panic!("{number}: {error}"),
            }
            if forgotten > 2 {
                // Silence takes seconds each.
                break;
            }
        }
        daemon.await_log(&["WARN", "open connections give way", &told, "--max-connections"]);
        let open = daemon.metric(&format!("dsproxy_open_connections{{map=\"connections\",ip_family=\"{family}\"}}"));
        assert!(open.is_some_and(|open| (200.0..=512.0).contains(&open)), "{open:?}");
        for (number, socket) in sockets.iter_mut().enumerate() {
            let backend = socket.ask().unwrap_or_else(|error| panic!("{family} {number}: {error}"));
            assert!(["local", "remote"].contains(&backend.as_str()), "{backend}");
        }
    }
    assert_eq!(daemon.metric("dsproxy_map_capacity{map=\"connections\"}"), Some(512.0));
}
