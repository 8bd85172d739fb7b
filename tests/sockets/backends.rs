//! Backends go while sockets hold on to them.

use std::{io, net::UdpSocket};

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{DualStack, TcpSession, UdpSession};

use crate::{
    ask::connected_to,
    connected::{heard, patient},
    host::{Host, PORT, TARGET, mapped},
};

#[test]
fn a_connected_udp_socket_ends_with_its_backend_and_others_move_on() {
    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let _daemon = host.start("host");
    host.await_service(vip);
    let v4 = vip.socket(IpFamily::V4, PORT);
    let targets = [v4, mapped(v4), vip.socket(IpFamily::V6, PORT)];
    let open =
        |connected| targets.map(|target| host.run(|| UdpSession::open_here(target, connected).expect("a socket")));
    let connected = targets.map(|target| host.run(|| asked(connected_to(target))));
    let mut unconnected = open(false);
    let elsewhere = host.backend("local").socket(IpFamily::V4, TARGET);
    let direct = host.run(|| asked(connected_to(elsewhere)));
    let mut streams = targets.map(|target| host.run(|| TcpSession::open_here(target).expect("connected")));
    for session in &mut unconnected {
        assert_eq!(host.run(|| session.ask()).expect("an answer"), "local");
    }

    host.serve(vip, &["remote"]);
    for (socket, target) in connected.iter().zip(targets) {
        ends(socket);
        host.run(|| socket.connect(target)).expect("connected anew");
        assert_eq!(ask(socket).expect("an answer"), "remote");
    }
    for session in &mut unconnected {
        assert_eq!(host.run(|| session.ask()).expect("an answer"), "remote");
    }
    assert_eq!(ask(&direct).expect("it never named the VIP"), "local");
    for stream in &mut streams {
        stream.exchange(b"still there").expect("TCP is left to its two ends");
    }
}

#[test]
fn a_service_made_anew_has_its_sockets_ended_too() {
    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let _daemon = host.start("host");
    host.await_service(vip);
    let target = vip.socket(IpFamily::V4, PORT);
    let socket = host.run(|| asked(connected_to(target)));
    host.manifests.remove(&host.service(vip, &["local"])).expect("the manifest is removed");
    ends(&socket);
    host.serve(vip, &["local"]);
    host.await_service(vip);
    host.run(|| socket.connect(target)).expect("connected anew");
    assert_eq!(ask(&socket).expect("an answer"), "local");
}

/// `socket`, once it has been answered.
fn asked(socket: UdpSocket) -> UdpSocket {
    let socket = patient(socket);
    assert_eq!(ask(&socket).expect("an answer"), "local");
    socket
}

/// Waits for something to come over a connected socket; fails unless the kernel ends the wait.
fn ends(socket: &UdpSocket) {
    let outcome = socket.recv(&mut [0; 64]);
    let error = outcome.as_ref().expect_err("nobody has asked anything");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted, "{error}");
    // It is connected to nobody now.
    let error = socket.send(b"who").expect_err("nowhere to go");
    assert_eq!(error.raw_os_error(), Some(libc::EDESTADDRREQ), "{error}");
}

/// Sends something over a connected socket; who answers.
fn ask(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"who")?;
    heard(socket)
}
