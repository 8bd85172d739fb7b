//! Whoever asks is answered, and believes to speak to the VIP.

use std::{
    collections::BTreeMap,
    io::Read as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
};

use dsproxy::{
    datapath::{bpffs::Bpffs, load},
    maps::{FilterOf, FrontendAddress, MapStore as _, Write},
};
use dsproxy_common::{Addr4, IpFamily, Port, Protocol, filter::FilterBit, service::FrontendKey};
use dsproxy_tests::lab::{Daemon, DualStack, Side, TcpSession, UdpSession, Wiring};

use crate::host::{Host, PORT, SOON, TARGET, kernel_peer, mapped};

#[test]
fn sockets_of_the_host_reach_a_service_in_every_way() {
    for role in ["local", "remote"] {
        let host = Host::build();
        let vip = DualStack::cluster_ip(1);
        host.serve(vip, &[role]);
        let _daemon = host.start("host");
        host.await_service(vip);
        let v4 = vip.socket(IpFamily::V4, PORT);
        for target in [v4, mapped(v4), vip.socket(IpFamily::V6, PORT)] {
            host.run(|| {
                let mut session = TcpSession::open_here(target).unwrap_or_else(|error| panic!("{target}: {error}"));
                assert_eq!(session.backend(), role);
                session.exchange(b"hello").unwrap_or_else(|error| panic!("{target}: {error}"));
                for connected in [true, false] {
                    // It looks at the source of every answer, too.
                    let mut session = UdpSession::open_here(target, connected).expect("a socket");
                    for _ in 0..3 {
                        let answered = session.ask().unwrap_or_else(|error| panic!("{target}, {connected}: {error}"));
                        assert_eq!(answered, role);
                    }
                }
            });
        }
    }
}

#[test]
fn the_peer_is_the_vip() {
    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let _daemon = host.start("host");
    host.await_service(vip);
    let v4 = vip.socket(IpFamily::V4, PORT);
    for target in [v4, mapped(v4), vip.socket(IpFamily::V6, PORT)] {
        host.run(|| {
            let stream = TcpStream::connect(target).expect("connected");
            assert_eq!(stream.peer_addr().expect("a peer"), target);
            let socket = connected_to(target);
            assert_eq!(socket.peer_addr().expect("a peer"), target);
        });
    }
}

#[test]
fn a_socket_that_goes_to_the_backend_itself_hears_the_backend() {
    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let _daemon = host.start("host");
    host.await_service(vip);
    for family in IpFamily::ALL {
        let (target, backend) = (vip.socket(family, PORT), host.backend("local").socket(family, TARGET));
        host.run(|| {
            let socket = connected_to(target);
            assert_eq!(socket.peer_addr().expect("a peer"), target);
            socket.connect(backend).expect("connected anew");
            assert_eq!(socket.peer_addr().expect("a peer"), backend);
            let mut direct = UdpSession::open_here(backend, false).expect("a socket");
            assert_eq!(direct.ask().expect("an answer from the backend's own address"), "local");
        });
    }
}

#[test]
fn one_socket_stays_with_one_backend_and_many_spread() {
    const SOCKETS: usize = 60;

    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local", "remote"]);
    let _daemon = host.start("host");
    host.await_service(vip);
    for family in IpFamily::ALL {
        let target = vip.socket(family, PORT);
        let mut of_datagrams: BTreeMap<String, usize> = BTreeMap::new();
        let mut of_connections: BTreeMap<String, usize> = BTreeMap::new();
        host.run(|| {
            for _ in 0..SOCKETS {
                let mut session = UdpSession::open_here(target, false).expect("a socket");
                let first = session.ask().expect("an answer");
                for _ in 0..5 {
                    assert_eq!(session.ask().expect("an answer"), first);
                }
                *of_datagrams.entry(first).or_default() += 1;
                let session = TcpSession::open_here(target).expect("connected");
                *of_connections.entry(session.backend().to_owned()).or_default() += 1;
            }
        });
        // Of sixty even choices fewer than ten one way come once in two hundred million runs.
        for counts in [of_datagrams, of_connections] {
            assert!(counts.len() == 2 && counts.values().all(|count| *count >= 10), "{family}: {counts:?}");
        }
    }
}

#[test]
fn whose_sockets_are_led_is_told_by_the_flag_and_the_cgroup() {
    let host = Host::build();
    let pod = host.lab.add_pod(Side::A, Wiring::Routed, "client").expect("the pod is added");
    let pod_clients = host.clients_in(pod.namespace());
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let target = vip.socket(IpFamily::V4, PORT);
    let backend = host.backend("local").socket(IpFamily::V4, TARGET);
    for (whose, of_host, of_pod) in [("host", backend, target), ("all", backend, backend)] {
        let mut daemon = host.start(whose);
        host.await_service(vip);
        assert_eq!(host.run(|| peer_of_new_socket(target)), of_host, "--socket-lb {whose}: the host's");
        assert_eq!(pod_clients.run(|| peer_of_new_socket(target)), of_pod, "--socket-lb {whose}: a pod's");
        let outside_the_cgroup =
            host.lab.node(Side::A).namespace().run(|| peer_of_new_socket(target)).expect("it runs");
        assert_eq!(outside_the_cgroup, target, "--socket-lb {whose}: outside of --cgroup");
        // Either way the pod is answered, by the packets' programs if not by these.
        let answered = pod_clients.run(|| UdpSession::open_here(target, true).and_then(|mut s| s.ask()));
        assert_eq!(answered.expect("an answer"), "local");
        daemon.terminate().expect("SIGTERM ends it");
    }
}

#[test]
fn loopback_is_left_alone() {
    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let daemon = host.start("host");
    host.await_service(vip);
    // The daemon would not serve such an address; the programs must not either, whatever the maps say.
    let (other, loopback) = (Ipv4Addr::new(10, 96, 0, 77), Ipv4Addr::new(127, 0, 0, 9));
    for address in [other, loopback] {
        serve_as(&daemon, vip, address);
    }
    host.run(|| {
        let session = TcpSession::open_here((other, PORT).into()).expect("what stands in the maps is served");
        assert_eq!(session.backend(), "local");
        let listener = TcpListener::bind((loopback, PORT)).expect("a listener");
        let mut stream = TcpStream::connect((loopback, PORT)).expect("connected");
        let (accepted, _) = listener.accept().expect("it comes to the listener");
        drop(accepted);
        let mut nothing = Vec::new();
        stream.read_to_end(&mut nothing).expect("the listener has closed it");
        assert_eq!(nothing, b"", "no backend greets");
    });
}

/// Puts a frontend at `address` into the maps, behind the daemon's back, that is like that of TCP at `vip`.
fn serve_as(daemon: &Daemon<'_>, vip: DualStack, address: Ipv4Addr) {
    let bpffs = Bpffs::existing(daemon.bpffs()).expect("a file system").expect("a bpffs");
    let mut maps = load::open_pinned(&bpffs).expect("the maps are pinned");
    let contents = maps.contents().expect("the maps are read");
    let is_wanted = |at: &FrontendAddress| at.address == vip.of(IpFamily::V4) && at.protocol == Protocol::Tcp;
    let (_, frontend) = *contents.frontends.iter().find(|(at, _)| is_wanted(at)).expect("the Service is served");
    let bit = FilterBit::of(&FrontendKey::new(Addr4::from(address), Port::new(PORT), Protocol::Tcp.number()));
    let (family, filter, index) = (IpFamily::V4, FilterOf::Frontends, bit.word());
    let is_word = |word: &&(IpFamily, FilterOf, u32, u64)| (word.0, word.1, word.2) == (family, filter, index);
    let value = contents.filter.iter().find(is_word).map_or(0, |word| word.3) | bit.mask();
    let address = FrontendAddress { address: address.into(), port: PORT, protocol: Protocol::Tcp };
    for write in [Write::FilterWord { family, filter, index, value }, Write::Frontend { address, frontend }] {
        maps.write(&write).expect("the maps are written");
    }
}

/// A UDP socket of `target`'s family that is connected there.
pub(crate) fn connected_to(target: SocketAddr) -> UdpSocket {
    let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).expect("a socket");
    socket.connect(target).unwrap_or_else(|error| panic!("connect to {target}: {error}"));
    socket
}

/// Where the kernel really sends what a new socket sends that was connected to `target`.
pub(crate) fn peer_of_new_socket(target: SocketAddr) -> SocketAddr {
    let socket = connected_to(target);
    kernel_peer(socket.local_addr().expect("an address").port()).into()
}

#[test]
fn whoever_listens_is_told_of_sockets() {
    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let daemon = host.start("host");
    host.await_service(vip);
    for family in IpFamily::ALL {
        let (target, backend) = (vip.socket(family, PORT), host.backend("local").socket(family, TARGET));
        for (protocol, reasons) in [("tcp", &["opened"][..]), ("udp", &["opened", "replied"])] {
            let family = if family == IpFamily::V4 { "ipv4" } else { "ipv6" };
            let arguments = ["--protocol", protocol, "--family", family, "--count", "4"];
            let heard = daemon
                .listen(&arguments)
                .expect("it starts")
                .hear(SOON, || {
                    host.run(|| {
                        if protocol == "tcp" {
                            TcpSession::open_here(target).expect("served");
                        } else {
                            UdpSession::open_here(target, false).and_then(|mut session| session.ask()).expect("served");
                        }
                    });
                })
                .unwrap_or_else(|error| panic!("{protocol} {family}: {error}"));
            assert!(heard.status.success(), "{heard:?}");
            for reason in reasons {
                let event = heard.events.iter().find(|event| event["reason"] == *reason);
                let event = event.unwrap_or_else(|| panic!("none is {reason}: {heard:?}"));
                let end = if *reason == "opened" { "destination" } else { "source" };
                let (said, meant) = if *reason == "opened" {
                    (&event["before"], &event["after"])
                } else {
                    (&event["after"], &event["before"])
                };
                assert_eq!(
                    (&said[end], &meant[end]),
                    (&target.to_string().into(), &backend.to_string().into()),
                    "{event}"
                );
                assert!(
                    event["hook"] == "socket" && event["name"].as_str().is_some_and(|name| name.contains("echo")),
                    "{event}"
                );
            }
        }
    }
}
