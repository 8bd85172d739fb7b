//! Every query of the dashboard and of the alerts, taken apart and held against `/metrics` of a daemon that serves.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use dsproxy::source::kubernetes::Pace;
use dsproxy_common::IpFamily;
use dsproxy_tests::{
    apiserver::ApiServer,
    lab::{Daemon, DaemonOptions, DualStack, Side, TcpSession, eventually, http_get},
};
use promql_parser::{
    label::Matcher,
    parser::{self, Expr, LabelModifier, VectorMatchCardinality, VectorSelector},
};
use serde_json::Value;

use crate::{
    cluster::{Cluster, PORT, SOON, service, wait_until_answers},
    read,
};

/// What Prometheus adds to all that it scrapes, and the metric it makes of that.
const OF_PROMETHEUS: [&str; 2] = ["job", "instance"];
const UP: &str = "up";

/// Where the lab's daemons answer probes.
const HEALTH: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10256);

/// Samples by name: the labels that they have, with the values seen.
type Served = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

#[test]
fn dashboard_and_alerts_ask_for_what_a_daemon_serves() {
    let served = served();
    let queries = [alerts(), dashboard()].concat();
    assert!(queries.len() > 30, "{} queries", queries.len());
    let wrong: Vec<String> = queries
        .iter()
        .flat_map(|(place, query)| mistakes(query, &served).into_iter().map(move |what| format!("{place}: {what}")))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_held_back_is_told_of_after_it_is_over() {
    let file: Value = serde_yaml::from_str(&read("deploy/alerts.yaml")).expect("the rules are YAML");
    let rules = file["groups"].as_array().expect("groups").iter().filter_map(|group| group["rules"].as_array());
    let mut rules = rules.flatten();
    let rule = rules.find(|rule| rule["alert"] == "DsproxyObjectsHeldBack").expect("the alert");
    assert_eq!(rule["for"], Value::Null, "it does not last");
    let query = parser::parse(rule["expr"].as_str().expect("a query")).expect("PromQL");
    let Expr::Binary(comparison) = query else { panic!("a comparison: {query:?}") };
    let Expr::Call(call) = *comparison.lhs else { panic!("a function: {comparison:?}") };
    let Some(Expr::MatrixSelector(samples)) = call.args.args.first().map(|argument| &**argument) else {
        panic!("a range: {call:?}")
    };
    assert_eq!(call.func.name, "max_over_time");
    assert!(samples.range >= 5 * Pace::default().doubt, "{:?}", samples.range);
}

#[test]
fn mistakes_are_found() {
    let metric = |labels: &[(&str, &str)]| {
        labels.iter().map(|(name, value)| ((*name).to_owned(), BTreeSet::from([(*value).to_owned()]))).collect()
    };
    let served = Served::from([
        ("packets_total".to_owned(), metric(&[("reason", "no-port")])),
        ("capacity".to_owned(), metric(&[("map", "a")])),
    ]);
    for (query, number) in [
        ("sum by (reason, job) (rate(packets_total{reason=\"no-port\"}[5m])) > 0", 0),
        ("up{job=\"dsproxy\"} == 0", 0),
        ("packets / on (job) capacity", 1),
        ("sum by (cause) (packets_total)", 1),
        ("packets_total{cause=\"no-port\"}", 1),
        ("packets_total{reason=\"no-ports\"}", 1),
        ("packets_total / on (map) group_left () capacity", 1),
        ("histogram_quantile(0.9, sum by (le) (rate(capacity[5m])))", 1),
        ("sum by (", 1),
    ] {
        let found = mistakes(query, &served);
        assert_eq!(found.len(), number, "{query}: {found:?}");
    }
}

/// What a daemon serves that has had reason for all of it: traffic, drops, and a Service that there was no room for.
fn served() -> Served {
    let cluster = Cluster::build();
    let options = DaemonOptions { arguments: vec!["--max-services=2".to_owned()], ..DaemonOptions::default() };
    let vip = DualStack::cluster_ip(1);
    cluster.write(&service("first", vip, &[cluster.backend("local")]));
    let daemon = Daemon::start(&cluster.lab, &cluster.manifests, options).expect("it starts");
    wait_until_answers(cluster.client.namespace(), vip, "local");
    cluster.write(&service("second", DualStack::cluster_ip(2), &[cluster.backend("remote")]));
    let livez = http_get(cluster.lab.node(Side::A).namespace(), HEALTH, "/livez").expect("the daemon answers");
    assert_eq!(livez.status, 200);
    let page = || daemon.metrics().expect("the daemon answers").body;
    let full = || page().lines().any(|line| line.starts_with("dsproxy_map_full_total{") && !line.ends_with(" 0"));
    eventually("a map that is full", SOON, || if full() { Ok(()) } else { Err(page()) }).expect("it has no room");
    cluster.write(&service("first", vip, &[]));
    let refused = || TcpSession::open(cluster.client.namespace(), vip.socket(IpFamily::V4, PORT)).is_err();
    let dropped = || refused() && page().lines().any(|line| line.starts_with("dsproxy_service_drops_total{"));
    eventually("a drop of a Service", SOON, || if dropped() { Ok(()) } else { Err(page()) })
        .expect("it has no endpoint");
    let of_manifests = page();
    drop(daemon);
    samples(&[of_manifests, with_trouble(&cluster)].concat())
}

/// What a daemon serves whose API server is gone.
fn with_trouble(cluster: &Cluster) -> String {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    // Where no daemon has served yet, nothing is there that an empty server could be doubted for.
    let namespace = cluster.lab.node(Side::B).namespace();
    // A socket belongs to the namespace of the thread that makes it.
    let server = namespace.run(|| runtime.block_on(ApiServer::start_on(Ipv4Addr::LOCALHOST.into())));
    let mut server = server.expect("node B is there");
    let kubeconfig = server.kubeconfig();
    let options = DaemonOptions { side: Some(Side::B), ..DaemonOptions::default() };
    let daemon = Daemon::start_by_kubeconfig(&cluster.lab, kubeconfig.path(), options).expect("it starts");
    runtime.block_on(server.stop());
    let page = || daemon.metrics().expect("the daemon answers").body;
    let troubled = || page().contains("dsproxy_source_watch_trouble_since_timestamp_seconds{");
    eventually("trouble", SOON, || if troubled() { Ok(()) } else { Err(page()) }).expect("nobody answers it");
    page()
}

/// The samples of a page of metrics.
fn samples(page: &str) -> Served {
    let mut served = Served::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        // The form of a sample is that of a selector.
        let (selector, _) = line.rsplit_once(' ').unwrap_or_else(|| panic!("a sample: {line}"));
        let Ok(Expr::VectorSelector(VectorSelector { name: Some(name), matchers, .. })) = parser::parse(selector)
        else {
            panic!("a sample: {line}")
        };
        let labels = served.entry(name).or_default();
        for Matcher { name, value, .. } in matchers.matchers {
            labels.entry(name).or_default().insert(value);
        }
    }
    served
}

fn alerts() -> Vec<(String, String)> {
    let file: Value = serde_yaml::from_str(&read("deploy/alerts.yaml")).expect("the rules are YAML");
    let rules = file["groups"].as_array().expect("groups").iter().flat_map(|group| group["rules"].as_array());
    let text = |rule: &Value, field: &str| rule[field].as_str().unwrap_or_else(|| panic!("{field}: {rule}")).to_owned();
    rules.flatten().map(|rule| (text(rule, "alert"), text(rule, "expr"))).collect()
}

fn dashboard() -> Vec<(String, String)> {
    let file: Value = serde_json::from_str(&read("deploy/grafana/dsproxy.json")).expect("the dashboard is JSON");
    let mut queries = Vec::new();
    for panel in file["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().expect("a query");
            queries.push((panel["title"].to_string(), query.replace("$__rate_interval", "5m")));
        }
    }
    for variable in file["templating"]["list"].as_array().expect("variables") {
        // label_values(SELECTOR, LABEL) is Grafana's own; its parts are a query's.
        let Some(definition) = variable["definition"].as_str() else { continue };
        let parts = definition.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')?.rsplit_once(", "));
        let (selector, label) = parts.unwrap_or_else(|| panic!("label_values: {definition}"));
        queries.push((variable["name"].to_string(), format!("count by ({label}) ({selector})")));
    }
    queries
}

/// What a query asks for that is not served.
fn mistakes(query: &str, served: &Served) -> Vec<String> {
    match parser::parse(query) {
        Ok(expression) => {
            let mut mistakes = Vec::new();
            labels(&expression, served, &mut mistakes);
            mistakes
        }
        Err(error) => vec![format!("{query}: {error}")],
    }
}

/// Walks through an expression. The result are the labels that its samples may have; whatever is wrong is noted.
fn labels(expression: &Expr, served: &Served, mistakes: &mut Vec<String>) -> BTreeSet<String> {
    match expression {
        Expr::VectorSelector(selector) => selected(selector, served, mistakes),
        Expr::MatrixSelector(range) => selected(&range.vs, served, mistakes),
        Expr::Paren(inner) => labels(&inner.expr, served, mistakes),
        Expr::Unary(inner) => labels(&inner.expr, served, mistakes),
        Expr::Subquery(inner) => labels(&inner.expr, served, mistakes),
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) => BTreeSet::new(),
        Expr::Aggregate(aggregate) => {
            let inner = labels(&aggregate.expr, served, mistakes);
            match &aggregate.modifier {
                Some(LabelModifier::Include(kept)) => {
                    missing(expression, &kept.labels, &inner, mistakes);
                    kept.labels.iter().cloned().collect()
                }
                Some(LabelModifier::Exclude(gone)) => {
                    missing(expression, &gone.labels, &inner, mistakes);
                    inner.into_iter().filter(|label| !gone.labels.contains(label)).collect()
                }
                // topk and the like choose samples; the others make one of all.
                None if matches!(aggregate.op.to_string().as_str(), "topk" | "bottomk") => inner,
                None => BTreeSet::new(),
            }
        }
        Expr::Binary(binary) => {
            let left = labels(&binary.lhs, served, mistakes);
            let right = labels(&binary.rhs, served, mistakes);
            if let Some(modifier) = &binary.modifier {
                if let Some(LabelModifier::Include(on) | LabelModifier::Exclude(on)) = &modifier.matching {
                    missing(expression, &on.labels, &left, mistakes);
                    missing(expression, &on.labels, &right, mistakes);
                }
                if let VectorMatchCardinality::ManyToOne(carried) = &modifier.card {
                    missing(expression, &carried.labels, &right, mistakes);
                }
            }
            left.union(&right).cloned().collect()
        }
        Expr::Call(call) => {
            let mut inner = BTreeSet::new();
            for argument in &call.args.args {
                inner.extend(labels(argument, served, mistakes));
            }
            if call.func.name == "histogram_quantile" {
                missing(expression, &["le".to_owned()], &inner, mistakes);
                inner.remove("le");
            }
            inner
        }
        Expr::Extension(_) => {
            mistakes.push(format!("{expression}: not known here"));
            BTreeSet::new()
        }
    }
}

fn missing(expression: &Expr, wanted: &[String], there: &BTreeSet<String>, mistakes: &mut Vec<String>) {
    for label in wanted.iter().filter(|label| !there.contains(*label)) {
        mistakes.push(format!("{expression}: no label {label} among {there:?}"));
    }
}

fn selected(selector: &VectorSelector, served: &Served, mistakes: &mut Vec<String>) -> BTreeSet<String> {
    let name = selector.name.as_deref().unwrap_or_default();
    let none = BTreeMap::new();
    let found = match served.get(name) {
        Some(found) => found,
        None if name == UP => &none,
        None => {
            mistakes.push(format!("no metric {name:?}"));
            &none
        }
    };
    let own = selector.matchers.matchers.iter().filter(|matcher| !OF_PROMETHEUS.contains(&matcher.name.as_str()));
    for Matcher { name: label, value, .. } in own {
        match found.get(label) {
            None => mistakes.push(format!("{name} has no label {label}")),
            // What a user chooses on the dashboard.
            Some(_) if value.starts_with('$') => {}
            Some(seen) if !seen.contains(value) => mistakes.push(format!("{name} has no {label}={value:?}")),
            Some(_) => {}
        }
    }
    found.keys().cloned().chain(OF_PROMETHEUS.map(str::to_owned)).collect()
}
