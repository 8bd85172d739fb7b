//! Who is sent where: traffic policies for clients inside and outside, source ranges, session affinity, and ClusterIPs asked for what
//! they do not have.

use std::{collections::BTreeSet, net::SocketAddr};

use dsproxy::{maps::Write, resolve::Reach};
use dsproxy_common::{
    Protocol,
    count::Reason,
    service::FrontendKind,
    settings::{NetworkFlags, SettingFlags},
};
use dsproxy_tests::{
    packet::{Dissection, Packet, flags},
    prog::{Hook, Verdict},
};
use ipnet::IpNet;

use crate::world::{Expected, Served, World, everywhere, outsider};

/// Where packets from `clients` to `served` go, by hook.
fn reached(
    world: &World,
    served: &Served,
    hook: Hook,
    clients: impl Iterator<Item = SocketAddr>,
) -> BTreeSet<SocketAddr> {
    let vip = served.frontend(world.family);
    let vip = SocketAddr::new(vip.address, vip.port);
    clients
        .map(|client| {
            let bytes = Packet::tcp(client, vip).flags(flags::SYN).on(world.link).to_bytes();
            let outcome = world.datapath.run(hook, world.link, &bytes).expect("a program that runs");
            assert_eq!(outcome.verdict, Verdict::Pass, "{world}: {:?}", outcome.counted);
            let dissection = Dissection::of(world.link, &outcome.packet);
            let (network, transport) = (dissection.network.expect("IP"), dissection.transport.expect("TCP"));
            SocketAddr::new(network.destination, transport.destination)
        })
        .collect()
}

fn pods(world: &World) -> impl Iterator<Item = SocketAddr> {
    let family = world.family;
    (40_000..40_100).map(move |port| crate::world::client(family, port))
}

fn outsiders(world: &World) -> impl Iterator<Item = SocketAddr> {
    let family = world.family;
    (40_000..40_100).map(move |port| outsider(family, port))
}

fn single(address: SocketAddr) -> IpNet {
    IpNet::from(address.ip())
}

#[test]
fn an_external_policy_of_local_holds_for_those_outside_alone() {
    everywhere(|world| {
        let served = Served::new(1, Protocol::Tcp)
            .kind(FrontendKind::LoadBalancer)
            .active([1, 2, 3])
            .local([2])
            .reach(Reach::Cluster, Reach::Local);
        world.serve(&served);
        let all: BTreeSet<_> = [1, 2, 3].map(|number| world.endpoint(number)).into();
        assert_eq!(reached(world, &served, Hook::Ingress, pods(world)), all, "{world}: pods");
        let outside = reached(world, &served, Hook::NodeIngress, outsiders(world));
        assert_eq!(outside, [world.endpoint(2)].into(), "{world}: the world");
    });
}

#[test]
fn a_source_that_is_said_to_be_a_pods_is_inside_whatever_device_it_comes_by() {
    everywhere(|world| {
        let served = Served::new(1, Protocol::Tcp)
            .kind(FrontendKind::NodePort)
            .active([1, 2])
            .local([2])
            .reach(Reach::Cluster, Reach::Local);
        world.serve(&served);
        let network = single(world.client(0));
        world.datapath.write(&[Write::Network { network, flags: NetworkFlags::POD }]).expect("a network");
        assert_eq!(reached(world, &served, Hook::NodeIngress, pods(world)), [world.endpoint(2)].into(), "{world}");
        world.configure(|settings| settings.flags |= SettingFlags::INSIDE_BY_NETWORK);
        world.datapath.connections().clear().expect("a table that can be cleared");
        assert_eq!(reached(world, &served, Hook::NodeIngress, pods(world)).len(), 2, "{world}");
        world.datapath.write(&[Write::RemoveNetwork { network }]).expect("a network that can be removed");
    });
}

#[test]
fn without_an_endpoint_on_this_node_nobody_is_answered_who_wants_one() {
    everywhere(|world| {
        let served =
            Served::new(1, Protocol::Tcp).kind(FrontendKind::NodePort).active([1]).reach(Reach::Cluster, Reach::Local);
        let flow = world.flow(&served, 40_000);
        let syn = Packet::tcp(outsider(world.family, 40_000), flow.vip).flags(flags::SYN);
        let dropped = Expected::Dropped(Some(flow.service), Reason::NoLocalEndpoint);
        world.send("from outside", Hook::NodeIngress, &syn, &dropped);
        flow.opens(world, flags::SYN, world.endpoint(1));

        let internal = Served::new(2, Protocol::Tcp).active([1]).reach(Reach::Local, Reach::Local);
        let flow = world.flow(&internal, 40_000);
        flow.is_dropped(world, flags::SYN, Reason::NoLocalEndpoint);
    });
}

#[test]
fn only_clients_within_the_source_ranges_are_let_through() {
    everywhere(|world| {
        let (near, far) = (world.client(40_000), outsider(world.family, 40_000));
        let served = Served::new(1, Protocol::Tcp)
            .kind(FrontendKind::LoadBalancer)
            .active([1])
            .local([1])
            .source_ranges([single(near)]);
        let flow = world.flow(&served, 40_000);
        flow.opens(world, flags::SYN, world.endpoint(1));
        let syn = Packet::tcp(far, flow.vip).flags(flags::SYN);
        let dropped = |service| Expected::Dropped(Some(service), Reason::SourceRange);
        world.send("not in them", Hook::NodeIngress, &syn, &dropped(flow.service));
        world.withdraw(&served);

        let served = served.source_ranges([single(far)]);
        let service = world.serve(&served);
        let opened = Expected::Opened(service, syn.clone().to(world.endpoint(1)));
        world.send("in them now", Hook::NodeIngress, &syn, &opened);
        let other = Packet::tcp(world.client(40_001), flow.vip).flags(flags::SYN);
        world.send("in them no more", Hook::Ingress, &other, &dropped(service));
    });
}

#[test]
fn a_client_stays_with_its_endpoint_while_that_is_one() {
    everywhere(|world| {
        let served = Served::new(1, Protocol::Tcp).active(1..=9).affinity(3600);
        world.serve(&served);
        let first = reached(world, &served, Hook::Ingress, pods(world));
        assert_eq!(first.len(), 1, "{world}: {first:?}");
        let wanted = *first.first().expect("one");
        let gone = (1..=9).find(|number| world.endpoint(*number) == wanted).expect("one of the nine");

        // More endpoints do not move it, the end of its own does, and that is remembered in turn.
        let more = Served::new(1, Protocol::Tcp).active(1..=20).affinity(3600);
        world.serve(&more);
        assert_eq!(reached(world, &more, Hook::Ingress, pods(world)), first, "{world}");
        let fewer = Served::new(1, Protocol::Tcp).active((1..=20).filter(|number| *number != gone)).affinity(3600);
        world.serve(&fewer);
        world.datapath.connections().clear().expect("a table that can be cleared");
        let second = reached(world, &fewer, Hook::Ingress, pods(world));
        assert_eq!(second.len(), 1, "{world}: {second:?}");
        assert_ne!(second, first, "{world}");
        world.serve(&more);
        world.datapath.connections().clear().expect("a table that can be cleared");
        assert_eq!(reached(world, &more, Hook::Ingress, pods(world)), second, "{world}");
        world.withdraw(&more);
    });
}

#[test]
fn affinity_ends_with_its_timeout() {
    everywhere(|world| {
        // A second is a tick.
        world.configure(|settings| settings.jiffies_per_second = 1);
        let number_of = |world: &World, served: &Served, port| {
            reached(world, served, Hook::Ingress, std::iter::once(world.client(port)))
        };
        let one = Served::new(1, Protocol::Tcp).active([1]).affinity(1);
        world.serve(&one);
        assert_eq!(number_of(world, &one, 40_000), [world.endpoint(1)].into());
        std::thread::sleep(std::time::Duration::from_millis(50));
        // The hash alone decides again: it is the same for all ports of the client.
        let many = Served::new(1, Protocol::Tcp).active(1..=200).affinity(1);
        world.serve(&many);
        let by_hash = number_of(world, &many, 40_001);
        assert_ne!(by_hash, [world.endpoint(1)].into(), "{world}");
        world.withdraw(&many);
    });
}

#[test]
fn a_cluster_ip_is_refused_or_dropped_where_no_frontend_is() {
    everywhere(|world| {
        world.serve(&Served::new(1, Protocol::Tcp).active([1]));
        let (vip, free, beyond) = (world.vip(1), world.vip(200), world.client(80));
        let range = IpNet::new(vip.ip(), if vip.is_ipv4() { 24 } else { 112 }).expect("a prefix").trunc();
        let known = single(vip);
        let family = world.family;
        world
            .datapath
            .write(&[
                Write::ServiceNetwork { family, network: Some(range) },
                Write::Network { network: range, flags: NetworkFlags::SERVICE },
                Write::Network { network: known, flags: NetworkFlags::SERVICE | NetworkFlags::CLUSTER_IP },
            ])
            .expect("networks");
        let client = world.client(40_000);
        let syn = |destination| Packet::tcp(client, destination).flags(flags::SYN);
        world.send("nobody's", Hook::Ingress, &syn(free), &Expected::Dropped(None, Reason::Unallocated));
        world.send("elsewhere", Hook::Ingress, &syn(beyond), &Expected::Passed(Reason::NotService));
        for packet in [syn(SocketAddr::new(vip.ip(), 81)), Packet::udp(client, vip)] {
            let answer = Expected::Answered(None, Reason::NoPort, packet.refusal());
            world.send("no such port", Hook::Ingress, &packet, &answer);
        }
        let removal = [range, known].map(|network| Write::RemoveNetwork { network });
        world.datapath.write(&removal).expect("networks that can be removed");
        world.datapath.write(&[Write::ServiceNetwork { family, network: None }]).expect("a network");
    });
}
