//! ICMP errors about translated packets, from wherever they come: the quoted packet and the error are translated together.

use std::net::{IpAddr, SocketAddr};

use dsproxy::maps::Write;
use dsproxy_common::{
    IpFamily, Protocol,
    count::Reason,
    service::FrontendKind,
    settings::{NetworkFlags, SettingFlags},
};
use dsproxy_tests::{
    packet::{Extension, Link, Message, Packet, Tag, flags},
    prog::{Hook, SkBuff, of_family},
};

use crate::world::{Expected, Flow, PORT, Served, World, everywhere, node, outsider};

/// The client's port, within the range of masqueraded packets, where it is kept.
const CLIENT: u16 = 50_000;

/// A router that reports errors.
fn router(family: IpFamily) -> IpAddr {
    of_family(family, [198, 51, 100, 1].into(), [0x2001, 0xdb8, 0xf, 0, 0, 0, 0, 1].into())
}

/// A connection with whatever stands for its ends.
struct Connection {
    flow: Flow,
    backend: SocketAddr,
    node: SocketAddr,
}

/// A connection that is open: from a pod to endpoint 1, or from outside, masqueraded.
fn open(world: &mut World, protocol: Protocol, is_masqueraded: bool) -> Connection {
    let kind = if is_masqueraded { FrontendKind::NodePort } else { FrontendKind::ClusterIp };
    let mut served = Served::new(1, protocol).kind(kind).active([1]);
    let mut backend = world.endpoint(1);
    if protocol == Protocol::Sctp {
        backend.set_port(PORT);
        served = served.target_port(PORT);
    }
    let flow = world.flow(&served, CLIENT);
    let node = SocketAddr::new(node(world.family), CLIENT);
    if !is_masqueraded {
        flow.opens(world, flags::SYN, backend);
        return Connection { flow, backend, node };
    }
    let flow = Flow { client: outsider(world.family, CLIENT), ..flow };
    let input = packet(protocol, flow.client, flow.vip);
    let inside = input.clone().to(backend);
    world.send("it enters", Hook::NodeIngress, &input, &Expected::Opened(flow.service, inside.clone()));
    let outside = inside.clone().from(node);
    world.send("it leaves", Hook::NodeEgress, &inside, &Expected::Rewritten(Reason::Masqueraded, outside));
    Connection { flow, backend, node }
}

fn packet(protocol: Protocol, source: SocketAddr, destination: SocketAddr) -> Packet {
    let packet = match protocol {
        Protocol::Tcp => Packet::tcp(source, destination),
        Protocol::Udp => Packet::udp(source, destination),
        Protocol::Sctp => Packet::sctp(source, destination),
    };
    packet.payload(&[0x42; 1_000])
}

const MESSAGES: [Message; 5] = [
    Message::PortUnreachable,
    Message::HostUnreachable,
    Message::TooBig { mtu: 1_280 },
    Message::TimeExceeded,
    Message::ParameterProblem { pointer: 9 },
];

/// How much may be quoted behind the quoted IP header: the least, a TCP header up to its checksum, and the whole packet.
const LENGTHS: [usize; 5] = [8, 18, 20, 500, 2_000];

fn header(family: IpFamily) -> usize {
    of_family(family, 20, 40)
}

/// Sends errors of every kind and length from `from.0` to `from.1` about `about.0`, which become ones from `to.0` to `to.1` about
/// `about.1`.
#[track_caller]
fn translated(
    world: &World,
    what: &str,
    hook: Hook,
    from: (IpAddr, IpAddr),
    to: (IpAddr, IpAddr),
    about: [&Packet; 2],
) {
    for message in MESSAGES {
        for length in LENGTHS {
            let length = header(world.family) + length;
            let input = Packet::icmp(from.0, from.1, message).quoting(about[0], length);
            let output = Packet::icmp(to.0, to.1, message).quoting(about[1], length);
            world.send(what, hook, &input, &Expected::Rewritten(Reason::IcmpError, output));
        }
    }
}

#[test]
fn about_a_packet_to_a_backend() {
    everywhere(|world| {
        for protocol in Protocol::ALL {
            let Connection { flow, backend, .. } = open(world, protocol, false);
            let (client, vip, router) = (flow.client.ip(), flow.vip.ip(), router(world.family));
            let inside = packet(protocol, flow.client, backend);
            let about = [&inside, &packet(protocol, flow.client, flow.vip)];
            translated(world, "by a router", Hook::Egress, (router, client), (router, client), about);
            translated(world, "by the backend", Hook::Egress, (backend.ip(), client), (vip, client), about);
        }
    });
}

#[test]
fn about_a_reply() {
    everywhere(|world| {
        for protocol in Protocol::ALL {
            let Connection { flow, backend, .. } = open(world, protocol, false);
            let (client, vip, router) = (flow.client.ip(), flow.vip.ip(), router(world.family));
            let about = [&packet(protocol, flow.vip, flow.client), &packet(protocol, backend, flow.client)];
            for hook in [Hook::Ingress, Hook::NodeIngress] {
                translated(world, "by a router", hook, (router, vip), (router, backend.ip()), about);
                translated(world, "by the client", hook, (client, vip), (client, backend.ip()), about);
            }
        }
    });
}

/// From the router that cannot take the packet to the client that has to send smaller ones: in at the node, out of it.
#[test]
fn about_a_masqueraded_packet() {
    everywhere(|world| {
        for protocol in Protocol::ALL {
            let Connection { flow, backend, node } = open(world, protocol, true);
            let (client, vip, router) = (flow.client.ip(), flow.vip.ip(), router(world.family));
            let outside = packet(protocol, node, backend);
            let inside = packet(protocol, flow.client, backend);
            let first = packet(protocol, flow.client, flow.vip);
            let entering = [&outside, &inside];
            translated(world, "by a router", Hook::NodeIngress, (router, node.ip()), (router, client), entering);
            let leaving = [&inside, &first];
            translated(world, "and on", Hook::NodeEgress, (router, client), (router, client), leaving);
            let from_backend = (backend.ip(), node.ip());
            translated(world, "by the backend", Hook::NodeIngress, from_backend, (backend.ip(), client), entering);
            translated(world, "and on", Hook::NodeEgress, (backend.ip(), client), (vip, client), leaving);
        }
    });
}

/// The other way: from the router that cannot take the reply to the backend, which knows of the node alone.
#[test]
fn about_a_reply_to_a_masqueraded_packet() {
    everywhere(|world| {
        for protocol in Protocol::ALL {
            let Connection { flow, backend, node } = open(world, protocol, true);
            let (client, vip, router) = (flow.client.ip(), flow.vip.ip(), router(world.family));
            let outside = packet(protocol, flow.vip, flow.client);
            let inside = packet(protocol, backend, flow.client);
            let first = packet(protocol, backend, node);
            let to = backend.ip();
            let entering = [&outside, &inside];
            translated(world, "by a router", Hook::NodeIngress, (router, vip), (router, to), entering);
            let leaving = [&inside, &first];
            translated(world, "and on", Hook::NodeEgress, (router, to), (router, to), leaving);
            translated(world, "by the client", Hook::NodeIngress, (client, vip), (client, to), entering);
            translated(world, "and on", Hook::NodeEgress, (client, to), (node.ip(), to), leaving);
        }
    });
}

#[test]
fn about_a_ping_that_left_the_cluster() {
    everywhere(|world| {
        let (pod, family) = (world.client(0).ip(), world.family);
        let (far, router, node) = (outsider(family, 0).ip(), router(family), node(family));
        let pods = ipnet::IpNet::new(pod, if pod.is_ipv4() { 16 } else { 64 }).expect("a prefix").trunc();
        world.datapath.write(&[Write::Network { network: pods, flags: NetworkFlags::POD }]).expect("a network");
        world.configure(|settings| settings.flags |= SettingFlags::MASQUERADE_EGRESS);
        let request = |source, identifier| {
            let message = Message::EchoRequest { identifier, sequence: 1 };
            Packet::icmp(source, far, message).payload(&[7; 200])
        };
        world.configure(|settings| *settings = settings.with_snat_ports([CLIENT, CLIENT]));
        let leaves = Expected::Rewritten(Reason::Masqueraded, request(node, CLIENT));
        world.send("it leaves", Hook::NodeEgress, &request(pod, 77), &leaves);
        let about = [&request(node, CLIENT), &request(pod, 77)];
        translated(world, "by a router", Hook::NodeIngress, (router, node), (router, pod), about);
        world.datapath.write(&[Write::RemoveNetwork { network: pods }]).expect("a network that can be removed");
    });
}

#[test]
fn in_packets_of_every_shape() {
    everywhere(|world| {
        let Connection { flow, backend, .. } = open(world, Protocol::Udp, false);
        let (client, router) = (flow.client.ip(), router(world.family));
        let dress = |packet: Packet| {
            let packet = if client.is_ipv4() {
                packet.ipv4_options(&[1; 12])
            } else {
                packet.extension(Extension::HopByHop(1)).extension(Extension::DestinationOptions(0))
            };
            if world.link == Link::Ethernet { packet.tag(Tag::Customer(9)) } else { packet }
        };
        let error = |about: Packet| {
            let error = Packet::icmp(router, client, Message::TooBig { mtu: 1_400 });
            dress(error.quoting(&dress(about).hop_limit(1), 1_000))
        };
        let about = |destination| Packet::udp(flow.client, destination).payload(&[1; 300]);
        let rewritten = |packet| Expected::Rewritten(Reason::IcmpError, packet);
        world.send("options and tags", Hook::Egress, &error(about(backend)), &rewritten(error(about(flow.vip))));
        if world.family == IpFamily::V4 {
            let none = |destination| error(about(destination).without_checksum());
            world.send("without a checksum", Hook::Egress, &none(backend), &rewritten(none(flow.vip)));
        }
        let first = |destination| error(about(destination).fragments(64).swap_remove(0));
        world.send("about a first fragment", Hook::Egress, &first(backend), &rewritten(first(flow.vip)));
    });
}

/// The kernel fails the run if the sum is not that of the packet afterwards.
#[test]
fn a_devices_sum_over_the_packet_stays_right() {
    everywhere(|world| {
        // In a test the kernel always takes 14 bytes for the link-layer header, and sums up what is behind them.
        if world.link == Link::None {
            return;
        }
        for protocol in Protocol::ALL {
            let Connection { flow, backend, .. } = open(world, protocol, false);
            let error = |to, source| {
                Packet::icmp(router(world.family), to, Message::TimeExceeded)
                    .quoting(&packet(protocol, source, flow.client), 1_000)
            };
            let buffer = SkBuff { summed: true, ..SkBuff::default() };
            let input = error(flow.vip.ip(), flow.vip).on(world.link).to_bytes();
            let expected = Expected::Rewritten(Reason::IcmpError, error(backend.ip(), backend));
            world.send_bytes("an error summed up", Hook::NodeIngress, &input, &expected, &buffer);
        }
    });
}

#[test]
fn errors_about_anything_else_pass() {
    everywhere(|world| {
        let Connection { flow, backend, .. } = open(world, Protocol::Udp, false);
        let (client, vip, router) = (flow.client.ip(), flow.vip.ip(), router(world.family));
        let error = |to, about: &Packet, length| {
            Packet::icmp(router, to, Message::TooBig { mtu: 1_400 }).quoting(about, header(world.family) + length)
        };
        let reply = packet(Protocol::Udp, flow.vip, flow.client);
        let pass =
            |what, hook, packet: &Packet| world.send(what, hook, packet, &Expected::Passed(Reason::OtherProtocol));
        pass("too little is quoted", Hook::Ingress, &error(vip, &reply, 7));
        pass("nothing is quoted", Hook::Ingress, &Packet::icmp(router, vip, Message::TimeExceeded).payload(&[]));
        pass("to somebody else", Hook::Ingress, &error(client, &reply, 100));
        let other = packet(Protocol::Tcp, flow.vip, flow.client);
        pass("of another protocol", Hook::Ingress, &error(vip, &other, 100));
        let other = packet(Protocol::Udp, flow.vip, world.client(CLIENT + 1));
        pass("of another connection", Hook::Ingress, &error(vip, &other, 100));
        let later = packet(Protocol::Udp, flow.vip, flow.client).fragments(512).swap_remove(1);
        pass("about a later fragment", Hook::Ingress, &error(vip, &later, 100));
        let esp = Packet::other(50, vip, client).payload(&[3; 60]);
        pass("about ESP", Hook::Ingress, &error(vip, &esp, 60));
        let inside = packet(Protocol::Udp, flow.client, backend);
        pass("the other way", Hook::Ingress, &error(client, &inside, 100));
        pass("the other way", Hook::Egress, &error(vip, &reply, 100));
        // Redirects, and source quench or what ICMPv6 has beyond its errors.
        for kind in of_family(world.family, [4, 5, 9, 10], [0, 5, 127, 137]) {
            let message = Message::Other { kind, code: 0, rest: 0 };
            pass("no error of these", Hook::Ingress, &Packet::icmp(router, vip, message).quoting(&reply, 100));
        }
    });
}

#[test]
fn a_backend_that_is_another_now_hears_nothing() {
    everywhere(|world| {
        let Connection { flow, .. } = open(world, Protocol::Tcp, false);
        let about = packet(Protocol::Tcp, flow.vip, flow.client);
        let error = Packet::icmp(router(world.family), flow.vip.ip(), Message::TimeExceeded).quoting(&about, 100);
        world.datapath.shorten_lifetimes([0; 8]).expect("settings");
        std::thread::sleep(std::time::Duration::from_millis(50));
        world.send("about an old connection", Hook::Ingress, &error, &Expected::Passed(Reason::OtherProtocol));
    });
}
