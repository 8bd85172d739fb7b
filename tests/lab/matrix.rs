//! Everybody asks for everything: each source x each frontend x each policy, with a daemon on both nodes, in both families, over
//! TCP and UDP. What is expected is said once, in `expected`.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::{
    Backend, DualStack, EchoServer, ExchangeError, Lab, Manifests, Namespace, Outside, Pod, ServiceManifest, Side,
    Wire, Wiring,
};

use crate::cluster::{PORT, TARGET, TRAFFIC, ask_here, start_daemon};

/// How often each cell is asked: often enough that a wrong endpoint among three shows.
const EXCHANGES: usize = 8;

/// How long silence is waited for.
const PATIENCE: Duration = Duration::from_millis(250);

/// How long an answer may take. A lost SYN is repeated after a second.
const ANSWER: Duration = Duration::from_secs(3);

/// More wrong cells than these tell nothing new, and each takes its time.
const ENOUGH: usize = 60;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    /// A pod, by its node and wiring.
    Pod(Side, Wiring),
    /// A node's own sockets.
    Node(Side),
    /// A host that is none of the cluster's.
    Outside,
}

impl Source {
    const ALL: [Self; 6] = [
        Self::Pod(Side::A, Wiring::Routed),
        Self::Pod(Side::A, Wiring::Bridged),
        Self::Pod(Side::B, Wiring::Routed),
        Self::Node(Side::A),
        Self::Node(Side::B),
        Self::Outside,
    ];
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frontend {
    ClusterIp,
    NodePort(Side),
    LoadBalancer,
    ExternalIp,
}

impl Frontend {
    const ALL: [Self; 5] =
        [Self::ClusterIp, Self::NodePort(Side::A), Self::NodePort(Side::B), Self::LoadBalancer, Self::ExternalIp];
}

/// The Services: a name, where their endpoints are, and their policies.
#[derive(Clone, Copy, Debug)]
struct Policy {
    name: &'static str,
    number: u16,
    endpoints: &'static [usize],
    internal_local: bool,
    external_local: bool,
}

/// Where endpoints can be, in the order of their servers.
const PLACES: [(&str, Side, Wiring); 4] = [
    ("a-routed", Side::A, Wiring::Routed),
    ("a-bridged", Side::A, Wiring::Bridged),
    ("b-routed", Side::B, Wiring::Routed),
    ("b-bridged", Side::B, Wiring::Bridged),
];

const POLICIES: [Policy; 6] = [
    Policy { name: "cluster", number: 1, endpoints: &[0, 1, 2, 3], internal_local: false, external_local: false },
    Policy { name: "external-local", number: 2, endpoints: &[0, 1, 2], internal_local: false, external_local: true },
    Policy { name: "external-only-b", number: 3, endpoints: &[3], internal_local: false, external_local: true },
    Policy { name: "internal-local", number: 4, endpoints: &[1, 2], internal_local: true, external_local: false },
    Policy { name: "internal-only-b", number: 5, endpoints: &[2], internal_local: true, external_local: false },
    Policy { name: "empty", number: 6, endpoints: &[], internal_local: false, external_local: true },
];

/// What somebody gets who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Expected {
    /// One of these places answers.
    Answer(BTreeSet<usize>),
    /// "Connection refused", at once.
    Refused,
    /// Nothing.
    Silence,
}

/// The node that translates: the one whose programs meet a packet, or see a socket connect, while its destination is still the
/// frontend.
fn translating_node(source: Source, frontend: Frontend) -> Side {
    match (source, frontend) {
        // The address of a node is a frontend on that node alone.
        (_, Frontend::NodePort(side)) => side,
        (Source::Pod(side, _) | Source::Node(side), _) => side,
        // Its way into the cluster is by node A.
        (Source::Outside, _) => Side::A,
    }
}

/// The rules, in words: a pod is inside the cluster, wherever it is, and a node's own sockets are where it translates for them; the internal policy is for ClusterIPs, the external one for
/// clients outside at everything else. "Local" leaves the endpoints of the node that translates; if there are others, nobody
/// answers; if there are none at all, the client is refused.
fn expected(source: Source, frontend: Frontend, policy: &Policy) -> Expected {
    let node = translating_node(source, frontend);
    let is_local = match (frontend, source) {
        (Frontend::ClusterIp, _) => policy.internal_local,
        (_, Source::Pod(..)) => false,
        (_, Source::Node(side)) => side != node && policy.external_local,
        (_, Source::Outside) => policy.external_local,
    };
    let all: BTreeSet<usize> = policy.endpoints.iter().copied().collect();
    let allowed: BTreeSet<usize> = all.iter().copied().filter(|place| !is_local || PLACES[*place].1 == node).collect();
    match (allowed.is_empty(), all.is_empty()) {
        (false, _) => Expected::Answer(allowed),
        // A call that is not led anywhere fails at once, instead of sending what nobody takes.
        (true, false) if is_led(source, frontend) => Expected::Refused,
        (true, false) => Expected::Silence,
        (true, true) => Expected::Refused,
    }
}

/// Whether the socket itself is led to a backend, before there is a packet.
fn is_led(source: Source, frontend: Frontend) -> bool {
    source == Source::Node(translating_node(source, frontend))
}

/// Whether the backend at `place` sees an address of the translating node instead of the client's: where its answer would
/// not come back that way by itself.
fn is_masqueraded(source: Source, frontend: Frontend, place: usize) -> bool {
    let node = translating_node(source, frontend);
    let came_by_a_node_device = match source {
        Source::Pod(side, _) | Source::Node(side) => side != node,
        Source::Outside => true,
    };
    came_by_a_node_device && PLACES[place].1 != node
}

struct World {
    wire: Wire,
    clients: Vec<Pod>,
    outside: Outside,
    servers: Vec<EchoServer>,
    lab: Lab,
}

impl World {
    fn build(wire: Wire) -> (Self, Manifests) {
        let lab = Lab::with(wire).expect("the lab is built");
        let outside = lab.add_outside().expect("the host is added");
        let add = |side, wiring, role: &str| lab.add_pod(side, wiring, role).expect("the pod is added");
        let clients = vec![
            add(Side::A, Wiring::Routed, "client-a"),
            add(Side::A, Wiring::Bridged, "client-bridged"),
            add(Side::B, Wiring::Routed, "client-b"),
        ];
        let pods: Vec<Pod> = PLACES.iter().map(|(role, side, wiring)| add(*side, *wiring, role)).collect();
        let servers = pods
            .iter()
            .zip(PLACES)
            .map(|(pod, (role, ..))| EchoServer::start(pod, TARGET, role).expect("the server listens"))
            .collect();
        let manifests = Manifests::create(lab.directory().join("manifests")).expect("the directory is made");
        for policy in &POLICIES {
            let backends = policy.endpoints.iter().map(|place| Backend {
                node: Some(PLACES[*place].1.role()),
                ..Backend::from(pods[*place].addresses())
            });
            let mut service = ServiceManifest::new("default", policy.name)
                .dual_stack(DualStack::cluster_ip(policy.number))
                .port(Protocol::Tcp, PORT, TARGET)
                .node_port(node_port(policy))
                .port(Protocol::Udp, PORT, TARGET)
                .node_port(node_port(policy))
                .load_balancer(DualStack::external(policy.number))
                .external_ips(DualStack::external(100 + policy.number))
                .backends(backends);
            if policy.internal_local {
                service = service.internal_local();
            }
            if policy.external_local {
                service = service.external_local();
            }
            manifests.write(&service).expect("the manifest is written");
        }
        (Self { wire, clients, outside, servers, lab }, manifests)
    }

    fn client(&self, source: Source) -> (&Namespace, DualStack) {
        let pod = match source {
            Source::Pod(Side::A, Wiring::Routed) => &self.clients[0],
            Source::Pod(Side::A, Wiring::Bridged) => &self.clients[1],
            Source::Pod(Side::B, _) => &self.clients[2],
            Source::Node(side) => return (self.lab.node(side).namespace(), self.lab.node(side).addresses()),
            Source::Outside => return (self.outside.namespace(), self.outside.addresses()),
        };
        (pod.namespace(), pod.addresses())
    }

    fn address(&self, frontend: Frontend, policy: &Policy, family: IpFamily) -> SocketAddr {
        match frontend {
            Frontend::ClusterIp => DualStack::cluster_ip(policy.number).socket(family, PORT),
            Frontend::NodePort(side) => self.lab.node(side).addresses().socket(family, node_port(policy)),
            Frontend::LoadBalancer => DualStack::external(policy.number).socket(family, PORT),
            Frontend::ExternalIp => DualStack::external(100 + policy.number).socket(family, PORT),
        }
    }

    /// The name of who answers `source`.
    fn ask(
        &self,
        source: Source,
        target: SocketAddr,
        protocol: Protocol,
        patience: Duration,
    ) -> Result<String, ExchangeError> {
        let (namespace, _) = self.client(source);
        let cgroup = self.lab.cgroup();
        namespace.run(|| {
            if let Source::Node(_) = source {
                cgroup.enter()?;
            }
            ask_here(target, protocol, patience)
        })?
    }

    /// What masqueraded packets to the other node's pods leave `node` with: an address of the device that they leave by.
    fn masquerade_address(&self, node: Side) -> DualStack {
        let node = self.lab.node(node);
        match self.wire {
            Wire::Direct => node.addresses(),
            Wire::Vxlan => node.overlay_addresses(),
        }
    }

    /// Asks once, and says what is wrong with what came of it.
    fn check(&self, cell: &Cell, family: IpFamily, protocol: Protocol) -> Result<(), String> {
        let Cell { source, frontend, policy } = *cell;
        let (_, own) = self.client(source);
        let target = self.address(frontend, policy, family);
        match expected(source, frontend, policy) {
            Expected::Answer(places) => {
                let allowed: Vec<&str> = places.iter().map(|place| PLACES[*place].0).collect();
                for _ in 0..EXCHANGES {
                    self.servers.iter().for_each(|server| drop(server.take_peers()));
                    let answered = self.ask(source, target, protocol, ANSWER).map_err(|error| error.to_string())?;
                    if !allowed.contains(&answered.as_str()) {
                        return Err(format!("{answered} answered, not one of {allowed:?}"));
                    }
                    let place = PLACES.iter().position(|(role, ..)| *role == answered).unwrap_or(usize::MAX);
                    let seen: BTreeSet<IpAddr> = self.servers[place].take_peers().iter().map(SocketAddr::ip).collect();
                    let wanted = if is_masqueraded(source, frontend, place) {
                        self.masquerade_address(translating_node(source, frontend)).of(family)
                    } else {
                        own.of(family)
                    };
                    // A socket that is led to a backend of its own has the address that the route there prefers.
                    if !is_led(source, frontend) && seen != [wanted].into() {
                        return Err(format!("{answered} saw {seen:?}, not {wanted}"));
                    }
                }
                Ok(())
            }
            Expected::Refused => match self.ask(source, target, protocol, ANSWER) {
                Err(error) if error.is_refused() => Ok(()),
                Err(error) => Err(format!("not refused: {error}")),
                Ok(answered) => Err(format!("{answered} answered, not refused")),
            },
            Expected::Silence => match self.ask(source, target, protocol, PATIENCE) {
                Err(error) if error.is_silence() => Ok(()),
                Err(error) => Err(format!("not silent: {error}")),
                Ok(answered) => Err(format!("{answered} answered, though none should")),
            },
        }
    }
}

/// The port that `policy`'s Service has on the nodes.
fn node_port(policy: &Policy) -> u16 {
    30_000 + policy.number
}

/// Who asks for what.
#[derive(Clone, Copy, Debug)]
struct Cell<'a> {
    source: Source,
    frontend: Frontend,
    policy: &'a Policy,
}

#[test]
fn every_source_reaches_every_frontend_as_every_policy_says() {
    everybody_asks_for_everything(Wire::Direct);
}

#[test]
fn every_source_reaches_every_frontend_through_an_overlay() {
    everybody_asks_for_everything(Wire::Vxlan);
}

fn everybody_asks_for_everything(wire: Wire) {
    let (world, manifests) = World::build(wire);
    let _daemons = [Side::A, Side::B].map(|side| start_daemon(&world.lab, &manifests, side, &[]));
    let mut cells = 0;
    let mut wrong = Vec::new();
    for policy in &POLICIES {
        for frontend in Frontend::ALL {
            for source in Source::ALL {
                let cell = Cell { source, frontend, policy };
                for (family, protocol) in TRAFFIC {
                    cells += 1;
                    if let Err(what) = world.check(&cell, family, protocol) {
                        wrong
                            .push(format!("{} {frontend:?} from {source:?}, {family} {protocol}: {what}", policy.name));
                        assert!(wrong.len() < ENOUGH, "{ENOUGH} of {cells} cells are wrong:\n{}", wrong.join("\n"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {cells} cells are wrong:\n{}", wrong.len(), wrong.join("\n"));
}
