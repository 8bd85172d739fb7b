//! Connections whose backend, on another node, answers the client directly. The client's node has an egress entry of what leaves
//! (client -> backend) and sees no answer; the backend's has an egress entry of replies (backend -> client), and does not follow
//! what enters.

#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "a key passed by value is copied to the stack, of which there are 512 bytes"
)]

use dsproxy_common::{
    Port,
    count::Reason,
    flow::{Age, EgressEntry, EgressKind, FlowKey, FlowState, NO_SERVICE, Segment},
    settings::Settings,
};

use super::{
    Entry as _, Found, NewEntry, connection::Connection, egress, enter_egress, enter_egress_unless, forward,
    give_way_egress, is_over, new_entry, to_write, write_egress,
};
use crate::{family::Family, lookup};

/// Notes that the backend is to answer the client of `connection`, which was just entered, directly.
#[inline(always)]
pub(crate) fn request<F: Family>(
    connection: &Connection<F::Address>,
    segment: Segment,
    now: u32,
    settings: &Settings,
) -> Result<(), Reason> {
    let state = FlowState::first_direct(segment);
    if let Some(entered) = forward::<F>(&connection.forward) {
        entered.write(state, now);
    }
    let key = &connection.leaving;
    // Before anybody may look for it.
    lookup::mark_leaving::<F>(key);
    let new = NewEntry {
        kind: EgressKind::Direct,
        end: (connection.forward.destination, connection.forward.destination_port),
        client_port: Port::default(),
        service: connection.service,
        state,
        now,
    };
    let entry = new_entry::<F>(&new).ok_or(Reason::TableRefused)?;
    // As it was settled, so it goes on, unless the client has begun anew.
    enter_egress_unless::<F>(key, entry, |held| !is_over(held, now, settings)).map(|_| ())
}

/// Records that the connection of a packet of `key` that leaves is alive, as `connection::seen_forward` does.
#[inline(always)]
pub(crate) fn seen_forward<F: Family>(
    key: &FlowKey<F::Address>,
    (found, held): (Found<EgressEntry<F::Address>>, &EgressEntry<F::Address>),
    age: Age,
    segment: Segment,
    now: u32,
) {
    if let Some(next) = to_write(held, held.state().after_forward(segment), age) {
        write_egress::<F>(key, found, next, now);
    }
}

/// As `seen_forward`, for a packet of `key` from a backend that answers past its client's node.
#[inline(always)]
pub(crate) fn seen_reply<F: Family>(
    key: &FlowKey<F::Address>,
    (found, held): (Found<EgressEntry<F::Address>>, &EgressEntry<F::Address>),
    age: Age,
    segment: Segment,
    now: u32,
) {
    if let Some(next) = to_write(held, held.state().after_direct_reply(segment), age) {
        write_egress::<F>(key, found, next, now);
    }
}

/// Records that a client ends its connection by a segment of `key`, if the backend answers it directly. What has expired stays so: the
/// client may have opened another past the VIP since.
#[inline(always)]
pub(crate) fn seen_end<F: Family>(key: &FlowKey<F::Address>, segment: Segment, now: u32, settings: &Settings) {
    if let Some(found) = egress::<F>(&key.answer()) {
        let held = found.read();
        if held.kind == EgressKind::DirectReply.number() && !held.age(now, settings).is_expired() {
            found.write(held.state().after_forward(segment), now);
        }
    }
}

/// Enters that what the backend answers to a packet of `key` goes to the client from `vip`.
///
/// # Errors
///
/// `ReplyClash` when the backend's packets already belong to another living connection of the client; `TableRefused` when the kernel
/// does not take the entry.
#[inline(always)]
pub(crate) fn enter<F: Family>(
    key: &FlowKey<F::Address>,
    vip: (F::Address, Port),
    service: u32,
    segment: Segment,
    now: u32,
    settings: &Settings,
) -> Result<(), Reason> {
    let reply = key.answer();
    let state = FlowState::first(segment);
    if let Some(found) = egress::<F>(&reply) {
        let held = found.read();
        let is_same = held.port == vip.1 && held.address == vip.0 && held.client_port == Port::default();
        // What it sends without having been asked is taken for a client's where all that leaves the cluster is masqueraded.
        let is_guess = held.service == NO_SERVICE && segment == Segment::NOT_TCP;
        if !is_over(&held, now, settings) && !is_guess {
            // Or what the backend sends as a client, from the port that it listens at.
            if !is_same || !EgressKind::from_number(held.kind).is_of_backend() {
                return Err(Reason::ReplyClash);
            }
            // Sent again, or the connection came by this node before: both lead to the same.
            if held.kind == EgressKind::Reply.number() || state.number() == held.state().number() {
                found.touch(now);
                return Ok(());
            }
        }
        give_way_egress::<F>(&reply, found);
    }
    let new = NewEntry { kind: EgressKind::DirectReply, end: vip, client_port: Port::default(), service, state, now };
    enter_egress::<F>(&reply, &new)
}
