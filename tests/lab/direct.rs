//! Direct server return: a client outside comes to node A, and node B, where the endpoint is, answers it by a way of its own.

use std::{collections::BTreeSet, net::IpAddr};

use dsproxy_common::{IpFamily, count::Reason};
use dsproxy_tests::lab::{Bulk, Daemon, Outside, Side, TcpSession, UdpSession, Wire, eventually};

use crate::cluster::{BALANCER, Cluster, NODE_PORT, PORT, SOON, answers, exposed};

struct Site {
    cluster: Cluster,
    outside: Outside,
}

impl Site {
    fn build(wire: Wire) -> Self {
        let cluster = Cluster::build_with(wire);
        let outside = cluster.lab.add_outside().expect("the host is added");
        cluster.lab.add_way_out(&outside).expect("the way is there");
        cluster.write(&exposed(&cluster, &["remote"]));
        Self { cluster, outside }
    }

    /// Starts a daemon on either node, and waits until the NodePort is served.
    fn serve(&self, arguments: &[&str]) -> [Daemon<'_>; 2] {
        let daemons = [Side::A, Side::B].map(|side| self.cluster.start_daemon_on(side, arguments));
        let (client, node) = (self.outside.namespace(), self.cluster.node(Side::A));
        eventually("waiting for the NodePort", SOON, || answers(client, node, NODE_PORT, "remote"))
            .expect("the NodePort is served");
        daemons
    }

    /// As whom the endpoint has seen its clients since it was asked last.
    fn seen(&self) -> BTreeSet<IpAddr> {
        self.cluster.find("remote").server.take_peers().into_iter().map(|peer| peer.ip()).collect()
    }

    /// Where the Service is reached from outside.
    fn targets(&self) -> Vec<std::net::SocketAddr> {
        let node = self.cluster.node(Side::A);
        let of = |family| [node.socket(family, NODE_PORT), BALANCER.socket(family, PORT)];
        IpFamily::ALL.into_iter().flat_map(of).collect()
    }
}

/// How many packets of both families the node of `daemon` has counted for `reason`.
fn counted(daemon: &Daemon<'_>, reason: Reason) -> u64 {
    let status = daemon.json(&["status"]).expect("a status");
    let rows = status["packets"].as_array().expect("a list").iter();
    rows.filter(|row| row["reason"] == reason.name()).filter_map(|row| row["packets"].as_u64()).sum()
}

#[test]
fn endpoints_see_the_client_and_answer_it_by_their_own_way() {
    for wire in [Wire::Direct, Wire::Vxlan] {
        let site = Site::build(wire);
        let mut daemons = site.serve(&["--lb-mode", "dsr"]);
        let client = site.outside.namespace();
        let own: BTreeSet<IpAddr> = IpFamily::ALL.map(|family| site.outside.addresses().socket(family, 0).ip()).into();
        let node: BTreeSet<IpAddr> =
            IpFamily::ALL.map(|family| site.cluster.node(Side::A).socket(family, 0).ip()).into();
        site.seen();
        let open_tcp = |target| TcpSession::open(client, target).expect("the Service is served");
        let open_udp = |target| UdpSession::open(client, target, true).expect("a socket");
        let mut tcp: Vec<_> = site.targets().into_iter().map(open_tcp).collect();
        let mut udp: Vec<_> = site.targets().into_iter().map(open_udp).collect();
        let mut exchange = |when: &str| {
            for session in &mut tcp {
                session.exchange(&[0xa5; 3000]).unwrap_or_else(|error| panic!("{wire:?}, {when}: {error}"));
            }
            for session in &mut udp {
                let answered = session.ask().unwrap_or_else(|error| panic!("{wire:?}, {when}: {error}"));
                assert_eq!(answered, "remote", "{wire:?}, {when}");
                // Longer than leaves room for the VIP: the node knows it by then.
                session.ask_at_length(1400).unwrap_or_else(|error| panic!("{wire:?}, {when}, at length: {error}"));
            }
        };
        exchange("with both daemons");
        assert_eq!(site.seen(), own, "{wire:?}: the client's own addresses");
        assert_eq!(counted(&daemons[0], Reason::Unmasqueraded), 0, "{wire:?}: no answer comes back this way");
        assert!(counted(&daemons[0], Reason::SentDirect) > 0, "{wire:?}");
        assert!(counted(&daemons[1], Reason::DirectArrived) > 0, "{wire:?}");
        let listed = daemons[0].json(&["connections"]).expect("a list");
        let rows = listed.as_array().expect("a list");
        assert!(rows.len() >= 8 && rows.iter().all(|row| row["direct"] == true), "{wire:?}: {listed}");

        for daemon in &mut daemons {
            daemon.kill().expect("the daemon runs");
        }
        exchange("without daemons");
        for daemon in &mut daemons {
            daemon.start_again().expect("the daemon starts");
        }
        exchange("with both again");
        for target in site.targets() {
            let bytes = 2_000_000;
            let report = Bulk { bytes }.run(client, target).unwrap_or_else(|error| panic!("{wire:?}: {error}"));
            assert_eq!(report.intact, bytes, "{wire:?}, {target}");
        }

        // What has no room from the start is masqueraded, and answered by node A.
        site.seen();
        for target in site.targets() {
            let mut session = open_udp(target);
            session.ask_at_length(1400).unwrap_or_else(|error| panic!("{wire:?}: {error}"));
        }
        if wire == Wire::Direct {
            assert_eq!(site.seen(), node, "{wire:?}: the node's addresses");
        } else {
            assert!(site.seen().is_disjoint(&own), "{wire:?}: the node's addresses");
        }
    }
}

#[test]
fn hybrid_is_for_tcp_and_node_b_may_be_told_to_accept_none() {
    let site = Site::build(Wire::Direct);
    let daemons = site.serve(&["--lb-mode", "hybrid"]);
    let client = site.outside.namespace();
    site.seen();
    for target in site.targets() {
        TcpSession::open(client, target).expect("the Service is served").exchange(b"hello").expect("an answer");
        assert_eq!(site.seen(), BTreeSet::from([site.outside.addresses().socket(IpFamily::of(target.ip()), 0).ip()]));
        UdpSession::open(client, target, true).expect("a socket").ask().expect("an answer");
        assert_eq!(site.seen(), BTreeSet::from([site.cluster.node(Side::A).socket(IpFamily::of(target.ip()), 0).ip()]));
    }
    let [a, b] = daemons;
    drop(b);
    let _b = site.cluster.start_daemon_on(Side::B, &["--lb-mode", "snat"]);
    for target in site.targets() {
        let error =
            TcpSession::open_within(client, target, SOON / 10).expect_err("the endpoint answers by its own name");
        assert!(error.is_silence(), "{error}");
    }
    drop(a);
}
