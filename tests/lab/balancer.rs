//! What a load balancer goes by: the `healthCheckNodePort` of each node, and which of its addresses the nodes serve.

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::{DualStack, HttpAnswer, ServiceManifest, Side, eventually, http_get};
use serde_json::{Value, json};

use crate::cluster::{BALANCER, Cluster, NODE_PORT, PORT, SOON, TRAFFIC, answers, ask_here, exposed, is_silent};

/// The `healthCheckNodePort`.
const CHECK: u16 = 32_100;

/// An address of the load balancer's own.
const PROXY: DualStack = DualStack::external(2);

#[test]
fn nodes_tell_a_load_balancer_whether_they_have_an_endpoint() {
    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let service = |roles: &[&str]| exposed(&cluster, roles).external_local().health_check_node_port(CHECK);
    let told = |side, family| -> Result<(u16, Value), String> {
        let target = cluster.node(side).socket(family, CHECK);
        let HttpAnswer { status, body } =
            http_get(outside.namespace(), target, "/").map_err(|error| error.to_string())?;
        Ok((status, serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?))
    };
    let await_told = |side, count: usize| {
        let status = if count > 0 { 200 } else { 503 };
        let body = json!({
            "service": {"namespace": "default", "name": "echo"}, "localEndpoints": count, "serviceProxyHealthy": true
        });
        for family in IpFamily::ALL {
            eventually("waiting for the health check", SOON, || match told(side, family) {
                Ok(told) if told == (status, body.clone()) => Ok(()),
                other => Err(format!("{side:?} tells over {family}: {other:?}")),
            })
            .unwrap_or_else(|error| panic!("{error}"));
        }
    };
    // Only where a node has an endpoint is the client answered.
    let served = |side, role: Option<&str>| {
        for family in IpFamily::ALL {
            is_or_is_not_served(&cluster, outside.namespace(), side, family, role);
        }
    };

    cluster.write(&service(&["local"]));
    let _daemons = [Side::A, Side::B].map(|side| cluster.start_daemon_on(side, &[]));
    await_told(Side::A, 1);
    await_told(Side::B, 0);
    served(Side::A, Some("local"));
    served(Side::B, None);
    cluster.write(&service(&["local", "bridged", "remote"]));
    await_told(Side::A, 2);
    await_told(Side::B, 1);
    cluster.write(&service(&["remote"]));
    await_told(Side::A, 0);
    await_told(Side::B, 1);
    served(Side::A, None);
    served(Side::B, Some("remote"));
    cluster.write(&service(&[]));
    await_told(Side::A, 0);
    await_told(Side::B, 0);
}

/// Fails unless `client` is answered by `role` at the NodePort of `side`, or by nobody.
fn is_or_is_not_served(
    cluster: &Cluster,
    client: &dsproxy_tests::lab::Namespace,
    side: Side,
    family: IpFamily,
    role: Option<&str>,
) {
    let node = cluster.node(side);
    match role {
        Some(role) => {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let target = node.socket(family, NODE_PORT);
                let answered = client.run(|| ask_here(target, protocol, SOON)).expect("the client is there");
                assert_eq!(answered.expect("the NodePort is served"), role, "{side:?} {family} {protocol}");
            }
        }
        None => is_silent(client, family, node, NODE_PORT).unwrap_or_else(|error| panic!("{side:?}: {error}")),
    }
}

#[test]
fn an_address_with_ip_mode_proxy_is_left_to_the_load_balancer() {
    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let service = |mode: fn(ServiceManifest, DualStack) -> ServiceManifest| mode(exposed(&cluster, &["local"]), PROXY);
    let clients = [outside.namespace(), cluster.client.namespace(), cluster.bridged_client.namespace()];
    let is_left = || {
        for (client, family) in clients.into_iter().flat_map(|client| IpFamily::ALL.map(|family| (client, family))) {
            eventually("waiting for silence", SOON, || is_silent(client, family, PROXY, PORT))
                .unwrap_or_else(|error| panic!("{}: {error}", client.name()));
        }
        for (family, protocol) in TRAFFIC {
            let asked = cluster.as_host(Side::A, || ask_here(PROXY.socket(family, PORT), protocol, SOON / 10));
            asked.expect_err("the host's own sockets are not led either");
        }
    };
    let is_served = |address| {
        for client in clients {
            eventually("waiting for the address", SOON, || answers(client, address, PORT, "local"))
                .unwrap_or_else(|error| panic!("{}: {error}", client.name()));
        }
        for (family, protocol) in TRAFFIC {
            let asked = cluster.as_host(Side::A, || ask_here(address.socket(family, PORT), protocol, SOON));
            assert_eq!(asked.expect("the host's own sockets are led"), "local");
        }
    };

    cluster.write(&service(ServiceManifest::load_balancer_proxy));
    let _daemon = cluster.start_daemon_on(Side::A, &[]);
    is_served(BALANCER);
    is_left();
    cluster.write(&service(ServiceManifest::load_balancer));
    is_served(PROXY);
    cluster.write(&service(ServiceManifest::load_balancer_proxy));
    is_left();
    is_served(BALANCER);
}
