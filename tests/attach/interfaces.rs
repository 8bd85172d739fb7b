//! Following interfaces: what the kernel announces, and what it does not, ends in the right roles.

use std::{
    future::Future,
    io::Write,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use dsproxy::interfaces::{Interfaces, LinkLayer, Overrides, Role, Watch, read, watch};

use crate::namespace::{Namespace, command};

/// Long enough for a machine that is busy with other things.
const PATIENCE: Duration = Duration::from_secs(20);

fn follow<F: Future<Output = ()>>(node: &Namespace, test: impl FnOnce() -> F + Send + 'static) {
    node.run(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    });
}

fn roles(interfaces: &Interfaces) -> String {
    let word = |role| match role {
        Role::PodInterface => "pod",
        Role::NodeDevice => "node",
    };
    let words: Vec<_> =
        interfaces.values().map(|interface| format!("{}:{}", interface.name, word(interface.role))).collect();
    words.join(" ")
}

/// Waits for the roles to be these; the result is the time it took.
async fn expect(watch: &mut Watch, wanted: &str) -> Duration {
    let started = Instant::now();
    let mut seen = watch.current();
    while roles(&seen) != wanted {
        let left = PATIENCE.saturating_sub(started.elapsed());
        seen = tokio::time::timeout(left, watch.changed())
            .await
            .unwrap_or_else(|_| panic!("expected {wanted:?}, still {:?}", roles(&watch.current())));
    }
    let read: Arc<Interfaces> = Arc::new(read(&Overrides::default()).await.expect("a listing"));
    assert_eq!(seen, read, "a listing says the same");
    started.elapsed()
}

async fn start() -> Watch {
    watch(Overrides::default()).await.expect("a watch")
}

#[test]
fn pod_interfaces_come_and_go() {
    let (node, pod) = (Namespace::new(), Arc::new(Namespace::new()));
    node.veth_to("veth0", &pod);
    let inner = Arc::clone(&pod);
    follow(&node, move || async move {
        let mut watch = start().await;
        expect(&mut watch, "veth0:pod").await;
        // As a CNI does it: made within the pod, the host side moved out.
        let mut quickest = PATIENCE;
        for at in 1..=10 {
            let id = nix::unistd::gettid();
            inner.ip(&format!("link add eth0 type veth peer name veth{at} netns {id}"));
            let wanted: Vec<_> = (0..=at).map(|at| format!("veth{at}:pod")).collect();
            quickest = quickest.min(expect(&mut watch, &wanted.join(" ")).await);
            inner.ip(&format!("link set eth0 name gone{at}"));
        }
        assert!(quickest < Duration::from_millis(50), "{quickest:?} from the event to the announcement");
        for at in (0..=10).rev() {
            command(&format!("ip link delete veth{at}"));
        }
        expect(&mut watch, "").await;
    });
}

#[test]
fn the_nodes_addresses_follow_within_milliseconds() {
    let (node, pod) = (Namespace::new(), Namespace::new());
    node.veth_to("uplink", &pod);
    node.veth_to("veth1", &pod);
    follow(&node, || async {
        let watch = start().await;
        let mut addresses = watch.addresses();
        let ip = |line: &str| command(&format!("ip {line}"));
        let mut quickest = PATIENCE;
        for (line, wanted) in [
            ("addr add 192.0.2.1/24 dev uplink", vec!["192.0.2.1"]),
            // What a pod's interface carries is none of the node's.
            ("addr add 10.1.0.1/32 dev veth1", vec!["192.0.2.1"]),
            ("addr add 2001:db8::1/64 dev uplink nodad", vec!["192.0.2.1", "2001:db8::1"]),
            ("addr add 203.0.113.1/32 dev lo", vec!["192.0.2.1", "203.0.113.1", "2001:db8::1"]),
            ("addr del 192.0.2.1/24 dev uplink", vec!["203.0.113.1", "2001:db8::1"]),
            ("link del uplink", vec!["203.0.113.1"]),
        ] {
            ip(line);
            let started = Instant::now();
            let before = addresses.borrow().clone();
            let wanted: Vec<IpAddr> = wanted.iter().map(|text| text.parse().expect("an address")).collect();
            let came = addresses.wait_for(|now| now.all.iter().copied().eq(wanted.iter().copied()));
            let came = tokio::time::timeout(PATIENCE, came).await;
            came.unwrap_or_else(|_| panic!("{line}: still {:?}", watch.addresses().borrow())).expect("the watch is on");
            if *addresses.borrow() != before {
                quickest = quickest.min(started.elapsed());
            }
        }
        assert!(quickest < Duration::from_millis(50), "{quickest:?} from the event to the announcement");
    });
}

#[test]
fn a_peer_that_is_moved_away_makes_a_pod_interface() {
    let (node, pod) = (Arc::new(Namespace::new()), Namespace::new());
    node.ip("link add veth0 type veth peer name eth0");
    let (moved, inner) = (std::sync::mpsc::channel::<()>(), Arc::clone(&node));
    let (tell, told) = moved;
    let watcher = std::thread::spawn(move || {
        follow(&inner, move || async move {
            let mut watch = start().await;
            expect(&mut watch, "").await;
            tell.send(()).expect("the test waits");
            expect(&mut watch, "veth0:pod").await;
        });
    });
    told.recv().expect("the watch is on");
    // The namespace's thread runs the watch; the move has to come from elsewhere.
    pod.take_from(&node, "eth0");
    watcher.join().expect("the role was announced");
}

#[test]
fn addresses_and_routes_make_node_devices() {
    let (node, pod) = (Namespace::new(), Namespace::new());
    node.veth_to("uplink", &pod);
    node.veth_to("veth1", &pod);
    node.ip("link add br0 type bridge");
    node.ip("tuntap add tun0 mode tun");
    follow(&node, || async {
        let mut watch = start().await;
        let ip = |line: &str| command(&format!("ip {line}"));
        expect(&mut watch, "uplink:pod veth1:pod").await;
        for line in ["link set uplink up", "link set veth1 up", "link set tun0 up", "link set br0 up"] {
            ip(line);
        }
        ip("address add 192.0.2.1/24 dev uplink");
        expect(&mut watch, "uplink:node veth1:pod").await;
        ip("address delete 192.0.2.1/24 dev uplink");
        expect(&mut watch, "uplink:pod veth1:pod").await;
        ip("address add 2001:db8::1/64 dev uplink nodad");
        expect(&mut watch, "uplink:node veth1:pod").await;
        // What a CNI puts on a pod's veth.
        ip("address add 169.254.1.1/32 dev veth1");
        ip("address add 10.1.0.1/32 dev veth1");
        ip("route add 10.1.0.7/32 dev veth1");
        ip("route add fd00::7/128 dev veth1");
        // A bridge of pods is none until it leads out.
        ip("address add 10.2.0.1/24 dev br0");
        ip("link set veth1 master br0");
        ip("route add 198.51.100.0/24 dev tun0");
        expect(&mut watch, "uplink:node veth1:pod tun0:node").await;
        let tun = watch.current().values().find(|interface| interface.name == "tun0").cloned();
        assert_eq!(tun.expect("there").link_layer, LinkLayer::None);
        ip("-6 route add default dev br0");
        expect(&mut watch, "uplink:node veth1:pod br0:node tun0:node").await;
        ip("-6 route delete default dev br0");
        ip("route delete 198.51.100.0/24 dev tun0");
        expect(&mut watch, "uplink:node veth1:pod").await;
        // A route that moves from one device to another.
        ip("route add 203.0.113.0/24 dev tun0");
        expect(&mut watch, "uplink:node veth1:pod tun0:node").await;
        ip("route replace 203.0.113.0/24 dev uplink");
        expect(&mut watch, "uplink:node veth1:pod").await;
        // Going down takes IPv4 routes along, and the kernel says nothing of them.
        ip("route add 198.51.100.0/24 dev tun0");
        expect(&mut watch, "uplink:node veth1:pod tun0:node").await;
        ip("link set tun0 down");
        expect(&mut watch, "uplink:node veth1:pod").await;
        ip("link set veth1 down");
        ip("link set veth1 name renamed");
        expect(&mut watch, "uplink:node renamed:pod").await;
    });
}

#[test]
fn events_that_were_lost_are_made_good() {
    const ROUTES: u32 = 60_000;
    let (node, pod) = (Namespace::new(), Arc::new(Namespace::new()));
    node.veth_to("uplink", &pod);
    let inner = Arc::clone(&pod);
    follow(&node, move || async move {
        command("ip link set uplink up");
        command("ip address add 192.0.2.1/24 dev uplink");
        let mut watch = start().await;
        expect(&mut watch, "uplink:node").await;
        // None of this yields to the watch, which falls behind until the kernel drops events.
        let mut batch = tempfile::NamedTempFile::new().expect("a file");
        for route in 0..ROUTES {
            let [_, b, c, d] = (route * 16).to_be_bytes();
            writeln!(batch, "route add 10.{b}.{c}.{d}/28 via 192.0.2.2").expect("written");
        }
        inner.ip("link set eth-uplink up");
        command(&format!("ip -batch {}", batch.path().display()));
        let id = nix::unistd::gettid();
        inner.ip(&format!("link add eth0 type veth peer name veth1 netns {id}"));
        assert!(dropped_events() > 0, "the test is to overrun the socket");
        expect(&mut watch, "uplink:node veth1:pod").await;
        inner.ip(&format!("link add eth1 type veth peer name veth2 netns {id}"));
        expect(&mut watch, "uplink:node veth1:pod veth2:pod").await;
    });
}

/// How many events the kernel could not deliver to the netlink sockets of this namespace.
fn dropped_events() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/netlink").expect("netlink sockets");
    let drops = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(8));
    drops.map(|drops| drops.parse::<u64>().expect("a number")).sum()
}
