//! Past the stack, by XDP: packets of connections that the stack has let through, from a client outside to a backend on another
//! node and back. What `ingress` and `egress` do one after the other is done at once, with the same entries, and the packet
//! sent on. Whatever is not plainly of that kind is left untouched to the stack, and to them.

use dsproxy_common::{
    Port,
    count::Reason,
    flow::{Age, EgressEntry, EgressKind, FlowKey, ForwardEntry, SnatEntry},
    next_hop::Routing,
    service::BackendFlags,
    settings::Settings,
};

use super::{egress, ingress};
use crate::{
    clock, count,
    family::Family,
    forward, lookup, maps,
    packet::FrameContext,
    parse::{self, Packet},
    rewrite,
    track::{self, Entry as _, Found, connection, masquerade},
};

/// What a packet has to do with the connection that it belongs to, once both of its entries are found.
struct Crossing<'p, 'k, F: Family> {
    packet: &'p Packet<'k, F::Address>,
    /// The packet as the stack would see it, between the two translations.
    inner: &'p FlowKey<F::Address>,
    routing: &'p Routing,
    now: u32,
}

/// The index of the device that the packet is to leave by, addressed and translated; none if it is for the stack, as it came.
#[inline(always)]
pub(super) fn cross<F: Family, C: FrameContext>(context: &C, routing: &Routing) -> Option<u32> {
    let mut key = FlowKey::default();
    let packet = parse::plain::<F>(context.linear(), &mut key)?;
    let settings = maps::SETTINGS.get(0)?;
    if masquerade::may_be_answer(packet.key, settings)
        && let Some(found) = track::snat::<F>(packet.key)
    {
        return to_client::<F, C>(context, &packet, found, routing, settings);
    }
    if !lookup::may_be_frontend::<F>(packet.key) {
        return None;
    }
    let found = track::forward::<F>(packet.key)?;
    to_backend::<F, C>(context, &packet, found, routing, settings)
}

/// A client's packet: the VIP becomes a backend on another node, and the client this node.
#[inline(always)]
fn to_backend<F: Family, C: FrameContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    found: Found<ForwardEntry>,
    routing: &Routing,
    settings: &Settings,
) -> Option<u32> {
    let now = clock::now();
    let held = found.read();
    let ingress::Next { backend, age } = ingress::next::<F>(packet, &held, now, settings)?.ok()?;
    if backend.flags & BackendFlags::LOCAL != 0 {
        return None;
    }
    let (address, port) = (backend.address, backend.port);
    let inner = FlowKey {
        source: packet.key.source,
        destination: address,
        source_port: if held.source_port == Port::default() { packet.key.source_port } else { held.source_port },
        destination_port: port,
        protocol: packet.key.protocol,
    };
    let Exit { found: exit, held: exit_held, age: exit_age } =
        exit::<F>(&inner, EgressKind::Masquerade, now, settings)?;
    let crossing = Crossing::<F> { packet, inner: &inner, routing, now };
    let device = send(context, &crossing, exit, (exit_held.address, exit_held.port), (address, port))?;
    connection::seen_forward::<F>(packet.key, (address, port), (found, &held), age, packet.segment, now);
    masquerade::seen_forward::<F>(&inner, (exit, &exit_held), exit_age, packet.segment, now);
    count::packet(Reason::SentToBackend, Some(F::FAMILY));
    count::forward(held.service, context.length(), false);
    Some(device)
}

/// A backend's answer: this node becomes the client, and the backend the VIP.
#[inline(always)]
fn to_client<F: Family, C: FrameContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    found: Found<SnatEntry<F::Address>>,
    routing: &Routing,
    settings: &Settings,
) -> Option<u32> {
    let now = clock::now();
    let held = found.read();
    let age = held.age(now, settings);
    if age.is_expired() {
        return None;
    }
    let inner = FlowKey {
        source: packet.key.source,
        destination: held.client,
        source_port: packet.key.source_port,
        destination_port: held.port,
        protocol: packet.key.protocol,
    };
    let Exit { found: exit, held: exit_held, age: exit_age } = exit::<F>(&inner, EgressKind::Reply, now, settings)?;
    if egress::is_of_another_connection(packet.segment, &exit_held) {
        return None;
    }
    let client_port = if exit_held.client_port == Port::default() { held.port } else { exit_held.client_port };
    let crossing = Crossing::<F> { packet, inner: &inner, routing, now };
    let device = send(context, &crossing, exit, (exit_held.address, exit_held.port), (held.client, client_port))?;
    masquerade::seen_answer::<F>(packet.key, (found, &held), age, packet.segment, now);
    connection::seen_reply::<F>(&inner, (exit, &exit_held), exit_age, packet.segment, now);
    count::packet(Reason::SentToClient, Some(F::FAMILY));
    count::reply(exit_held.service, context.length());
    Some(device)
}

/// The entry by which a packet leaves, what it says, and its age.
struct Exit<A> {
    found: Found<EgressEntry<A>>,
    held: EgressEntry<A>,
    age: Age,
}

/// The entry for packets of `key` that leave, if it is of this kind and counts.
#[inline(always)]
fn exit<F: Family>(
    key: &FlowKey<F::Address>,
    kind: EgressKind,
    now: u32,
    settings: &Settings,
) -> Option<Exit<F::Address>> {
    let found = track::egress::<F>(key)?;
    let held = found.read();
    let age = held.age(now, settings);
    (held.kind == kind.number() && !age.is_expired()).then_some(Exit { found, held, age })
}

/// Translates a packet and addresses its frame, if it is known where it goes and it can go there. Says by which device.
#[inline(always)]
fn send<F: Family, C: FrameContext>(
    context: &C,
    crossing: &Crossing<'_, '_, F>,
    exit: Found<EgressEntry<F::Address>>,
    source: (F::Address, Port),
    destination: (F::Address, Port),
) -> Option<u32> {
    let Crossing { packet, inner, routing, now } = *crossing;
    if !routing.holds(now) {
        return None;
    }
    let next = forward::next_hop::<F, C>(context, inner, exit, routing, now)?;
    rewrite::cross::<F>(context.linear(), packet, source, destination)?;
    forward::address(context.linear(), &next).ok()?;
    Some(next.device)
}
