//! What `dsproxy trace` says becomes of a packet is what does.

use std::net::SocketAddr;

use dsproxy::{
    inspect::trace::{From, Outcome, Picture, Question, explain},
    maps::Write,
    resolve::Reach,
};
use dsproxy_common::{
    Protocol,
    count::Reason,
    service::FrontendKind,
    settings::{NetworkFlags, Passage, SettingFlags},
};
use dsproxy_tests::{
    packet::{Dissection, Link, flags},
    prog::{Hook, Verdict},
};
use ipnet::IpNet;

use crate::world::{Served, World, everywhere, outsider, packet};

/// Asks first and sends then; both have to come to the same. A second packet finds the connection.
#[track_caller]
fn agrees(world: &World, from: From, protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Outcome {
    let question = Question { protocol, source, destination, from };
    let ask = || {
        let picture = Picture::read(world.datapath.maps(), &question, world.now()).expect("maps that can be read");
        explain(&question, &picture)
    };
    let (steps, told) = ask();
    assert!(steps.len() >= 2, "{steps:?}");
    let hook = match from {
        From::Pod => Hook::Ingress,
        From::Node => Hook::NodeIngress,
    };
    let packet = packet(protocol, source, destination, flags::SYN);
    let run = || world.datapath.run(hook, world.link, &packet.clone().on(world.link).to_bytes()).expect("a run");
    let found = run();
    let counted = |reason| found.counted.of(reason, Some(world.family));
    match told {
        Outcome::Passed(reason) | Outcome::Dropped(reason) => {
            assert_eq!(counted(reason), 1, "{world}: {question:?}: {steps:#?} {:?}", found.counted);
            assert_eq!(found.verdict == Verdict::Pass, matches!(told, Outcome::Passed(_)), "{world}: {question:?}");
        }
        Outcome::Sent { endpoint, passage } => {
            let dissection = Dissection::of(world.link, &found.packet);
            let (network, transport) = (dissection.network.expect("IP"), dissection.transport.expect("a header"));
            let went = SocketAddr::new(network.destination, transport.destination);
            assert_eq!(went, endpoint, "{world}: {question:?}: {steps:#?}");
            let leaves = world.datapath.run(Hook::NodeEgress, world.link, &found.packet).expect("a run");
            let was = |reason| leaves.counted.of(reason, Some(world.family)) == 1;
            let wanted = (passage == Passage::Masqueraded, passage == Passage::Direct);
            let found = (was(Reason::Masqueraded), was(Reason::SentDirect));
            assert_eq!(found, wanted, "{world}: {question:?}: {steps:#?}");
            let (_, again) = ask();
            assert_eq!(again, told, "{world}: a connection goes on as it was opened");
        }
    }
    told
}

#[test]
fn a_trace_says_what_packets_meet() {
    everywhere(|world| {
        let (pod, far) = (world.client(50_000), outsider(world.family, 50_001));
        let served = |number, protocol| Served::new(number, protocol).active([1, 2, 3]).local([2]);
        world.serve(&served(1, Protocol::Tcp));
        world.serve(&served(1, Protocol::Udp));
        world.serve(&served(2, Protocol::Tcp).kind(FrontendKind::NodePort).reach(Reach::Cluster, Reach::Local));
        world.serve(
            &Served::new(3, Protocol::Tcp)
                .kind(FrontendKind::LoadBalancer)
                .active([1])
                .reach(Reach::Cluster, Reach::Local),
        );
        world.serve(&served(4, Protocol::Tcp).affinity(600).maglev());
        world.serve(&served(5, Protocol::Tcp).kind(FrontendKind::LoadBalancer).source_ranges([IpNet::from(pod.ip())]));
        world.serve(&Served::new(6, Protocol::Udp));
        for number in 1..=7 {
            // Each with a port of its own: what two connections of one port get depends on which came first.
            let port = 50_010 + u16::from(number);
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                agrees(world, From::Pod, protocol, world.client(port), world.vip(number));
                agrees(world, From::Node, protocol, outsider(world.family, port), world.vip(number));
            }
        }
        // The client stays, whatever its port.
        let stays: Vec<Outcome> = (0..5)
            .map(|port| agrees(world, From::Pod, Protocol::Tcp, world.client(50_100 + port), world.vip(4)))
            .collect();
        assert!(stays.iter().all(|outcome| outcome == &stays[0]), "{stays:?}");

        let (family, vip) = (world.family, world.vip(1));
        let range = IpNet::new(vip.ip(), if vip.is_ipv4() { 24 } else { 112 }).expect("a prefix").trunc();
        let networks = [
            (range, NetworkFlags::SERVICE),
            (IpNet::from(vip.ip()), NetworkFlags::SERVICE | NetworkFlags::CLUSTER_IP),
            (IpNet::from(far.ip()), NetworkFlags::POD),
        ];
        world.datapath.write(&[Write::ServiceNetwork { family, network: Some(range) }]).expect("a network");
        let writes = networks.map(|(network, flags)| Write::Network { network, flags });
        world.datapath.write(&writes).expect("networks");
        let other_port = SocketAddr::new(vip.ip(), 81);
        let refused = agrees(world, From::Pod, Protocol::Tcp, pod, other_port);
        assert_eq!(refused, Outcome::Dropped(Reason::NoPort), "{world}");
        let unallocated = agrees(world, From::Pod, Protocol::Tcp, pod, world.vip(99));
        assert_eq!(unallocated, Outcome::Dropped(Reason::Unallocated), "{world}");

        world.configure(|settings| settings.flags |= SettingFlags::INSIDE_BY_NETWORK | SettingFlags::MASQUERADE_ALL);
        world.datapath.connections().clear().expect("a table that can be cleared");
        for number in [1, 2, 3] {
            let port = 50_020 + u16::from(number);
            agrees(world, From::Node, Protocol::Tcp, outsider(family, port), world.vip(number));
            agrees(world, From::Pod, Protocol::Tcp, world.client(port), world.vip(number));
        }
        // Without an Ethernet header test runs make no room in packets (`direct.rs`).
        let direct = if world.link == Link::Ethernet { SettingFlags::DIRECT_TCP } else { 0 };
        world.configure(|settings| settings.flags = direct);
        world.datapath.connections().clear().expect("a table that can be cleared");
        let passages: Vec<_> = [(1, Protocol::Tcp), (2, Protocol::Tcp), (1, Protocol::Udp), (5, Protocol::Tcp)]
            .map(|(number, protocol)| {
                let port = 50_030 + u16::from(number);
                let source = if number == 5 { world.client(port) } else { outsider(family, port) };
                agrees(world, From::Node, protocol, source, world.vip(number))
            })
            .into();
        let is_direct = |outcome: &Outcome| matches!(outcome, Outcome::Sent { passage: Passage::Direct, .. });
        assert_eq!(passages.iter().any(is_direct), direct != 0, "{world}: {passages:?}");
        let removals = networks.map(|(network, _)| Write::RemoveNetwork { network });
        world.datapath.write(&removals).expect("networks that can be removed");
        world.datapath.write(&[Write::ServiceNetwork { family, network: None }]).expect("a network");
    });
}
