//! The connection table: entries found, made and refreshed, in both directions.
//!
//! Entries are written to in place, by plain stores of whole integers. Of two CPUs that do so at once the later one's
//! value stays; should that lose a change of state, the next packet makes it again. An entry that is evicted and given to
//! another connection while a program still holds it may get the older one's time and state, which its own next packet
//! puts right.

#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied to the stack, of which there are 512 bytes"
)]

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use dsproxy_common::{
    Port,
    count::Reason,
    flow::{FlowKey, FlowState, ForwardEntry, ReplyEntry, Segment, is_expired},
    settings::Settings,
};

use crate::family::Family;

/// A connection: what its packets look like on both sides of the translation.
#[derive(Clone, Copy)]
pub(crate) struct Connection<A> {
    /// From the client to the VIP.
    pub(crate) forward: FlowKey<A>,
    /// From the backend to the client.
    pub(crate) reply: FlowKey<A>,
    /// The id of the service port.
    pub(crate) service: u32,
}

impl<A: Copy> Connection<A> {
    /// The connection whose client sent `forward` and whose backend is at `address` and `port`.
    #[inline(always)]
    pub(crate) fn to_backend(forward: &FlowKey<A>, address: A, port: Port, service: u32) -> Self {
        Self {
            forward: *forward,
            reply: FlowKey {
                source: address,
                destination: forward.source,
                source_port: port,
                destination_port: forward.source_port,
                protocol: forward.protocol,
            },
            service,
        }
    }

    /// The connection whose backend sent `reply` and whose client knows it by `vip` and `port`.
    #[inline(always)]
    pub(crate) fn to_vip(reply: &FlowKey<A>, vip: A, port: Port, service: u32) -> Self {
        Self {
            forward: FlowKey {
                source: reply.destination,
                destination: vip,
                source_port: reply.destination_port,
                destination_port: port,
                protocol: reply.protocol,
            },
            reply: *reply,
            service,
        }
    }

    #[inline(always)]
    fn reply_entry(&self, state: FlowState, now: u32) -> ReplyEntry<A> {
        ReplyEntry {
            vip: self.forward.destination,
            service: self.service,
            last_seen: now,
            vip_port: self.forward.destination_port,
            state: state.number(),
        }
    }
}

/// The forward entry of a packet from a client.
#[inline(always)]
pub(crate) fn forward<F: Family>(key: &FlowKey<F::Address>) -> Option<*mut ForwardEntry> {
    F::maps().forward.get_ptr_mut(key)
}

/// The reply entry of a packet from a backend.
#[inline(always)]
pub(crate) fn reply<F: Family>(key: &FlowKey<F::Address>) -> Option<*mut ReplyEntry<F::Address>> {
    F::maps().reply.get_ptr_mut(key)
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
    let maps = F::maps();
    let state = FlowState::first(segment);
    let reply = connection.reply_entry(state, now);
    if maps.reply.insert(&connection.reply, &reply, BPF_NOEXIST.into()).is_err() {
        if let Some(entry) = maps.reply.get_ptr(&connection.reply) {
            // SAFETY: a map value stays readable until the program returns; see the head of this file.
            let held = unsafe { entry.read() };
            if !may_be_taken_over(&held, &reply, now, settings) {
                return Err(Reason::ReplyClash);
            }
        }
        maps.reply.insert(&connection.reply, &reply, BPF_ANY.into()).map_err(|_| Reason::TableRefused)?;
    }
    let forward =
        ForwardEntry { backend, generation, service: connection.service, last_seen: now, state: state.number().into() };
    maps.forward.insert(&connection.forward, &forward, BPF_ANY.into()).map_err(|_| Reason::TableRefused)
}

/// Whether the reply entry `held` may give way to `wanted`: it is the same connection's, or over.
#[inline(always)]
fn may_be_taken_over<A: Eq>(held: &ReplyEntry<A>, wanted: &ReplyEntry<A>, now: u32, settings: &Settings) -> bool {
    (held.vip == wanted.vip && held.vip_port == wanted.vip_port)
        || FlowState::from_number(held.state).is_over()
        || is_expired(held.state, held.last_seen, now, settings)
}

/// Whether an entry last seen at `last_seen` is to be refreshed: once a second.
#[inline(always)]
pub(crate) fn is_stale(last_seen: u32, now: u32, settings: &Settings) -> bool {
    now.wrapping_sub(last_seen) >= settings.jiffies_per_second
}

/// Records that the connection of a packet of `key` to the backend at `address` and `port` is alive: the states of both
/// entries when they change, the time when it is a second old. Most packets write nothing.
#[inline(always)]
pub(crate) fn seen_forward<F: Family>(
    key: &FlowKey<F::Address>,
    (address, port): (F::Address, Port),
    (entry, held): (*mut ForwardEntry, &ForwardEntry),
    segment: Segment,
    now: u32,
    settings: &Settings,
) {
    let state = FlowState::from_number(held.state as u16);
    let next = state.after_forward(segment);
    if next.number() == state.number() && !is_stale(held.last_seen, now, settings) {
        return;
    }
    write_forward(entry, next, now);
    // Put together no sooner than here, which few packets reach.
    let connection = Connection::to_backend(key, address, port, held.service);
    let wanted = connection.reply_entry(next, now);
    match reply::<F>(&connection.reply) {
        Some(reply) => {
            // SAFETY: a map value stays readable until the program returns; see the head of this file.
            let held = unsafe { reply.read() };
            // Another connection may have taken the backend's packets over.
            if (held.vip, held.vip_port) == (wanted.vip, wanted.vip_port) {
                write_reply(reply, next, now);
            }
        }
        // Evicted while nothing came back: without it the next reply would keep the backend's address.
        None => {
            let _ = F::maps().reply.insert(&connection.reply, &wanted, BPF_NOEXIST.into());
        }
    }
}

/// As `seen_forward`, for a packet of `key` from the backend.
#[inline(always)]
pub(crate) fn seen_reply<F: Family>(
    key: &FlowKey<F::Address>,
    (entry, held): (*mut ReplyEntry<F::Address>, &ReplyEntry<F::Address>),
    segment: Segment,
    now: u32,
    settings: &Settings,
) {
    let state = FlowState::from_number(held.state);
    let next = state.after_reply(segment);
    if next.number() == state.number() && !is_stale(held.last_seen, now, settings) {
        return;
    }
    write_reply(entry, next, now);
    let connection = Connection::to_vip(key, held.vip, held.vip_port, held.service);
    // A stream that flows only from the backend keeps its client's entry alive too.
    if let Some(forward) = forward::<F>(&connection.forward) {
        // SAFETY: as in `seen_forward`.
        let held = unsafe { forward.read() };
        // The client may have gone on to another backend.
        let is_to_this_backend = F::maps().backends.get(held.backend).is_some_and(|backend| {
            (backend.address, backend.port) == (connection.reply.source, connection.reply.source_port)
        });
        if is_to_this_backend {
            write_forward(forward, next, now);
        }
    }
}

#[inline(always)]
fn write_forward(entry: *mut ForwardEntry, state: FlowState, now: u32) {
    // SAFETY: a pointer to a map value, valid until the program returns; see the head of this file.
    unsafe {
        (&raw mut (*entry).last_seen).write_volatile(now);
        (&raw mut (*entry).state).write_volatile(state.number().into());
    }
}

#[inline(always)]
fn write_reply<A>(entry: *mut ReplyEntry<A>, state: FlowState, now: u32) {
    // SAFETY: as in `write_forward`.
    unsafe {
        (&raw mut (*entry).last_seen).write_volatile(now);
        (&raw mut (*entry).state).write_volatile(state.number());
    }
}
