//! The image as `deploy/Containerfile` makes it, run by podman with the restrictions that the chart asks for, on a node of the lab.

use std::{
    collections::BTreeSet,
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{DualStack, Side, TcpSession, eventually, http_get};
use k8s_openapi::api::core::v1::{PodSpec, SecurityContext};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::{
    cluster::{CLUSTER_CIDR, Cluster, PORT, answers, service, wait_until_answers},
    helm, manifests,
    podman::{Container, IMAGE, Podman},
    workspace,
};

/// Loading unoptimised on a busy machine takes a while.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where the chart has them in the container.
const BPFFS: &str = "/host/bpf";
const CGROUP: &str = "/host/cgroup";

#[test]
fn the_image_holds_the_program_and_what_it_links_to() {
    let podman = Podman::with_image();
    let container = podman.podman(&["create", IMAGE]);
    let exported = podman.output("podman", &["export", &container]);
    podman.podman(&["rm", &container]);
    assert!(exported.status.success(), "{}", String::from_utf8_lossy(&exported.stderr));
    let archive = tempfile::NamedTempFile::new().expect("a file");
    fs::write(archive.path(), exported.stdout).expect("the archive is written");
    let listed = Command::new("tar").arg("--list").arg("--file").arg(archive.path()).output().expect("tar runs");
    let listed = String::from_utf8(listed.stdout).expect("names are text");
    // What podman itself makes for a container that is to be started: places for its mounts.
    let is_a_mount = |path: &str| ["dev", "proc", "sys", "run", "etc"].contains(&path.split('/').next().unwrap_or(""));
    let files: BTreeSet<&str> = listed.lines().filter(|path| !path.ends_with('/') && !is_a_mount(path)).collect();

    let program = dsproxy_tests::lab::daemon_binary().expect("the daemon is built");
    let linked = Command::new("ldd").arg(program).output().expect("ldd runs");
    let linked = String::from_utf8(linked.stdout).expect("paths are text");
    let libraries = linked.split_whitespace().filter_map(|word| word.strip_prefix('/'));
    let expected: BTreeSet<&str> = libraries.chain(["usr/bin/dsproxy"]).collect();
    assert!(expected.len() > 2, "{linked}");
    assert_eq!(files, expected);
}

#[test]
fn a_container_with_the_charts_restrictions_serves_and_leaves_its_data_path() {
    let podman = Podman::with_image();
    let cluster = Cluster::build();
    let vip = DualStack::cluster_ip(1);
    cluster.write(&service("echo", vip, &[cluster.backend("local")]));
    let pods = manifests::pods(&manifests::objects(&helm::template(&[]).expect("the chart is rendered")));
    let directory = SharedDirectory::make(&cluster);
    let bpffs = directory.path.display().to_string();

    initialize(&podman, &cluster, &pods, &bpffs);
    let daemon = Container::start(&podman, "dsproxy-lab", &daemon_arguments(&cluster, &pods, &bpffs, &[]));
    await_health(&cluster, &daemon);
    assert_restricted(&daemon);
    for client in [&cluster.client, &cluster.bridged_client] {
        wait_until_answers(client.namespace(), vip, "local");
    }
    // The host's own processes too, by the programs of the cgroup.
    cluster.as_host(Side::A, || {
        for family in IpFamily::ALL {
            let mut session = TcpSession::open_here(vip.socket(family, PORT)).expect("the host is served");
            session.exchange(b"from the host").expect("the host is answered");
        }
    });
    let log = daemon.log();
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
    let status = daemon.podman("exec", &["/usr/bin/dsproxy", "status"]);
    assert!(status.contains("pod_ingress") || status.contains("tcx"), "{status}");

    // Replaced, as by an upgrade: connections go on without it, and the next one takes over what is there.
    let client = cluster.client.namespace();
    let mut established =
        IpFamily::ALL.map(|family| TcpSession::open(client, vip.socket(family, PORT)).expect("the Service is served"));
    daemon.podman("stop", &["--time=10"]);
    drop(daemon);
    for session in &mut established {
        session.exchange(b"without a daemon").expect("the data path goes on");
    }
    answers(client, vip, PORT, "local").expect("new connections as well");
    let second = Container::start(&podman, "dsproxy-lab", &daemon_arguments(&cluster, &pods, &bpffs, &[]));
    await_health(&cluster, &second);
    assert!(second.log().contains("maps ready found=true"), "{}", second.log());
    for session in &mut established {
        session.exchange(b"with the next one").expect("the data path goes on");
    }
    drop(second);

    // By a version with another layout, which has more to do.
    let later = dsproxy_tests::lab::later_daemon_binary().expect("it is built");
    let in_its_place = format!("--volume={}:/usr/bin/dsproxy:ro", later.display());
    let third = Container::start(&podman, "dsproxy-lab", &daemon_arguments(&cluster, &pods, &bpffs, &[in_its_place]));
    await_health(&cluster, &third);
    assert_restricted(&third);
    assert!(third.log().contains("this one serves alone"), "{}", third.log());
    for session in &mut established {
        session.exchange(b"with a later version").expect("its connection was carried over");
    }
    answers(client, vip, PORT, "local").expect("new connections as well");
    let cleaned = third.podman("exec", &["/usr/bin/dsproxy", "cleanup"]);
    assert!(cleaned.contains("maps and pins removed from /host/bpf"), "{cleaned}");
}

/// A directory of the node as systemd leaves /sys/fs/bpf where it mounts nothing: its mounts are shared, and there is no bpffs
/// yet.
struct SharedDirectory {
    path: PathBuf,
}

impl SharedDirectory {
    fn make(cluster: &Cluster) -> Self {
        let path = cluster.lab.directory().join("host-bpf");
        fs::create_dir(&path).expect("the directory is made");
        mount(Some(&path), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind");
        let directory = Self { path };
        mount(None::<&str>, &directory.path, None::<&str>, MsFlags::MS_SHARED, None::<&str>).expect("share");
        directory
    }
}

impl Drop for SharedDirectory {
    fn drop(&mut self) {
        // The bpffs, if there is one by now, and what it is on.
        while umount2(&self.path, MntFlags::MNT_DETACH).is_ok() {}
    }
}

/// The init container of the chart, to its end.
fn initialize(podman: &Podman, cluster: &Cluster, pods: &PodSpec, bpffs: &str) {
    let container = manifests::container(pods, "initialize");
    let security = container.security_context.as_ref().expect("a security context");
    assert_eq!(security.privileged, Some(true));
    let mut arguments = vec!["run".to_owned(), "--rm".to_owned(), "--privileged".to_owned()];
    arguments.extend(on_the_node(cluster));
    arguments.push(format!("--volume={bpffs}:{BPFFS}:rshared"));
    arguments.push(IMAGE.to_owned());
    arguments.extend(told(container.args.as_deref().unwrap_or_default()));
    let printed = podman.podman(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(printed, "", "only its log, elsewhere");
    let found = statfs(Path::new(bpffs)).expect("the directory is there").filesystem_type();
    assert_eq!(found, BPF_FS_MAGIC, "the mount is the node's");
    let reserved = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let node = cluster.lab.node(Side::A).namespace();
    let reserved = node.run(|| fs::read_to_string(reserved)).expect("the node is there").expect("the list is read");
    assert_eq!(reserved.trim(), "30000-32767,49152-65535");
}

fn daemon_arguments(cluster: &Cluster, pods: &PodSpec, bpffs: &str, further: &[String]) -> Vec<String> {
    let container = manifests::container(pods, "dsproxy");
    let mut arguments = on_the_node(cluster);
    arguments.extend(restrictions(container.security_context.as_ref().expect("a security context")));
    let manifests = cluster.manifests.directory().display();
    arguments.extend([
        format!("--volume={bpffs}:{BPFFS}:rslave"),
        format!("--volume={}:{CGROUP}:ro", cluster.lab.cgroup().directory().display()),
        format!("--volume={manifests}:/manifests:ro"),
    ]);
    arguments.extend_from_slice(further);
    arguments.push(IMAGE.to_owned());
    arguments.extend(told(container.args.as_deref().unwrap_or_default()));
    arguments.extend(CLUSTER_CIDR.map(str::to_owned));
    arguments.push("--manifests=/manifests".to_owned());
    arguments
}

/// On the host's network, which here is that of a node of the lab.
fn on_the_node(cluster: &Cluster) -> Vec<String> {
    let namespace = cluster.lab.node(Side::A).namespace().name();
    vec![format!("--network=ns:/run/netns/{namespace}"), format!("--env=DSPROXY_BPFFS={BPFFS}")]
}

/// What the chart tells, as far as it holds in a lab: the size of the kernel's own connection table is not a network
/// namespace's to set, and the process starts with another score than the kubelet would give it.
fn told(arguments: &[String]) -> Vec<String> {
    let told = arguments.iter().map(|argument| match argument.as_str() {
        argument if argument.starts_with("--oom-score-adj=") => "--oom-score-adj=0".to_owned(),
        argument => argument.replace("$(NODE_NAME)", "node-a"),
    });
    told.chain(["--conntrack-max-per-core=0".to_owned()]).collect()
}

/// A security context in podman's words, with the profile of `deploy/`. What it says that is not known here is no restriction
/// that this test could vouch for.
fn restrictions(security: &SecurityContext) -> Vec<String> {
    let capabilities = security.capabilities.clone().expect("capabilities");
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    assert_eq!((security.privileged, security.allow_privilege_escalation), (Some(false), Some(false)));
    assert_eq!((security.read_only_root_filesystem, security.run_as_user), (Some(true), Some(0)));
    let mut arguments = vec![
        "--cap-drop=all".to_owned(),
        "--security-opt=no-new-privileges".to_owned(),
        format!("--security-opt=seccomp={}", workspace("deploy/seccomp.json").display()),
        "--read-only".to_owned(),
        "--read-only-tmpfs=false".to_owned(),
        "--user=0".to_owned(),
    ];
    arguments.extend(capabilities.add.iter().flatten().map(|capability| format!("--cap-add={capability}")));
    arguments
}

/// Asserts by the kernel's own word that the process is restricted as it is meant to be.
fn assert_restricted(container: &Container<'_>) {
    let process = container.process();
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("the process runs");
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("{name}: {status}")).trim().to_owned()
    };
    // CAP_NET_ADMIN, CAP_PERFMON and CAP_BPF.
    let expected = format!("{:016x}", 1u64 << 12 | 1 << 38 | 1 << 39);
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(field(set), expected, "{set}");
    }
    assert_eq!((field("NoNewPrivs").as_str(), field("Seccomp").as_str()), ("1", "2"), "{status}");
    let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).expect("the process runs");
    let root = mounts.lines().find(|line| line.split(' ').nth(4) == Some("/")).expect("a root");
    let options = root.split(' ').nth(5).expect("options");
    assert!(options.split(',').any(|option| option == "ro"), "{root}");
}

/// Waits until it calls itself healthy, to probes of either family.
fn await_health(cluster: &Cluster, container: &Container<'_>) {
    let node = cluster.lab.node(Side::A).namespace();
    let probes: [SocketAddr; 2] = [(Ipv4Addr::LOCALHOST, 10256).into(), (Ipv6Addr::LOCALHOST, 10256).into()];
    for (address, path) in probes.into_iter().flat_map(|address| ["/livez", "/healthz"].map(|path| (address, path))) {
        let healthy = eventually("health", PATIENCE, || match http_get(node, address, path) {
            Ok(answer) if answer.status == 200 => Ok(()),
            other => Err(format!("{other:?}")),
        });
        healthy.unwrap_or_else(|error| panic!("{address} {path}: {error}\n{}", container.log()));
    }
}
