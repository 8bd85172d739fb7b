//! XDP between a client outside and a backend on the other node: it is XDP that serves, it follows what changes, and a restart is
//! not noticed.

use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt as _, process::Command, thread, time::Duration};

use dsproxy_common::{IpFamily, count::Reason};
use dsproxy_tests::lab::{
    Bulk, Bystander, Daemon, Outside, Side, TcpSession, UdpSession, attachments, eventually, like_hardware, set_mtu,
};

use crate::cluster::{Cluster, NODE_PORT, SOON, answers, exposed};

/// The devices of node A that it serves on.
const DEVICES: [&str; 2] = ["eth0", Outside::GATEWAY_INTERFACE];

/// A cluster whose devices are like hardware on the way between the host outside and the backend `remote`.
struct Site {
    cluster: Cluster,
    outside: Outside,
}

impl Site {
    fn build() -> Self {
        let cluster = Cluster::build();
        let outside = cluster.lab.add_outside().expect("the host is added");
        let far = cluster.lab.node(Side::B);
        for (namespace, device) in [
            (outside.namespace(), Outside::INTERFACE),
            (far.namespace(), far.interface()),
            (cluster.find("remote").pod.namespace(), "eth0"),
        ] {
            like_hardware(namespace, device).expect("the device obeys");
        }
        Self { cluster, outside }
    }

    /// Has node A's kernel track connections, and forward no others.
    fn track_connections(&self) {
        const RULES: &str = "table inet strict { chain forward { type filter hook forward priority filter; policy drop; \
                             ct state invalid drop; ct state { established, related, new } accept; }; }";
        let node = self.cluster.lab.node(Side::A).namespace();
        let loaded = node.run(|| Command::new("nft").arg(RULES).output()).expect("entered").expect("nft runs");
        assert!(loaded.status.success(), "{}", String::from_utf8_lossy(&loaded.stderr));
    }

    fn target(&self, family: IpFamily) -> SocketAddr {
        self.cluster.node(Side::A).socket(family, NODE_PORT)
    }

    /// Starts a daemon on node A, and waits until the Service with the endpoint `remote` is served.
    fn serve(&self, arguments: &[&str]) -> Daemon<'_> {
        self.cluster.write(&exposed(&self.cluster, &["remote"]));
        let daemon = self.cluster.start_daemon_on(Side::A, arguments);
        self.wait_until_served();
        daemon
    }

    fn wait_until_served(&self) {
        let (client, node) = (self.outside.namespace(), self.cluster.node(Side::A));
        eventually("waiting for the NodePort", SOON, || answers(client, node, NODE_PORT, "remote"))
            .expect("the NodePort is served");
    }

    /// Connections of both families, TCP and UDP, that were used.
    fn connect(&self) -> (Vec<TcpSession>, Vec<UdpSession>) {
        let client = self.outside.namespace();
        let open_tcp = |family| TcpSession::open(client, self.target(family)).expect("the NodePort is served");
        let open_udp = |family| UdpSession::open(client, self.target(family), true).expect("a socket");
        (IpFamily::ALL.map(open_tcp).into(), IpFamily::ALL.map(open_udp).into())
    }
}

/// Asks each of them once.
fn use_all((tcp, udp): &mut (Vec<TcpSession>, Vec<UdpSession>), when: &str) {
    for session in tcp {
        session.exchange(b"still there?").unwrap_or_else(|error| panic!("{when}: {error}"));
    }
    for session in udp {
        let answered = session.ask().unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_eq!(answered, "remote", "{when}");
    }
}

/// How many packets XDP sent on, each way and family.
fn sent_on(daemon: &Daemon<'_>) -> [u64; 4] {
    let status = daemon.json(&["status"]).expect("a status");
    let counted = |reason: Reason, family: IpFamily| {
        let rows = status["packets"].as_array().expect("a list").iter();
        let family = family.to_string();
        let mut found =
            rows.filter(|row| row["reason"] == reason.name() && row["family"].as_str() == Some(family.as_str()));
        found.next().map_or(0, |row| row["packets"].as_u64().expect("a number"))
    };
    let [v4, v6] = IpFamily::ALL;
    [
        counted(Reason::SentToBackend, v4),
        counted(Reason::SentToBackend, v6),
        counted(Reason::SentToClient, v4),
        counted(Reason::SentToClient, v6),
    ]
}

/// The devices that `status` says are served by XDP.
fn served_devices(daemon: &Daemon<'_>) -> Vec<String> {
    let status = daemon.json(&["status"]).expect("a status");
    let hooks = status["hooks"].as_array().expect("a list").iter();
    hooks
        .filter(|hook| hook["kind"] == "xdp")
        .map(|hook| hook["interface"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Waits until `status` says of `device` that it is without XDP, for a reason in which there is `why`.
fn await_reason(daemon: &Daemon<'_>, device: &str, why: &str) {
    let said = || {
        let status = daemon.json(&["status"]).expect("a status");
        let mut without = status["withoutXdp"].as_array().expect("a list").iter();
        let is_it = |row: &serde_json::Value| {
            row["interface"] == device && row["reason"].as_str().is_some_and(|reason| reason.contains(why))
        };
        if without.any(is_it) { Ok(()) } else { Err(status["withoutXdp"].to_string()) }
    };
    eventually("the reason", SOON, said).unwrap_or_else(|error| panic!("{device}, {why}: {error}"));
}

#[test]
fn a_program_of_somebody_elses_and_a_driver_that_refuses_leave_the_device_to_tc() {
    let site = Site::build();
    let node = site.cluster.lab.node(Side::A).namespace();
    let theirs = Bystander::of_frames(node, DEVICES[0]).expect("the device takes a program");
    // A veth has no room in a page for what its other end may send.
    set_mtu(site.outside.namespace(), Outside::INTERFACE, 9000).expect("the device obeys");
    let mut daemon = site.serve(&["--xdp", "native"]);
    await_reason(&daemon, DEVICES[0], "another XDP program");
    await_reason(&daemon, DEVICES[1], "the driver refused: Numerical result out of range");
    let roles = |daemon: &Daemon<'_>| -> Vec<String> {
        let status = daemon.json(&["status"]).expect("a status");
        let hooks = status["hooks"].as_array().expect("a list").iter();
        let of_devices = hooks.filter(|hook| DEVICES.iter().any(|device| hook["interface"] == *device));
        of_devices.map(|hook| hook["role"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(roles(&daemon), ["node-device"; 4], "tc serves both, both ways");
    let mut sessions = site.connect();
    let before = theirs.runs().expect("they count");
    use_all(&mut sessions, "by tc");
    assert!(theirs.runs().expect("they count")[0].1 > before[0].1, "their program is where it was");
    assert!(served_devices(&daemon).is_empty());

    daemon.kill().expect("it runs");
    drop(theirs);
    set_mtu(site.outside.namespace(), Outside::INTERFACE, 1500).expect("the device obeys");
    daemon.start_again().expect("it starts");
    assert_eq!(served_devices(&daemon), DEVICES);
    use_all(&mut sessions, "by XDP");
}

#[test]
fn connections_of_clients_outside_are_sent_on_by_xdp() {
    let site = Site::build();
    let daemon = site.serve(&["--xdp", "native"]);
    assert_eq!(served_devices(&daemon), DEVICES);
    let routing = daemon.json(&["status"]).expect("a status")["routing"].clone();
    assert!(matches!(routing["secondsLeft"].as_u64(), Some(1..=20)), "{routing}");
    let mut sessions = site.connect();
    use_all(&mut sessions, "before counting");
    let before = sent_on(&daemon);
    for _ in 0..20 {
        use_all(&mut sessions, "by XDP");
    }
    // A request and its answer, for TCP and for UDP, but for what the stack's turns take: one packet of each at a time.
    for (before, after) in before.into_iter().zip(sent_on(&daemon)) {
        assert!(after - before >= 30, "{before} and then {after} packets sent on");
    }
    for family in IpFamily::ALL {
        let bytes = 4 << 20;
        let report = Bulk { bytes }.run(site.outside.namespace(), site.target(family)).expect("a transfer");
        assert_eq!(report.intact, bytes, "{family}");
    }
    // What is for a backend on the node goes through the stack as ever.
    site.cluster.write(&exposed(&site.cluster, &["local"]));
    let (client, node) = (site.outside.namespace(), site.cluster.node(Side::A));
    eventually("waiting for the local endpoint", SOON, || answers(client, node, NODE_PORT, "local")).expect("served");
}

#[test]
fn a_neighbour_that_moves_is_followed() {
    let site = Site::build();
    let daemon = site.serve(&["--xdp", "native"]);
    let mut sessions = site.connect();
    use_all(&mut sessions, "before");
    let far = site.cluster.lab.node(Side::B);
    // As a host does that takes over another's address.
    far.set_link_address("02:00:00:00:77:01").expect("the device takes the address");
    eventually("waiting for the other address", SOON, || {
        let known = site.cluster.lab.node(Side::A).neighbours().map_err(|error| error.to_string())?;
        if known.matches("02:00:00:00:77:01").count() >= 2 { Ok(()) } else { Err(known) }
    })
    .expect("the node knows the neighbour's address, in both families");
    thread::sleep(Duration::from_millis(100));
    let before = sent_on(&daemon);
    for _ in 0..5 {
        use_all(&mut sessions, "after");
    }
    for (before, after) in before.into_iter().zip(sent_on(&daemon)) {
        assert!(after > before, "{before} and then {after} packets sent on");
    }
}

#[test]
fn a_restart_is_not_noticed_and_the_programs_are_taken_over() {
    let site = Site::build();
    let mut daemon = site.serve(&["--xdp", "native"]);
    let mut sessions = site.connect();
    use_all(&mut sessions, "with the daemon");
    daemon.kill().expect("it runs");
    let before = sent_on(&daemon);
    use_all(&mut sessions, "without it");
    assert!(sent_on(&daemon)[0] > before[0], "XDP goes on without the daemon for a while");
    daemon.start_again().expect("it starts");
    use_all(&mut sessions, "with it again");
    assert_eq!(served_devices(&daemon), DEVICES);
    site.wait_until_served();
    let before = sent_on(&daemon);
    use_all(&mut sessions, "with it again");
    assert!(sent_on(&daemon)[0] > before[0], "XDP goes on with the daemon");
}

#[test]
fn a_veth_is_left_to_tc_unless_it_is_wanted_and_off_takes_the_programs_away() {
    let site = Site::build();
    let xdp_of_node = || {
        let found = attachments(site.cluster.lab.node(Side::A).namespace()).expect("a list");
        found.into_iter().filter(|attachment| attachment.hook == "xdp").count()
    };
    let mut daemon = site.serve(&["--xdp", "native"]);
    assert_eq!(xdp_of_node(), DEVICES.len());
    let mut sessions = site.connect();
    use_all(&mut sessions, "by XDP");
    for mode in ["auto", "off"] {
        daemon.kill().expect("it runs");
        daemon = site.serve(&["--xdp", mode]);
        assert_eq!(xdp_of_node(), 0, "--xdp {mode}");
        assert!(served_devices(&daemon).is_empty(), "--xdp {mode}");
        use_all(&mut sessions, mode);
        let why = if mode == "off" { "--xdp off" } else { "it is a veth" };
        for device in DEVICES {
            await_reason(&daemon, device, why);
        }
    }
    drop(daemon);
    let mut daemon = site.serve(&["--xdp", "native"]);
    use_all(&mut sessions, "by XDP again");
    assert_eq!(xdp_of_node(), DEVICES.len());
    daemon.kill().expect("it runs");
    let output = daemon.command(&["cleanup"]).expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(xdp_of_node(), 0, "after cleanup");
}

/// In a container that is not privileged `/proc/sys` is read-only, and what XDP asks for may be set by others too late or never.
#[test]
fn what_xdp_asks_of_the_host_and_does_not_get_leaves_the_device_to_tc() {
    const LIBERAL: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal";

    let site = Site::build();
    let node = site.cluster.lab.node(Side::A).namespace();
    let set_liberal = |value: &str| node.run(|| fs::write(LIBERAL, value)).expect("entered").expect("set");
    site.track_connections();
    let mut daemon = site.serve(&["--xdp", "native"]);
    assert_eq!(served_devices(&daemon), DEVICES);
    let mut sessions = site.connect();
    use_all(&mut sessions, "by XDP");

    daemon.kill().expect("it runs");
    set_liberal("0");
    let confined = site.cluster.lab.directory().join("confined");
    let script = format!(
        "#!/bin/sh\nexec unshare --mount sh -c 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && \
         exec \"$0\" \"$@\"' {} \"$@\"\n",
        daemon.binary().display()
    );
    fs::write(&confined, script).expect("written");
    fs::set_permissions(&confined, fs::Permissions::from_mode(0o755)).expect("made a program");
    daemon.set_binary(confined);
    daemon.start_again().expect("it starts");
    assert_eq!(served_devices(&daemon), Vec::<String>::new());
    for device in DEVICES {
        await_reason(&daemon, device, "be_liberal is 0");
    }
    // Those from before are what conntrack now minds.
    let mut sessions = site.connect();
    use_all(&mut sessions, "by tc");

    daemon.kill().expect("it runs");
    set_liberal("1");
    daemon.start_again().expect("it starts");
    assert_eq!(served_devices(&daemon), DEVICES);
    use_all(&mut sessions, "by XDP again");
}

/// The connection table of the host's own rules has seen some packets of a connection alone, and has to know it all the same.
#[test]
fn rules_that_track_connections_let_the_rest_through_when_xdp_ends() {
    let site = Site::build();
    site.track_connections();
    let mut daemon = site.serve(&["--xdp", "native"]);
    let mut sessions = site.connect();
    for _ in 0..50 {
        use_all(&mut sessions, "by XDP");
    }
    for family in IpFamily::ALL {
        let bytes = 4 << 20;
        Bulk { bytes }
            .run(site.outside.namespace(), site.target(family))
            .expect("a transfer, with its beginning and end");
    }
    daemon.kill().expect("it runs");
    // XDP goes by its word for so long.
    thread::sleep(Duration::from_secs(21));
    let before = sent_on(&daemon);
    for _ in 0..5 {
        use_all(&mut sessions, "through the stack");
    }
    assert_eq!(sent_on(&daemon), before, "nobody vouches for routes any more");
}
