//! The lab itself, without the daemon: what is not for a VIP has to work before anything else can be tested.

use std::{net::SocketAddr, time::Duration};

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::{
    Bulk, DualStack, EchoServer, ExchangeError, Extent, Lab, Load, Namespace, Side, Steady, TcpSession, UdpSession,
    Wire, Wiring, eventually, find_leftovers, link_counters,
};

const PORT: u16 = 8080;

#[test]
fn every_pod_reaches_every_other_and_both_nodes() {
    everybody_reaches_everybody(Wire::Direct);
}

#[test]
fn every_pod_reaches_every_other_and_both_nodes_through_an_overlay() {
    everybody_reaches_everybody(Wire::Vxlan);
}

fn everybody_reaches_everybody(wire: Wire) {
    let lab = Lab::with(wire).expect("the lab is built");
    let pods = [
        (Side::A, Wiring::Routed, "routed"),
        (Side::A, Wiring::Bridged, "bridged"),
        (Side::A, Wiring::Bridged, "bridged-too"),
        (Side::B, Wiring::Routed, "remote"),
        (Side::B, Wiring::Bridged, "remote-bridged"),
    ]
    .map(|(side, wiring, role)| (role, lab.add_pod(side, wiring, role).expect("the pod is added")));
    let nodes = [(Side::A, "node-a"), (Side::B, "node-b")];
    let places: Vec<(&str, &Namespace, DualStack)> = pods
        .iter()
        .map(|(role, pod)| (*role, pod.namespace(), pod.addresses()))
        .chain(nodes.map(|(side, role)| {
            let node = lab.node(side);
            (role, node.namespace(), node.addresses())
        }))
        .collect();
    let _servers: Vec<EchoServer> = places
        .iter()
        .map(|(role, namespace, addresses)| {
            EchoServer::start_in(namespace, *addresses, PORT, role).expect("the server listens")
        })
        .collect();

    for (client, namespace, _) in &places {
        for (role, _, addresses) in &places {
            for family in IpFamily::ALL {
                reaches(namespace, addresses.socket(family, PORT), role)
                    .unwrap_or_else(|error| panic!("{client} to {role}: {error}"));
            }
        }
    }
}

/// Exchanges with `target` in every way a client can, and checks that it is `role` that answers.
fn reaches(namespace: &Namespace, target: SocketAddr, role: &str) -> Result<(), ExchangeError> {
    let mut session = TcpSession::open(namespace, target)?;
    assert_eq!(session.backend(), role);
    session.exchange(b"hello")?;
    for connected in [true, false] {
        let backend = UdpSession::open(namespace, target, connected)?.ask()?;
        assert_eq!(backend, role);
    }
    Ok(())
}

#[test]
fn nothing_answers_on_a_vip_without_the_daemon() {
    let lab = Lab::new().expect("the lab is built");
    let client = lab.add_pod(Side::A, Wiring::Routed, "client").expect("the pod is added");
    for family in IpFamily::ALL {
        let vip = DualStack::cluster_ip(1).socket(family, 80);
        let error = TcpSession::open(client.namespace(), vip).expect_err("nobody serves the VIP");
        assert!(!error.is_refused(), "{error}");
        UdpSession::open(client.namespace(), vip, false)
            .and_then(|session| session.with_patience(Duration::from_millis(200)))
            .expect("the socket opens")
            .ask()
            .expect_err("nobody serves the VIP");
    }
}

#[test]
fn bulk_transfers_use_segmentation_offload() {
    let lab = Lab::new().expect("the lab is built");
    let client = lab.add_pod(Side::A, Wiring::Routed, "client").expect("the pod is added");
    let backend = lab.add_pod(Side::B, Wiring::Routed, "backend").expect("the pod is added");
    let _server = EchoServer::start(&backend, PORT, "backend").expect("the server listens");
    for family in IpFamily::ALL {
        let before = link_counters(backend.namespace(), "eth0").expect("the interface is there");
        let bytes = 8 << 20;
        let report = Bulk { bytes }
            .run(client.namespace(), backend.addresses().socket(family, PORT))
            .expect("the transfer succeeds");
        assert_eq!(report.intact, bytes);
        let after = link_counters(backend.namespace(), "eth0").expect("the interface is there");
        let per_packet = (after.bytes - before.bytes) / (after.packets - before.packets);
        assert!(per_packet > 1500, "{family}: {per_packet} bytes per packet are no offload");
    }
}

#[test]
fn load_without_the_daemon_loses_nothing() {
    let lab = Lab::new().expect("the lab is built");
    let client = lab.add_pod(Side::A, Wiring::Bridged, "client").expect("the pod is added");
    let backend = lab.add_pod(Side::A, Wiring::Bridged, "backend").expect("the pod is added");
    let _server = EchoServer::start(&backend, PORT, "backend").expect("the server listens");
    let targets: Vec<_> = IpFamily::ALL
        .into_iter()
        .flat_map(|family| {
            [Protocol::Tcp, Protocol::Udp].map(|protocol| (protocol, backend.addresses().socket(family, PORT)))
        })
        .collect();
    let steady: Vec<Steady> =
        targets.iter().map(|(protocol, target)| Steady::start(client.namespace(), *protocol, *target)).collect();
    let load = Load::start(client.namespace(), &targets);
    eventually("waiting for exchanges", Duration::from_secs(60), || match load.done() {
        1000.. => Ok(()),
        done => Err(format!("{done} so far")),
    })
    .expect("traffic goes on");
    let report = load.finish().expect("the clients run");
    assert_eq!(report.failed, 0, "{:?}", report.failures);
    assert!(report.succeeded() >= 1000);
    for session in steady {
        let report = session.finish().expect("the session goes on");
        assert!(report.exchanges > 0);
        assert_eq!(report.backends, ["backend"]);
    }
}

#[test]
fn a_dropped_lab_leaves_nothing() {
    let (name, mut process) = {
        let lab = Lab::new().expect("the lab is built");
        let pod = lab.add_pod(Side::A, Wiring::Bridged, "pod").expect("the pod is added");
        let _server = EchoServer::start(&pod, PORT, "pod").expect("the server listens");
        let process =
            lab.spawn(pod.namespace(), std::process::Command::new("sleep").arg("3600")).expect("the process starts");
        // Both nodes, the pod, the directory, the cgroup and the process.
        assert_eq!(find_leftovers(&Extent::Lab(lab.name())).len(), 6);
        (lab.name(), process)
    };
    let status = process.wait().expect("the process is this one's child");
    assert!(!status.success(), "it was ended, it did not end by itself");
    assert_eq!(find_leftovers(&Extent::Lab(name)), []);
}

#[test]
fn a_lab_is_removed_after_a_panic() {
    let name = std::sync::Mutex::new(None);
    let outcome = std::panic::catch_unwind(|| {
        let lab = Lab::new().expect("the lab is built");
        *name.lock().expect("no other thread holds it") = Some(lab.name());
        std::panic::resume_unwind(Box::new("as a failed assertion does"));
    });
    assert!(outcome.is_err());
    let name = name.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).expect("the lab was built");
    assert_eq!(find_leftovers(&Extent::Lab(name)), []);
}
