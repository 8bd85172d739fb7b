//! Services whose endpoints are pods of the host's network: a backend's address is its node's own.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use dsproxy_common::Protocol;
use dsproxy_tests::lab::{
    Backend as Endpoint, DualStack, EchoServer, ExchangeError, Outside, ServiceManifest, Side, Wire,
};

use crate::cluster::{Cluster, PORT, TARGET, TRAFFIC, ask_here};

const SIDES: [Side; 2] = [Side::A, Side::B];

/// How long an answer may take. A lost SYN is repeated after a second.
const ANSWER: Duration = Duration::from_secs(3);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A pod with a network of its own, by its role.
    Pod(&'static str, Side),
    /// A node's own sockets, or a pod of its network.
    Host(Side),
    /// A host that is none of the cluster's.
    Outside,
}

const SOURCES: [Source; 6] = [
    Source::Pod("local", Side::A),
    Source::Pod("bridged", Side::A),
    Source::Pod("remote", Side::B),
    Source::Host(Side::A),
    Source::Host(Side::B),
    Source::Outside,
];

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frontend {
    ClusterIp,
    NodePort(Side),
}

const FRONTENDS: [Frontend; 3] = [Frontend::ClusterIp, Frontend::NodePort(Side::A), Frontend::NodePort(Side::B)];

/// The Service whose only endpoint is a node.
fn vip_of(side: Side) -> DualStack {
    DualStack::cluster_ip(1 + side as u16)
}

fn node_port_of(side: Side) -> u16 {
    30_001 + side as u16
}

fn service_of(cluster: &Cluster, side: Side) -> ServiceManifest {
    let endpoint = Endpoint { node: Some(side.role()), ..Endpoint::from(cluster.node(side)) };
    let manifest = ServiceManifest::new("default", side.role()).dual_stack(vip_of(side));
    [Protocol::Tcp, Protocol::Udp]
        .into_iter()
        .fold(manifest, |manifest, protocol| manifest.port(protocol, PORT, TARGET).node_port(node_port_of(side)))
        .backends([endpoint])
}

/// The name of who answers.
fn ask(
    cluster: &Cluster,
    outside: &Outside,
    source: Source,
    target: SocketAddr,
    protocol: Protocol,
) -> Result<String, ExchangeError> {
    let ask = || ask_here(target, protocol, ANSWER);
    match source {
        Source::Pod(role, _) => cluster.find(role).pod.namespace().run(ask)?,
        Source::Host(side) => cluster.as_host(side, ask),
        Source::Outside => outside.namespace().run(ask)?,
    }
}

/// The address that the endpoint on `place` is to see: the client's own, unless it came to a node from elsewhere and the
/// endpoint is not on that node, where the answer would pass it by.
fn seen_as(cluster: &Cluster, outside: &Outside, source: Source, frontend: Frontend, place: Side) -> DualStack {
    let (own, home) = match source {
        Source::Pod(role, side) => (cluster.backend(role), Some(side)),
        Source::Host(side) => (cluster.node(side), Some(side)),
        Source::Outside => (outside.addresses(), None),
    };
    let translating = match frontend {
        Frontend::NodePort(side) => side,
        // A client outside comes by node A.
        Frontend::ClusterIp => home.unwrap_or(Side::A),
    };
    if home != Some(translating) && place != translating { cluster.node(translating) } else { own }
}

#[test]
fn a_node_is_an_endpoint_like_any_other() {
    everybody_reaches_both_nodes(Wire::Direct);
}

#[test]
fn a_node_is_an_endpoint_beside_an_overlay() {
    everybody_reaches_both_nodes(Wire::Vxlan);
}

fn everybody_reaches_both_nodes(wire: Wire) {
    let cluster = Cluster::build_with(wire);
    let outside = cluster.lab.add_outside().expect("the host is added");
    let servers = SIDES.map(|side| {
        let namespace = cluster.lab.node(side).namespace();
        EchoServer::start_in(namespace, cluster.node(side), TARGET, side.role()).expect("the server listens")
    });
    SIDES.iter().for_each(|side| cluster.write(&service_of(&cluster, *side)));
    let _daemons = SIDES.map(|side| cluster.start_daemon_on(side, &[]));

    let mut wrong = Vec::new();
    for (place, server) in SIDES.into_iter().zip(&servers) {
        for (source, frontend) in SOURCES.into_iter().flat_map(|source| FRONTENDS.map(|frontend| (source, frontend))) {
            let wanted = seen_as(&cluster, &outside, source, frontend, place);
            for (family, protocol) in TRAFFIC {
                let target = match frontend {
                    Frontend::ClusterIp => vip_of(place).socket(family, PORT),
                    Frontend::NodePort(side) => cluster.node(side).socket(family, node_port_of(place)),
                };
                drop(server.take_peers());
                let answered = ask(&cluster, &outside, source, target, protocol).map_err(|error| error.to_string());
                let seen: BTreeSet<IpAddr> = server.take_peers().iter().map(SocketAddr::ip).collect();
                if answered.as_deref() != Ok(place.role()) || seen != [wanted.of(family)].into() {
                    wrong.push(format!(
                        "{source:?} asks {frontend:?} of {} over {family} {protocol}: {answered:?}, seen as {seen:?}, not {}",
                        place.role(),
                        wanted.of(family)
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
}
