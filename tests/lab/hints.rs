//! Topology: clients of a node are led to the endpoints that hints name for it or its zone.

use std::collections::BTreeSet;

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{
    Backend as Endpoint, DualStack, ExchangeError, Outside, Pod, Side, TcpSession, Wiring, eventually,
};

use crate::cluster::{Cluster, NODE_PORT, PORT, SOON, TRAFFIC, VIP, ask_here, exposed};

const EAST: &str = "east";
const WEST: &str = "west";

const ALL: [&str; 3] = ["local", "bridged", "remote"];

/// How often each client asks. Of three endpoints one is missed by a client once in sixteen thousand rounds.
const QUESTIONS: usize = 24;

/// An endpoint, and the zones and nodes that it is meant for.
type Hinted = (&'static str, &'static [&'static str], &'static [&'static str]);

struct World {
    cluster: Cluster,
    outside: Outside,
    /// A pod on node B that is no endpoint.
    far: Pod,
}

/// Where a question comes from, and where it goes.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// From a pod of this node to the ClusterIP.
    Pod(Side),
    /// From this node itself to the ClusterIP.
    Host(Side),
    /// From outside to the port of this node.
    NodePort(Side),
}

impl World {
    fn build() -> Self {
        let cluster = Cluster::build();
        let outside = cluster.lab.add_outside().expect("the host is added");
        let far = cluster.lab.add_pod(Side::B, Wiring::Routed, "far").expect("the pod is added");
        Self { cluster, outside, far }
    }

    fn write_node(&self, side: Side, zone: &str) {
        self.cluster.manifests.write_node(self.cluster.lab.node(side), zone).expect("the manifest is written");
    }

    fn write(&self, endpoints: [Hinted; 3]) {
        let hinted = |(role, for_zones, for_nodes): &Hinted| {
            let [endpoint] = self.cluster.endpoints(&[role])[..] else { panic!("{role} is one endpoint") };
            Endpoint { for_zones, for_nodes, ..endpoint }
        };
        self.cluster.write(&exposed(&self.cluster, &[]).backends(endpoints.iter().map(hinted)));
    }

    /// Everybody who answers this way, in any of the families and protocols.
    fn who_answers(&self, way: Way) -> Result<BTreeSet<String>, ExchangeError> {
        let (frontend, port): (DualStack, u16) = match way {
            Way::Pod(_) | Way::Host(_) => (VIP, PORT),
            Way::NodePort(side) => (self.cluster.node(side), NODE_PORT),
        };
        let ask = || {
            let questions = TRAFFIC.iter().flat_map(|traffic| std::iter::repeat_n(*traffic, QUESTIONS / TRAFFIC.len()));
            questions.map(|(family, protocol)| ask_here(frontend.socket(family, port), protocol, SOON)).collect()
        };
        match way {
            Way::Pod(Side::A) => self.cluster.client.namespace().run(ask)?,
            Way::Pod(Side::B) => self.far.namespace().run(ask)?,
            Way::Host(side) => self.cluster.as_host(side, ask),
            Way::NodePort(_) => self.outside.namespace().run(ask)?,
        }
    }

    /// Waits until clients of `side` are answered by `roles`, all of them and no other, and sees to it that it stays so.
    fn answered_by(&self, side: Side, roles: &[&str]) {
        let wanted: BTreeSet<String> = roles.iter().map(|role| (*role).to_owned()).collect();
        let ways = [Way::Pod(side), Way::Host(side), Way::NodePort(side)];
        for way in ways {
            eventually("waiting for the endpoints", SOON, || match self.who_answers(way) {
                Ok(answered) if answered == wanted => Ok(()),
                other => Err(format!("{way:?}: {other:?}, not {wanted:?}")),
            })
            .unwrap_or_else(|error| panic!("{error}"));
        }
        for way in ways {
            let answered = self.who_answers(way).unwrap_or_else(|error| panic!("{way:?}: {error}"));
            assert!(answered.is_subset(&wanted), "{way:?}: {answered:?}, not {wanted:?}");
        }
    }
}

#[test]
fn clients_are_led_to_the_endpoints_of_their_zone() {
    let world = World::build();
    world.write_node(Side::A, EAST);
    world.write_node(Side::B, WEST);
    // Where an endpoint is does not matter, only what it is meant for.
    let hinted: [Hinted; 3] = [("local", &[EAST], &[]), ("bridged", &[WEST], &[]), ("remote", &[WEST, "south"], &[])];
    world.write(hinted);
    let _daemons = [Side::A, Side::B].map(|side| world.cluster.start_daemon_on(side, &[]));
    world.answered_by(Side::A, &["local"]);
    world.answered_by(Side::B, &["bridged", "remote"]);
    let mut sessions = IpFamily::ALL.map(|family| {
        TcpSession::open(world.cluster.client.namespace(), VIP.socket(family, PORT)).expect("the VIP answers")
    });

    // One endpoint that is meant for no zone, and hints are no basis.
    world.write([hinted[0], hinted[1], ("remote", &[], &[])]);
    for side in [Side::A, Side::B] {
        world.answered_by(side, &ALL);
    }
    world.write(hinted);
    world.answered_by(Side::A, &["local"]);
    world.answered_by(Side::B, &["bridged", "remote"]);

    // The node moves: its own clients notice, those of the other do not.
    world.write_node(Side::A, WEST);
    world.answered_by(Side::A, &["bridged", "remote"]);
    world.answered_by(Side::B, &["bridged", "remote"]);
    world.write_node(Side::A, "south");
    world.answered_by(Side::A, &["remote"]);
    // No endpoint is meant for that zone.
    world.write_node(Side::A, "north");
    world.answered_by(Side::A, &ALL);
    world.write_node(Side::A, EAST);
    world.answered_by(Side::A, &["local"]);
    for session in &mut sessions {
        assert_eq!(session.backend(), "local");
        session.exchange(b"still there?").expect("connections stay with an endpoint of another zone");
    }
}

#[test]
fn hints_for_nodes_come_before_those_for_zones() {
    const NODE_A: &[&str] = &["node-a"];
    const NODE_B: &[&str] = &["node-b"];

    let world = World::build();
    for side in [Side::A, Side::B] {
        world.write_node(side, EAST);
    }
    world.write([("local", &[EAST], NODE_B), ("bridged", &[EAST], NODE_A), ("remote", &[WEST], NODE_A)]);
    let _daemons = [Side::A, Side::B].map(|side| world.cluster.start_daemon_on(side, &[]));
    world.answered_by(Side::A, &["bridged", "remote"]);
    world.answered_by(Side::B, &["local"]);

    // One endpoint that is meant for no node: zones decide.
    world.write([("local", &[EAST], NODE_B), ("bridged", &[EAST], NODE_A), ("remote", &[WEST], &[])]);
    for side in [Side::A, Side::B] {
        world.answered_by(side, &["local", "bridged"]);
    }
    // None is meant for node B.
    world.write([("local", &[EAST], NODE_A), ("bridged", &[], NODE_A), ("remote", &[WEST], NODE_A)]);
    world.answered_by(Side::B, &ALL);
}
