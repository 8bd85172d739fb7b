//! The node that most cases start from: backends in pods of both nodes, and clients in the node's own namespace.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::Duration,
};

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::{
    self, Cgroup, Daemon, DaemonOptions, DualStack, EchoServer, Lab, Manifests, Namespace, Pod, ServiceManifest, Side,
    TcpSession, Wiring, eventually,
};

/// The port of the VIPs.
pub(crate) const PORT: u16 = 80;

/// The port the backends serve on.
pub(crate) const TARGET: u16 = 8080;

/// How long a change of the manifests may take to be seen by sockets.
pub(crate) const SOON: Duration = Duration::from_secs(5);

/// A lab with backends and an empty directory of manifests.
pub(crate) struct Host {
    pub(crate) backends: Vec<Backend>,
    pub(crate) manifests: Manifests,
    // Last, so that the namespaces go after what lives in them.
    pub(crate) lab: Lab,
}

/// A pod with an echo server that answers with the pod's role.
pub(crate) struct Backend {
    pub(crate) role: &'static str,
    pub(crate) side: Side,
    pub(crate) pod: Pod,
    _server: EchoServer,
}

impl Host {
    /// Two nodes and a backend on each.
    pub(crate) fn build() -> Self {
        let lab = Lab::new().expect("the lab is built");
        let backends = [("local", Side::A), ("remote", Side::B)].map(|(role, side)| {
            let pod = lab.add_pod(side, Wiring::Routed, role).expect("the pod is added");
            let server = EchoServer::start(&pod, TARGET, role).expect("the server listens");
            Backend { role, side, pod, _server: server }
        });
        let manifests = Manifests::create(lab.directory().join("manifests")).expect("the directory is made");
        Self { backends: backends.into(), manifests, lab }
    }

    /// Serves `vip` by the backends of these roles from now on.
    pub(crate) fn serve(&self, vip: DualStack, roles: &[&str]) {
        self.manifests.write(&self.service(vip, roles)).expect("the manifest is written");
    }

    /// The Service that `serve` writes.
    pub(crate) fn service(&self, vip: DualStack, roles: &[&str]) -> ServiceManifest {
        let named = |backend: &&Backend| roles.contains(&backend.role);
        ServiceManifest::new("default", "echo")
            .dual_stack(vip)
            .port(Protocol::Tcp, PORT, TARGET)
            .port(Protocol::Udp, PORT, TARGET)
            .backends(self.backends.iter().filter(named).map(|backend| lab::Backend {
                node: Some(backend.side.role()),
                ..lab::Backend::from(backend.pod.addresses())
            }))
    }

    /// The addresses of the backend `role`.
    pub(crate) fn backend(&self, role: &str) -> DualStack {
        let found = self.backends.iter().find(|backend| backend.role == role);
        found.unwrap_or_else(|| panic!("no backend {role}")).pod.addresses()
    }

    /// Starts the daemon on the node, for the sockets of `--socket-lb`.
    pub(crate) fn start(&self, whose: &str) -> Daemon<'_> {
        let arguments = ["--socket-lb", whose, "--hostname-override", Side::A.role()].map(str::to_owned).into();
        let options = DaemonOptions { arguments, ..DaemonOptions::default() };
        Daemon::start(&self.lab, &self.manifests, options).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Clients of the node itself.
    pub(crate) fn clients(&self) -> Clients {
        self.clients_in(self.lab.node(Side::A).namespace())
    }

    /// Clients in another namespace, whose sockets the programs look at as well.
    pub(crate) fn clients_in(&self, namespace: &Namespace) -> Clients {
        Clients { namespace: namespace.clone(), cgroup: self.lab.cgroup().clone() }
    }

    /// Runs `work` as a process of the node would.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.clients().run(work)
    }

    /// Waits until the node's sockets reach `vip`.
    pub(crate) fn await_service(&self, vip: DualStack) {
        for family in IpFamily::ALL {
            let target = vip.socket(family, PORT);
            eventually("waiting for the Service", SOON, || self.run(|| TcpSession::open_here(target)))
                .unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

/// Where clients live.
pub(crate) struct Clients {
    namespace: Namespace,
    cgroup: Cgroup,
}

impl Clients {
    /// Runs `work` as one of them would.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let entered = self.namespace.run(|| self.cgroup.enter().map(|()| work()));
        entered.and_then(|result| result).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// How many calls were refused for `reason` at the service port of `protocol`. Both families are counted together, so each of its frontends
/// says the same.
pub(crate) fn refused_calls(daemon: &Daemon<'_>, protocol: &str, reason: &str) -> u64 {
    let services = daemon.json(&["services"]).unwrap_or_else(|error| panic!("{error}"));
    let rows = services.as_array().expect("rows").iter().filter(|row| row["protocol"] == protocol);
    let counts: BTreeSet<_> = rows.map(|row| row["drops"][reason].as_u64().unwrap_or_default()).collect();
    assert_eq!(counts.len(), 1, "{protocol}: {services:#}");
    counts.first().copied().unwrap_or_default()
}

/// `address` as an IPv6 socket names it: an IPv4 one in an IPv6 one.
pub(crate) fn mapped(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) => SocketAddr::new(v4.ip().to_ipv6_mapped().into(), v4.port()),
        SocketAddr::V6(_) => address,
    }
}

/// Where the kernel sends what the connected IPv4 UDP socket with this port sends; for the calling thread's namespace.
pub(crate) fn kernel_peer(port: u16) -> SocketAddrV4 {
    let table = fs::read_to_string("/proc/thread-self/net/udp").expect("the kernel tells");
    let ends = table.lines().skip(1).map(|line| {
        let mut fields = line.split_whitespace().skip(1).map(|end| {
            let (address, port) = end.split_once(':').expect("address and port");
            let address = u32::from_str_radix(address, 16).expect("an address");
            let port = u16::from_str_radix(port, 16).expect("a port");
            SocketAddrV4::new(Ipv4Addr::from(address.to_ne_bytes()), port)
        });
        (fields.next().expect("this end"), fields.next().expect("the other end"))
    });
    let found = ends.into_iter().find(|(own, _)| own.port() == port);
    found.unwrap_or_else(|| panic!("no UDP socket with port {port}:\n{table}")).1
}
