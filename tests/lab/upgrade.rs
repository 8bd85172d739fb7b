//! A version with another layout of its maps takes the daemon's place, and the old one comes back; traffic does not notice.

use std::{fs, thread, time::Duration};

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::lab::{
    Attach, Daemon, DaemonOptions, DualStack, Load, Outside, Side, Steady, TcpSession, attachments, daemon_binary,
    eventually, later_daemon_binary, like_hardware,
};

use crate::{
    cluster::{CLUSTER_CIDR, Cluster, NODE_PORT, PORT, SOON, TRAFFIC, VIP, answers, exposed, is_without_tcx, service},
    restart::syn_retransmissions,
};

/// A Service that pods and the node itself use.
const INSIDE: DualStack = DualStack::cluster_ip(2);

/// Exchanges before and after each change.
const PHASE: u64 = 800;

/// Between two exchanges of a client. Those from outside all leave for one endpoint, and UDP keeps its port for a while.
const PAUSE: Duration = Duration::from_millis(5);

/// Of so many exchanges one may fail where daemons are killed on their way: a client's port that it uses again in the moment of an opening
/// may be taken for the connection before. On a way without that, none may.
const LOST_ONE_OF: u64 = 5000;

/// Where a daemon is killed on its way: which version, at which line of its log, and how many milliseconds later. The one before
/// leaves what the next finds.
const KILLS: [(usize, &str, u64); 7] = [
    (1, PREPARED, 0),
    (1, LOADED, 0),
    (1, GOES_ON, 20),
    (0, LOADED, 40),
    (0, GOES_ON, 150),
    (1, OPENED, 0),
    (0, OPENED, 60),
];

#[test]
fn another_layout_there_and_back_is_not_noticed_with_tcx() {
    if is_without_tcx() {
        return;
    }
    there_and_back_under_load(Attach::Tcx, &KILLS);
}

#[test]
fn another_layout_there_and_back_is_not_noticed_with_clsact() {
    there_and_back_under_load(Attach::Clsact, &[(1, OPENED, 0), (0, OPENED, 0), (0, GOES_ON, 0)]);
}

fn there_and_back_under_load(attach: Attach, kills: &[(usize, &str, u64)]) {
    let cluster = Cluster::build();
    let outside = cluster.lab.add_outside().expect("the host is added");
    let (pod, client) = (cluster.client.namespace(), outside.namespace());
    cluster.write(&service("inside", INSIDE, &["local", "bridged", "remote"].map(|role| cluster.backend(role))));
    // On the other node alone: every connection from outside is masqueraded.
    cluster.write(&exposed(&cluster, &["remote"]));
    // With the links that a program is replaced in, so that each of the two ways has its part of what there is at devices.
    let xdp = attach == Attach::Tcx;
    let far = cluster.lab.node(Side::B);
    for (namespace, device) in [
        (client, Outside::INTERFACE),
        (far.namespace(), far.interface()),
        (cluster.find("remote").pod.namespace(), "eth0"),
    ] {
        like_hardware(namespace, device).expect("the device obeys");
    }
    let xdp_mode = if xdp { "native" } else { "off" };
    let arguments = [&CLUSTER_CIDR[..], &["--hostname-override", Side::A.role(), "--xdp", xdp_mode]].concat();
    let options = DaemonOptions {
        attach,
        arguments: arguments.into_iter().map(str::to_owned).collect(),
        ..DaemonOptions::default()
    };
    let mut daemon = Daemon::start(&cluster.lab, &cluster.manifests, options).unwrap_or_else(|error| panic!("{error}"));
    let node = cluster.node(Side::A);
    eventually("waiting for the NodePort", SOON, || answers(client, node, NODE_PORT, "remote")).expect("it is served");

    let by = |address: DualStack, port| TRAFFIC.map(|(family, protocol)| (protocol, address.socket(family, port)));
    let (inside, node_port) = (by(INSIDE, PORT), by(node, NODE_PORT));
    let steady = |namespace, targets: &[(Protocol, std::net::SocketAddr)]| -> Vec<_> {
        targets.iter().map(|(protocol, target)| (*target, Steady::start(namespace, *protocol, *target))).collect()
    };
    let mut kept = steady(pod, &inside);
    kept.extend(steady(client, &node_port));
    let mut of_host = IpFamily::ALL.map(|family| {
        cluster.as_host(Side::A, || TcpSession::open_here(INSIDE.socket(family, PORT)).expect("the Service is served"))
    });
    let load = || [Load::paced(pod, &inside, PAUSE), Load::paced(client, &node_port, PAUSE)];
    let mut go_on = |loads: &[Load; 2], when: &str| {
        for session in &mut of_host {
            session.exchange(b"still there?").unwrap_or_else(|error| panic!("{when}: {error}"));
        }
        for family in IpFamily::ALL {
            let target = INSIDE.socket(family, PORT);
            let opened = cluster.as_host(Side::A, || TcpSession::open_here(target)).map(drop);
            opened.unwrap_or_else(|error| panic!("{when}: {error}"));
        }
        for load in loads {
            let goal = load.done() + PHASE;
            eventually("waiting for exchanges", Duration::from_secs(120), || match load.done() {
                done if done >= goal => Ok(()),
                done => Err(format!("{done} of {goal}")),
            })
            .unwrap_or_else(|error| panic!("{when}: {error}"));
        }
    };
    let versions = [daemon_binary().expect("built"), later_daemon_binary().expect("built")];
    let before = syn_retransmissions(&cluster);
    let loads = load();
    go_on(&loads, "before");
    for (version, when) in [(1, "after another layout has taken over"), (0, "after the way back")] {
        daemon.terminate().expect("the daemon runs");
        daemon.set_binary(versions[version].clone());
        daemon.start_again().unwrap_or_else(|error| panic!("{error}"));
        stands_alone(&daemon, &cluster, xdp);
        go_on(&loads, when);
    }
    assert_lost(&daemon, loads, |_| 0);
    assert_eq!(syn_retransmissions(&cluster) - before, 0, "SYNs had to be sent twice\n{}", daemon.whole_log());

    let loads = load();
    daemon.kill().expect("the daemon runs");
    for (version, line, milliseconds) in kills {
        daemon.set_binary(versions[*version].clone());
        kill_at(&mut daemon, line, Duration::from_millis(*milliseconds));
        go_on(&loads, &format!("after it was killed {milliseconds} ms after {line:?}"));
    }
    daemon.set_binary(versions[1].clone());
    daemon.start_again().unwrap_or_else(|error| panic!("{error}"));
    stands_alone(&daemon, &cluster, xdp);
    go_on(&loads, "at the end");
    assert_lost(&daemon, loads, |succeeded| succeeded.div_ceil(LOST_ONE_OF));
    for (target, session) in kept {
        let report =
            session.finish().unwrap_or_else(|error| panic!("{target} was cut: {error}\n{}", daemon.whole_log()));
        assert_eq!(report.backends.len(), 1, "{target} stays with its backend: {report:?}");
    }
    cluster.write(&service("inside", INSIDE, &[cluster.backend("bridged")]));
    eventually("waiting for a change", SOON, || answers(pod, INSIDE, PORT, "bridged")).expect("it is followed");
    answers(pod, VIP, PORT, "remote").expect("the other Service is served");
}

/// No more exchanges have failed than `allowed` for as many as have succeeded.
fn assert_lost(daemon: &Daemon<'_>, loads: [Load; 2], allowed: impl Fn(u64) -> u64) {
    for load in loads {
        let report = load.finish().expect("the clients run");
        let succeeded = report.succeeded();
        assert!(report.failed <= allowed(succeeded), "of {succeeded}: {:#?}\n{}", report.failures, daemon.whole_log());
    }
}

/// What the log says of how far it has come.
const PREPARED: &str = "its content is carried over";
const LOADED: &str = "the programs of both layouts are loaded";
const OPENED: &str = "new connections are this version's";
const GOES_ON: &str = "going on with it";

/// Starts the daemon and kills it so long after its log has `line`.
fn kill_at(daemon: &mut Daemon<'_>, line: &str, later: Duration) {
    let before = daemon.whole_log().len();
    daemon.start_unwatched().expect("the daemon starts");
    let said = || if daemon.whole_log()[before..].contains(line) { Ok(()) } else { Err("not yet".to_owned()) };
    eventually(line, Duration::from_secs(120), said).unwrap_or_else(|error| panic!("{error}\n{}", daemon.whole_log()));
    thread::sleep(later);
    daemon.kill().expect("the daemon runs");
}

/// One layout is pinned, and one program of ours stands at each hook.
fn stands_alone(daemon: &Daemon<'_>, cluster: &Cluster, xdp: bool) {
    let layouts: Vec<_> = fs::read_dir(daemon.bpffs().join("dsproxy")).expect("pinned").flatten().collect();
    assert_eq!(layouts.len(), 1, "{layouts:?}\n{}", daemon.whole_log());
    eventually("one program at each hook", SOON, || {
        let mut hooks: Vec<_> = attachments(cluster.lab.node(Side::A).namespace())
            .expect("the kernel tells")
            .into_iter()
            .map(|attachment| (attachment.interface, attachment.hook))
            .collect();
        let all = hooks.len();
        hooks.sort();
        hooks.dedup();
        let with_xdp = hooks.iter().filter(|(_, hook)| *hook == "xdp").count();
        if hooks.len() == all && all >= 10 && with_xdp == if xdp { 2 } else { 0 } {
            Ok(())
        } else {
            Err(format!("{all} programs at {hooks:?}"))
        }
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", daemon.whole_log()));
}

/// How many calls to the Service "empty" were dropped, in both families, by the commands of the daemon's version.
fn dropped(daemon: &Daemon<'_>) -> u64 {
    let services = daemon.json(&["services", "--service", "default/empty", "--protocol", "tcp"]).expect("JSON");
    let counts: Vec<_> =
        services.as_array().expect("rows").iter().map(|row| row["drops"]["no-endpoint"].as_u64()).collect();
    assert!(counts.len() == 2 && counts[0] == counts[1], "{services:#}");
    counts[0].unwrap_or_default()
}

#[test]
fn what_was_dropped_of_a_service_is_known_to_another_layout() {
    let cluster = Cluster::build();
    let empty = DualStack::cluster_ip(9);
    cluster.write(&service("inside", INSIDE, &[cluster.backend("local")]));
    cluster.write(&service("empty", empty, &[]));
    let mut daemon = cluster.start_daemon();
    let client = cluster.client.namespace();
    eventually("waiting for the Service", SOON, || answers(client, INSIDE, PORT, "local")).expect("it is served");
    let call = || {
        for family in IpFamily::ALL {
            TcpSession::open(client, empty.socket(family, PORT)).expect_err("no endpoint");
        }
    };
    call();
    for binary in [later_daemon_binary(), daemon_binary()] {
        let before = dropped(&daemon);
        assert!(before >= 2, "one of each family");
        daemon.terminate().expect("the daemon runs");
        daemon.set_binary(binary.expect("built"));
        daemon.start_again().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(dropped(&daemon), before);
        call();
        assert!(dropped(&daemon) >= before + 2, "it goes on from there");
    }
}
