//! What happens to traffic when Services, endpoints and pods come, change and go.

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::{DualStack, EchoServer, Side, TcpSession, UdpSession, Wiring, attachments, eventually};

use crate::cluster::{Cluster, PORT, SOON, TARGET, answers, answers_in, is_silent, service, wait_until_answers};

const VIP: DualStack = DualStack::cluster_ip(1);

#[test]
fn established_connections_outlive_a_change_of_endpoints() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    cluster.write(&service("echo", VIP, &[cluster.backend("local")]));
    let _daemon = cluster.start_daemon();
    wait_until_answers(client, VIP, "local");

    let targets = IpFamily::ALL.map(|family| VIP.socket(family, PORT));
    let mut connections = targets.map(|target| TcpSession::open(client, target).expect("the VIP answers"));
    let mut sockets = targets.map(|target| {
        let mut socket = UdpSession::open(client, target, true).expect("the socket opens");
        assert_eq!(socket.ask().expect("the VIP answers"), "local");
        socket
    });

    cluster.write(&service("echo", VIP, &[cluster.backend("remote")]));
    wait_until_answers(client, VIP, "remote");
    for socket in &mut sockets {
        assert_eq!(socket.ask().expect("the VIP answers"), "remote", "an open UDP socket moves with the Service");
    }
    for _ in 0..50 {
        for connection in &mut connections {
            assert_eq!(connection.backend(), "local");
            connection.exchange(b"still there?").expect("an established connection goes on");
        }
        answers(client, VIP, PORT, "remote").expect("new connections go to the new endpoint");
    }
}

#[test]
fn endpoints_that_come_back_are_served_again() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let with = service("echo", VIP, &[cluster.backend("local")]);
    cluster.write(&with);
    let _daemon = cluster.start_daemon();
    wait_until_answers(client, VIP, "local");
    let mut sockets = IpFamily::ALL.map(|family| {
        UdpSession::open(client, VIP.socket(family, PORT), false)
            .and_then(|socket| socket.with_patience(SOON / 10))
            .expect("the socket opens")
    });

    for _ in 0..2 {
        cluster.write(&service("echo", VIP, &[]));
        for (family, socket) in IpFamily::ALL.into_iter().zip(&mut sockets) {
            eventually("waiting for silence", SOON, || is_silent(client, family, VIP, PORT)).expect("nobody serves it");
            socket.ask().expect_err("nobody serves it");
        }
        cluster.write(&with);
        wait_until_answers(client, VIP, "local");
        for socket in &mut sockets {
            assert_eq!(socket.ask().expect("a socket that saw silence is answered again"), "local");
        }
    }
}

#[test]
fn services_are_created_changed_and_deleted_while_running() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let _daemon = cluster.start_daemon();
    for family in IpFamily::ALL {
        is_silent(client, family, VIP, PORT).expect("there is no Service yet");
    }

    let created = service("echo", VIP, &[cluster.backend("local")]);
    cluster.write(&created);
    wait_until_answers(client, VIP, "local");

    let moved = created.clone().without_ports().port(Protocol::Tcp, 81, TARGET).port(Protocol::Udp, 81, TARGET);
    cluster.write(&moved);
    eventually("waiting for the new port", SOON, || answers(client, VIP, 81, "local")).expect("the new port is served");
    for family in IpFamily::ALL {
        is_silent(client, family, VIP, PORT).expect("the old port is gone");
    }

    let elsewhere = DualStack::cluster_ip(2);
    cluster.write(&created.clone().dual_stack(elsewhere));
    wait_until_answers(client, elsewhere, "local");
    for family in IpFamily::ALL {
        is_silent(client, family, VIP, 81).expect("the old VIP is gone");
    }

    cluster.manifests.remove(&created).expect("the manifest is removed");
    for family in IpFamily::ALL {
        eventually("waiting for the deletion", SOON, || is_silent(client, family, elsewhere, PORT))
            .expect("a deleted Service is not served");
    }
}

#[test]
fn a_service_gains_and_loses_a_family() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let dual = service("echo", VIP, &[cluster.backend("remote")]);
    let _daemon = cluster.start_daemon();

    for (first, second) in [(IpFamily::V4, IpFamily::V6), (IpFamily::V6, IpFamily::V4)] {
        let serves = |family| {
            eventually("waiting for the family", SOON, || answers_in(client, family, VIP, PORT, "remote"))
                .unwrap_or_else(|error| panic!("{family}: {error}"));
        };
        cluster.write(&dual.clone().cluster_ips([VIP.of(first)]));
        serves(first);
        eventually("waiting for silence", SOON, || is_silent(client, second, VIP, PORT))
            .unwrap_or_else(|error| panic!("{second} was not asked for: {error}"));

        cluster.write(&dual.clone().cluster_ips([VIP.of(first), VIP.of(second)]));
        serves(second);
        serves(first);

        cluster.write(&dual.clone().cluster_ips([VIP.of(first)]));
        eventually("waiting for silence", SOON, || is_silent(client, second, VIP, PORT))
            .unwrap_or_else(|error| panic!("{second} was taken away: {error}"));
        answers_in(client, first, VIP, PORT, "remote").expect("the other family stays");
    }
}

#[test]
fn a_pod_that_comes_later_is_served() {
    let cluster = Cluster::build();
    cluster.write(&service("echo", VIP, &[cluster.backend("local")]));
    let _daemon = cluster.start_daemon();
    wait_until_answers(cluster.client.namespace(), VIP, "local");

    for (role, wiring) in [("late", Wiring::Routed), ("late-bridged", Wiring::Bridged)] {
        let late = cluster.lab.add_pod(Side::A, wiring, role).expect("the pod is added");
        wait_until_answers(late.namespace(), VIP, "local");
        // And as a backend, of a client that was there before.
        let _server = EchoServer::start(&late, TARGET, role).expect("the server listens");
        let vip = DualStack::cluster_ip(2);
        cluster.write(&service("late", vip, &[late.addresses()]));
        wait_until_answers(cluster.client.namespace(), vip, role);
        let found = attachments(cluster.lab.node(Side::A).namespace()).expect("the kernel tells");
        let on_it = found.iter().filter(|found| found.interface == late.host_interface()).count();
        assert_eq!(on_it, 2, "one program for each direction: {found:#?}");
    }
}

#[test]
fn a_broken_manifest_harms_no_other() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let write_text = |name, text| cluster.manifests.write_text(name, text).expect("the file is written");
    write_text("broken-from-the-start.yaml", "kind: Service\nspec: [this: is {no YAML");
    cluster.write(&service("echo", VIP, &[cluster.backend("local")]));
    let mut daemon = cluster.start_daemon();
    wait_until_answers(client, VIP, "local");

    write_text("broken-later.yaml", "\u{0}\u{1}\u{2}");
    write_text("truncated.json", r#"{"apiVersion": "v1", "kind": "Service", "metadata": {"#);
    write_text(
        "nonsense.yaml",
        "apiVersion: v1\nkind: Service\nmetadata: {name: nonsense, namespace: default}\n\
         spec: {clusterIP: not-an-address, clusterIPs: [not-an-address], ports: [{port: 70000, protocol: CARRIER}]}\n",
    );
    let other = DualStack::cluster_ip(2);
    cluster.write(&service("other", other, &[cluster.backend("remote")]));
    wait_until_answers(client, other, "remote");
    answers(client, VIP, PORT, "local").expect("the Service is served");

    daemon.kill().expect("the daemon runs");
    daemon.start_again().expect("broken manifests do not keep the daemon from starting");
    for (vip, role) in [(VIP, "local"), (other, "remote")] {
        answers(client, vip, PORT, role).expect("the Service is served");
    }
}
