//! A container of the image on node A of the lab, as the chart has it there: its arguments, mounts and restrictions, in podman's words.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use dsproxy_tests::lab::{Side, eventually, http_get};
use k8s_openapi::api::core::v1::{PodSpec, SecurityContext};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use crate::{
    cluster::{CLUSTER_CIDR, Cluster},
    helm, manifests,
    podman::{Container, IMAGE, Podman},
    workspace,
};

/// Loading unoptimised on a busy machine takes a while.
const PATIENCE: Duration = Duration::from_secs(90);

/// Where the chart has them in the container.
const BPFFS: &str = "/host/bpf";
const CGROUP: &str = "/host/cgroup";

/// The pods that the chart makes by default.
pub(crate) fn default_pods() -> PodSpec {
    manifests::pods(&manifests::objects(&helm::template(&[]).expect("the chart is rendered")))
}

/// A directory of the node as systemd leaves /sys/fs/bpf where it mounts nothing: its mounts are shared, and there is no bpffs
/// yet.
pub(crate) struct SharedDirectory {
    path: PathBuf,
}

impl SharedDirectory {
    pub(crate) fn make(cluster: &Cluster) -> Self {
        let path = cluster.lab.directory().join("host-bpf");
        fs::create_dir(&path).expect("the directory is made");
        mount(Some(&path), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("bind");
        let directory = Self { path };
        mount(None::<&str>, &directory.path, None::<&str>, MsFlags::MS_SHARED, None::<&str>).expect("share");
        directory
    }

    /// Its path on the node.
    pub(crate) fn path(&self) -> String {
        self.path.display().to_string()
    }
}

impl Drop for SharedDirectory {
    fn drop(&mut self) {
        // The bpffs, if there is one by now, and what it is on.
        while umount2(&self.path, MntFlags::MNT_DETACH).is_ok() {}
    }
}

/// The init container of the chart, to its end.
pub(crate) fn initialize(podman: &Podman, cluster: &Cluster, pods: &PodSpec, bpffs: &str) {
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

/// The chart's container with further options of podman, and arguments of `run` that lead to its source.
pub(crate) fn daemon_arguments(
    cluster: &Cluster,
    pods: &PodSpec,
    bpffs: &str,
    further: &[String],
    source: &[&str],
) -> Vec<String> {
    let container = manifests::container(pods, "dsproxy");
    let mut arguments = on_the_node(cluster);
    arguments.extend(restrictions(container.security_context.as_ref().expect("a security context")));
    arguments.extend([
        format!("--volume={bpffs}:{BPFFS}:rslave"),
        format!("--volume={}:{CGROUP}:ro", cluster.lab.cgroup().directory().display()),
    ]);
    arguments.extend_from_slice(further);
    arguments.push(IMAGE.to_owned());
    arguments.extend(told(container.args.as_deref().unwrap_or_default()));
    arguments.extend(CLUSTER_CIDR.iter().chain(source).map(|&argument| argument.to_owned()));
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
pub(crate) fn assert_restricted(container: &Container<'_>) {
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
pub(crate) fn await_health(cluster: &Cluster, container: &Container<'_>) {
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
