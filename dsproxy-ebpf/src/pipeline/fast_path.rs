//! Past the stack, by XDP: packets in the middle of connections that the stack has let through, from a client outside to a backend
//! on another node and back. What `ingress` and `egress` do one after the other is done at once, with the same entries, and the
//! packet sent on. Whatever is not plainly of that kind is left untouched to the stack, and to them.
//!
//! What is found is remembered, so that most packets are spared the search (`dsproxy_common::cached_flow`).

use core::hint::cold_path;

use aya_ebpf::helpers::bpf_get_smp_processor_id;

use dsproxy_common::{
    Address as _, Port,
    cached_flow::{self, CachedFlow, Ports, TO_CLIENT},
    checksum,
    count::Reason,
    flow::{Age, EgressEntry, EgressKind, FlowKey, ForwardEntry, Segment, SnatEntry},
    next_hop::{Mac, NextHop, Routing},
    service::{BackendFlags, BackendState},
    settings::Settings,
};

use super::{Sent, ingress};
use crate::{
    clock, count,
    family::Family,
    forward, lookup, maps,
    packet::FrameContext,
    parse::{self, Packet, link::ETHERNET_HEADER},
    rewrite,
    track::{self, Entry, Found, masquerade},
};

/// A packet whose flow is looked up.
struct Search<'a, F: Family> {
    packet: &'a Packet<'a, F::Address>,
    /// The address that its frame came to.
    arrival: Mac,
    /// The epoch of the kernel's routing.
    epoch: u32,
    now: u32,
    settings: &'a Settings,
}

/// The packet addressed and translated; none if it is for the stack, as it came.
#[inline(always)]
pub(super) fn cross<F: Family, C: FrameContext>(context: &C, routing: &Routing) -> Option<Sent> {
    let mut key = FlowKey::default();
    let packet = parse::plain::<F>(context.linear(), &mut key)?;
    let settings = maps::SETTINGS.get(0)?;
    if !masquerade::may_be_answer(packet.key, settings) && !lookup::may_be_frontend::<F>(packet.key) {
        return None;
    }
    let now = clock::now();
    if !routing.holds(now) {
        return None;
    }
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let [first, second] = cached_flow::places(packet.key, cpu, routing.flow_mask);
    let flows = F::maps().flows;
    let (first, second) = (flows.get_ptr_mut(first)?, flows.get_ptr_mut(second)?);
    // SAFETY: two values, in different halves of this CPU's own part, for all CPUs have been told the same mask (`routing::Word::new`);
    // frames are taken one after the other on each.
    let places = unsafe { [&mut *first, &mut *second] };
    let (flow, is_known) = cached_flow::place_for(packet.key, places, (routing.epoch, now));
    if !packet.segment.is_plain() {
        cold_path();
        if is_known {
            flow.forget();
        }
        return None;
    }
    let arrival = forward::arrival(context.linear()).ok()?;
    let came = (context.device(), arrival);
    if !is_known || !flow.is_current(came, routing.epoch, now) || !is_led_on::<F>(flow) {
        cold_path();
        if is_known {
            flow.forget();
        }
        let search = Search::<F> { packet: &packet, arrival, epoch: routing.epoch, now, settings };
        look_up::<F, C>(context, &search, flow)?;
    }
    let length = context.length();
    if length.wrapping_sub(ETHERNET_HEADER as u32) > flow.mtu.into() {
        return None;
    }
    rewrite::cross::<F>(context.linear(), packet.content, flow)?;
    forward::address(context.linear(), flow.link_addresses).ok()?;
    let reason = if flow.backend == TO_CLIENT {
        count::reply(flow.service, length);
        Reason::SentToClient
    } else {
        count::forward(flow.service, length, false);
        Reason::SentToBackend
    };
    count::packet(reason, Some(F::FAMILY));
    Some(Sent { reason, device: flow.device })
}

/// Whether a flow that is remembered still has the backend it had.
#[inline(always)]
fn is_led_on<F: Family>(flow: &CachedFlow<F::Address>) -> bool {
    flow.backend == TO_CLIENT
        || F::maps()
            .backends
            .get(flow.backend)
            .is_some_and(|backend| flow.leads_to(backend.generation, BackendState::from_number(backend.state)))
}

/// Finds what becomes of a packet, and remembers it in `flow`.
#[inline(always)]
fn look_up<F: Family, C: FrameContext>(
    context: &C,
    search: &Search<'_, F>,
    flow: &mut CachedFlow<F::Address>,
) -> Option<()> {
    let Search { packet, arrival, now, settings, .. } = *search;
    let lifetime = if masquerade::may_be_answer(packet.key, settings)
        && let Some(found) = track::client_behind::<F>(packet.key)
    {
        to_client::<F, C>(context, search, found, flow)?
    } else {
        let found = track::forward::<F>(packet.key)?;
        to_backend::<F, C>(context, search, found, flow)?
    };
    let key = packet.key;
    flow.key = *key;
    flow.arrival = arrival;
    flow.good_until = now.wrapping_add(lifetime);
    flow.address_difference = checksum::add(
        checksum::difference(key.source.words(), flow.source.words()),
        checksum::difference(key.destination.words(), flow.destination.words()),
    );
    let ports = checksum::add(
        checksum::word_difference(key.source_port.wire(), flow.ports.source.wire()),
        checksum::word_difference(key.destination_port.wire(), flow.ports.destination.wire()),
    );
    flow.transport_difference = checksum::add(flow.address_difference, ports);
    Some(())
}

/// A client's packet: the VIP becomes a backend on another node, and the client this node, unless the backend answers directly. Gives
/// for how long.
#[inline(always)]
fn to_backend<F: Family, C: FrameContext>(
    context: &C,
    search: &Search<'_, F>,
    found: Found<ForwardEntry>,
    flow: &mut CachedFlow<F::Address>,
) -> Option<u32> {
    let Search { packet, now, settings, .. } = *search;
    let held = found.read();
    let ingress::Next { backend, age } = ingress::next::<F>(packet, &held, now, settings)?.ok()?;
    if backend.flags & BackendFlags::LOCAL != 0 {
        return None;
    }
    let inner = FlowKey {
        source: packet.key.source,
        destination: backend.address,
        source_port: if held.source_port == Port::default() { packet.key.source_port } else { held.source_port },
        destination_port: backend.port,
        protocol: packet.key.protocol,
    };
    let exit = exit::<F>(&inner, search)?;
    let (source, source_port) = match EgressKind::from_number(exit.held.kind) {
        EgressKind::Masquerade => (exit.held.address, exit.held.port),
        // Each datagram has to say the VIP, for which tc makes the room.
        EgressKind::Direct if packet.segment != Segment::NOT_TCP => (inner.source, inner.source_port),
        _ => return None,
    };
    let entry = Seen { found, held, age };
    let (next_hop, lifetime) = go_on::<F, C, _>(context, search, &entry, &exit)?;
    flow.set_next_hop(&next_hop);
    flow.source = source;
    flow.destination = inner.destination;
    flow.ports = Ports { source: source_port, destination: inner.destination_port };
    flow.service = held.service;
    flow.backend = held.backend;
    flow.generation = held.generation;
    Some(lifetime)
}

/// A backend's answer: this node becomes the client, and the backend the VIP. Gives for how long.
#[inline(always)]
fn to_client<F: Family, C: FrameContext>(
    context: &C,
    search: &Search<'_, F>,
    found: Found<SnatEntry<F::Address>>,
    flow: &mut CachedFlow<F::Address>,
) -> Option<u32> {
    let Search { packet, .. } = *search;
    let entry = Seen::now(found, search);
    let held = &entry.held;
    let inner = FlowKey {
        source: packet.key.source,
        destination: held.client,
        source_port: packet.key.source_port,
        destination_port: held.port,
        protocol: packet.key.protocol,
    };
    let exit = exit::<F>(&inner, search)?;
    if exit.held.kind != EgressKind::Reply.number() {
        return None;
    }
    let (next_hop, lifetime) = go_on::<F, C, _>(context, search, &entry, &exit)?;
    flow.set_next_hop(&next_hop);
    flow.source = exit.held.address;
    flow.destination = held.client;
    flow.ports = Ports {
        source: exit.held.port,
        destination: if exit.held.client_port == Port::default() { held.port } else { exit.held.client_port },
    };
    flow.service = exit.held.service;
    flow.backend = TO_CLIENT;
    Some(lifetime)
}

/// An entry, what it says, and its age.
struct Seen<E> {
    found: Found<E>,
    held: E,
    age: Age,
}

impl<E: Entry> Seen<E> {
    #[inline(always)]
    fn now<F: Family>(found: Found<E>, search: &Search<'_, F>) -> Self {
        let held = found.read();
        let age = held.age(search.now, search.settings);
        Self { found, held, age }
    }

    /// For how long packets may be remembered. None if the connection is not in the middle of its life.
    #[inline(always)]
    fn settled(&self, settings: &Settings) -> Option<u32> {
        let remembered = cached_flow::lifetime(self.held.state(), settings)?;
        (!self.age.is_expired()).then_some(remembered)
    }
}

/// The entry for packets of `key` that leave.
#[inline(always)]
fn exit<F: Family>(key: &FlowKey<F::Address>, search: &Search<'_, F>) -> Option<Seen<EgressEntry<F::Address>>> {
    Some(Seen::now(track::egress::<F>(key)?, search))
}

/// Where a packet goes next by its entries, the one that it came by and the one that it leaves by, and for how long that may be
/// remembered. The entries are not touched: the stack's turn keeps them alive, and with each that of the other direction, which it
/// would leave alone if this one seemed fresh. Nothing may be remembered of a packet before this has said so: what is remembered there
/// is another's.
#[inline(always)]
fn go_on<F: Family, C: FrameContext, E: Entry>(
    context: &C,
    search: &Search<'_, F>,
    entry: &Seen<E>,
    exit: &Seen<EgressEntry<F::Address>>,
) -> Option<(NextHop, u32)> {
    let next_hop = forward::next_hop(context, exit.found, search.arrival, search.epoch)?;
    let lifetime = entry.settled(search.settings)?;
    exit.settled(search.settings)?;
    Some((next_hop, lifetime))
}
