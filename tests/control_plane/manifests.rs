//! A directory of manifests in which everything is in order.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use dsproxy::{
    model::{IpFamily, ObjectName},
    source::{
        Delta,
        manifests::{Manifests, Pace},
    },
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    harness::Source,
    objects::{
        anothers, model_node, model_service, model_service_cidr, model_slice, name, node, service, service_cidr, slice,
    },
};

/// Waiting times under which only inotify can be in time.
pub(crate) fn pace() -> Pace {
    Pace {
        debounce: Duration::from_millis(1),
        quiet: Duration::from_secs(600),
        rescan: Duration::from_secs(600),
        retry: Duration::from_millis(5),
    }
}

/// Waiting times under which inotify is hardly needed.
pub(crate) fn impatient() -> Pace {
    Pace { quiet: Duration::from_millis(20), rescan: Duration::from_millis(10), ..pace() }
}

pub(crate) fn directory() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

pub(crate) fn source(directory: &Path, pace: Pace) -> Source {
    let manifests = Manifests::open(directory).expect("the directory").with_pace(pace);
    Source::start(|events, status| manifests.run(events, status))
}

/// The source of a directory after its first reading, whatever that held.
pub(crate) async fn started(directory: &Path, pace: Pace) -> Source {
    let mut source = source(directory, pace);
    source.snapshot_of_services().await;
    source.snapshot_of_slices().await;
    source.until_connected().await;
    source
}

pub(crate) fn write(directory: &TempDir, file: &str, objects: &[Value]) {
    fs::write(directory.path().join(file), documents(objects)).expect("write a manifest");
}

pub(crate) fn documents(objects: &[Value]) -> String {
    let documents = objects.iter().map(|object| serde_yaml::to_string(object).expect("YAML"));
    documents.collect::<Vec<_>>().join("---\n")
}

#[tokio::test]
async fn the_first_reading_is_a_snapshot_of_each_kind() {
    let directory = directory();
    write(&directory, "b.yaml", &[service("web", 1), slice("web-4", IpFamily::V4, &[1])]);
    write(&directory, "a.yml", &[slice("web-6", IpFamily::V6, &[1])]);
    fs::write(directory.path().join("c.json"), service("db", 2).to_string()).expect("write");
    // Files that are no manifests, or hidden, or directories.
    for file in ["README.md", ".hidden.yaml", "yaml", "d.yaml~", "e.yaml.swp"] {
        write(&directory, file, &[service("never", 9)]);
    }
    fs::create_dir(directory.path().join("sub.yaml")).expect("make a directory");

    let mut source = source(directory.path(), pace());
    assert_eq!(source.snapshot_of_services().await, [model_service("db", 2), model_service("web", 1)]);
    let slices = source.snapshot_of_slices().await;
    assert_eq!(slices, [model_slice("web-4", IpFamily::V4, &[1]), model_slice("web-6", IpFamily::V6, &[1])]);
    source.until_connected().await;
    source.assert_silent();
    assert_eq!(source.status.rejected(), 0);
}

#[tokio::test]
async fn an_empty_directory_is_two_empty_snapshots() {
    let directory = directory();
    let mut source = source(directory.path(), pace());
    assert_eq!(source.snapshot_of_services().await, []);
    assert_eq!(source.snapshot_of_slices().await, []);
    source.stop_listening().await;
}

#[tokio::test]
async fn files_are_followed() {
    let directory = directory();
    let mut source = started(directory.path(), pace()).await;
    write(&directory, "web.yaml", &[service("web", 1), slice("web-6", IpFamily::V6, &[1])]);
    assert_eq!(source.service().await, Delta::Apply(model_service("web", 1)));
    assert_eq!(source.slice().await, Delta::Apply(model_slice("web-6", IpFamily::V6, &[1])));

    // Only what changed is told.
    write(&directory, "web.yaml", &[service("web", 1), slice("web-6", IpFamily::V6, &[1, 2])]);
    assert_eq!(source.slice().await, Delta::Apply(model_slice("web-6", IpFamily::V6, &[1, 2])));
    write(&directory, "web.yaml", &[service("web", 2), slice("web-6", IpFamily::V6, &[1, 2])]);
    assert_eq!(source.service().await, Delta::Apply(model_service("web", 2)));

    write(&directory, "web.yaml", &[service("web", 2)]);
    assert_eq!(source.slice().await, Delta::Delete(name("web-6")));
    fs::remove_file(directory.path().join("web.yaml")).expect("remove");
    assert_eq!(source.service().await, Delta::Delete(name("web")));
    source.assert_silent();
}

#[tokio::test]
async fn a_file_that_becomes_empty_holds_nothing() {
    let directory = directory();
    write(&directory, "web.yaml", &[service("web", 1)]);
    let mut source = started(directory.path(), pace()).await;
    write(&directory, "web.yaml", &[]);
    assert_eq!(source.service().await, Delta::Delete(name("web")));
}

#[tokio::test]
async fn a_file_is_replaced_by_a_rename() {
    let directory = directory();
    write(&directory, "web.yaml", &[service("web", 1), service("db", 2)]);
    let mut source = started(directory.path(), pace()).await;
    write(&directory, ".web.yaml.tmp", &[service("web", 3), service("db", 2)]);
    let renamed = directory.path().join("web.yaml");
    fs::rename(directory.path().join(".web.yaml.tmp"), &renamed).expect("rename");
    assert_eq!(source.service().await, Delta::Apply(model_service("web", 3)));

    // Renamed to another manifest, the objects do not vanish; renamed away, they do.
    fs::rename(&renamed, directory.path().join("other.yaml")).expect("rename");
    fs::rename(directory.path().join("other.yaml"), directory.path().join("gone")).expect("rename");
    assert_eq!(source.service().await, Delta::Delete(name("db")));
    assert_eq!(source.service().await, Delta::Delete(name("web")));
    source.assert_silent();
}

#[tokio::test]
async fn a_mounted_config_map_is_swapped_at_once() {
    let directory = directory();
    let path = directory.path();
    let version = |name: &str, objects: &[(&str, Value)]| {
        fs::create_dir(path.join(name)).expect("make a directory");
        for (file, object) in objects {
            fs::write(path.join(name).join(file), object.to_string()).expect("write");
        }
        symlink(name, path.join("..data_tmp")).expect("link");
        fs::rename(path.join("..data_tmp"), path.join("..data")).expect("swap");
    };
    version("..1", &[("a.yaml", service("a", 1)), ("b.json", service("b", 2))]);
    for file in ["a.yaml", "b.json"] {
        symlink(Path::new("..data").join(file), path.join(file)).expect("link");
    }
    let mut source = source(path, pace());
    assert_eq!(source.snapshot_of_services().await, [model_service("a", 1), model_service("b", 2)]);
    assert_eq!(source.snapshot_of_slices().await, []);

    version("..2", &[("a.yaml", service("a", 3)), ("b.json", service("b", 2))]);
    fs::remove_dir_all(path.join("..1")).expect("remove the old version");
    assert_eq!(source.service().await, Delta::Apply(model_service("a", 3)));

    // A key leaves the ConfigMap: first its target is gone, then the link.
    version("..3", &[("a.yaml", service("a", 3))]);
    source.until("the dangling link", |status| !status.connected()).await;
    source.assert_silent();
    fs::remove_file(path.join("b.json")).expect("remove the link");
    assert_eq!(source.service().await, Delta::Delete(name("b")));
    source.until_connected().await;
    source.assert_silent();
}

#[tokio::test]
async fn the_target_of_a_link_is_read_now_and_then() {
    let (directory, elsewhere) = (directory(), self::directory());
    write(&elsewhere, "target", &[service("web", 1)]);
    symlink(elsewhere.path().join("target"), directory.path().join("web.yaml")).expect("link");
    let mut source = source(directory.path(), impatient());
    assert_eq!(source.snapshot_of_services().await, [model_service("web", 1)]);
    for number in 2..5 {
        write(&elsewhere, "target", &[service("web", number)]);
        // A file that is being written elsewhere may be seen empty.
        loop {
            match source.service().await {
                Delta::Delete(_) => {}
                delta => break assert_eq!(delta, Delta::Apply(model_service("web", number))),
            }
        }
    }
}

#[tokio::test]
async fn lists_and_documents_are_told_apart() {
    let directory = directory();
    let mut source = started(directory.path(), pace()).await;
    let list = json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": [service("a", 1), slice("a-4", IpFamily::V4, &[1]), node("n", "z", 1), {"apiVersion": "v1", "kind": "Pod"}],
    });
    let typed = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSliceList",
        "items": [slice("b-6", IpFamily::V6, &[2])],
    });
    let ingress = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "in"}});
    let range = service_cidr("kubernetes", &["10.96.0.0/16"]);
    write(&directory, "all.yaml", &[list, range, ingress, typed, service("c", 3)]);
    assert_eq!(source.service().await, Delta::Apply(model_service("a", 1)));
    assert_eq!(source.service().await, Delta::Apply(model_service("c", 3)));
    assert_eq!(source.slice().await, Delta::Apply(model_slice("a-4", IpFamily::V4, &[1])));
    assert_eq!(source.slice().await, Delta::Apply(model_slice("b-6", IpFamily::V6, &[2])));
    assert_eq!(source.node().await, Delta::Snapshot(vec![]));
    assert_eq!(source.node().await, Delta::Apply(model_node("n", "z", 1)));
    assert_eq!(source.service_cidr().await, Delta::Snapshot(vec![]));
    assert_eq!(source.service_cidr().await, Delta::Apply(model_service_cidr("kubernetes", &["10.96.0.0/16"])));
    assert_eq!(source.status.rejected(), 0);
}

#[tokio::test]
async fn nodes_and_service_cidrs_come_change_and_go() {
    let directory = directory();
    write(&directory, "a.yaml", &[node("n", "z", 1), service_cidr("kubernetes", &["fd00:96::/112"])]);
    let mut source = started(directory.path(), pace()).await;
    assert_eq!(source.node().await, Delta::Snapshot(vec![model_node("n", "z", 1)]));
    let range = model_service_cidr("kubernetes", &["fd00:96::/112"]);
    assert_eq!(source.service_cidr().await, Delta::Snapshot(vec![range]));
    write(&directory, "a.yaml", &[node("n", "y", 1)]);
    assert_eq!(source.node().await, Delta::Apply(model_node("n", "y", 1)));
    assert_eq!(source.service_cidr().await, Delta::Delete(ObjectName::of_cluster("kubernetes")));
    fs::remove_file(directory.path().join("a.yaml")).expect("remove");
    assert_eq!(source.node().await, Delta::Delete(ObjectName::of_cluster("n")));
}

#[tokio::test]
async fn of_an_object_in_two_files_the_first_file_wins() {
    let directory = directory();
    write(&directory, "b.yaml", &[service("web", 2)]);
    let mut source = started(directory.path(), pace()).await;
    write(&directory, "c.yaml", &[service("web", 3), service("mark", 1)]);
    assert_eq!(source.service().await, Delta::Apply(model_service("mark", 1)));
    write(&directory, "a.yaml", &[service("web", 1)]);
    assert_eq!(source.service().await, Delta::Apply(model_service("web", 1)));
    fs::remove_file(directory.path().join("b.yaml")).expect("remove");
    fs::remove_file(directory.path().join("a.yaml")).expect("remove");
    // From here on the third file counts; the second may have had its turn in between.
    loop {
        match source.service().await {
            delta if delta == Delta::Apply(model_service("web", 2)) => {}
            delta => break assert_eq!(delta, Delta::Apply(model_service("web", 3))),
        }
    }
    source.assert_silent();
}

#[tokio::test]
async fn objects_that_leave_the_proxy_are_left_to_others() {
    let directory = directory();
    write(&directory, "web.yaml", &[service("web", 1), slice("web-4", IpFamily::V4, &[1])]);
    let mut source = started(directory.path(), pace()).await;
    let mut others = service("web", 1);
    others["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!("mesh");
    let mut headless = slice("web-4", IpFamily::V4, &[1]);
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    write(&directory, "web.yaml", &[others, headless]);
    assert_eq!(source.service().await, Delta::Apply(anothers(model_service("web", 1))));
    assert_eq!(source.slice().await, Delta::Delete(name("web-4")));
    assert_eq!(source.status.rejected(), 0);
}

#[tokio::test]
async fn what_an_api_server_fills_in_may_be_left_out() {
    let directory = directory();
    let mut bare = service("web", 1);
    bare["metadata"] = json!({"name": "web"});
    bare["spec"] = json!({"clusterIP": "fd00:96::1", "ports": [{"port": 80}]});
    write(&directory, "web.yaml", &[bare]);
    let mut source = source(directory.path(), pace());
    let services = source.snapshot_of_services().await;
    assert_eq!(services[0].name.to_string(), "default/web");
    assert_eq!(services[0].cluster_ips.len(), 1);
    assert_eq!(services[0].ports[0].protocol, dsproxy::model::Protocol::Tcp);
}

#[tokio::test]
async fn a_change_arrives_within_moments() {
    let directory = directory();
    let mut source = started(directory.path(), Pace::default()).await;
    let mut fastest = Duration::MAX;
    for number in 1..=5 {
        let started = Instant::now();
        write(&directory, "web.yaml", &[service("web", number)]);
        assert_eq!(source.service().await, Delta::Apply(model_service("web", number)));
        fastest = fastest.min(started.elapsed());
    }
    // The fastest, as other things may run at the same time; without inotify none would be so fast.
    assert!(fastest < Duration::from_millis(250), "{fastest:?}");
}

#[tokio::test]
async fn many_files_that_change_together_are_told_once_each() {
    let directory = directory();
    let mut source = started(directory.path(), pace()).await;
    for round in [1, 2] {
        for number in 0..40 {
            let name = format!("web{number}");
            write(&directory, &format!("{name}.yaml"), &[service(&name, number + round)]);
        }
        let mut told: Vec<String> = Vec::new();
        while told.len() < 40 {
            match source.service().await {
                Delta::Apply(service) => told.push(service.name.to_string()),
                other => panic!("nothing vanishes: {other:?}"),
            }
        }
        told.sort();
        told.dedup();
        assert_eq!(told.len(), 40);
    }
    source.assert_silent();
    assert_eq!(source.status.rejected(), 0);
}
