//! Backends go while sockets hold on to them.

use std::{io, net::UdpSocket};

use dsproxy::{
    datapath::{bpffs::Bpffs, load},
    maps::{BackendRecord, MapStore as _, Write},
};
use dsproxy_common::{IpFamily, service::BackendState};
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

/// A daemon that ends between its word that a backend is gone and its look at the sockets leaves nothing to be written for the next.
#[test]
fn a_socket_that_the_daemon_before_has_left_behind_is_ended() {
    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let mut daemon = host.start("host");
    host.await_service(vip);
    let sockets = IpFamily::ALL.map(|family| host.run(|| asked(connected_to(vip.socket(family, PORT)))));
    daemon.kill().expect("it runs");
    let bpffs = Bpffs::existing(daemon.bpffs()).expect("a file system").expect("a bpffs");
    let mut maps = load::open_pinned(&bpffs).expect("the maps are pinned");
    for (family, id, held) in maps.contents().expect("the maps are read").backends {
        let record = BackendRecord { state: BackendState::Gone, ..held };
        maps.write(&Write::Backend { family, id, record }).expect("the maps are written");
    }
    host.serve(vip, &["remote"]);
    daemon.start_again().expect("it starts");
    for (socket, family) in sockets.iter().zip(IpFamily::ALL) {
        ends(socket);
        host.run(|| socket.connect(vip.socket(family, PORT))).expect("connected anew");
        assert_eq!(ask(socket).expect("an answer"), "remote");
    }
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
