//! A client that sends straight to a backend from a port it has just used through the VIP.

use std::net::SocketAddr;

use dsproxy_common::{Protocol, count::Reason, settings::SettingFlags};
use dsproxy_tests::{packet::flags, prog::Hook};

use crate::world::{Expected, Flow, Served, World, everywhere, packet};

/// What has to be true of everything without connections.
const PROTOCOLS: [Protocol; 2] = [Protocol::Udp, Protocol::Sctp];

/// A flow to a Service with one endpoint, its first packet answered.
fn answered(world: &mut World, protocol: Protocol) -> Flow {
    // The ports of SCTP are not rewritten, so the endpoint's is the VIP's.
    let served = Served::new(1, protocol).active([1]).target_port(crate::world::PORT);
    let flow = world.flow(&served, 40_000);
    let backend = endpoint(world);
    flow.opens(world, 0, backend);
    flow.replies(world, 0, backend);
    flow
}

fn endpoint(world: &World) -> SocketAddr {
    numbered(world, 1)
}

fn numbered(world: &World, number: u16) -> SocketAddr {
    let mut endpoint = world.endpoint(number);
    endpoint.set_port(crate::world::PORT);
    endpoint
}

/// The client's packet to the endpoint itself, where it meets `hook`, goes on as it is.
fn bypasses(world: &World, flow: &Flow, hook: Hook) {
    let straight = packet(flow.protocol, flow.client, endpoint(world), 0);
    world.send("the client sends past the VIP", hook, &straight, &Expected::Passed(Reason::NotService));
}

#[test]
fn the_answer_to_what_went_past_the_vip_keeps_the_backends_address() {
    for protocol in PROTOCOLS {
        everywhere(|world| {
            let flow = answered(world, protocol);
            bypasses(world, &flow, Hook::Ingress);
            flow.reply_is_not_known(world, 0, endpoint(world));
        });
    }
}

/// Two programs at one hook, as for a moment while they are attached: the second sees what the first has made of a packet.
#[test]
fn while_programs_are_attached_nothing_is_taken_for_past_the_vip() {
    for protocol in PROTOCOLS {
        everywhere(|world| {
            let flow = answered(world, protocol);
            world.configure(|settings| settings.flags |= SettingFlags::ATTACHING);
            bypasses(world, &flow, Hook::Ingress);
            flow.replies(world, 0, endpoint(world));
            flow.goes_on(world, 0, endpoint(world));
        });
    }
}

#[test]
fn through_the_vip_again_the_answer_is_the_vips_again() {
    for protocol in PROTOCOLS {
        everywhere(|world| {
            let flow = answered(world, protocol);
            for _ in 0..2 {
                bypasses(world, &flow, Hook::Ingress);
                flow.opens(world, 0, endpoint(world));
                flow.replies(world, 0, endpoint(world));
            }
        });
    }
}

/// On a bridge's own device, or that of a VLAN, a packet shows up that was translated where it came in.
#[test]
fn a_packet_translated_before_is_not_taken_for_one_past_the_vip() {
    for protocol in PROTOCOLS {
        everywhere(|world| {
            let flow = answered(world, protocol);
            bypasses(world, &flow, Hook::NodeIngress);
            flow.replies(world, 0, endpoint(world));
        });
    }
}

/// As with SIP or gossip: each of two backends speaks to the other's Service, from the port that it is served at. What one answers
/// looks like what it would send past the other's VIP.
#[test]
fn an_answer_of_one_backend_to_another_is_not_taken_for_one_past_the_vip() {
    for protocol in PROTOCOLS {
        everywhere(|world| {
            let (first, second) = (numbered(world, 1), numbered(world, 2));
            let served = |number| Served::new(number, protocol).active([number as u16]).target_port(crate::world::PORT);
            let to_first = Flow { client: second, ..world.flow(&served(1), 40_000) };
            let to_second = Flow { client: first, ..world.flow(&served(2), 40_000) };
            to_first.opens(world, 0, first);
            to_second.opens(world, 0, second);
            for _ in 0..2 {
                for (flow, backend) in [(&to_first, first), (&to_second, second)] {
                    let answer = packet(protocol, backend, flow.client, 0);
                    world.send("the backend answers", Hook::Ingress, &answer, &Expected::Passed(Reason::NotService));
                    flow.replies(world, 0, backend);
                }
            }
        });
    }
}

/// Another port of the client's says nothing about this one, nor does a packet to another port of the backend's host.
#[test]
fn what_others_send_past_the_vip_changes_nothing() {
    everywhere(|world| {
        let flow = answered(world, Protocol::Udp);
        let mut elsewhere = endpoint(world);
        elsewhere.set_port(9);
        for (source, destination) in [(world.client(40_001), endpoint(world)), (flow.client, elsewhere)] {
            let straight = packet(Protocol::Udp, source, destination, 0);
            let passed = Expected::Passed(Reason::NotService);
            world.send("somebody sends past the VIP", Hook::Ingress, &straight, &passed);
        }
        flow.goes_on(world, 0, endpoint(world));
        flow.replies(world, 0, endpoint(world));
    });
}

#[test]
fn an_established_connection_is_not_ended_by_a_segment_past_the_vip() {
    everywhere(|world| {
        let flow = world.flow(&Served::new(1, Protocol::Tcp).active([1]), 40_000);
        let backend = world.endpoint(1);
        flow.opens(world, flags::SYN, backend);
        flow.replies(world, flags::SYN | flags::ACK, backend);
        flow.goes_on(world, flags::ACK, backend);
        let straight = packet(Protocol::Tcp, flow.client, backend, flags::SYN);
        world.send("the client opens past the VIP", Hook::Ingress, &straight, &Expected::Passed(Reason::NotService));
        flow.replies(world, flags::ACK, backend);
    });
}
