//! Connected UDP sockets whose datagrams name the VIP all the same, by their program's choice or, IPv4 in IPv6, by the kernel's.

use std::{collections::BTreeSet, io, net::UdpSocket, time::Duration};

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{DualStack, Side, TcpSession, Wiring, eventually};

use crate::{
    ask::connected_to,
    host::{Host, PORT, SOON, mapped},
    policy::answering,
};

#[test]
fn a_datagram_to_the_vip_goes_where_the_socket_is_connected_to() {
    // Of so many even choices none goes to another backend once in sixty thousand runs.
    const SOCKETS: usize = 16;

    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let _daemon = host.start("host");
    host.await_service(vip);
    let v4 = vip.socket(IpFamily::V4, PORT);
    for target in [v4, mapped(v4), vip.socket(IpFamily::V6, PORT)] {
        host.serve(vip, &["local"]);
        await_backends(&host, vip, &["local"]);
        let sockets: Vec<_> = (0..SOCKETS).map(|_| host.run(|| patient(connected_to(target)))).collect();
        host.serve(vip, &["local", "remote"]);
        await_backends(&host, vip, &["local", "remote"]);
        for socket in &sockets {
            host.run(|| socket.send_to(b"who", target)).expect("sent");
            assert_eq!(heard(socket).expect("an answer from its peer"), "local", "{target}");
        }
    }
}

/// The kernel hands each datagram of an IPv6 socket that is connected to an IPv4 address to the programs, as if it named that.
#[test]
fn a_pods_socket_from_before_its_programs_stays_with_those_of_packets() {
    let host = Host::build();
    let pod = host.lab.add_pod(Side::A, Wiring::Routed, "client").expect("the pod is added");
    let clients = host.clients_in(pod.namespace());
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let target = mapped(vip.socket(IpFamily::V4, PORT));
    let mut daemon = host.start("host");
    host.await_service(vip);
    let socket = clients.run(|| patient(connected_to(target)));
    let ask = || clients.run(|| socket.send(b"who").and_then(|_| heard(&socket)));
    assert_eq!(ask().expect("an answer by packets"), "local");
    daemon.terminate().expect("SIGTERM ends it");
    let _daemon = host.start("all");
    host.await_service(vip);
    assert_eq!(ask().expect("an answer by packets still"), "local");
}

#[test]
fn connections_do_not_push_out_what_sockets_of_datagrams_are_known_by() {
    const CONNECTIONS: u64 = 10;

    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let daemon = host.start("host");
    host.await_service(vip);
    let entries = |map: &str, family: IpFamily| {
        let status = daemon.json(&["status"]).expect("a status");
        let is_it = |row: &&serde_json::Value| row["map"] == map && row["family"] == family.to_string();
        let row = status["maps"].as_array().and_then(|rows| rows.iter().find(is_it).cloned());
        row.and_then(|row| row["entries"].as_u64()).unwrap_or_else(|| panic!("{map}, {family}: {status:#}"))
    };
    for family in IpFamily::ALL {
        let target = vip.socket(family, PORT);
        let before = entries("TCP sockets", family);
        for _ in 0..CONNECTIONS {
            host.run(|| TcpSession::open_here(target)).expect("connected");
        }
        assert_eq!(entries("TCP sockets", family), before + CONNECTIONS);
        assert_eq!(entries("sockets", family), 0);
        let _socket = host.run(|| connected_to(target));
        assert_eq!(entries("sockets", family), 1);
    }
}

/// Waits until new sockets are answered by these and no others.
fn await_backends(host: &Host, vip: DualStack, roles: &[&str]) {
    for family in IpFamily::ALL {
        let expected: BTreeSet<String> = roles.iter().map(|role| (*role).to_owned()).collect();
        eventually("waiting for the endpoints", SOON, || {
            let found = host.run(|| answering(vip.socket(family, PORT))).map_err(|error| error.to_string())?;
            if found == expected { Ok(()) } else { Err(format!("{found:?} and not {expected:?}")) }
        })
        .unwrap_or_else(|error| panic!("{error}"));
    }
}

/// `socket`, which waits no longer than a while for an answer.
pub(crate) fn patient(socket: UdpSocket) -> UdpSocket {
    socket.set_read_timeout(Some(Duration::from_secs(3))).expect("a time limit");
    socket
}

/// Who answers.
pub(crate) fn heard(socket: &UdpSocket) -> io::Result<String> {
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}
