//! The packet's way, to be read from top to bottom: parse -> lookup -> pick -> track -> rewrite -> forward.
//!
//! Inside the host's network stack a packet always carries backend addresses: ingress turns a VIP into a backend
//! before the stack sees the packet, egress turns the backend into the VIP after it.

use dsproxy_common::{
    IpFamily,
    count::Reason,
    flow::{FlowKey, FlowState, ForwardEntry, Segment, is_expired},
    hash,
    service::{BackendState, Frontend},
    settings::Settings,
};

use crate::{
    clock, count,
    family::{Family, V4, V6},
    lookup, maps,
    packet::PacketContext,
    parse::{
        self, Packet,
        link::{self, Link},
    },
    pick,
    rewrite::{End, rewrite},
    track::{self, Connection},
};

/// How many slots are tried when one's backend is not to be had, or its packets to the client are another connection's.
const TRIES: u32 = 4;

/// Before the stack: DNAT, VIP -> backend. Says what became of the packet.
#[inline(always)]
pub(crate) fn ingress<C: PacketContext>(context: &C, link: Link) -> Reason {
    match link::parse(context, link) {
        Ok((IpFamily::V4, l3)) => counted::<V4>(to_backend::<V4, C>(context, l3)),
        Ok((IpFamily::V6, l3)) => counted::<V6>(to_backend::<V6, C>(context, l3)),
        Err(reason) => not_ip(reason),
    }
}

/// After the stack: DNAT undone, backend -> VIP. Says what became of the packet.
#[inline(always)]
pub(crate) fn egress<C: PacketContext>(context: &C, link: Link) -> Reason {
    match link::parse(context, link) {
        Ok((IpFamily::V4, l3)) => counted::<V4>(to_vip::<V4, C>(context, l3)),
        Ok((IpFamily::V6, l3)) => counted::<V6>(to_vip::<V6, C>(context, l3)),
        Err(reason) => not_ip(reason),
    }
}

#[inline(always)]
fn counted<F: Family>(outcome: Result<Reason, Reason>) -> Reason {
    let (Ok(reason) | Err(reason)) = outcome;
    count::packet(reason, Some(F::FAMILY));
    reason
}

#[inline(always)]
fn not_ip(reason: Reason) -> Reason {
    count::packet(reason, None);
    reason
}

#[inline(always)]
fn to_backend<F: Family, C: PacketContext>(context: &C, l3: usize) -> Result<Reason, Reason> {
    let mut key = FlowKey::default();
    let packet = parse::packet::<F, C>(context, l3, &mut key)?;
    if !lookup::may_be_frontend::<F>(packet.key) {
        return Err(Reason::NotService);
    }
    let settings = maps::SETTINGS.get(0).ok_or(Reason::NotService)?;
    let now = clock::now();

    if let Some(entry) = track::forward::<F>(packet.key)
        && let Some(reason) = follow::<F, C>(context, &packet, entry, now, settings)
    {
        return reason;
    }
    let frontend = lookup::frontend::<F>(packet.key).ok_or(Reason::NotService)?;
    open::<F, C>(context, &packet, &frontend, now, settings)
}

/// Sends a packet after its connection; none when the connection is over or its backend no longer right.
#[inline(always)]
fn follow<F: Family, C: PacketContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    entry: *mut ForwardEntry,
    now: u32,
    settings: &Settings,
) -> Option<Result<Reason, Reason>> {
    // SAFETY: a pointer to a map value, valid until the program returns; see the head of `track`.
    let held = unsafe { entry.read() };
    let backend = F::maps().backends.get(held.backend)?;
    let state = BackendState::from_number(backend.state);
    if !held.goes_on(backend.generation, state, packet.segment, now, settings) {
        return None;
    }
    // A flow without an end follows its frontend: looked at once a second, like everything that changes seldom.
    if packet.segment == Segment::NOT_TCP
        && track::is_stale(held.last_seen, now, settings)
        && lookup::frontend::<F>(packet.key).is_none_or(|frontend| frontend.service != held.service)
    {
        return None;
    }
    let (address, port) = (backend.address, backend.port);
    track::seen_forward::<F>(packet.key, (address, port), (entry, &held), packet.segment, now, settings);
    Some(rewrite::<F, C>(context, packet, End::Destination, address, port).map(|()| {
        count::forward(held.service, context.length(), false);
        Reason::Forwarded
    }))
}

/// Picks a backend for a packet that belongs to no connection yet.
#[inline(always)]
fn open<F: Family, C: PacketContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    frontend: &Frontend,
    now: u32,
    settings: &Settings,
) -> Result<Reason, Reason> {
    let hash = hash::flow_hash(packet.key);
    let mut failure = Reason::NoEndpoint;
    let mut step = 0;
    while step < TRIES && step < frontend.slot_count {
        if let Some((id, backend)) = pick::pick::<F>(frontend, hash, step) {
            let connection = Connection::to_backend(packet.key, backend.address, backend.port, frontend.service);
            match track::open::<F>(&connection, (id, backend.generation), packet.segment, now, settings) {
                Ok(()) => {
                    rewrite::<F, C>(context, packet, End::Destination, backend.address, backend.port)?;
                    count::forward(frontend.service, context.length(), true);
                    return Ok(Reason::Opened);
                }
                Err(Reason::ReplyClash) => failure = Reason::ReplyClash,
                Err(reason) => return Err(reason),
            }
        }
        step += 1;
    }
    Err(failure)
}

#[inline(always)]
fn to_vip<F: Family, C: PacketContext>(context: &C, l3: usize) -> Result<Reason, Reason> {
    let mut key = FlowKey::default();
    let packet = parse::packet::<F, C>(context, l3, &mut key)?;
    let entry = track::reply::<F>(packet.key).ok_or(Reason::NotReply)?;
    let settings = maps::SETTINGS.get(0).ok_or(Reason::NotReply)?;
    let now = clock::now();
    // SAFETY: as in `follow`.
    let held = unsafe { entry.read() };
    if is_expired(held.state, held.last_seen, now, settings) {
        return Err(Reason::NotReply);
    }
    // The backend accepts a connection that the client opened past the VIP, from a port it had just used through it.
    if packet.segment.accepts() && FlowState::from_number(held.state).may_be_over() {
        return Err(Reason::NotReply);
    }
    track::seen_reply::<F>(packet.key, (entry, &held), packet.segment, now, settings);
    rewrite::<F, C>(context, &packet, End::Source, held.vip, held.vip_port)?;
    count::reply(held.service, context.length());
    Ok(Reason::Replied)
}
