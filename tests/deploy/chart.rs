//! The chart: what helm makes of it with all kinds of values, and that the plain manifests are what it makes without any.

use std::fs;

use serde_json::{Value, json};

use crate::{
    helm,
    manifests::{container, objects, pods},
    read, workspace,
};

const PLAIN: &str = "deploy/dsproxy.yaml";

/// What stands above the manifests.
const HEADER: &str = "\
# dsproxy on every Linux node, without helm. Before `kubectl apply -f` say in it where your image is, and the API server's
# address (SET THIS below). docs/install.md has more.
#
# Made from deploy/chart with its default values, and held to be that by a test; to make it anew after a change there:
#   BLESS=1 cargo test -p dsproxy-tests --test deploy plain_manifests
";

#[test]
fn plain_manifests_are_what_the_chart_makes_by_default() {
    let rendered = format!("{HEADER}{}", helm::template(&[]).expect("the chart is rendered"));
    if std::env::var_os("BLESS").is_some() {
        fs::write(workspace(PLAIN), &rendered).expect("the manifests are written");
    }
    assert!(read(PLAIN) == rendered, "{PLAIN} is not what deploy/chart makes; it says itself how to make it anew");
    objects(&rendered);
}

#[test]
fn helm_finds_nothing_wrong() {
    helm::lint().expect("lint");
}

#[test]
fn two_daemons_never_share_a_node_and_a_node_is_without_for_a_restart_at_most() {
    let objects = objects(&helm::template(&[]).expect("the chart is rendered"));
    let set = objects.iter().find(|object| object["kind"] == "DaemonSet").expect("a DaemonSet");
    assert_eq!(
        set["spec"]["updateStrategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}})
    );
    let pods = pods(&objects);
    assert_eq!(pods.host_network, Some(true));
    assert_eq!(pods.priority_class_name.as_deref(), Some("system-node-critical"));
    let [toleration] = pods.tolerations.as_deref().expect("tolerations") else { panic!("one toleration") };
    assert_eq!((toleration.operator.as_deref(), &toleration.key, &toleration.effect), (Some("Exists"), &None, &None));
    assert_eq!(pods.node_selector.expect("a selector").get("kubernetes.io/os").map(String::as_str), Some("linux"));
}

#[test]
fn the_daemon_is_not_privileged_and_its_initialisation_is_optional() {
    let rendered = objects(&helm::template(&["--set", "seccomp.localhostProfile=dsproxy.json"]).expect("rendered"));
    let with = pods(&rendered);
    let security = container(&with, "dsproxy").security_context.clone().expect("a security context");
    assert_eq!((security.privileged, security.allow_privilege_escalation), (Some(false), Some(false)));
    assert_eq!(security.read_only_root_filesystem, Some(true));
    let profile = security.seccomp_profile.expect("a profile");
    assert_eq!((profile.type_.as_str(), profile.localhost_profile.as_deref()), ("Localhost", Some("dsproxy.json")));
    let labels = security.se_linux_options.expect("a label for SELinux");
    assert_eq!((labels.type_.as_deref(), labels.level), (Some("spc_t"), None), "container_t may not use bpf(2)");
    let initialize = container(&with, "initialize").security_context.clone().expect("a security context");
    assert_eq!(initialize.privileged, Some(true));

    let without = pods(&objects(&helm::template(&["--set", "initContainer.enabled=false"]).expect("rendered")));
    assert_eq!(without.init_containers, None);

    let of_runtime = pods(&objects(&helm::template(&["--set", "seLinuxOptions=null"]).expect("rendered")));
    let security = container(&of_runtime, "dsproxy").security_context.clone().expect("a security context");
    assert_eq!(security.se_linux_options, None);
}

#[test]
fn the_api_server_is_told_by_its_real_address() {
    let variables = |arguments: &[&str]| {
        let pods = pods(&objects(&helm::template(arguments).expect("rendered")));
        let all = container(&pods, "dsproxy").env.clone().unwrap_or_default();
        let told = all.into_iter().filter(|variable| variable.name.starts_with("KUBERNETES_"));
        told.map(|variable| (variable.name, variable.value.unwrap_or_default())).collect::<Vec<_>>()
    };
    assert_eq!(variables(&[]), []);
    let (host, port) = ("KUBERNETES_SERVICE_HOST".to_owned(), "KUBERNETES_SERVICE_PORT".to_owned());
    for address in ["192.0.2.7", "2001:db8::7", "api.example.org"] {
        let told = variables(&["--set", &format!("apiServer.host={address}"), "--set", "apiServer.port=443"]);
        assert_eq!(told, [(host.clone(), address.to_owned()), (port.clone(), "443".to_owned())]);
    }
}

#[test]
fn the_image_is_named_by_tag_or_digest() {
    let image = |arguments: &[&str]| {
        let pods = pods(&objects(&helm::template(arguments).expect("rendered")));
        assert_eq!(container(&pods, "dsproxy").image, container(&pods, "initialize").image);
        container(&pods, "dsproxy").image.clone().expect("an image")
    };
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(image(&[]), format!("dsproxy:{version}"), "the chart's appVersion is the version of this workspace");
    assert_eq!(image(&["--set", "image.registry=r.example.org/team,image.tag=x"]), "r.example.org/team/dsproxy:x");
    let digest = format!("sha256:{}", "0a".repeat(32));
    assert_eq!(image(&["--set", &format!("image.digest={digest},image.tag=x")]), format!("dsproxy@{digest}"));
}

#[test]
fn nodes_can_be_selected_one_by_one() {
    let pods = pods(&objects(&helm::template(&["--set", "nodeSelector.service-proxy=dsproxy"]).expect("rendered")));
    let selector = pods.node_selector.expect("a selector");
    assert_eq!(selector.get("service-proxy").map(String::as_str), Some("dsproxy"));
    assert_eq!(selector.len(), 2, "{selector:?}");
}

#[test]
fn an_account_and_roles_of_ones_own_are_not_made_again() {
    let own = ["--set", "serviceAccount.name=mine,rbac.create=false"];
    let rendered = objects(&helm::template(&own).expect("rendered"));
    let kinds: Vec<&Value> = rendered.iter().map(|object| &object["kind"]).collect();
    assert_eq!(kinds, ["DaemonSet"]);
    assert_eq!(pods(&rendered).service_account_name.as_deref(), Some("mine"));
}

#[test]
fn values_that_mean_nothing_are_refused() {
    for (value, named) in [
        ("clusterCidr=10.244.0.0/16", "clusterCidr"),
        ("xdp=sometimes", "/xdp"),
        ("clusterCIDRs={10.244.0.0}", "/clusterCIDRs/0"),
        ("apiServer.host=https://192.0.2.1", "/apiServer/host"),
        ("sizes.connections=0", "/sizes/connections"),
        ("timeouts.udp=soon", "/timeouts/udp"),
        ("extraArgs={xdp}", "/extraArgs/0"),
    ] {
        let error = helm::template(&["--set", value]).expect_err(value);
        assert!(error.contains(named), "{value}: {error}");
    }
}
