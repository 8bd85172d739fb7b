//! The image as `deploy/Containerfile` makes it, run by podman with the restrictions that the chart asks for, on a node of the lab.

use std::{collections::BTreeSet, fs, process::Command};

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{DualStack, Side, TcpSession};

use crate::{
    cluster::{Cluster, PORT, answers, service, wait_until_answers},
    podman::{Container, IMAGE, Podman},
    restricted::{SharedDirectory, assert_restricted, await_health, daemon_arguments, default_pods, initialize},
};

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
    let pods = default_pods();
    let directory = SharedDirectory::make(&cluster);
    let bpffs = directory.path();
    let manifests = format!("--volume={}:/manifests:ro", cluster.manifests.directory().display());
    let start = |further: &[String]| {
        let further = [std::slice::from_ref(&manifests), further].concat();
        let arguments = daemon_arguments(&cluster, &pods, &bpffs, &further, &["--manifests=/manifests"]);
        Container::start(&podman, "dsproxy-lab", &arguments)
    };

    initialize(&podman, &cluster, &pods, &bpffs);
    let daemon = start(&[]);
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
    let second = start(&[]);
    await_health(&cluster, &second);
    assert!(second.log().contains("maps ready found=true"), "{}", second.log());
    for session in &mut established {
        session.exchange(b"with the next one").expect("the data path goes on");
    }
    drop(second);

    // By a version with another layout, which has more to do.
    let later = dsproxy_tests::lab::later_daemon_binary().expect("it is built");
    let in_its_place = format!("--volume={}:/usr/bin/dsproxy:ro", later.display());
    let third = start(&[in_its_place]);
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
