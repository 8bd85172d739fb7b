//! Two VIPs, one backend, one client port: the backend's packets look alike, so only one of the connections can have it.

use std::net::SocketAddr;

use dsproxy_common::{Protocol, count::Reason, flow::FlowState};
use dsproxy_tests::{
    packet::flags,
    prog::{Entry, Hook},
};

use crate::world::{Expected, Flow, PORT, Served, World, everywhere, packet};

/// The client's port, the same for all.
const CLIENT: u16 = 40_000;

/// The port that stands in for it where it is taken: the only one there is.
const OTHER: u16 = 60_000;

/// Leaves the programs one port for clients whose own is taken.
fn with_one_other_port(world: &mut World) {
    world.configure(|settings| *settings = settings.with_snat_ports([OTHER, OTHER]));
}

/// The client's packet opens a connection to `endpoint`, which sees another port than the client's.
#[track_caller]
fn opens_by_other_port(world: &World, flow: &Flow, endpoint: SocketAddr) {
    let packet = |source, destination| packet(flow.protocol, source, destination, flags::SYN);
    let other = SocketAddr::new(flow.client.ip(), OTHER);
    let opened = Expected::Opened(flow.service, packet(other, endpoint));
    world.send("the client opens", Hook::Ingress, &packet(flow.client, flow.vip), &opened);
    let replied = Expected::Replied(flow.service, packet(flow.vip, flow.client));
    world.send("the backend answers", Hook::Egress, &packet(endpoint, other), &replied);
    let more = Expected::Forwarded(flow.service, packet(other, endpoint));
    world.send("the client sends more", Hook::Ingress, &packet(flow.client, flow.vip), &more);
}

#[test]
fn the_second_connection_goes_to_another_backend() {
    everywhere(|world| {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let second = Served::new(2, protocol).active([1, 2, 3]);
            let second_flow = world.flow(&second, CLIENT);
            let (wanted, next) =
                (world.choice(&second, second_flow.client, 0), world.choice(&second, second_flow.client, 1));
            assert_ne!(wanted, next);
            // The first Service has just the backend that the second would pick.
            let number = (1..=3).find(|number| world.endpoint(*number) == wanted).expect("one of the three");
            let first = world.flow(&Served::new(1, protocol).active([number]), CLIENT);
            first.opens(world, flags::SYN, wanted);
            first.goes_on(world, flags::ACK, wanted);

            second_flow.opens(world, flags::SYN, next);
            second_flow.goes_on(world, flags::ACK, next);
            first.replies(world, flags::ACK, wanted);
            second_flow.replies(world, flags::ACK, next);
        }
    });
}

#[test]
fn without_another_backend_the_second_connection_gets_another_port_and_the_third_is_dropped() {
    everywhere(|world| {
        with_one_other_port(world);
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let first = world.flow(&Served::new(1, protocol).active([1]), CLIENT);
            let second = world.flow(&Served::new(2, protocol).active([1]), CLIENT);
            let third = world.flow(&Served::new(3, protocol).active([1]), CLIENT);
            first.opens(world, flags::SYN, world.endpoint(1));
            first.goes_on(world, flags::ACK, world.endpoint(1));
            opens_by_other_port(world, &second, world.endpoint(1));
            third.is_dropped(world, flags::SYN, Reason::ReplyClash);
            // The first is none the worse for it.
            first.goes_on(world, flags::ACK, world.endpoint(1));
            first.replies(world, flags::ACK, world.endpoint(1));
        }
    });
}

#[test]
fn every_slot_taken_gives_the_client_another_port_after_four_tries() {
    everywhere(|world| {
        with_one_other_port(world);
        let endpoints = 1..=6;
        let second = Served::new(20, Protocol::Tcp).active(endpoints.clone());
        let second_flow = world.flow(&second, CLIENT);
        let order: Vec<_> = (0..6).map(|step| world.choice(&second, second_flow.client, step)).collect();
        for (index, taken) in order[..4].iter().enumerate() {
            let target = endpoints.clone().find(|number| world.endpoint(*number) == *taken).expect("an endpoint");
            let first = world.flow(&Served::new(index as u8 + 1, Protocol::Tcp).active([target]), CLIENT);
            first.opens(world, flags::SYN, *taken);
            first.goes_on(world, flags::ACK, *taken);
            if index + 1 < 4 {
                let next = order[index + 1];
                second_flow.opens(world, flags::SYN, next);
                // Forgotten again, so that the next round finds the slots as they are.
                let connections = world.datapath.connections();
                let Flow { protocol, client, vip, .. } = second_flow;
                assert!(connections.remove(Entry::Forward, protocol, client, vip).expect("a table"));
                assert!(connections.remove(Entry::Reply, protocol, next, client).expect("a table"));
            }
        }
        opens_by_other_port(world, &second_flow, order[0]);
    });
}

#[test]
fn a_connection_that_is_over_gives_way_and_one_half_closed_does_not() {
    everywhere(|world| {
        with_one_other_port(world);
        let other = world.flow(&Served::new(3, Protocol::Tcp).active([1]), CLIENT);
        let first = world.flow(&Served::new(1, Protocol::Tcp).active([1]), CLIENT);
        let second = world.flow(&Served::new(2, Protocol::Tcp).active([1]), CLIENT);
        let backend = world.endpoint(1);
        let finish = flags::FIN | flags::ACK;
        first.opens(world, flags::SYN, backend);
        first.goes_on(world, flags::ACK, backend);
        first.goes_on(world, finish, backend);
        opens_by_other_port(world, &other, backend);
        second.is_dropped(world, flags::SYN, Reason::ReplyClash);
        first.replies(world, finish, backend);
        second.opens(world, flags::SYN, backend);
        second.replies(world, flags::SYN | flags::ACK, backend);

        second.replies(world, flags::RST, backend);
        first.opens(world, flags::SYN, backend);
        first.replies(world, flags::SYN | flags::ACK, backend);
    });
}

/// Packets of the first may still be on their way when the second has its place; they are not the second's.
#[test]
fn what_comes_late_of_a_connection_that_gave_way_does_not_touch_the_other() {
    everywhere(|world| {
        let first = world.flow(&Served::new(1, Protocol::Tcp).active([1]), CLIENT);
        let second = world.flow(&Served::new(2, Protocol::Tcp).active([1]), CLIENT);
        let backend = world.endpoint(1);
        first.opens(world, flags::SYN, backend);
        first.goes_on(world, flags::FIN | flags::ACK, backend);
        first.replies(world, flags::FIN | flags::ACK, backend);
        second.opens(world, flags::SYN, backend);
        first.goes_on(world, flags::RST, backend);
        // Were the second taken for reset, the backend would seem to accept a connection that is not through a VIP.
        second.replies(world, flags::SYN | flags::ACK, backend);
        second.goes_on(world, flags::ACK, backend);
    });
}

/// Not even with what would confirm it, were it still its own.
#[test]
fn a_late_acknowledgement_does_not_take_the_packets_of_the_other_back() {
    everywhere(|world| {
        let first = world.flow(&Served::new(1, Protocol::Tcp).active([1]), CLIENT);
        let second = world.flow(&Served::new(2, Protocol::Tcp).active([1]), CLIENT);
        let backend = world.endpoint(1);
        first.opens(world, flags::SYN, backend);
        first.replies(world, flags::RST, backend);
        second.opens(world, flags::SYN, backend);
        first.goes_on(world, flags::ACK, backend);
        second.replies(world, flags::SYN | flags::ACK, backend);
        second.goes_on(world, flags::ACK, backend);
        second.replies(world, flags::ACK, backend);
    });
}

/// SCTP's checksum covers the whole packet: another port could be entered, and would not be written.
#[test]
fn sctp_has_no_other_port_and_the_second_connection_is_dropped() {
    everywhere(|world| {
        let first = world.flow(&Served::new(1, Protocol::Sctp).target_port(PORT).active([1]), CLIENT);
        let second = world.flow(&Served::new(2, Protocol::Sctp).target_port(PORT).active([1]), CLIENT);
        let backend = SocketAddr::new(world.endpoint(1).ip(), PORT);
        first.opens(world, 0, backend);
        second.is_dropped(world, 0, Reason::ReplyClash);
        first.replies(world, 0, backend);
    });
}

#[test]
fn a_connection_past_its_lifetime_gives_way() {
    everywhere(|world| {
        let first = world.flow(&Served::new(1, Protocol::Udp).active([1]), CLIENT);
        let second = world.flow(&Served::new(2, Protocol::Udp).active([1]), CLIENT);
        let other = world.flow(&Served::new(3, Protocol::Udp).active([1]), CLIENT);
        with_one_other_port(world);
        first.opens(world, 0, world.endpoint(1));
        opens_by_other_port(world, &other, world.endpoint(1));
        second.is_dropped(world, 0, Reason::ReplyClash);
        world.datapath.shorten_lifetimes([0; FlowState::COUNT]).expect("settings");
        std::thread::sleep(std::time::Duration::from_millis(50));
        second.opens(world, 0, world.endpoint(1));
    });
}

#[test]
fn both_protocols_may_have_the_same_ports() {
    everywhere(|world| {
        let tcp = world.flow(&Served::new(1, Protocol::Tcp).active([1]), CLIENT);
        let udp = world.flow(&Served::new(2, Protocol::Udp).active([1]), CLIENT);
        tcp.opens(world, flags::SYN, world.endpoint(1));
        udp.opens(world, 0, world.endpoint(1));
        tcp.replies(world, flags::SYN | flags::ACK, world.endpoint(1));
        udp.replies(world, 0, world.endpoint(1));
    });
}
