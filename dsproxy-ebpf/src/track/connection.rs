//! Connections through a frontend: the forward entry (client -> VIP) and the egress entry of replies (backend -> client).

#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied to the stack, of which there are 512 bytes"
)]

use core::hint::cold_path;

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use dsproxy_common::{
    Port,
    count::Reason,
    flow::{Age, EgressEntry, EgressKind, FlowKey, FlowState, ForwardEntry, Segment},
    settings::Settings,
};

use super::{
    Entry as _, Found, NewEntry, egress, egress_beside, enter_egress_unless, forget_egress, forward, forward_beside,
    is_over, new_entry, to_write,
};
use crate::family::Family;

/// A connection: what its packets look like on both sides of the translation.
///
/// It is put together in memory of its CPU's, for the stack has no room for it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Connection<A> {
    /// From the client to the VIP.
    pub(crate) forward: FlowKey<A>,
    /// From the backend to the client.
    pub(crate) reply: FlowKey<A>,
    /// From the client to the backend.
    pub(crate) leaving: FlowKey<A>,
    /// The port the client's packets go on to the backend with, where another connection holds the client's own; else zero.
    pub(crate) source_port: Port,
    /// The id of the service port.
    pub(crate) service: u32,
}

impl<A: Copy> Connection<A> {
    /// Makes it the connection whose client sent `forward` and whose backend is at `address` and `port`.
    #[inline(always)]
    pub(crate) fn set_backend(
        &mut self,
        forward: &FlowKey<A>,
        address: A,
        port: Port,
        source_port: Port,
        service: u32,
    ) {
        let client_port = if source_port == Port::default() { forward.source_port } else { source_port };
        self.forward = *forward;
        self.reply.source = address;
        self.reply.destination = forward.source;
        self.reply.source_port = port;
        self.reply.destination_port = client_port;
        self.reply.protocol = forward.protocol;
        self.leaving.source = forward.source;
        self.leaving.destination = address;
        self.leaving.source_port = client_port;
        self.leaving.destination_port = port;
        self.leaving.protocol = forward.protocol;
        self.source_port = source_port;
        self.service = service;
    }

    /// What its egress entry says.
    #[inline(always)]
    fn egress_entry(&self, state: FlowState, now: u32) -> NewEntry<A> {
        let is_rewritten = self.source_port != Port::default();
        NewEntry {
            kind: EgressKind::Reply,
            end: (self.forward.destination, self.forward.destination_port),
            client_port: if is_rewritten { self.forward.source_port } else { Port::default() },
            service: self.service,
            state,
            now,
        }
    }
}

/// Memory of this CPU's to put a connection together in.
#[inline(always)]
pub(crate) fn scratch<F: Family>() -> Option<&'static mut Connection<F::Address>> {
    let connection = F::maps().scratch.get_ptr_mut(0)?;
    // SAFETY: this CPU's own value; the programs run with bottom halves disabled, so none interrupts another on a CPU, and
    // no program asks for it while it still uses what it was given.
    Some(unsafe { &mut *connection })
}

/// Enters a new connection in both directions.
///
/// # Errors
///
/// `ReplyClash` when the backend's packets already belong to another living connection of the client;
/// `TableRefused` when the kernel does not take an entry.
#[inline(always)]
pub(crate) fn open<F: Family>(
    connection: &Connection<F::Address>,
    (backend, generation): (u32, u32),
    segment: Segment,
    now: u32,
    settings: &Settings,
) -> Result<(), Reason> {
    let state = FlowState::first(segment);
    let reply = new_entry::<F>(&connection.egress_entry(state, now)).ok_or(Reason::TableRefused)?;
    let stays = |held: &EgressEntry<F::Address>| !may_be_taken_over(held, reply, now, settings);
    if !enter_egress_unless::<F>(&connection.reply, reply, stays)? {
        return Err(Reason::ReplyClash);
    }
    let entry = ForwardEntry {
        backend,
        generation,
        service: connection.service,
        last_seen: now,
        state: state.number(),
        source_port: connection.source_port,
    };
    F::maps().forward_brief.insert(&connection.forward, &entry, BPF_ANY.into()).map_err(|_| Reason::TableRefused)
}

/// Whether the entry `held` may give way to `wanted`: it is the same connection's, or over.
#[inline(always)]
fn may_be_taken_over<A: Eq + Copy>(
    held: &EgressEntry<A>,
    wanted: &EgressEntry<A>,
    now: u32,
    settings: &Settings,
) -> bool {
    is_same(held, wanted) || is_over(held, now, settings)
}

/// Whether two entries for the same packets say the same.
#[inline(always)]
fn is_same<A: Eq>(held: &EgressEntry<A>, wanted: &EgressEntry<A>) -> bool {
    EgressKind::from_number(held.kind).is_of_backend() == EgressKind::from_number(wanted.kind).is_of_backend()
        && held.port == wanted.port
        && held.client_port == wanted.client_port
        && held.address == wanted.address
}

/// Records that the connection of a packet of `key` to the backend at `address` and `port` is alive: the states of both
/// entries when they change, the time when it is a second old. With the client's first acknowledgement of an answer
/// both move to the main tables.
#[inline(always)]
pub(crate) fn seen_forward<F: Family>(
    key: &FlowKey<F::Address>,
    (address, port): (F::Address, Port),
    (found, held): (Found<ForwardEntry>, &ForwardEntry),
    age: Age,
    segment: Segment,
    now: u32,
) {
    let Some(next) = to_write(held, held.state().after_forward(segment), age) else { return };
    cold_path();
    found.write(next, now);
    // Put together no sooner than here, which few packets reach.
    let Some(connection) = scratch::<F>() else { return };
    connection.set_backend(key, address, port, held.source_port, held.service);
    let Some(wanted) = new_entry::<F>(&connection.egress_entry(next, now)) else { return };
    let maps = F::maps();
    let reply = egress_beside::<F>(&connection.reply, found.is_brief);
    // Another connection may have taken the backend's packets over.
    if reply.is_some_and(|reply| !is_same(&reply.read(), wanted)) {
        return;
    }
    if found.is_brief && matches!(next, FlowState::Established) {
        if maps.egress.insert(&connection.reply, wanted, BPF_ANY.into()).is_err() {
            return;
        }
        // Both, or none: no key stands in two tables.
        if maps.forward.insert(&connection.forward, found.value(), BPF_ANY.into()).is_ok() {
            let _ = maps.egress_brief.remove(&connection.reply);
            let _ = maps.forward_brief.remove(&connection.forward);
        } else {
            let _ = maps.egress.remove(&connection.reply);
        }
        return;
    }
    match reply {
        Some(reply) => reply.write(next, now),
        // Evicted while nothing came back: without it the next reply would keep the backend's address.
        None => {
            let _ = if found.is_brief {
                maps.egress_brief.insert(&connection.reply, wanted, BPF_NOEXIST.into())
            } else {
                maps.egress.insert(&connection.reply, wanted, BPF_NOEXIST.into())
            };
        }
    }
}

/// As `seen_forward`, for a packet of `key` from the backend.
#[inline(always)]
pub(crate) fn seen_reply<F: Family>(
    key: &FlowKey<F::Address>,
    (found, held): (Found<EgressEntry<F::Address>>, &EgressEntry<F::Address>),
    age: Age,
    segment: Segment,
    now: u32,
) {
    let Some(next) = to_write(held, held.state().after_reply(segment), age) else { return };
    cold_path();
    found.write(next, now);
    // A stream that flows only from the backend keeps its client's entry alive too.
    let client = forward_key(key, held);
    if let Some(forward) = forward_beside::<F>(&client, found.is_brief)
        && leads_to::<F>(&forward.read(), key.source, key.source_port)
    {
        forward.write(next, now);
    }
}

/// Forgets the connection through a frontend whose client sends a packet of `key` straight to the backend: what comes back
/// is to be left as it is. Should the client send through the frontend again, the connection is made anew.
///
/// Two backends of the same port may be clients of each other's frontends from that port: what one answers looks like what
/// it would send straight to the other, but leaves with the VIP as its source.
///
/// Not for TCP, whose two ends say themselves where one connection ends and another begins.
#[inline(always)]
pub(crate) fn forget_bypassed<F: Family>(key: &FlowKey<F::Address>, now: u32, settings: &Settings) {
    let is_answer = egress::<F>(key).is_some_and(|found| {
        let held = found.read();
        EgressKind::from_number(held.kind).is_of_backend() && !held.age(now, settings).is_expired()
    });
    if is_answer {
        return;
    }
    let reply = key.answer();
    let Some(found) = egress::<F>(&reply) else { return };
    let held = found.read();
    if !EgressKind::from_number(held.kind).is_of_backend() {
        return;
    }
    forget_egress::<F>(&reply, found);
    let client = forward_key(&reply, &held);
    if let Some(forward) = forward::<F>(&client)
        && leads_to::<F>(&forward.read(), key.destination, key.destination_port)
    {
        let _ = F::maps().forward_brief.remove(&client);
    }
}

/// The key of the client's packets to the frontend, by the key of the backend's and the entry that `held` them.
#[inline(always)]
fn forward_key<A: Copy>(reply: &FlowKey<A>, held: &EgressEntry<A>) -> FlowKey<A> {
    let is_rewritten = held.client_port != Port::default();
    FlowKey {
        source: reply.destination,
        destination: held.address,
        source_port: if is_rewritten { held.client_port } else { reply.destination_port },
        destination_port: held.port,
        protocol: reply.protocol,
    }
}

/// Whether the client's entry leads to the backend at `address` and `port`; it may have gone on to another.
#[inline(always)]
fn leads_to<F: Family>(entry: &ForwardEntry, address: F::Address, port: Port) -> bool {
    F::maps().backends.get(entry.backend).is_some_and(|backend| backend.port == port && backend.address == address)
}
