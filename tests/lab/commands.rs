//! `status`, `services`, `backends` and `connections` tell what is so, and so do the HTTP servers.

use std::{
    collections::BTreeMap,
    io::Read as _,
    sync::atomic::{AtomicBool, Ordering},
};

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::{Daemon, DaemonOptions, DualStack, TcpSession, UdpSession, eventually};
use serde_json::Value;

use crate::cluster::{Cluster, PORT, SOON, TARGET, service, wait_until_answers};

/// A daemon on `cluster` that serves a Service with the backend "local", and its VIP.
fn serve_echo(cluster: &Cluster) -> (Daemon<'_>, DualStack) {
    let vip = DualStack::cluster_ip(1);
    cluster.write(&service("echo", vip, &[cluster.backend("local")]));
    let daemon = cluster.start_daemon();
    wait_until_answers(cluster.client.namespace(), vip, "local");
    (daemon, vip)
}

#[test]
fn the_commands_show_what_is_so() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let (daemon, vip) = serve_echo(&cluster);
    let local = cluster.backend("local");
    let json = |command| daemon.json(&[command]).expect("the command prints JSON");
    let sessions =
        IpFamily::ALL.map(|family| TcpSession::open(client, vip.socket(family, PORT)).expect("the VIP answers"));

    for (family, session) in IpFamily::ALL.into_iter().zip(&sessions) {
        let frontend = vip.socket(family, PORT).to_string();
        let endpoint = local.socket(family, TARGET).to_string();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let services = json("services");
            let wanted =
                [("frontend", &*frontend), ("protocol", &protocol.to_string()), ("family", &family.to_string())];
            let rows = rows_with(&services, &wanted);
            assert_eq!(rows.len(), 1, "{frontend} {protocol}: {services}");
            assert_eq!(rows[0]["endpoints"], serde_json::json!([endpoint]), "{services}");
            assert!(rows[0]["name"].as_str().is_some_and(|name| name.contains("default/echo")), "{services}");
        }
        let backends = json("backends");
        let rows = rows_with(&backends, &[("endpoint", &endpoint), ("state", "active")]);
        assert_eq!(rows.len(), 2, "one for each port: {backends}");

        let connections = json("connections");
        let own_address = session.local_address().expect("the socket is bound").to_string();
        let rows = rows_with(&connections, &[("client", &own_address), ("protocol", "TCP")]);
        assert_eq!(rows.len(), 1, "{own_address}: {connections}");
        assert_eq!(rows[0]["frontend"], frontend, "{connections}");
        assert_eq!(rows[0]["backend"], endpoint, "{connections}");
    }
    let status = json("status");
    for interface in [cluster.client.host_interface(), cluster.bridged_client.host_interface(), "eth0"] {
        for direction in ["ingress", "egress"] {
            let rows = rows_with(&status["hooks"], &[("interface", interface), ("direction", direction)]);
            assert_eq!(rows.len(), 1, "{interface} {direction}: {status}");
        }
    }
    assert!(rows_with(&status["hooks"], &[("interface", "lo")]).is_empty(), "{status}");

    cluster.write(&service("echo", vip, &[cluster.backend("remote")]));
    wait_until_answers(client, vip, "remote");
    for family in IpFamily::ALL {
        let services = json("services");
        let endpoint = cluster.backend("remote").socket(family, TARGET).to_string();
        let rows = rows_with(&services, &[("frontend", &vip.socket(family, PORT).to_string())]);
        assert_eq!(rows.len(), 2, "{services}");
        for row in rows {
            assert_eq!(row["endpoints"], serde_json::json!([endpoint]), "{services}");
        }
    }
}

#[test]
fn status_tells_whether_a_daemon_keeps_the_maps_up_to_date() {
    let cluster = Cluster::build();
    let (mut daemon, _) = serve_echo(&cluster);
    let in_charge = |daemon: &Daemon<'_>| {
        eventually("the daemon's word", SOON, || {
            let status = daemon.json(&["status"]).expect("JSON");
            let word = &status["daemon"]["word"];
            let is_so = status["daemon"]["standing"] == "inCharge"
                && status["daemon"]["process"] == daemon.id().expect("it runs")
                && word["synced"] == true
                && word["sourceAnswers"] == true
                && word["servicePorts"] == 2
                && word["oldestChangeWaitsSeconds"].is_null()
                && word["lastSyncTookSeconds"].as_f64().is_some_and(|seconds| seconds > 0.0);
            if is_so { Ok(status) } else { Err(status["daemon"].to_string()) }
        })
        .expect("it is in charge")
    };
    let status = in_charge(&daemon);
    assert_eq!(status["daemon"]["word"]["servicesFailed"], 0);
    assert_eq!(status["daemon"]["word"]["metrics"], "127.0.0.1:10249");
    assert!(rows_with(&status["features"], &[("name", "tc programs")])[0]["found"] == true, "{status}");
    for family in IpFamily::ALL {
        for map in ["frontends", "backends", "connections", "brief connections", "networks", "filter"] {
            let rows = rows_with(&status["maps"], &[("map", map), ("family", &family.to_string())]);
            assert_eq!(rows.len(), 1, "{map} {family}: {status}");
            assert!(rows[0]["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{}", rows[0]);
        }
        let frontends = rows_with(&status["maps"], &[("map", "frontends"), ("family", &family.to_string())]);
        assert_eq!(frontends[0]["entries"], 2, "TCP and UDP");
    }

    daemon.kill().expect("it runs");
    let status = daemon.json(&["status"]).expect("JSON");
    assert_eq!(status["daemon"]["standing"], "notRunning", "{status}");
    assert_eq!(status["daemon"]["word"]["servicePorts"], 2, "what it said last stays: {status}");
    let table = daemon.command(&["status"]).expect("the command runs");
    assert!(String::from_utf8_lossy(&table.stdout).contains("no daemon is running"), "{table:?}");
    daemon.start_again().expect("it starts");
    in_charge(&daemon);
}

#[test]
fn what_waits_for_room_is_told_and_what_has_no_series_is_summed() {
    let cluster = Cluster::build();
    let arguments = ["--max-services=2", "--metrics-services=1"].map(str::to_owned).into();
    let options = DaemonOptions { arguments, ..DaemonOptions::default() };
    let vip = DualStack::cluster_ip(1);
    cluster.write(&service("first", vip, &[cluster.backend("local")]));
    let daemon = Daemon::start(&cluster.lab, &cluster.manifests, options).expect("it starts");
    wait_until_answers(cluster.client.namespace(), vip, "local");
    let metric = |name: &str| {
        let page = daemon.metrics().expect("the daemon answers").body;
        let line = page.lines().find(|line| line.starts_with(name))?;
        line.rsplit(' ').next()?.parse::<f64>().ok()
    };
    assert_eq!(metric("dsproxy_oldest_change_waiting_seconds "), Some(0.0));
    let others = "dsproxy_service_connections_total{namespace=\"\",service=\"other\"";
    assert!(metric(others).is_some(), "one service port of two has no series");
    for family in IpFamily::ALL {
        let bytes = metric(&format!("dsproxy_map_bytes{{map=\"connections\",ip_family=\"{family}\"}}"));
        assert!(bytes.is_some_and(|bytes| bytes > 0.0), "{bytes:?}");
        let entries = metric(&format!("dsproxy_lru_map_entries{{map=\"connections\",ip_family=\"{family}\"}}"));
        assert!(entries.is_some_and(|entries| entries > 0.0), "{entries:?}");
    }

    cluster.write(&service("second", DualStack::cluster_ip(2), &[cluster.backend("local")]));
    eventually("a change that waits", SOON, || {
        let word = daemon.json(&["status"]).expect("JSON")["daemon"]["word"].clone();
        let waits = word["oldestChangeWaitsSeconds"].as_f64().is_some_and(|seconds| seconds > 0.0);
        if waits && word["servicesFailed"] == 1 { Ok(()) } else { Err(word.to_string()) }
    })
    .expect("there is no room for it");
    assert!(metric("dsproxy_oldest_change_waiting_seconds ").is_some_and(|seconds| seconds > 0.0));

    // Drops are told of whom the rest is told of: one of the two has no series.
    cluster.write(&service("first", vip, &[]));
    let drops = |labels: &str| {
        for family in IpFamily::ALL {
            TcpSession::open(cluster.client.namespace(), vip.socket(family, PORT)).err()?;
            let datagram = UdpSession::open(cluster.client.namespace(), vip.socket(family, PORT), true);
            datagram.and_then(|mut session| session.ask()).err()?;
        }
        metric(&format!("dsproxy_service_drops_total{{{labels}")).filter(|count| *count > 0.0)
    };
    for labels in ["namespace=\"default\",service=\"first\"", "namespace=\"\",service=\"other\""] {
        eventually("drops", SOON, || drops(labels).ok_or_else(|| daemon.metrics().expect("it answers").body))
            .unwrap_or_else(|error| panic!("{labels}: {error}"));
    }
    let page = daemon.metrics().expect("the daemon answers").body;
    let series: Vec<_> = page.lines().filter(|line| line.starts_with("dsproxy_service_drops_total{")).collect();
    assert_eq!(series.len(), 2, "{series:?}");
    assert!(series.iter().all(|line| line.contains("reason=\"no-endpoint\"")), "{series:?}");
}

#[test]
fn top_shows_what_passes_and_what_is_dropped() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let (daemon, vip) = serve_echo(&cluster);
    let empty = DualStack::cluster_ip(2);
    cluster.write(&service("empty", empty, &[]));
    let is_served = || daemon.json(&["services", "--service", "default/empty"]).expect("JSON");
    eventually("the other Service", SOON, || {
        let rows = is_served();
        if rows.as_array().is_some_and(|rows| rows.len() == 4) { Ok(()) } else { Err(rows.to_string()) }
    })
    .expect("it is served");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for family in IpFamily::ALL {
            let mut session = TcpSession::open(client, vip.socket(family, PORT)).expect("the VIP answers");
            let is_over = &is_over;
            scope.spawn(move || {
                while !is_over.load(Ordering::Relaxed) {
                    session.exchange(b"something").expect("the connection stays");
                    // No such port: refused, and counted.
                    TcpSession::open(client, vip.socket(family, PORT + 1)).expect_err("no such port");
                    // No endpoint: likewise, and it is known whose it is.
                    TcpSession::open(client, empty.socket(family, PORT)).expect_err("no endpoint");
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
            });
        }
        let top = daemon.json(&["top", "--once", "--interval", "1"]).expect("JSON");
        let only_udp = daemon.json(&["top", "--once", "--interval", "0.2", "--protocol", "udp"]).expect("JSON");
        let text = daemon.command(&["top", "--interval", "0.2", "--sort", "packets", "--limit", "1"]);
        let dropped = daemon.command(&["top", "--interval", "0.5", "--sort", "drops", "--limit", "1"]);
        is_over.store(true, Ordering::Relaxed);

        let services = top["services"].as_array().expect("service ports");
        let row = services.iter().find(|row| is_tcp_of(row, "default/echo")).unwrap_or_else(|| panic!("{top}"));
        for rate in ["packets", "bytes", "replyPackets", "replyBytes"] {
            assert!(row[rate].as_f64().is_some_and(|rate| rate > 1.0), "{rate}: {top}");
        }
        assert!(row["openConnections"].as_u64().is_some_and(|open| open >= 2), "one of each family: {top}");
        assert_eq!(row["drops"], serde_json::json!({}), "what is for no port of a Service is none's: {top}");
        let row = services.iter().find(|row| is_tcp_of(row, "default/empty")).unwrap_or_else(|| panic!("{top}"));
        assert!(row["drops"]["no-endpoint"].as_f64().is_some_and(|rate| rate > 1.0), "{top}");
        for family in IpFamily::ALL {
            let drops = rows_with(&top["drops"], &[("reason", "no-port"), ("family", &family.to_string())]);
            assert!(drops[0]["packets"].as_f64().is_some_and(|rate| rate > 0.0), "{family}: {top}");
            let rows = rows_with(&top["maps"], &[("map", "connections"), ("family", &family.to_string())]);
            assert!(rows[0]["entries"].as_u64().is_some_and(|entries| entries > 0), "{family}: {top}");
        }
        let names: Vec<_> =
            only_udp["services"].as_array().expect("service ports").iter().map(|row| &row["name"]).collect();
        assert_eq!(names.len(), 2, "{only_udp}");
        assert!(names.iter().all(|name| name.as_str().is_some_and(|name| name.ends_with("/UDP"))), "{only_udp}");
        // Standard output is no terminal, so it ends by itself.
        let text = text.expect("the command runs");
        let printed = String::from_utf8_lossy(&text.stdout);
        assert!(text.status.success() && printed.starts_with("1 of 4 service ports, over "), "{text:?}");
        let dropped = dropped.expect("the command runs");
        let printed = String::from_utf8_lossy(&dropped.stdout);
        let is_told = |line: &str| line.starts_with("default/empty:") && line.ends_with(" no-endpoint");
        assert!(printed.lines().any(is_told), "{dropped:?}");
    });

    // What was counted is there without a daemon, and nobody else's.
    let services = daemon.json(&["services"]).expect("JSON");
    let of =
        |name: &str| services.as_array().expect("rows").iter().filter(|row| is_tcp_of(row, name)).collect::<Vec<_>>();
    let counts: Vec<_> = of("default/empty").iter().map(|row| row["drops"]["no-endpoint"].as_u64()).collect();
    assert!(counts.len() == 2 && counts[0] == counts[1] && counts[0].is_some_and(|count| count > 2), "{services:#}");
    assert!(of("default/echo").iter().all(|row| row["drops"] == serde_json::json!({})), "{services:#}");
    let page = daemon.metrics().expect("the daemon answers").body;
    let told: Vec<_> = page
        .lines()
        .filter(|line| line.starts_with("dsproxy_service_drops_total{") && line.contains("protocol=\"TCP\""))
        .collect();
    let series = "namespace=\"default\",service=\"empty\"";
    assert!(told.len() == 1 && told[0].contains(series) && told[0].contains("reason=\"no-endpoint\""), "{told:?}");
    assert!(told[0].ends_with(&format!(" {}", counts[0].unwrap_or_default())), "{told:?}");
    let table =
        daemon.command(&["services", "--service", "default/empty", "--protocol", "tcp"]).expect("the command runs");
    let printed = String::from_utf8_lossy(&table.stdout);
    assert_eq!(printed.lines().filter(|line| line.ends_with(" no-endpoint")).count(), 2, "{printed}");

    // Nothing is told of what is gone.
    cluster.manifests.remove(&service("empty", empty, &[])).expect("the manifest goes");
    eventually("the Service to go", SOON, || {
        let rows = is_served();
        if rows.as_array().is_some_and(Vec::is_empty) { Ok(()) } else { Err(rows.to_string()) }
    })
    .expect("it goes");
    let gone = daemon.metrics().expect("the daemon answers").body;
    assert!(!gone.contains("dsproxy_service_drops_total{"), "{gone}");
}

/// Whether a row is that of the TCP port of the Service `name`.
fn is_tcp_of(row: &Value, name: &str) -> bool {
    row["name"].as_str().is_some_and(|text| text.starts_with(&format!("{name}:")) && text.ends_with("/TCP"))
}

#[test]
fn a_dump_has_everything_and_says_what_it_could_not_have() {
    let cluster = Cluster::build();
    let (mut daemon, vip) = serve_echo(&cluster);
    let dump = |daemon: &Daemon<'_>, name: &str| {
        let path = cluster.lab.directory().join(name);
        let output = daemon.command(&["dump", &path.display().to_string()]).expect("the command runs");
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), path.display().to_string(), "where it is");
        let again = daemon.command(&["dump", &path.display().to_string()]).expect("the command runs");
        assert!(!again.status.success(), "what is there is not written over: {again:?}");
        files(&std::fs::read(&path).expect("the archive"))
    };
    eventually("metrics of a daemon that has spoken", SOON, || {
        let status = daemon.json(&["status"]).expect("JSON");
        if status["daemon"]["standing"] == "inCharge" { Ok(()) } else { Err(status["daemon"].to_string()) }
    })
    .expect("it is in charge");
    let found = dump(&daemon, "alive.tar.gz");
    let failed: Vec<_> = found.keys().filter(|name| name.ends_with(".failed")).collect();
    // Where tests run the kernel need not have said how it was built.
    assert!(failed.iter().all(|name| *name == "kernel/configuration.txt.failed"), "{failed:?}");
    let has = |name: &str, part: &str| {
        let text = found.get(name).unwrap_or_else(|| panic!("{name}: {:?}", found.keys()));
        assert!(text.contains(part), "{name} is to have {part}: {text}");
    };
    for (name, part) in [
        ("README.txt", "connections.json"),
        ("status.txt", "is in charge"),
        ("status.json", "\"inCharge\""),
        ("top.txt", "service ports, over"),
        ("settings.txt", "jiffies_per_second"),
        ("daemon/metrics.txt", "dsproxy_service_packets_total"),
        ("daemon/configz.json", "kubeproxy.config.k8s.io"),
        ("daemon/flagz.txt", "--max-services=65536"),
        ("kernel/about.txt", "net.ipv4.ip_forward = "),
        ("network/interfaces.txt", cluster.client.host_interface()),
        ("network/addresses.txt", "127.0.0.1"),
        ("network/rules.txt", "RuleMessage"),
        ("network/neighbours.txt", ""),
    ] {
        has(name, part);
    }
    for family in IpFamily::ALL {
        let endpoint = cluster.backend("local").socket(family, TARGET).to_string();
        has("services.json", &vip.socket(family, PORT).to_string());
        has("backends.json", &endpoint);
        has("connections.json", &endpoint);
    }

    daemon.kill().expect("it runs");
    let found = dump(&daemon, "dead.tar.gz");
    assert!(found["status.txt"].contains("no daemon is running"), "{}", found["status.txt"]);
    assert!(found["daemon/metrics.txt.failed"].contains("no daemon"), "{:?}", found.keys());
    assert!(found.contains_key("services.json"), "the maps are there all the same");
}

/// The files of an archive, by their names within its directory.
fn files(archive: &[u8]) -> BTreeMap<String, String> {
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(archive));
    let mut files = BTreeMap::new();
    for entry in tar.entries().expect("an archive") {
        let mut entry = entry.expect("an entry");
        let path = entry.path().expect("a name").display().to_string();
        let (_, name) = path.split_once('/').expect("a directory");
        let name = name.to_owned();
        let mut content = String::new();
        entry.read_to_string(&mut content).expect("text");
        files.insert(name, content);
    }
    files
}

#[test]
fn the_commands_print_tables_for_people() {
    let cluster = Cluster::build();
    let (daemon, vip) = serve_echo(&cluster);
    for (command, shown) in [
        ("status", cluster.client.host_interface().to_owned()),
        ("services", vip.socket(IpFamily::V6, PORT).to_string()),
        ("backends", cluster.backend("local").socket(IpFamily::V6, TARGET).to_string()),
        ("connections", vip.socket(IpFamily::V6, PORT).to_string()),
    ] {
        let output = daemon.command(&[command]).expect("the command runs");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(printed.contains(&shown), "{command} is to show {shown}: {printed}");
    }
}

#[test]
fn the_lists_are_narrowed_to_what_is_asked_for() {
    let cluster = Cluster::build();
    let (daemon, vip) = serve_echo(&cluster);
    let count = |arguments: &[&str]| daemon.json(arguments).expect("JSON").as_array().expect("an array").len();
    let address = vip.v6.to_string();
    let endpoint = cluster.backend("local").socket(IpFamily::V4, TARGET).to_string();
    for (arguments, rows) in [
        (&["services"][..], 4),
        (&["services", "--family", "ipv6"], 2),
        (&["services", "--protocol", "udp"], 2),
        (&["services", "--address", &address, "--protocol", "tcp"], 1),
        (&["services", "--service", "default/echo"], 4),
        (&["services", "--service", "nobody"], 0),
        (&["backends", "--address", &endpoint], 2),
        (&["connections", "--address", "192.0.2.0/24"], 0),
    ] {
        assert_eq!(count(arguments), rows, "{arguments:?}");
    }
    assert!(count(&["connections", "--address", &address, "--protocol", "tcp"]) > 0);
}

#[test]
fn metrics_are_served_and_health_follows_the_process() {
    let cluster = Cluster::build();
    let (mut daemon, _) = serve_echo(&cluster);

    let health = daemon.health().expect("the daemon answers");
    assert_eq!(health.status, 200);
    let verdict: Value = serde_json::from_str(&health.body).expect("health is told as JSON");
    assert_eq!(verdict["healthy"], true, "{verdict}");
    let metrics = daemon.metrics().expect("the daemon answers");
    assert_eq!(metrics.status, 200);
    assert!(metrics.body.contains("# TYPE dsproxy_") || metrics.body.contains("# TYPE kubeproxy_"), "{metrics:?}");

    daemon.kill().expect("the daemon runs");
    daemon.health().expect_err("nobody is there to answer");
    eventually("starting again", SOON, || daemon.start_again()).expect("the ports are free again");
}

/// The objects of the array `value` that have all of `fields`.
fn rows_with<'a>(value: &'a Value, fields: &[(&str, &str)]) -> Vec<&'a Value> {
    let rows = value.as_array().unwrap_or_else(|| panic!("no array: {value}"));
    rows.iter().filter(|row| fields.iter().all(|(field, text)| row[*field] == *text)).collect()
}
