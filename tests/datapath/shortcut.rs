//! Past the stack from pods to pods of one node: which packets go that way, with what left of them, and which do not.
//!
//! The kernel's routing is asked, so each test has a network namespace with a device for the client and one for the backend.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    panic::resume_unwind,
    process::Command,
    thread,
};

use dsproxy_common::{
    IpFamily, Protocol,
    count::Reason,
    event::{EventFilter, EventHook},
    pod_device::PodDevice,
    settings::SettingFlags,
};
use dsproxy_tests::{
    packet::{Extension, Link, Packet, Tag, difference, flags, verify},
    prog::{Hook, Outcome, SkBuff, Verdict},
};
use nix::sched::{CloneFlags, unshare};

use crate::world::{Expected, Flow, Served, World, endpoint, on_ethernet, packet};

/// The indices of the devices of the namespace.
const CLIENT: u32 = 1002;
const BACKEND: u32 = 1003;

/// The longest packet that the backend's device takes.
const MTU: usize = 1300;

/// Runs `body` for each family in a node that has a pod's device for client and backend each, with the shortcut open.
fn in_a_node(body: impl Fn(&mut World) + Send + Sync) {
    let outcome = thread::scope(|scope| {
        let node = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("unshare; needs root");
            build();
            on_ethernet(|world| {
                world.configure(|settings| settings.flags |= SettingFlags::POD_SHORTCUT);
                hold(world, &[CLIENT, BACKEND]);
                body(world);
            });
        });
        node.join()
    });
    outcome.unwrap_or_else(|panic| resume_unwind(panic));
}

fn build() {
    ip("link set lo up");
    for (index, name) in [(CLIENT, "client"), (BACKEND, "backend")] {
        ip(&format!("link add {name} index {index} type veth peer name {name}-pod"));
        ip(&format!("link set {name} mtu {MTU} up"));
        ip(&format!("link set {name}-pod up"));
    }
    for setting in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/{setting}"), "1").expect("a setting of the namespace");
    }
    for family in IpFamily::ALL {
        ip(&format!("route add {} dev backend", endpoint(family, 1).ip()));
        ip(&format!("route add {} dev client", crate::world::client(family, 1).ip()));
    }
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).output().expect("ip runs");
    assert!(done.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Behind these devices there are pods, and behind no others.
fn hold(world: &mut World, devices: &[u32]) {
    // As the builder of packets addresses frames.
    let bytes = Packet::udp(world.client(1), world.vip(1)).on(Link::Ethernet).to_bytes();
    let address = [0, 2, 4].map(|at| u16::from_ne_bytes([bytes[at], bytes[at + 1]]));
    let held: BTreeMap<u32, PodDevice> =
        devices.iter().map(|device| (*device, PodDevice { address, reserved: 0 })).collect();
    world.datapath.shorten().expect("programs that send past the stack").hold(&held).expect("a map with room");
}

/// A Service with one backend, which answers at its own device.
fn served(protocol: Protocol) -> Served {
    Served::new(1, protocol).active([1])
}

fn run(world: &World, input: &Packet, buffer: SkBuff) -> Outcome {
    let bytes = input.clone().on(world.link).to_bytes();
    world.datapath.run_as(Hook::Ingress, world.link, &bytes, &buffer).expect("a packet that the program is run on")
}

/// The packet that comes by `device` goes past the stack, and becomes `expected`.
#[track_caller]
fn is_sent(world: &World, device: u32, input: &Packet, expected: &Packet) {
    let Outcome { verdict, packet, .. } = run(world, input, SkBuff { device, ..SkBuff::default() });
    let expected = expected.clone().on(world.link).to_bytes();
    verify(world.link, &expected).expect("an expected packet with right checksums");
    if let Some(difference) = difference(world.link, &expected, &packet) {
        panic!("{world}: another packet came out\n{difference}");
    }
    assert_eq!(verdict, Verdict::Redirect, "{world}");
}

/// The client's packet is translated and left to the stack, though it came by the pod's device.
#[track_caller]
fn is_left(world: &World, what: &str, input: &Packet, expected: &Expected) {
    let bytes = input.clone().on(world.link).to_bytes();
    let buffer = SkBuff { device: CLIENT, ..SkBuff::default() };
    world.send_bytes(what, Hook::Ingress, &bytes, expected, &buffer);
}

/// A flow from the client to the one backend of a Service, and that.
fn flow(world: &mut World, protocol: Protocol) -> (Flow, SocketAddr) {
    let flow = world.flow(&served(protocol), 40_000);
    (flow, world.endpoint(1))
}

#[test]
fn what_goes_through_a_vip_passes_the_stack_by_in_both_directions() {
    in_a_node(|world| {
        for protocol in Protocol::ALL {
            let served = served(protocol).target_port(crate::world::PORT);
            let flow = world.flow(&served, 40_000);
            let backend = SocketAddr::new(world.endpoint(1).ip(), crate::world::PORT);
            for (way, back) in [(flags::SYN, flags::SYN | flags::ACK), (flags::ACK, flags::ACK)] {
                let input = packet(protocol, flow.client, flow.vip, way);
                is_sent(world, CLIENT, &input, &input.clone().to(backend).hop_limit(63));
                let input = packet(protocol, backend, flow.client, back);
                is_sent(world, BACKEND, &input, &input.clone().hop_limit(63));
                // As to a neighbour on one bridge: the way back is that of the request.
                let addressed = input.turned_round();
                is_sent(world, BACKEND, &addressed, &addressed.clone().hop_limit(63));
                // The device's egress hook, where the answer gets its VIP.
                flow.replies(world, back, backend);
            }
            world.withdraw(&served);
        }
    });
}

#[test]
fn nobody_passes_the_stack_by_unless_told_to() {
    in_a_node(|world| {
        world.configure(|settings| settings.flags &= !SettingFlags::POD_SHORTCUT);
        let (flow, backend) = flow(world, Protocol::Udp);
        let input = packet(Protocol::Udp, flow.client, flow.vip, 0);
        is_left(world, "the flag is clear", &input, &Expected::Opened(flow.service, input.clone().to(backend)));
    });
}

#[test]
fn only_pods_of_the_node_are_led_past_the_stack() {
    in_a_node(|world| {
        for held in [&[][..], &[CLIENT], &[BACKEND]] {
            hold(world, held);
            let served = served(Protocol::Udp);
            let flow = world.flow(&served, 40_000);
            let input = packet(Protocol::Udp, flow.client, flow.vip, 0);
            let expected = Expected::Opened(flow.service, input.clone().to(world.endpoint(1)));
            is_left(world, "a device of others", &input, &expected);
            world.withdraw(&served);
            world.datapath.connections().clear().expect("a table that can be cleared");
        }
        hold(world, &[CLIENT, BACKEND]);
        let elsewhere = Served::new(2, Protocol::Udp).active([7]);
        let flow = world.flow(&elsewhere, 40_000);
        let input = packet(Protocol::Udp, flow.client, flow.vip, 0);
        let expected = Expected::Opened(flow.service, input.clone().to(world.endpoint(7)));
        is_left(world, "there is no route", &input, &expected);
    });
}

#[test]
fn what_is_unusual_is_left_to_the_stack() {
    in_a_node(|world| {
        let (flow, backend) = flow(world, Protocol::Udp);
        let whole = packet(Protocol::Udp, flow.client, flow.vip, 0);
        is_left(
            world,
            "the first, at its last hop",
            &whole.clone().hop_limit(1),
            &Expected::Opened(flow.service, whole.clone().to(backend).hop_limit(1)),
        );
        let with_more = match world.family {
            IpFamily::V4 => whole.clone().ipv4_options(&[1, 1, 1, 1]),
            IpFamily::V6 => whole.clone().extension(Extension::DestinationOptions(0)),
        };
        let cases = [
            ("options", with_more),
            ("a VLAN tag", whole.clone().tag(Tag::Customer(7))),
            ("to the host behind the bridge", whole.clone().turned_round()),
            ("longer than the device takes", whole.clone().payload(&[0; MTU])),
        ];
        for (what, input) in cases {
            is_left(world, what, &input, &Expected::Forwarded(flow.service, input.clone().to(backend)));
        }
        let first = |packet: &Packet| packet.clone().payload(&[0; 64]).fragments(16).remove(0);
        let expected = Expected::Forwarded(flow.service, first(&whole.clone().to(backend)));
        is_left(world, "a fragment", &first(&whole), &expected);
        let longest = whole.payload(&vec![0; MTU - if world.family == IpFamily::V4 { 28 } else { 48 }]);
        is_sent(world, CLIENT, &longest, &longest.clone().to(backend).hop_limit(63));
        world.configure(|settings| settings.flags |= SettingFlags::MASQUERADE_ALL);
        let client = SocketAddr::new(flow.client.ip(), 40_001);
        let input = packet(Protocol::Udp, client, flow.vip, 0);
        is_left(world, "masqueraded", &input, &Expected::Opened(flow.service, input.clone().to(backend)));
    });
}

#[test]
fn an_aggregate_goes_past_the_stack_if_the_device_takes_it() {
    in_a_node(|world| {
        let (flow, backend) = flow(world, Protocol::Tcp);
        let input = packet(Protocol::Tcp, flow.client, flow.vip, flags::SYN);
        is_sent(world, CLIENT, &input, &input.clone().to(backend).hop_limit(63));
        // How long the segments of a longer one are, the kernel does not know in a test; real traffic in the lab has them.
        for (length, verdict) in [(2 * 400, Verdict::Redirect), (2 * MTU, Verdict::Pass)] {
            let input = packet(Protocol::Tcp, flow.client, flow.vip, flags::ACK).payload(&vec![7; length]);
            let segments = Some((length as u32 / 2, 2));
            let buffer = SkBuff { segments, device: CLIENT, ..SkBuff::default() };
            assert_eq!(run(world, &input, buffer).verdict, verdict, "{world}: {length} bytes");
        }
    });
}

#[test]
fn what_came_past_the_vip_is_answered_through_the_stack() {
    in_a_node(|world| {
        let (flow, backend) = flow(world, Protocol::Tcp);
        let input = packet(Protocol::Tcp, backend, flow.client, flags::SYN | flags::ACK);
        let bytes = input.on(world.link).to_bytes();
        let buffer = SkBuff { device: BACKEND, ..SkBuff::default() };
        let expected = Expected::Passed(Reason::NotService);
        world.send_bytes("an answer", Hook::Ingress, &bytes, &expected, &buffer);
    });
}

#[test]
fn a_pod_that_reaches_itself_goes_through_the_stack() {
    in_a_node(|world| {
        let served = served(Protocol::Udp);
        let service = world.serve(&served);
        let itself = SocketAddr::new(world.endpoint(1).ip(), 40_000);
        let input = packet(Protocol::Udp, itself, world.vip(1), 0);
        let bytes = input.clone().on(world.link).to_bytes();
        let inside = input.to(world.endpoint(1));
        // By the device that it is routed to, and by another, as the port of a bridge is.
        for (device, expected) in [
            (BACKEND, Expected::Opened(service, inside.clone())),
            (CLIENT, Expected::Forwarded(service, inside.clone())),
        ] {
            let buffer = SkBuff { device, ..SkBuff::default() };
            world.send_bytes("to itself", Hook::Ingress, &bytes, &expected, &buffer);
        }
    });
}

#[test]
fn whoever_listens_is_told_of_what_passes_the_stack_by() {
    in_a_node(|world| {
        let (flow, backend) = flow(world, Protocol::Tcp);
        let until = world.now().wrapping_add(1_000_000).max(1);
        let events = world.datapath.listen().expect("programs that tell");
        while events.pop().expect("events of ours").is_some() {}
        events.ask_for(&EventFilter { until, reasons: u64::MAX, ..EventFilter::default() }).expect("a filter");
        let input = packet(Protocol::Tcp, flow.client, flow.vip, flags::SYN);
        is_sent(world, CLIENT, &input, &input.clone().to(backend).hop_limit(63));
        let event = world.datapath.events().pop().expect("an event of ours").expect("an event");
        assert_eq!(Reason::from_number(event.reason), Some(Reason::Opened), "{world}");
        assert_eq!(EventHook::from_number(event.hook), Some(EventHook::PodIngress), "{world}");
        assert_eq!((event.service, event.device), (flow.service, CLIENT), "{world}");
        let before: IpAddr = event.before.destination.into();
        let after: IpAddr = event.after.destination.into();
        assert_eq!((before.to_canonical(), after.to_canonical()), (flow.vip.ip(), backend.ip()), "{world}");
        assert_eq!(world.datapath.events().pop().expect("an event of ours"), None, "{world}");
    });
}

#[test]
fn the_answer_to_what_is_over_goes_through_the_stack() {
    in_a_node(|world| {
        let (flow, backend) = flow(world, Protocol::Udp);
        let input = packet(Protocol::Udp, flow.client, flow.vip, 0);
        is_sent(world, CLIENT, &input, &input.clone().to(backend).hop_limit(63));
        world.let_pass(3600);
        let input = packet(Protocol::Udp, backend, flow.client, 0);
        let bytes = input.on(world.link).to_bytes();
        let buffer = SkBuff { device: BACKEND, ..SkBuff::default() };
        world.send_bytes("an answer", Hook::Ingress, &bytes, &Expected::Passed(Reason::NotService), &buffer);
    });
}
