//! kube-proxy's file and flags in place of kube-proxy: what is obeyed, what is said, and what is shown to those who ask.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{DualStack, Lab, Side, daemon_binary};
use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, service, wait_until_answers},
    process::{Daemon, bpffs},
};

const VIP: DualStack = DualStack::cluster_ip(1);

/// As kubeadm writes it, cut to what is said, with one slip.
const FILE: &str = "\
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
bindAddress: 0.0.0.0
clusterCIDR: 10.244.0.0/16,fd00:10:244::/56
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1
mode: nftables
nftables:
  masqueradeAl: true
  syncPeriod: 30s
conntrack:
  maxPerCore: 0
nodePortAddresses: null
";

/// Runs the binary on node A until it ends.
fn run(lab: &Lab, arguments: &[&str]) -> Output {
    let mut command = Command::new(daemon_binary().expect("the daemon is built"));
    command.arg("run").args(arguments).arg("--bpffs").arg(bpffs(lab));
    command.env_remove("KUBECONFIG").env_remove("KUBERNETES_SERVICE_HOST");
    let namespace = lab.node(Side::A).namespace();
    namespace.run(|| command.output()).expect("the namespace is there").expect("the daemon runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn kube_proxys_file_is_obeyed_shown_and_followed() {
    let cluster = Cluster::build();
    let lab = &cluster.lab;
    cluster.write(&service("echo", VIP, &[cluster.backend("local")]));
    let file = lab.directory().join("config.conf");
    fs::write(&file, FILE).expect("write the file");
    let path = file.display().to_string();
    let manifests = cluster.manifests.directory().display().to_string();
    let flags = ["--config", &path, "--manifests", &manifests, "--cluster-cidr", "10.0.0.0/8", "--proxy-mode=ipvs"];
    let mut daemon = Daemon::new(lab, &flags).started();
    wait_until_answers(cluster.client.namespace(), VIP, "local");

    daemon.await_log(&["WARN", "nftables.masqueradeAl (line 9)"]);
    daemon.await_log(&["WARN", "--config stands in place of", "clusterCIDR", "mode"]);
    daemon.await_log(&["WARN", "without effect", "mode"]);
    daemon.await_log(&["WARN", "without effect", "nftables.syncPeriod"]);
    daemon.await_log(&["INFO", "starting", "node-a", "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56", "--max-slots="]);

    assert_eq!(daemon.beside_metrics("/proxyMode"), (200, "ebpf".to_owned()));
    assert_eq!(daemon.beside_metrics("/healthz"), (200, "ok".to_owned()));
    assert_eq!(daemon.beside_metrics("/nowhere").0, 404);
    let (status, body) = daemon.beside_metrics("/configz");
    assert_eq!(status, 200);
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let shown = &body["kubeproxy.config.k8s.io"];
    for (field, value) in [
        ("/apiVersion", json!("kubeproxy.config.k8s.io/v1alpha1")),
        ("/kind", json!("KubeProxyConfiguration")),
        ("/clusterCIDR", json!("10.244.0.0/16,fd00:10:244::/56")),
        ("/metricsBindAddress", json!("127.0.0.1:10249")),
        ("/mode", json!("nftables")),
        ("/detectLocalMode", json!("ClusterCIDR")),
        ("/conntrack/maxPerCore", json!(0)),
        ("/conntrack/tcpEstablishedTimeout", json!("24h0m0s")),
    ] {
        assert_eq!(shown.pointer(field), Some(&value), "{field} in {shown}");
    }

    // The same content written again is no change.
    fs::write(&file, FILE).expect("write the file");
    std::thread::sleep(std::time::Duration::from_secs(5));
    assert_eq!(daemon.health("/livez").0, 200);
    fs::write(&file, FILE.replace("30s", "40s")).expect("write the file");
    let status = daemon.end();
    assert!(!status.success(), "{status}");
    let log = daemon.log();
    let line = log.lines().last().expect("it says why");
    assert!(line.starts_with("dsproxy: ") && line.contains(&path) && line.contains("has changed"), "{line}");
    wait_until_answers(cluster.client.namespace(), VIP, "local");
}

#[test]
fn kube_proxys_metrics_are_there_under_its_names() {
    let cluster = Cluster::build();
    let manifests = cluster.manifests.directory().display().to_string();
    let daemon = Daemon::new(&cluster.lab, &["--manifests", &manifests]).started();
    let before = daemon.metric("kubeproxy_sync_proxy_rules_service_changes_total{ip_family=\"IPv4\"}").expect("there");
    cluster.write(&service("echo", VIP, &[cluster.backend("local")]));
    wait_until_answers(cluster.client.namespace(), VIP, "local");
    daemon.health("/livez");
    daemon.health("/nowhere");

    for family in IpFamily::ALL {
        let metric = |name: &str| {
            let sample = format!("kubeproxy_{name}{{ip_family=\"{family}\"}}");
            daemon.metric(&sample).unwrap_or_else(|| panic!("{sample}: {}", daemon.beside_metrics("/metrics").1))
        };
        assert_eq!(metric("sync_proxy_rules_service_changes_total"), before + 1.0);
        assert_eq!(metric("sync_proxy_rules_endpoint_changes_total"), 1.0);
        assert_eq!(metric("sync_proxy_rules_service_changes_pending"), 0.0);
        assert_eq!(metric("sync_proxy_rules_endpoint_changes_pending"), 0.0);
        assert!(metric("sync_proxy_rules_duration_seconds_count") >= 2.0);
        assert_eq!(metric("network_programming_duration_seconds_count"), 0.0, "manifests do not say when");
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs_f64();
        for name in ["sync_proxy_rules_last_timestamp_seconds", "sync_proxy_rules_last_queued_timestamp_seconds"] {
            assert!((now - metric(name)).abs() < 600.0, "{name}: {}", metric(name));
        }
    }
    let answers = |sample: &str| daemon.metric(&format!("kubeproxy_proxy_{sample}")).unwrap_or_default();
    assert!(answers("healthz_total{code=\"200\"}") >= 1.0);
    assert_eq!(answers("livez_total{code=\"200\"}"), 1.0);
    let (_, page) = daemon.beside_metrics("/metrics");
    assert_eq!(page.matches("# EOF").count(), 1, "one page");
    assert!(page.contains("\ndsproxy_synced 1\n"), "dsproxy's own stay");
}

#[test]
fn initialisation_alone_sets_the_sysctls_and_ends() {
    let lab = Lab::new().expect("the lab is built");
    let namespace = lab.node(Side::A).namespace();
    let path = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let reserved =
        || namespace.run(|| fs::read_to_string(path)).expect("the namespace is there").expect("the list is read");
    namespace
        .run(|| fs::write(path, "8080,32000-40000"))
        .expect("the namespace is there")
        .expect("the list is written");
    let output = run(&lab, &["--init-only", "--conntrack-max-per-core=0", "--snat-ports=50000-50999"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(reserved().trim(), "8080,30000-40000,50000-50999");
    assert!(text(&output.stderr).contains("ip_local_reserved_ports"), "{}", text(&output.stderr));
    let mut pinned = fs::read_dir(bpffs(&lab)).expect("it is there").map(|entry| entry.expect("an entry").file_name());
    assert!(pinned.all(|name| name.to_string_lossy().ends_with(".debug")), "a bpffs, with nothing of ours yet");

    let output = run(&lab, &["--init-only=true", "--conntrack-max-per-core=0", "--reserve-ports=false"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(reserved().trim(), "8080,30000-40000,50000-50999");
}

#[test]
fn the_configuration_is_written_as_kube_proxys_file_and_read_again() {
    let lab = Lab::new().expect("the lab is built");
    let file: PathBuf = lab.directory().join("written.conf");
    let path = file.display().to_string();
    let flags = [
        "--cluster-cidr=10.244.0.0/16",
        "--masquerade-all",
        "--nodeport-addresses=primary",
        "--conntrack-tcp-timeout-established=2h",
    ];
    let output = run(&lab, &[&["--write-config-to", &path][..], &flags].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains(&path));
    let written = fs::read_to_string(&file).expect("it is written");
    for line in [
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1",
        "kind: KubeProxyConfiguration",
        "clusterCIDR: 10.244.0.0/16",
        "  masqueradeAll: true",
        "- primary",
        "  tcpEstablishedTimeout: 2h0m0s",
    ] {
        assert!(written.lines().any(|written| written == line), "{line:?} in {written}");
    }
    // Read back, it says the same.
    let again = lab.directory().join("again.conf").display().to_string();
    let output = run(&lab, &["--config", &path, "--write-config-to", &again]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let yaml = |text: &str| serde_yaml::from_str::<Value>(text).expect("YAML");
    assert_eq!(yaml(&fs::read_to_string(&again).expect("it is written")), yaml(&written));

    let output = run(&lab, &["--write-config-to", "/nowhere/file"]);
    let error = text(&output.stderr);
    assert!(!output.status.success() && error.contains("--write-config-to /nowhere/file"), "{error}");
}

#[test]
fn a_file_that_cannot_be_used_is_named_with_field_and_line() {
    let lab = Lab::new().expect("the lab is built");
    let refused = |content: &str, parts: &[&str]| {
        let file = lab.directory().join("config.conf");
        fs::write(&file, content).expect("write the file");
        let path = file.display().to_string();
        let arguments = ["--config", &path];
        Daemon::new(&lab, &arguments).refused().assert_one_line_with(parts);
    };
    refused(&FILE.replace("30s", "soon"), &["--config", "nftables.syncPeriod", "line 10", "soon", "1h30m"]);
    refused(
        &FILE.replace("10.244.0.0/16,fd00:10:244::/56", "10.244.0.0"),
        &["clusterCIDR 10.244.0.0", "prefix length"],
    );
    refused(&FILE.replace("v1alpha1", "v1"), &["--config", "kubeproxy.config.k8s.io/v1alpha1"]);
    Daemon::new(&lab, &["--config", "/nowhere"]).refused().assert_one_line_with(&["--config /nowhere", "No such file"]);
}

#[test]
fn an_address_that_cannot_be_had_ends_the_daemon_only_when_told() {
    let lab = Lab::new().expect("the lab is built");
    let manifests = lab.directory().join("manifests");
    fs::create_dir(&manifests).expect("make the directory");
    let manifests = manifests.display().to_string();
    let arguments = ["--manifests", &manifests, "--metrics-bind-address", "192.0.2.200:1"];
    let daemon = Daemon::new(&lab, &arguments).started();
    daemon.await_log(&["WARN", "192.0.2.200:1", "next attempt"]);
    drop(daemon);
    Daemon::new(&lab, &[&arguments[..], &["--bind-address-hard-fail"]].concat()).refused().assert_one_line_with(&[
        "192.0.2.200:1",
        "metrics",
        "--bind-address-hard-fail",
    ]);
}
