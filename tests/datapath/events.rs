//! What whoever listens is told of packets, before and after, and that nobody is told anything otherwise. That packets become what they
//! should while somebody listens is compared as everywhere.

use std::net::{IpAddr, SocketAddr};

use dsproxy::maps::Write;
use dsproxy_common::{
    IpFamily, Port, Protocol,
    count::Reason,
    event::{Ends, Event, EventFilter, EventHook},
    flow::NO_SERVICE,
    service::FrontendKind,
    settings::{NetworkFlags, SettingFlags},
};
use dsproxy_tests::{
    packet::{Link, Message, Packet, flags},
    prog::{Hook, Verdict},
};

use crate::{
    fast_path::Crossing,
    world::{Expected, Flow, Served, World, everywhere, node, on_ethernet, outsider, packet},
};

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

/// A client's port within the range of masqueraded packets, where it is kept.
const KEPT: u16 = 50_000;

/// For how many jiffies is listened: longer than a test takes.
const LONG: u32 = 1_000_000;

/// What is said of a packet, and what is not: when, by which device, how long it is.
#[derive(Debug, PartialEq, Eq)]
struct Told {
    hook: Option<EventHook>,
    reason: Option<Reason>,
    service: u32,
    protocol: u32,
    before: (SocketAddr, SocketAddr),
    after: (SocketAddr, SocketAddr),
}

impl Told {
    fn of(event: &Event) -> Self {
        Self {
            hook: EventHook::from_number(event.hook),
            reason: Reason::from_number(event.reason),
            service: event.service,
            protocol: event.protocol,
            before: ends(&event.before),
            after: ends(&event.after),
        }
    }
}

fn ends(ends: &Ends) -> (SocketAddr, SocketAddr) {
    let end = |address: IpAddr, port: Port| SocketAddr::new(address.to_canonical(), port.number());
    (end(ends.source.into(), ends.source_port), end(ends.destination.into(), ends.destination_port))
}

/// Has the programs tell of all that `filter` takes.
fn listen(world: &mut World, filter: EventFilter) {
    let until = world.now().wrapping_add(LONG).max(1);
    let events = world.datapath.listen().expect("programs that tell");
    while events.pop().expect("events of ours").is_some() {}
    events.ask_for(&EventFilter { until, ..filter }).expect("a filter that can be written");
}

fn everything() -> EventFilter {
    EventFilter { reasons: u64::MAX, ..EventFilter::default() }
}

/// The next event.
#[track_caller]
fn pop(world: &mut World) -> Option<Event> {
    world.datapath.events().pop().expect("an event of ours")
}

/// The one event there is.
#[track_caller]
fn told(world: &mut World) -> Event {
    let event = pop(world).unwrap_or_else(|| panic!("{world}: nothing was told"));
    assert_eq!(pop(world), None, "{world}: more was told");
    event
}

/// The one event there is says this.
#[track_caller]
fn is_told(
    world: &mut World,
    hook: EventHook,
    reason: Reason,
    flow: &Flow,
    before: (SocketAddr, SocketAddr),
    after: (SocketAddr, SocketAddr),
) {
    let expected = Told {
        hook: Some(hook),
        reason: Some(reason),
        service: flow.service,
        protocol: u32::from(flow.protocol.number()),
        before,
        after,
    };
    let event = told(world);
    assert_eq!(Told::of(&event), expected, "{world}");
    assert!(event.time > 0 && event.length > 0 && event.device > 0, "{world}: {event:?}");
}

#[test]
fn a_translation_shows_both_sides_in_either_direction() {
    everywhere(|world| {
        for protocol in Protocol::ALL {
            let served = Served::new(1, protocol).active([1]).target_port(crate::world::PORT);
            let flow = world.flow(&served, 40_000);
            let backend = SocketAddr::new(world.endpoint(1).ip(), crate::world::PORT);
            let (before, after) = ((flow.client, flow.vip), (flow.client, backend));
            listen(world, everything());
            flow.opens(world, flags::SYN, backend);
            is_told(world, EventHook::PodIngress, Reason::Opened, &flow, before, after);
            let (answer, left) = ((backend, flow.client), (flow.vip, flow.client));
            flow.replies(world, flags::SYN | flags::ACK, backend);
            is_told(world, EventHook::PodEgress, Reason::Replied, &flow, answer, left);
            flow.goes_on(world, flags::ACK, backend);
            is_told(world, EventHook::PodIngress, Reason::Forwarded, &flow, before, after);
            // Now in the main tables.
            flow.replies(world, flags::ACK, backend);
            is_told(world, EventHook::PodEgress, Reason::Replied, &flow, answer, left);
            world.withdraw(&served);
        }
    });
}

#[test]
fn a_masqueraded_connection_shows_who_is_behind_the_node() {
    everywhere(|world| {
        for protocol in BOTH {
            let served = Served::new(1, protocol).kind(FrontendKind::NodePort).active([1]);
            let flow = Flow { client: outsider(world.family, KEPT), ..world.flow(&served, KEPT) };
            let (backend, node) = (world.endpoint(1), SocketAddr::new(node(world.family), KEPT));
            let request = packet(protocol, flow.client, flow.vip, flags::SYN);
            let (inside, outside) = (request.clone().to(backend), request.clone().to(backend).from(node));
            listen(world, everything());
            let entered = Expected::Opened(flow.service, inside.clone());
            world.send("the client sends", Hook::NodeIngress, &request, &entered);
            let (sent, inner, outer) = ((flow.client, flow.vip), (flow.client, backend), (node, backend));
            is_told(world, EventHook::NodeIngress, Reason::Opened, &flow, sent, inner);
            let left = Expected::Rewritten(Reason::Masqueraded, outside);
            world.send("it leaves", Hook::NodeEgress, &inside, &left);
            is_told(world, EventHook::NodeEgress, Reason::Masqueraded, &flow, inner, outer);

            let answer = packet(protocol, backend, node, flags::SYN | flags::ACK);
            let inside = answer.clone().to(flow.client);
            let entered = Expected::Rewritten(Reason::Unmasqueraded, inside.clone());
            world.send("the backend answers", Hook::NodeIngress, &answer, &entered);
            let (inner, back) = ((backend, flow.client), (flow.vip, flow.client));
            is_told(world, EventHook::NodeIngress, Reason::Unmasqueraded, &flow, (backend, node), inner);
            let left = Expected::Replied(flow.service, inside.clone().from(flow.vip));
            world.send("the answer leaves", Hook::NodeEgress, &inside, &left);
            is_told(world, EventHook::NodeEgress, Reason::Replied, &flow, inner, back);
            world.withdraw(&served);
        }
    });
}

#[test]
fn a_client_whose_port_is_another_is_shown_with_its_own() {
    everywhere(|world| {
        let served = [1, 2].map(|number| Served::new(number, Protocol::Tcp).active([1]));
        let [first, second] = served.each_ref().map(|served| world.flow(served, 40_000));
        first.opens(world, flags::SYN, world.endpoint(1));
        listen(world, everything());
        let request = packet(Protocol::Tcp, second.client, second.vip, flags::SYN).on(world.link).to_bytes();
        let ran = world.datapath.run(Hook::Ingress, world.link, &request).expect("a program that runs");
        assert_eq!(ran.verdict, Verdict::Pass);
        let event = Told::of(&told(world));
        assert_eq!(event.before, (second.client, second.vip), "{world}");
        assert_eq!(event.after.1, world.endpoint(1), "{world}");
        assert_ne!(event.after.0, second.client, "{world}: the client's port is taken");
        let answer = packet(Protocol::Tcp, event.after.1, event.after.0, flags::SYN | flags::ACK);
        let expected = Expected::Replied(second.service, answer.clone().from(second.vip).to(second.client));
        world.send("the backend answers", Hook::Egress, &answer, &expected);
        let (before, after) = ((event.after.1, event.after.0), (second.vip, second.client));
        is_told(world, EventHook::PodEgress, Reason::Replied, &second, before, after);
    });
}

#[test]
fn what_xdp_sends_on_shows_both_sides_too() {
    for protocol in BOTH {
        on_ethernet(|world| {
            let crossing = Crossing::open(world, protocol, KEPT);
            let Crossing { flow, backend, node, .. } = crossing;
            listen(world, everything());
            // The first is looked up, the next remembered.
            for _ in 0..2 {
                crossing.crosses(world, &crossing.request(flags::ACK), Verdict::Transmit);
                let (before, after) = ((flow.client, flow.vip), (node, backend));
                is_told(world, EventHook::Xdp, Reason::SentToBackend, &flow, before, after);
                crossing.crosses_back(world, &crossing.answer(flags::ACK), Verdict::Transmit);
                let (before, after) = ((backend, node), (flow.vip, flow.client));
                is_told(world, EventHook::Xdp, Reason::SentToClient, &flow, before, after);
            }
        });
    }
}

#[test]
fn what_is_refused_or_dropped_is_shown_as_it_came() {
    everywhere(|world| {
        world.configure(|settings| {
            settings.refusals_per_second = 1_000_000;
            settings.flags |= SettingFlags::RESET_GONE;
        });
        for protocol in Protocol::ALL {
            let served = Served::new(1, protocol);
            let flow = world.flow(&served, 40_000);
            let ends = (flow.client, flow.vip);
            listen(world, everything());
            flow.is_refused(world, flags::SYN);
            is_told(world, EventHook::PodIngress, Reason::NoEndpoint, &flow, ends, ends);
            world.configure(|settings| settings.refusals_per_second = 0);
            flow.is_dropped(world, flags::SYN, Reason::RefusalLimit);
            is_told(world, EventHook::PodIngress, Reason::RefusalLimit, &flow, ends, ends);
            world.configure(|settings| settings.refusals_per_second = 1_000_000);
            world.withdraw(&served);
        }
        // A reset, and not an error.
        let served = Served::new(1, Protocol::Tcp);
        let flow = world.flow(&served.clone().active([1]), 40_000);
        flow.opens(world, flags::SYN, world.endpoint(1));
        flow.replies(world, flags::SYN | flags::ACK, world.endpoint(1));
        flow.goes_on(world, flags::ACK, world.endpoint(1));
        world.serve(&served);
        listen(world, everything());
        let request = packet(Protocol::Tcp, flow.client, flow.vip, flags::ACK).on(world.link).to_bytes();
        let ran = world.datapath.run(Hook::Ingress, world.link, &request).expect("a program that runs");
        assert_eq!(ran.verdict, Verdict::Redirect, "{world}: {:?}", ran.counted);
        let ends = (flow.client, flow.vip);
        is_told(world, EventHook::PodIngress, Reason::BackendGone, &flow, ends, ends);
    });
}

#[test]
fn what_is_refused_without_ports_is_shown_as_it_came_too() {
    everywhere(|world| {
        world.configure(|settings| settings.refusals_per_second = 1_000_000);
        let (client, vip) = (world.client(40_000).ip(), world.vip(1).ip());
        world
            .datapath
            .write(&[Write::ServiceNetwork { family: world.family, network: Some(vip.into()) }])
            .expect("written");
        let flags = NetworkFlags::SERVICE | NetworkFlags::CLUSTER_IP;
        world.datapath.write(&[Write::Network { network: vip.into(), flags }]).expect("written");
        listen(world, everything());
        // GRE.
        let request = Packet::other(47, client, vip).on(world.link).to_bytes();
        let ran = world.datapath.run(Hook::Ingress, world.link, &request).expect("a program that runs");
        assert_eq!(ran.verdict, Verdict::Redirect, "{world}: {:?}", ran.counted);
        let event = told(world);
        let (source, destination) = ends(&event.before);
        assert_eq!((source.ip(), destination.ip(), source.port(), destination.port()), (client, vip, 0, 0), "{world}");
        world.datapath.write(&[Write::RemoveNetwork { network: vip.into() }]).expect("written");
        world.datapath.write(&[Write::ServiceNetwork { family: world.family, network: None }]).expect("written");
    });
}

#[test]
fn what_is_nobodys_is_told_where_it_is_asked_for() {
    everywhere(|world| {
        let (client, other) = (world.client(40_000), world.endpoint(9));
        listen(world, everything());
        world.send("to nobody", Hook::Ingress, &Packet::udp(client, other), &Expected::Passed(Reason::NotService));
        let event = told(world);
        assert_eq!((event.service, ends(&event.before)), (NO_SERVICE, (client, other)), "{world}");
        assert_eq!(event.before, event.after, "{world}");
        let echo = Packet::icmp(client.ip(), other.ip(), Message::EchoRequest { identifier: 7, sequence: 1 });
        world.send("a ping", Hook::Ingress, &echo, &Expected::Passed(Reason::OtherProtocol));
        let event = told(world);
        let icmp = if world.family == IpFamily::V4 { 1 } else { 58 };
        assert_eq!((event.protocol, ends(&event.before).0.ip()), (icmp, client.ip()), "{world}");
        let link = world.link;
        world.send_bytes("no IP", Hook::Ingress, &[0xff; 64], &Expected::Passed(Reason::NotIp), &Default::default());
        let event = told(world);
        assert_eq!((event.before, event.protocol), (Ends::default(), 0), "{world} {link:?}");
    });
}

#[test]
fn nothing_is_told_that_is_not_asked_for() {
    everywhere(|world| {
        let served = Served::new(1, Protocol::Udp).active([1]);
        let (flow, backend) = (world.flow(&served, 40_000), world.endpoint(1));
        let wrong_family = if world.family == IpFamily::V4 { IpFamily::V6 } else { IpFamily::V4 };
        let of = |address: SocketAddr, bits: u8| {
            let mapped = match address.ip() {
                IpAddr::V4(address) => address.to_ipv6_mapped(),
                IpAddr::V6(address) => address,
            };
            let mask = std::net::Ipv6Addr::from(u128::MAX << (128 - bits));
            EventFilter { address: mapped.into(), mask: mask.into(), ..everything() }
        };
        let with_port = |filter: EventFilter, port: u16| EventFilter { port: Port::new(port).wire().into(), ..filter };
        for (name, filter, is_wanted) in [
            ("everything", everything(), true),
            ("drops", EventFilter { reasons: 1 << Reason::NoEndpoint as u32, ..everything() }, false),
            ("its VIP", of(flow.vip, 128), true),
            ("its backend", of(backend, 128), true),
            ("its client's network", of(flow.client, 112), true),
            ("another VIP", of(world.vip(2), 128), false),
            ("its VIP and port", with_port(of(flow.vip, 128), flow.vip.port()), true),
            ("another port", with_port(of(flow.vip, 128), flow.vip.port() + 1), false),
            ("its family", EventFilter { family: world.family as u32, ..everything() }, true),
            ("the other family", EventFilter { family: wrong_family as u32, ..everything() }, false),
            ("its protocol", EventFilter { protocol: 17, ..everything() }, true),
            ("another protocol", EventFilter { protocol: 6, ..everything() }, false),
            ("its Service", EventFilter { services: [flow.service; 8], service_count: 1, ..everything() }, true),
            ("another", EventFilter { services: [flow.service + 1; 8], service_count: 8, ..everything() }, false),
        ] {
            world.datapath.connections().clear().expect("tables");
            listen(world, filter);
            flow.opens(world, 0, backend);
            assert_eq!(pop(world).is_some(), is_wanted, "{world}: {name}");
        }
    });
}

#[test]
fn who_has_ended_without_a_word_is_told_nothing_more() {
    everywhere(|world| {
        let served = Served::new(1, Protocol::Udp).active([1]);
        let (flow, backend) = (world.flow(&served, 40_000), world.endpoint(1));
        listen(world, everything());
        let until = world.now().wrapping_sub(LONG).max(1);
        world.datapath.events().ask_for(&EventFilter { until, ..everything() }).expect("written");
        flow.opens(world, 0, backend);
        assert_eq!(pop(world), None, "{world}");
        let events = world.datapath.events();
        assert_eq!(events.filter().expect("a filter").until, 0, "{world}: nobody looks at the clock any more");
    });
}

#[test]
fn what_there_is_no_room_for_is_counted_and_packets_go_on() {
    on_ethernet(|world| {
        let served = Served::new(1, Protocol::Udp).active([1]);
        let (flow, backend) = (world.flow(&served, 40_000), world.endpoint(1));
        listen(world, everything());
        flow.opens(world, 0, backend);
        let lost = world.datapath.events().lost().expect("a count");
        let request = packet(flow.protocol, flow.client, flow.vip, 0).on(Link::Ethernet).to_bytes();
        let sent = 2 * dsproxy_common::event::WAITING_BYTES / size_of::<Event>() as u32;
        for _ in 0..sent {
            let ran = world.datapath.run(Hook::Ingress, Link::Ethernet, &request).expect("a program that runs");
            assert_eq!(ran.verdict, Verdict::Pass);
        }
        let mut told = 0;
        while pop(world).is_some() {
            told += 1;
        }
        let lost = world.datapath.events().lost().expect("a count") - lost;
        assert!(lost > 0 && told > 1_000, "{told} told, {lost} lost");
        assert_eq!(told + lost, u64::from(sent) + 1);
        // There is room again.
        flow.goes_on(world, 0, backend);
        assert!(pop(world).is_some());
    });
}
