//! A call that cannot be served fails at once.

use std::{
    io,
    net::{SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{DualStack, eventually};

use crate::host::{Host, PORT, SOON, mapped, refused_calls};

/// Far less than a SYN waits for its answer.
const AT_ONCE: Duration = Duration::from_millis(500);

#[test]
fn without_an_endpoint_every_call_is_refused_at_once() {
    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let daemon = host.start("host");
    host.await_service(vip);
    host.serve(vip, &[]);
    let v4 = vip.socket(IpFamily::V4, PORT);
    for target in [v4, mapped(v4), vip.socket(IpFamily::V6, PORT)] {
        eventually("waiting for the endpoint to go", SOON, || host.run(|| refused(target)))
            .unwrap_or_else(|error| panic!("{error}"));
    }
    let status = daemon.json(&["status"]).expect("it tells");
    let counted = |family: &str| {
        let rows = status["packets"].as_array().expect("rows").iter();
        let of_family = rows.filter(|row| row["reason"] == "no-endpoint" && row["family"] == family);
        of_family.filter_map(|row| row["packets"].as_u64()).sum::<u64>()
    };
    assert!(counted("IPv4") >= 6 && counted("IPv6") >= 3, "{status:#}");
    assert!(refused_calls(&daemon, "TCP", "no-endpoint") >= 3);
    assert!(refused_calls(&daemon, "UDP", "no-endpoint") >= 6);
}

#[test]
fn a_port_that_nobody_serves_is_refused_but_resolvers_may_ask_for_their_source() {
    const UNSERVED: u16 = 81;

    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let _daemon = host.start("host");
    host.await_service(vip);
    let addresses = [vip.socket(IpFamily::V4, 0), mapped(vip.socket(IpFamily::V4, 0)), vip.socket(IpFamily::V6, 0)];
    for mut target in addresses {
        host.run(|| {
            let unspecified = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(unspecified).expect("a socket");
            // As getaddrinfo(3) does before it sorts what it has found.
            socket.connect(target).unwrap_or_else(|error| panic!("{target}: {error}"));
            let source = socket.local_addr().expect("an address").ip();
            assert!(!source.is_unspecified(), "{target}: the kernel has said with which address");
        });
        target.set_port(UNSERVED);
        host.run(|| refused(target)).unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Tries all calls; fails unless each is refused at once.
fn refused(target: SocketAddr) -> Result<(), String> {
    let unspecified = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(unspecified).expect("a socket");
    let calls: [(&str, &dyn Fn() -> io::Result<()>); 3] = [
        ("sendto", &|| socket.send_to(b"anybody?", target).map(drop)),
        ("connect UDP", &|| socket.connect(target)),
        ("connect TCP", &|| TcpStream::connect_timeout(&target, 4 * AT_ONCE).map(drop)),
    ];
    for (name, call) in calls {
        let started = Instant::now();
        let outcome = call().map_err(|error| error.kind());
        let took = started.elapsed();
        if outcome != Err(io::ErrorKind::ConnectionRefused) || took > AT_ONCE {
            return Err(format!("{name} to {target}: {outcome:?} after {took:?}"));
        }
    }
    Ok(())
}
