//! The small cluster that most cases start from: clients and backends in every place they can be.

use std::{net::SocketAddr, time::Duration};

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::{
    Attach, Backend as Endpoint, Daemon, DaemonOptions, DualStack, EchoServer, ExchangeError, Lab, LabError, Manifests,
    Namespace, Pod, ServiceManifest, Side, TcpSession, UdpSession, Wire, Wiring, eventually,
};
use dsproxy_tests::prog::kernel_has_tcx;

/// The port of the VIPs.
pub(crate) const PORT: u16 = 80;

/// The port the backends serve on.
pub(crate) const TARGET: u16 = 8080;

/// What every daemon is told that is to tell pods from others.
pub(crate) const CLUSTER_CIDR: [&str; 2] = ["--cluster-cidr", "10.244.0.0/16,fd00:10:244::/48"];

/// How long a change of the manifests may take to be seen in traffic.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// The place of a pod: its role, node and wiring.
const PLACES: [(&str, Side, Wiring); 3] =
    [("local", Side::A, Wiring::Routed), ("bridged", Side::A, Wiring::Bridged), ("remote", Side::B, Wiring::Routed)];

/// Two clients on node A, three backends on both nodes, and an empty directory of manifests.
pub(crate) struct Cluster {
    pub(crate) client: Pod,
    pub(crate) bridged_client: Pod,
    pub(crate) backends: Vec<Backend>,
    pub(crate) manifests: Manifests,
    // Last, so that the namespaces go after what lives in them.
    pub(crate) lab: Lab,
}

/// A pod with an echo server that answers with the pod's role.
pub(crate) struct Backend {
    pub(crate) role: String,
    pub(crate) side: Side,
    pub(crate) pod: Pod,
    pub(crate) server: EchoServer,
}

impl Cluster {
    pub(crate) fn build() -> Self {
        Self::build_with(Wire::Direct)
    }

    /// The same, with pods' packets between the nodes as `wire` says.
    pub(crate) fn build_with(wire: Wire) -> Self {
        let lab = Lab::with(wire).expect("the lab is built");
        let add = |side, wiring, role: &str| lab.add_pod(side, wiring, role).expect("the pod is added");
        let client = add(Side::A, Wiring::Routed, "client");
        let bridged_client = add(Side::A, Wiring::Bridged, "bridged-client");
        let manifests = Manifests::create(lab.directory().join("manifests")).expect("the directory is made");
        let mut cluster = Self { client, bridged_client, backends: Vec::new(), manifests, lab };
        for (role, side, wiring) in PLACES {
            cluster.add_backend(role, side, wiring);
        }
        cluster
    }

    /// Adds a pod and starts its server.
    pub(crate) fn add_backend(&mut self, role: &str, side: Side, wiring: Wiring) {
        let pod = self.lab.add_pod(side, wiring, role).expect("the pod is added");
        let server = EchoServer::start(&pod, TARGET, role).expect("the server listens");
        self.backends.push(Backend { role: role.to_owned(), side, pod, server });
    }

    /// The backend `role`.
    pub(crate) fn find(&self, role: &str) -> &Backend {
        self.backends.iter().find(|backend| backend.role == role).unwrap_or_else(|| panic!("no backend {role}"))
    }

    /// The addresses of the backend `role`.
    pub(crate) fn backend(&self, role: &str) -> DualStack {
        self.find(role).pod.addresses()
    }

    /// The endpoints `roles`, each with its node.
    pub(crate) fn endpoints(&self, roles: &[&str]) -> Vec<Endpoint> {
        let endpoint = |role: &&str| {
            let Backend { role: _, side, pod, server: _ } = self.find(role);
            Endpoint { node: Some(side.role()), ..Endpoint::from(pod.addresses()) }
        };
        roles.iter().map(endpoint).collect()
    }

    /// Writes `service`, in place of what stood under its name before.
    pub(crate) fn write(&self, service: &ServiceManifest) {
        self.manifests.write(service).expect("the manifest is written");
    }

    /// The addresses of a node.
    pub(crate) fn node(&self, side: Side) -> DualStack {
        self.lab.node(side).addresses()
    }

    /// Runs `work` as a process of a node would.
    pub(crate) fn as_host<T: Send>(&self, side: Side, work: impl FnOnce() -> T + Send) -> T {
        let cgroup = self.lab.cgroup();
        let entered = self.lab.node(side).namespace().run(|| cgroup.enter().map(|()| work()));
        entered.and_then(|result| result).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts the daemon with default options.
    pub(crate) fn start_daemon(&self) -> Daemon<'_> {
        self.start_daemon_with(Attach::Auto)
    }

    /// Starts the daemon with `--attach`.
    pub(crate) fn start_daemon_with(&self, attach: Attach) -> Daemon<'_> {
        let options = DaemonOptions { attach, ..DaemonOptions::default() };
        Daemon::start(&self.lab, &self.manifests, options).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Starts a daemon on `side`, which is told its node, the pods' networks and `arguments`.
    pub(crate) fn start_daemon_on(&self, side: Side, arguments: &[&str]) -> Daemon<'_> {
        start_daemon(&self.lab, &self.manifests, side, arguments)
    }
}

/// [`Cluster::start_daemon_on`] in any lab.
pub(crate) fn start_daemon<'lab>(
    lab: &'lab Lab,
    manifests: &Manifests,
    side: Side,
    arguments: &[&str],
) -> Daemon<'lab> {
    let told = [&CLUSTER_CIDR[..], &["--hostname-override", side.role()], arguments].concat();
    let options = DaemonOptions {
        side: Some(side),
        arguments: told.into_iter().map(str::to_owned).collect(),
        ..DaemonOptions::default()
    };
    Daemon::start(lab, manifests, options).unwrap_or_else(|error| panic!("{error}"))
}

/// Whether the kernel has no tcx. Then a daemon that is told to use it has to end and say what it takes, which is tested instead: what
/// serves without it is what its neighbours among the tests are about.
pub(crate) fn is_without_tcx() -> bool {
    if kernel_has_tcx().expect("a kernel that tells its release") {
        return false;
    }
    let cluster = Cluster::build();
    let options = DaemonOptions { attach: Attach::Tcx, ..DaemonOptions::default() };
    let told = Daemon::start(&cluster.lab, &cluster.manifests, options).expect_err("there is no tcx").to_string();
    for part in ["tcx", "6.6", "--attach auto", "--attach clsact"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    true
}

/// A dual-stack Service `name` on TCP and UDP, served by the pods at `backends`.
pub(crate) fn service(name: &str, vip: DualStack, backends: &[DualStack]) -> ServiceManifest {
    ServiceManifest::new("default", name)
        .dual_stack(vip)
        .port(Protocol::Tcp, PORT, TARGET)
        .port(Protocol::Udp, PORT, TARGET)
        .backends(backends.iter().copied())
}

/// The addresses and the port of the nodes that [`exposed`] is reached at.
pub(crate) const VIP: DualStack = DualStack::cluster_ip(1);
pub(crate) const BALANCER: DualStack = DualStack::external(1);
pub(crate) const NODE_PORT: u16 = 30_001;

/// A Service that is reached in every way, with `roles` as its endpoints.
pub(crate) fn exposed(cluster: &Cluster, roles: &[&str]) -> ServiceManifest {
    ServiceManifest::new("default", "echo")
        .dual_stack(VIP)
        .port(Protocol::Tcp, PORT, TARGET)
        .node_port(NODE_PORT)
        .port(Protocol::Udp, PORT, TARGET)
        .node_port(NODE_PORT)
        .load_balancer(BALANCER)
        .backends(cluster.endpoints(roles))
}

/// What a client asks by.
pub(crate) const TRAFFIC: [(IpFamily, Protocol); 4] = [
    (IpFamily::V4, Protocol::Tcp),
    (IpFamily::V4, Protocol::Udp),
    (IpFamily::V6, Protocol::Tcp),
    (IpFamily::V6, Protocol::Udp),
];

/// The name of who answers the calling thread.
pub(crate) fn ask_here(target: SocketAddr, protocol: Protocol, patience: Duration) -> Result<String, ExchangeError> {
    match protocol {
        Protocol::Udp => UdpSession::open_here(target, true)?.with_patience(patience)?.ask(),
        Protocol::Tcp | Protocol::Sctp => {
            let mut session = TcpSession::open_here_within(target, patience)?;
            session.exchange(b"hello")?;
            Ok(session.backend().to_owned())
        }
    }
}

/// Exchanges with `vip` in every way a client can; fails unless it is always `role` that answers.
pub(crate) fn answers(client: &Namespace, vip: DualStack, port: u16, role: &str) -> Result<(), Wrong> {
    for family in IpFamily::ALL {
        answers_in(client, family, vip, port, role)?;
    }
    Ok(())
}

/// [`answers`] in one family.
pub(crate) fn answers_in(
    client: &Namespace,
    family: IpFamily,
    vip: DualStack,
    port: u16,
    role: &str,
) -> Result<(), Wrong> {
    let target = vip.socket(family, port);
    let expect = |protocol, backend: &str| {
        if backend == role { Ok(()) } else { Err(Wrong::Backend { family, protocol, answered: backend.to_owned() }) }
    };
    let mut session = TcpSession::open(client, target)?;
    expect(Protocol::Tcp, session.backend())?;
    session.exchange(b"hello")?;
    for connected in [true, false] {
        expect(Protocol::Udp, &UdpSession::open(client, target, connected)?.ask()?)?;
    }
    Ok(())
}

/// Waits until `vip` answers everything as `role`.
pub(crate) fn wait_until_answers(client: &Namespace, vip: DualStack, role: &str) {
    eventually(&format!("{role} is to answer on {vip}"), SOON, || answers(client, vip, PORT, role))
        .expect("the Service is served");
}

/// Fails unless nobody answers on `target`.
pub(crate) fn is_silent(client: &Namespace, family: IpFamily, vip: DualStack, port: u16) -> Result<(), Wrong> {
    /// Long for an answer on one machine, short for a test that waits for none.
    const PATIENCE: Duration = Duration::from_millis(300);

    let target = vip.socket(family, port);
    let asked = UdpSession::open(client, target, false)?.with_patience(PATIENCE).and_then(|mut socket| socket.ask());
    if let Ok(answered) = asked {
        return Err(Wrong::Backend { family, protocol: Protocol::Udp, answered });
    }
    match TcpSession::open_within(client, target, PATIENCE) {
        Ok(session) => Err(Wrong::Backend { family, protocol: Protocol::Tcp, answered: session.backend().to_owned() }),
        Err(ExchangeError::Lab(error)) => Err(error.into()),
        Err(_) => Ok(()),
    }
}

/// What an answer can have wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Wrong {
    #[error("{family} {protocol}: {answered:?} answered")]
    Backend { family: IpFamily, protocol: Protocol, answered: String },
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    #[error(transparent)]
    Lab(#[from] LabError),
}
