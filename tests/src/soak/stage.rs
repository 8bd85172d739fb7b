//! What a soak plays on: two nodes, a host outside, clients and backends in every place, and their Services.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::Context as _;
use dsproxy_common::{IpFamily, Protocol};

use super::{
    plan::{ENDPOINTS, Listed},
    plane::{NAMESPACE, Plane},
    traffic::{Client, Use},
};
use crate::lab::{
    Backend, DualStack, EchoServer, Lab, Outside, Pod, ServiceManifest, Side, TcpSession, Wiring, eventually,
};

/// The port of the VIPs, that of the backends, and that of the nodes.
const PORT: u16 = 80;
const TARGET: u16 = 8080;
const NODE_PORT: u16 = 30_080;

/// The Service whose endpoints run on, wherever they stand in it: connections to it are kept.
const STEADY: DualStack = DualStack::cluster_ip(1);
/// The Service whose endpoints come and go: each connection to it is a new one.
const FLEETING: DualStack = DualStack::cluster_ip(2);
/// The Service that is reached from outside, whose endpoints are all on the other node.
const EXPOSED: DualStack = DualStack::cluster_ip(3);
/// The Service by which it is seen how far the daemon has come.
const MARKER: DualStack = DualStack::cluster_ip(4);
/// The first of the Services that nobody uses.
const UNUSED: u16 = 100;

/// How long the daemon may take to do what it was told, an outage and its own restart included.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the connections that a backend has may take to end, once no new one is led to it.
const LAST_EXCHANGES: Duration = Duration::from_millis(500);

struct Server {
    side: Side,
    pod: Pod,
    echo: EchoServer,
}

pub(super) struct Stage<'lab> {
    lab: &'lab Lab,
    plane: &'lab Plane,
    outside: Outside,
    client: Pod,
    bridged_client: Pod,
    endpoints: Mutex<Vec<(Server, Listed)>>,
    fleeting: Mutex<Fleeting>,
    marked: AtomicBool,
}

#[derive(Default)]
struct Fleeting {
    servers: Vec<(Server, Listed)>,
    made: u64,
    unused: std::collections::BTreeSet<u16>,
}

impl<'lab> Stage<'lab> {
    pub(super) fn set(lab: &'lab Lab, plane: &'lab Plane) -> anyhow::Result<Self> {
        let outside = lab.add_outside()?;
        let client = lab.add_pod(Side::A, Wiring::Routed, "client")?;
        let bridged_client = lab.add_pod(Side::A, Wiring::Bridged, "bridged-client")?;
        let places: [_; ENDPOINTS] = [
            ("local", Side::A, Wiring::Routed),
            ("remote", Side::B, Wiring::Routed),
            ("bridged", Side::A, Wiring::Bridged),
            ("distant", Side::B, Wiring::Bridged),
        ];
        let endpoints =
            places.into_iter().map(|(role, side, wiring)| Ok((serve(lab, side, wiring, role)?, Listed::Ready)));
        let endpoints = Mutex::new(endpoints.collect::<anyhow::Result<_>>()?);
        let stage = Self {
            lab,
            plane,
            outside,
            client,
            bridged_client,
            endpoints,
            fleeting: Mutex::default(),
            marked: AtomicBool::new(false),
        };
        stage.list_steady()?;
        stage.list_fleeting(&stage.fleeting())?;
        let remote: Vec<Backend> = {
            let endpoints = stage.endpoints();
            let remote = endpoints.iter().filter(|(server, _)| server.side == Side::B);
            remote.filter_map(|(server, _)| listed(server, Listed::Ready)).collect()
        };
        let exposed = ServiceManifest::new(NAMESPACE, "exposed").dual_stack(EXPOSED);
        let exposed = exposed.port(Protocol::Tcp, PORT, TARGET).node_port(NODE_PORT);
        plane.apply(&exposed.port(Protocol::Udp, PORT, TARGET).node_port(NODE_PORT).backends(remote))?;
        stage.mark()?;
        Ok(stage)
    }

    /// Waits until everything is served.
    pub(super) fn await_service(&self) -> anyhow::Result<()> {
        for client in self.clients() {
            let what = format!("waiting for {} over {}", client.target, client.protocol);
            eventually(&what, PATIENCE, || client.namespace.run(|| client.ask_once())?)?;
        }
        Ok(())
    }

    /// Every client there is to be.
    pub(super) fn clients(&self) -> Vec<Client> {
        let mut clients = Vec::new();
        let node = self.lab.node(Side::A);
        let host = Some(self.lab.cgroup().clone());
        let ways = [
            ("pod to ClusterIP", self.client.namespace(), None, STEADY, PORT, &[Use::New, Use::Kept][..]),
            ("pod to endpoints that come and go", self.bridged_client.namespace(), None, FLEETING, PORT, &[Use::New]),
            (
                "outside to NodePort",
                self.outside.namespace(),
                None,
                node.addresses(),
                NODE_PORT,
                &[Use::New, Use::Kept],
            ),
            ("host to ClusterIP", node.namespace(), host, STEADY, PORT, &[Use::New, Use::Kept]),
        ];
        for (way, namespace, cgroup, address, port, uses) in ways {
            for family in IpFamily::ALL {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    clients.extend(uses.iter().map(|usage| Client {
                        way,
                        protocol,
                        target: address.socket(family, port),
                        usage: *usage,
                        namespace: namespace.clone(),
                        cgroup: cgroup.clone(),
                    }));
                }
            }
        }
        clients
    }

    fn endpoints(&self) -> MutexGuard<'_, Vec<(Server, Listed)>> {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fleeting(&self) -> MutexGuard<'_, Fleeting> {
        self.fleeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the place of an endpoint that runs on.
    pub(super) fn list(&self, number: usize, state: Listed) -> anyhow::Result<()> {
        self.endpoints().get_mut(number).context("a planned endpoint exists")?.1 = state;
        self.list_steady()
    }

    fn list_steady(&self) -> anyhow::Result<()> {
        let endpoints = self.endpoints();
        let backends = endpoints.iter().filter_map(|(server, state)| listed(server, *state));
        self.plane.apply(&service("steady", STEADY, backends))
    }

    fn list_fleeting(&self, fleeting: &Fleeting) -> anyhow::Result<()> {
        // The first endpoint is always there: without any, a refusal would be right.
        let endpoints = self.endpoints();
        let backends = endpoints.iter().take(1).map(|(server, _)| (server, Listed::Ready));
        let backends = backends.chain(fleeting.servers.iter().map(|(server, state)| (server, *state)));
        self.plane.apply(&service("fleeting", FLEETING, backends.filter_map(|(server, state)| listed(server, state))))
    }

    /// A pod comes and serves.
    pub(super) fn add_pod(&self) -> anyhow::Result<()> {
        let mut fleeting = self.fleeting();
        let number = fleeting.made;
        fleeting.made += 1;
        let side = if number.is_multiple_of(3) { Side::B } else { Side::A };
        let wiring = if number.is_multiple_of(2) { Wiring::Routed } else { Wiring::Bridged };
        let server = serve(self.lab, side, wiring, &format!("fleeting-{number}"))?;
        fleeting.servers.push((server, Listed::Ready));
        self.list_fleeting(&fleeting)
    }

    /// The oldest pod of those that came goes, in the order in which Kubernetes lets one go: no new connections, then not
    /// listed, then ended. It waits for the daemon to have heard of it, as no kubelet does, for connections led to a pod that is
    /// gone are nobody's fault but the API server's.
    pub(super) fn remove_pod(&self) -> anyhow::Result<()> {
        let mut fleeting = self.fleeting();
        let Some((_, state)) = fleeting.servers.first_mut() else { return Ok(()) };
        *state = Listed::Terminating;
        self.list_fleeting(&fleeting)?;
        thread::sleep(LAST_EXCHANGES);
        let (Server { side, pod, echo }, _) = fleeting.servers.remove(0);
        self.list_fleeting(&fleeting)?;
        drop(fleeting);
        self.await_mark()?;
        thread::sleep(LAST_EXCHANGES);
        drop(echo);
        Ok(self.lab.remove_pod(side, &pod)?)
    }

    /// A Service that nobody uses comes, or goes if it is there.
    pub(super) fn toggle_service(&self, number: u16) -> anyhow::Result<()> {
        let name = format!("unused-{number}");
        let mut fleeting = self.fleeting();
        if fleeting.unused.remove(&number) {
            self.plane.delete(&name);
            return Ok(());
        }
        fleeting.unused.insert(number);
        let endpoints = self.endpoints();
        let backends = endpoints.iter().filter_map(|(server, _)| listed(server, Listed::Ready));
        self.plane.apply(&service(&name, DualStack::cluster_ip(UNUSED + number), backends))
    }

    /// Gives the Service that marks the other one of its endpoints; the name of that.
    fn mark(&self) -> anyhow::Result<String> {
        let number = usize::from(self.marked.fetch_xor(true, Ordering::Relaxed));
        let endpoints = self.endpoints();
        let (server, _) = endpoints.get(number).context("two endpoints stay")?;
        self.plane.apply(&service("marker", MARKER, listed(server, Listed::Ready)))?;
        Ok(server.echo.name().to_owned())
    }

    /// Waits until the daemon has heard of everything up to now: changes of one kind are told in their order, so that what is told
    /// last has its effect last.
    pub(super) fn await_mark(&self) -> anyhow::Result<()> {
        let wanted = self.mark()?;
        for family in IpFamily::ALL {
            let target = MARKER.socket(family, PORT);
            eventually("waiting for the daemon to hear of a change", PATIENCE, || {
                match TcpSession::open(self.client.namespace(), target) {
                    Ok(session) if session.backend() == wanted => Ok(()),
                    Ok(session) => Err(format!("{} answers for {wanted}", session.backend())),
                    Err(error) => Err(error.to_string()),
                }
            })?;
        }
        Ok(())
    }
}

fn serve(lab: &Lab, side: Side, wiring: Wiring, role: &str) -> anyhow::Result<Server> {
    let pod = lab.add_pod(side, wiring, role)?;
    let echo = EchoServer::start(&pod, TARGET, role)?;
    Ok(Server { side, pod, echo })
}

/// The endpoint of a server, if it is to be listed.
fn listed(server: &Server, state: Listed) -> Option<Backend> {
    let backend = Backend { node: Some(server.side.role()), ..Backend::from(server.pod.addresses()) };
    match state {
        Listed::Ready => Some(backend),
        Listed::Terminating => Some(Backend { ready: false, serving: true, terminating: true, ..backend }),
        Listed::Absent => None,
    }
}

/// A dual-stack Service on TCP and UDP.
fn service(name: &str, address: DualStack, backends: impl IntoIterator<Item = Backend>) -> ServiceManifest {
    ServiceManifest::new(NAMESPACE, name)
        .dual_stack(address)
        .port(Protocol::Tcp, PORT, TARGET)
        .port(Protocol::Udp, PORT, TARGET)
        .backends(backends)
}
