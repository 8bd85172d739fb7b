//! Connections that leave with an address of the node: the egress entry of what leaves (client -> backend) and the SNAT entry of
//! what enters in answer (backend -> node).
//!
//! Whether a connection is masqueraded is settled where it enters, with which address where it leaves: that is the
//! address of the device. Ports are those of a range that is reserved from the host's own sockets, so that no packet
//! of the host's can be taken for one of these.

#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied to the stack, of which there are 512 bytes"
)]

use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::bpf_get_prandom_u32,
};
use dsproxy_common::{
    Address as _, Port, Protocol,
    count::Reason,
    flow::{Age, EgressEntry, EgressKind, FlowKey, FlowState, Segment, SnatEntry},
    settings::Settings,
};

use super::{
    Entry as _, Found, NewEntry, egress, enter_egress, enter_egress_unless, is_over, new_entry, snat, to_write,
    write_egress,
};
use crate::{family::Family, lookup};

/// How many ports are tried. With three quarters of the range in use by connections to one backend, all of them are taken one
/// time in ten thousand.
const TRIES: u32 = 32;

/// The first of them that is taken from a connection that may be going on, if it has been silent for long enough.
const IN_NEED: u32 = TRIES / 2;

/// False when a packet of `key` is certainly no answer to a masqueraded one.
#[inline(always)]
pub(crate) fn may_be_answer<A>(key: &FlowKey<A>, settings: &Settings) -> bool {
    settings.is_snat_port(key.destination_port) || key.protocol == Protocol::Sctp as u32
}

/// A port for a new connection, by chance.
#[inline(always)]
pub(crate) fn random_port(settings: &Settings) -> Port {
    // SAFETY: a helper without arguments.
    settings.offered_port(unsafe { bpf_get_prandom_u32() })
}

/// What comes back for packets of `key` that leave with `address` and `port`.
#[inline(always)]
fn answer_to<A: Copy>(key: &FlowKey<A>, address: A, port: Port) -> FlowKey<A> {
    FlowKey { destination: address, destination_port: port, ..key.answer() }
}

/// The egress entry of a connection that starts with `segment`.
#[inline(always)]
fn first_entry<F: Family>(
    kind: EgressKind,
    end: (F::Address, Port),
    service: u32,
    segment: Segment,
    now: u32,
) -> NewEntry<F::Address> {
    NewEntry { kind, end, client_port: Port::default(), service, state: FlowState::first(segment), now }
}

/// Notes that packets of `key`, as they will leave, are to be masqueraded.
#[inline(always)]
pub(crate) fn request<F: Family>(
    key: &FlowKey<F::Address>,
    service: u32,
    segment: Segment,
    now: u32,
    settings: &Settings,
) -> Result<(), Reason> {
    // Before anybody may look for it.
    lookup::mark_leaving::<F>(key);
    let nowhere = (F::Address::default(), Port::default());
    let new = first_entry::<F>(EgressKind::Unsettled, nowhere, service, segment, now);
    let entry = new_entry::<F>(&new).ok_or(Reason::TableRefused)?;
    // Masqueraded before, and its backend has not forgotten: it goes on with the port it has.
    enter_egress_unless::<F>(key, entry, |held| !is_over(held, now, settings)).map(|_| ())
}

/// Finds an address and port of the node for packets of `key` that leave by `device`, and enters both directions.
///
/// # Errors
///
/// `NoNodeAddress`, `SnatExhausted` or `TableRefused`.
#[inline(always)]
pub(crate) fn settle<F: Family>(
    key: &FlowKey<F::Address>,
    service: u32,
    device: u32,
    segment: Segment,
    now: u32,
    settings: &Settings,
) -> Result<(F::Address, Port), Reason> {
    let address = node_address::<F>(device).ok_or(Reason::NoNodeAddress)?;
    let state = FlowState::first(segment).number();
    let entry = SnatEntry { client: key.source, last_seen: now, port: key.source_port, state };
    let mut answer = answer_to(key, address, key.source_port);
    // SCTP keeps its ports: its checksum covers the whole packet.
    let keeps_port = key.protocol == Protocol::Sctp as u32;
    let mut tried = 0;
    let port = loop {
        let port = if tried == 0 && (keeps_port || settings.is_offered(key.source_port)) {
            key.source_port
        } else {
            random_port(settings)
        };
        answer.destination_port = port;
        if take::<F>(&answer, &entry, tried >= IN_NEED, now, settings) {
            break port;
        }
        tried += 1;
        if tried == TRIES || keeps_port {
            return Err(Reason::SnatExhausted);
        }
    };
    // Nobody has requested what a pod sends to a backend outside of the cluster.
    if lookup::may_be_for_backend::<F>(key) {
        lookup::mark_leaving::<F>(key);
    }
    enter_egress::<F>(key, &first_entry::<F>(EgressKind::Masquerade, (address, port), service, segment, now))?;
    Ok((address, port))
}

/// Enters `entry` for answers of `key`, unless they are another living connection's; `in_need` also if that is silent.
#[inline(always)]
fn take<F: Family>(
    key: &FlowKey<F::Address>,
    entry: &SnatEntry<F::Address>,
    in_need: bool,
    now: u32,
    settings: &Settings,
) -> bool {
    let maps = F::maps();
    if maps.snat.insert(key, entry, BPF_NOEXIST.into()).is_ok() {
        return true;
    }
    let Some(found) = snat::<F>(key) else { return false };
    let held = found.read();
    // Without a branch for each word: it stands in a loop, which the verifier follows every way through.
    let words = held.client.words().iter().zip(entry.client.words());
    let difference = words.fold(u32::from(held.port != entry.port), |all, (one, other)| all | (one ^ other));
    let may_be_taken = difference == 0 || settings.gives_port_away(held.state, held.last_seen, in_need, now);
    may_be_taken && maps.snat.insert(key, entry, BPF_ANY.into()).is_ok()
}

/// The address that packets leave `device` with: its own, else the node's.
#[inline(always)]
pub(crate) fn node_address<F: Family>(device: u32) -> Option<F::Address> {
    let addresses = F::maps().masquerade;
    // SAFETY: copied at once; user space replaces an address by a new element, and rarely.
    unsafe { addresses.get(&device).or_else(|| addresses.get(&0)) }.copied()
}

/// Records that the connection of a packet of `key` that leaves is alive, as `connection::seen_forward` does. False when its port
/// has meanwhile been taken from it: no answer to what leaves with that would be its own.
#[inline(always)]
#[must_use]
pub(crate) fn seen_forward<F: Family>(
    key: &FlowKey<F::Address>,
    (found, held): (Found<EgressEntry<F::Address>>, &EgressEntry<F::Address>),
    age: Age,
    segment: Segment,
    now: u32,
) -> bool {
    let Some(next) = to_write(held, held.state().after_forward(segment), age) else { return true };
    let answer = answer_to(key, held.address, held.port);
    match snat::<F>(&answer) {
        Some(found) => {
            let held = found.read();
            if held.client != key.source || held.port != key.source_port {
                return false;
            }
            found.write(next, now);
        }
        // Evicted: without it the next answer would be taken for the host's own.
        None => {
            let entry = SnatEntry { client: key.source, last_seen: now, port: key.source_port, state: next.number() };
            let _ = F::maps().snat.insert(&answer, &entry, BPF_NOEXIST.into());
        }
    }
    write_egress::<F>(key, found, next, now);
    true
}

/// As `seen_forward`, for a packet of `key` that enters in answer.
#[inline(always)]
pub(crate) fn seen_answer<F: Family>(
    key: &FlowKey<F::Address>,
    (found, held): (Found<SnatEntry<F::Address>>, &SnatEntry<F::Address>),
    age: Age,
    segment: Segment,
    now: u32,
) {
    let Some(next) = to_write(held, held.state().after_reply(segment), age) else { return };
    found.write(next, now);
    let forward = FlowKey { source: held.client, source_port: held.port, ..key.answer() };
    if let Some(found) = egress::<F>(&forward) {
        let entry = found.read();
        if entry.address == key.destination && entry.port == key.destination_port {
            found.write(next, now);
        }
    }
}
