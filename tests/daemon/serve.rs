//! What an API server tells is what is served.

use dsproxy_common::IpFamily;
use dsproxy_tests::{
    apiserver::Resource,
    lab::{DualStack, EchoServer, Namespace, Side, TcpSession, eventually},
};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, PORT, SOON, TARGET, answers, answers_in, is_silent, service, wait_until_answers},
    control_plane::ControlPlane,
};

fn wait_until_silent(client: &Namespace, vip: DualStack) {
    for family in IpFamily::ALL {
        eventually("waiting for silence", SOON, || is_silent(client, family, vip, PORT))
            .unwrap_or_else(|error| panic!("{family} {vip}: {error}"));
    }
}

#[test]
fn services_of_an_api_server_reached_over_ipv4_are_served() {
    services_come_change_and_go(IpFamily::V4);
}

#[test]
fn services_of_an_api_server_reached_over_ipv6_are_served() {
    services_come_change_and_go(IpFamily::V6);
}

fn services_come_change_and_go(server: IpFamily) {
    let cluster = Cluster::build();
    let plane = ControlPlane::start(&cluster.lab, server);
    let [first, second] = [1, 2].map(DualStack::cluster_ip);
    plane.apply(&service("listed", first, &[cluster.backend("local")]));
    let _daemon = plane.daemon(&cluster.lab, &[]).started();
    let clients = [cluster.client.namespace(), cluster.bridged_client.namespace()];
    for client in clients {
        wait_until_answers(client, first, "local");
    }

    plane.apply(&service("watched", second, &[cluster.backend("bridged")]));
    plane.apply(&service("listed", first, &[cluster.backend("remote")]));
    for client in clients {
        wait_until_answers(client, second, "bridged");
        wait_until_answers(client, first, "remote");
    }

    let mut established = IpFamily::ALL
        .map(|family| TcpSession::open(clients[0], second.socket(family, PORT)).expect("the Service is served"));
    plane.delete("listed");
    plane.delete("watched");
    for client in clients {
        wait_until_silent(client, first);
        wait_until_silent(client, second);
    }
    for session in &mut established {
        session.exchange(b"still there?").expect("a connection outlives its Service, as it does with kube-proxy");
    }
}

#[test]
fn the_label_of_another_proxy_is_gained_and_lost() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let plane = ControlPlane::start(&cluster.lab, IpFamily::V4);
    let [vip, other] = [1, 2].map(DualStack::cluster_ip);
    // What nobody has of this range is dropped; the other proxy's Service has its address.
    let DualStack { v4, v6 } = DualStack::cluster_ip(0);
    plane.server().put(json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": [format!("{v4}/16"), format!("{v6}/112")]},
    }));
    let objects = plane.objects(&service("echo", vip, &[cluster.backend("local")]));
    let put = |label: Option<&str>| {
        for object in &objects {
            let mut object = object.clone();
            if let Some(value) = label.filter(|_| object["kind"] == "Service") {
                object["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!(value);
            }
            plane.server().put(object);
        }
    };
    // Not ours from the start.
    put(Some("somebody-else"));
    plane.apply(&service("other", other, &[cluster.backend("remote")]));
    let daemon = plane.daemon(&cluster.lab, &[]).started();
    wait_until_answers(client, other, "remote");
    wait_until_silent(client, vip);
    for value in ["", "somebody-else"] {
        put(None);
        wait_until_answers(client, vip, "local");
        put(Some(value));
        wait_until_silent(client, vip);
        answers(client, other, PORT, "remote").expect("the other does not notice");
        for family in IpFamily::ALL {
            let unallocated = || {
                let labels = ["reason=\"unallocated\"", &format!("ip_family=\"{family}\"")];
                daemon.sum("dsproxy_packets_total", &labels)
            };
            let before = unallocated();
            answers_in(client, family, vip, PORT, "local").expect_err("there is no other proxy");
            assert_eq!(unallocated(), before, "packets to its Services would reach it");
            answers_in(client, family, DualStack::cluster_ip(3), PORT, "local").expect_err("nobody has it");
            assert!(unallocated() > before, "those to what nobody has go no further");
        }
    }
    let rows = daemon.json("services");
    let names: Vec<&str> = rows.as_array().expect("rows").iter().filter_map(|row| row["name"].as_str()).collect();
    let (other, rest): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.starts_with("default/other:"));
    assert_eq!((other.len(), rest), (4, vec!["default/kubernetes:https/TCP"]), "the API server's own is there as well");
}

#[test]
fn malformed_objects_harm_no_other() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let plane = ControlPlane::start(&cluster.lab, IpFamily::V6);
    let vips = [1, 2].map(DualStack::cluster_ip);
    let spoil = |name: &str, pointer: &str, value: Value| {
        let mut object = plane.objects(&service(name, DualStack::cluster_ip(9), &[])).remove(0);
        *object.pointer_mut(pointer).expect("the field is there") = value;
        plane.server().put(object);
    };
    let spoil_all = || {
        spoil("bad-shape", "/spec/ports", json!("eighty"));
        spoil("bad-port", "/spec/ports/0/port", json!(0));
        spoil("bad-address", "/spec/clusterIPs/1", json!("nonsense"));
        spoil("bad-labels", "/metadata/labels", json!(["none"]));
    };
    spoil_all();
    plane.apply(&service("listed", vips[0], &[cluster.backend("local")]));
    let daemon = plane.daemon(&cluster.lab, &[]).started();
    wait_until_answers(client, vips[0], "local");
    assert_eq!(daemon.metric("dsproxy_objects_rejected_total"), Some(4.0));

    // And in a watch, among them the one that is served.
    spoil_all();
    spoil("listed", "/spec/ports/0/protocol", json!("IPX"));
    plane.apply(&service("watched", vips[1], &[cluster.backend("remote")]));
    wait_until_answers(client, vips[1], "remote");
    answers(client, vips[0], PORT, "local").expect("its last good version stays");
    assert_eq!(daemon.metric("dsproxy_objects_rejected_total"), Some(9.0));
    assert_eq!(daemon.metric("dsproxy_source_failures_total"), Some(0.0), "the watch goes on");
    assert_eq!(daemon.metric("dsproxy_source_connected"), Some(1.0));
}

#[test]
fn the_api_server_itself_is_a_service_with_endpoints_on_nodes() {
    let cluster = Cluster::build();
    let plane = ControlPlane::start(&cluster.lab, IpFamily::V4);
    let vip = DualStack::cluster_ip(1);
    // On the node of the daemon, and on the other.
    for side in [Side::A, Side::B] {
        let node = cluster.lab.node(side);
        let role = format!("api server on {side:?}");
        let _server = EchoServer::start_in(node.namespace(), node.addresses(), TARGET, &role).expect("it listens");
        plane.apply(&service("kubernetes", vip, &[node.addresses()]));
        let _daemon = plane.daemon(&cluster.lab, &[]).started();
        for client in [cluster.client.namespace(), cluster.bridged_client.namespace()] {
            wait_until_answers(client, vip, &role);
        }
    }
    assert!(plane.server().open_watches(Resource::Services) <= 1, "a daemon that ended watches nothing");
}
