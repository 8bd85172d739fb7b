//! The container as a cluster has it: led to the API server by its service account alone. Its token is rotated, and an operator looks
//! at it by the commands that `kubectl exec` runs there.

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use dsproxy_common::IpFamily;
use dsproxy_tests::{
    apiserver::{ApiServer, Resource, StreamAct, certificates::Authority},
    lab::{DualStack, ServiceManifest, Side, TcpSession, eventually, http_get},
};
use tokio::runtime::Runtime;

use crate::{
    cluster::{Cluster, PORT, SOON, TARGET, answers, service, wait_until_answers},
    podman::{Container, Podman},
    restricted::{SharedDirectory, assert_restricted, await_health, daemon_arguments, default_pods, initialize},
};

/// Where every pod finds the credentials of its service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

#[test]
fn a_pod_with_a_service_account_serves_and_its_token_is_rotated_over_ipv4() {
    serves_by_its_service_account(IpFamily::V4);
}

#[test]
fn a_pod_with_a_service_account_serves_and_its_token_is_rotated_over_ipv6() {
    serves_by_its_service_account(IpFamily::V6);
}

fn serves_by_its_service_account(family: IpFamily) {
    let podman = Podman::with_image();
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let plane = Plane::start(&cluster, family);
    let [vip, later] = [1, 2].map(DualStack::cluster_ip);
    plane.apply(&service("echo", vip, &[cluster.backend("local")]));
    let account = plane.account(&cluster, "first");

    let pods = default_pods();
    let directory = SharedDirectory::make(&cluster);
    let bpffs = directory.path();
    initialize(&podman, &cluster, &pods, &bpffs);
    let address = plane.server.address();
    let further = [
        format!("--volume={}:{SERVICE_ACCOUNT}:ro", account.directory.display()),
        format!("--env=KUBERNETES_SERVICE_HOST={}", address.ip()),
        format!("--env=KUBERNETES_SERVICE_PORT={}", address.port()),
    ];
    let arguments = daemon_arguments(&cluster, &pods, &bpffs, &further, &[]);
    let daemon = Container::start(&podman, "dsproxy-lab", &arguments);
    await_health(&cluster, &daemon);
    assert_restricted(&daemon);
    wait_until_answers(client, vip, "local");
    plane.runtime.block_on(plane.server.until("the event", |server| !server.events().is_empty()));

    // As the kubelet does well before the old one ends; the server takes the old one no more.
    account.rotate("second");
    plane.server.set_token("second");
    plane.runtime.block_on(plane.server.until_watched());
    for resource in Resource::ALL {
        plane.server.act_on_watches(resource, &StreamAct::End);
    }
    plane.runtime.block_on(plane.server.until_watched());
    plane.apply(&service("later", later, &[cluster.backend("remote")]));
    wait_until_answers(client, later, "remote");
    assert_eq!(metric(&cluster, "dsproxy_source_failures_total"), Some(0.0), "no request had the old token");

    // Where the server is first, requests are refused until the file says the new one.
    plane.server.set_token("third");
    for resource in Resource::ALL {
        plane.server.act_on_watches(resource, &StreamAct::End);
    }
    let failed = "dsproxy_source_watch_failures_total{resource=\"services\",trouble=\"unauthorized\"}";
    let refused = || match metric(&cluster, failed) {
        Some(count) if count >= 1.0 => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually("a refusal", SOON, refused).expect("it is told that the token is refused");
    plane.apply(&service("later", later, &[cluster.backend("bridged")]));
    account.rotate("third");
    // Between two attempts up to half a minute may pass by now.
    eventually("the change", 6 * SOON, || answers(client, later, PORT, "bridged"))
        .unwrap_or_else(|error| panic!("{error}:\n{}", daemon.log()));

    an_operator_sees(&daemon, &cluster, vip);
    let cleaned = daemon.podman("exec", &["/usr/bin/dsproxy", "cleanup"]);
    assert!(cleaned.contains("maps and pins removed from /host/bpf"), "{cleaned}");
}

/// What the commands print that `kubectl exec` runs in the container.
fn an_operator_sees(daemon: &Container<'_>, cluster: &Cluster, vip: DualStack) {
    let client = cluster.client.namespace();
    let run = |arguments: &[&str]| {
        let printed = daemon.execute(&[&["/usr/bin/dsproxy"], arguments].concat());
        String::from_utf8(printed).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
    };
    let mut sessions =
        IpFamily::ALL.map(|family| TcpSession::open(client, vip.socket(family, PORT)).expect("the Service is served"));
    let status = run(&["status"]);
    assert!(status.contains("is in charge"), "{status}");
    let (services, connections) = (run(&["services"]), run(&["connections"]));
    for (family, session) in IpFamily::ALL.into_iter().zip(&sessions) {
        let (frontend, endpoint) = (vip.socket(family, PORT), cluster.backend("local").socket(family, TARGET));
        assert!(services.contains(&frontend.to_string()), "{frontend}: {services}");
        let own = session.local_address().expect("it is bound").to_string();
        let is_told = |line: &&str| line.contains(&own) && line.contains(&endpoint.to_string());
        assert_eq!(connections.lines().filter(is_told).count(), 1, "{own}: {connections}");
        let traced = run(&["trace", "tcp", &own, &frontend.to_string()]);
        assert!(traced.contains(&endpoint.to_string()), "{frontend}: {traced}");
    }

    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for session in &mut sessions {
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    session.exchange(b"something to see").expect("the connection stays");
                    thread::sleep(Duration::from_millis(20));
                }
            });
        }
        let over = Over(&is_over);
        let top = run(&["top", "--interval", "0.5"]);
        let row = top.lines().find(|line| line.starts_with("default/echo:") && line.contains("/TCP"));
        let open: Option<u64> = row.and_then(|row| row.split_whitespace().nth(1)?.parse().ok());
        assert!(open.is_some_and(|open| open >= 2), "one for each family: {top}");
        let events = run(&["events", "--count", "20", "--service", "default/echo", "--reason", "forwarded"]);
        let told = events.lines().filter(|line| line.contains("default/echo:"));
        assert_eq!(told.count(), 20, "{events}");
        drop(over);
    });

    let dump = daemon.execute(&["/usr/bin/dsproxy", "dump", "-"]);
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&dump[..]));
    let mut names = BTreeSet::new();
    for entry in archive.entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a name").display().to_string();
        let mut content = String::new();
        entry.read_to_string(&mut content).expect("text");
        let (_, name) = path.split_once('/').expect("a directory");
        // Where tests run the kernel need not have said how it was built.
        assert!(!name.ends_with(".failed") || name == "kernel/configuration.txt.failed", "{name}: {content}");
        names.insert(name.to_owned());
    }
    for name in ["status.txt", "services.json", "connections.json", "daemon/metrics.txt", "network/rules.txt"] {
        assert!(names.contains(name), "{name}: {names:?}");
    }
}

/// Ends what goes on meanwhile, also when something is not as it should be.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The value of a metric of the daemon on node A.
fn metric(cluster: &Cluster, sample: &str) -> Option<f64> {
    let metrics = (std::net::Ipv4Addr::LOCALHOST, 10249).into();
    let page = http_get(cluster.lab.node(Side::A).namespace(), metrics, "/metrics").expect("the daemon answers").body;
    page.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok())
}

/// An API server on node A whose connections are secured.
struct Plane {
    // Dropped first, while there is a runtime.
    server: ApiServer,
    runtime: Runtime,
    authority: Authority,
}

impl Plane {
    fn start(cluster: &Cluster, family: IpFamily) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let address = match family {
            IpFamily::V4 => std::net::Ipv4Addr::LOCALHOST.into(),
            IpFamily::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        // A socket belongs to the namespace of the thread that makes it.
        let node = cluster.lab.node(Side::A).namespace();
        let server = node.run(|| runtime.block_on(ApiServer::start_on(address))).expect("node A is there");
        let [authority, clients] = ["servers", "clients"].map(Authority::new);
        server.secure(&authority.for_server(address), &clients);
        Self { server, runtime, authority }
    }

    /// The files of a service account whose token is `token`, which is the one that the server takes.
    fn account(&self, cluster: &Cluster, token: &str) -> Account {
        self.server.set_token(token);
        let directory = cluster.lab.directory().join("serviceaccount");
        Account::make(directory, self.authority.certificate(), token)
    }

    fn apply(&self, service: &ServiceManifest) {
        for object in service.objects().expect("a Service is JSON") {
            self.server.put(object);
        }
    }
}

/// The volume of a service account, as the kubelet keeps it: files behind a link that leads to the current ones.
struct Account {
    directory: PathBuf,
    authority: String,
}

impl Account {
    const CURRENT: &str = "..data";

    fn make(directory: PathBuf, authority: &str, token: &str) -> Self {
        let account = Self { directory, authority: authority.to_owned() };
        account.rotate(token);
        for name in ["ca.crt", "namespace", "token"] {
            symlink(Path::new(Self::CURRENT).join(name), account.directory.join(name)).expect("a link");
        }
        account
    }

    /// Has the token be `token`, at once with all other files.
    fn rotate(&self, token: &str) {
        let (name, link) = (format!("..{token}"), self.directory.join("..data_tmp"));
        let current = self.directory.join(&name);
        fs::create_dir_all(&current).expect("the directory is made");
        for (file, content) in [("ca.crt", self.authority.as_str()), ("namespace", "kube-system"), ("token", token)] {
            fs::write(current.join(file), content).expect("the file is written");
        }
        symlink(&name, &link).expect("a link");
        fs::rename(&link, self.directory.join(Self::CURRENT)).expect("it takes the place");
    }
}
