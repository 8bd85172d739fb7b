//! Packets that enter: their destination becomes a backend, or the client behind the node's address.

use core::hint::cold_path;

use dsproxy_common::{
    Port,
    count::Reason,
    flow::{Age, FlowKey, ForwardEntry, Segment, SnatEntry},
    service::{Backend, BackendState, Frontend, FrontendFlags, SLOT_TRIES},
    settings::{Passage, SettingFlags, Settings},
};

use super::Side;
use crate::{
    clock, count, direct,
    family::Family,
    icmp_error, lookup, maps,
    outcome::Untranslated,
    packet::BufferContext,
    parse::{self, Content, Packet, fragment},
    pick::{self, Candidates},
    refuse::refuse,
    reset::reset,
    rewrite::{End, rewrite},
    track::{self, Entry as _, Found, connection, masquerade},
};

#[inline(always)]
pub(super) fn enter<F: Family, C: BufferContext>(context: &C, l3: usize, side: Side) -> Result<Reason, Untranslated> {
    let mut key = FlowKey::default();
    let packet = parse::packet::<F, C>(context, l3, &mut key)?;
    let settings = maps::SETTINGS.get(0).ok_or(Reason::NotService)?;
    if packet.content == Content::Error {
        cold_path();
        let places = (packet.l3, packet.l4);
        return Ok(icmp_error::enter::<F, C>(context, places, &mut key, settings)?);
    }
    let outcome = translate::<F, C>(context, &packet, side, settings);
    fragment::remember::<F>(packet.piece, packet.key, &outcome);
    match outcome {
        // The reason stays, unless there is one why it cannot be answered.
        Err(Untranslated { reason: reason @ (Reason::NoEndpoint | Reason::NoPort), service }) => {
            cold_path();
            refuse::<F, C>(context, &packet, clock::now(), settings).and(Err(reason)).map_err(Untranslated::of(service))
        }
        Err(Untranslated { reason: reason @ Reason::BackendGone, service }) => {
            reset::<F, C>(context, &packet, clock::now(), settings).and(Err(reason)).map_err(Untranslated::of(service))
        }
        outcome => outcome,
    }
}

#[inline(always)]
fn translate<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    side: Side,
    settings: &Settings,
) -> Result<Reason, Untranslated> {
    if packet.content == Content::Other {
        cold_path();
        return Err(lookup::without_frontend::<F>(packet.key, settings, Reason::OtherProtocol).into());
    }
    if masquerade::may_be_answer(packet.key, settings)
        && let Some(found) = track::client_behind::<F>(packet.key)
    {
        return Ok(to_client::<F, C>(context, packet, found, settings)?);
    }
    if packet.content == Content::Echo {
        cold_path();
        return Err(lookup::without_frontend::<F>(packet.key, settings, Reason::OtherProtocol).into());
    }
    if lookup::may_be_frontend::<F>(packet.key)
        && let Some(outcome) = to_frontend::<F, C>(context, packet, side, settings)
    {
        return outcome;
    }
    Err(bypass::<F, C>(context, packet, side, settings))
}

/// What becomes of a packet that the filter takes for one to a frontend; none if it is for none.
#[inline(always)]
fn to_frontend<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    side: Side,
    settings: &Settings,
) -> Option<Result<Reason, Untranslated>> {
    if direct::pretends::<F, C>(context, packet) {
        cold_path();
        // Who is neither at a frontend nor behind one may be the backend that another node tells the VIP.
        let service = service::<F>(packet.key, settings)?;
        return Some(Err(Untranslated::of(service)(Reason::Pretended)));
    }
    let now = clock::now();
    if let Some(found) = track::forward::<F>(packet.key) {
        if let Some(outcome) = follow::<F, C>(context, packet, found, now, settings) {
            return Some(outcome);
        }
        track::give_way::<F>(packet.key, found);
    }
    if settings.flags & SettingFlags::BESIDE_OTHERS != 0 && packet.segment.goes_on() {
        cold_path();
        return Some(Err(Reason::NotService.into()));
    }
    let frontend = lookup::frontend::<F>(packet.key)?;
    let opened = open::<F, C>(context, packet, &frontend, side, now, settings);
    Some(opened.map_err(Untranslated::of(frontend.service)))
}

/// The service port that packets of `key` are for, or a connection is through whose frontend has gone.
#[inline(always)]
fn service<F: Family>(key: &FlowKey<F::Address>, settings: &Settings) -> Option<u32> {
    let of_connection = || {
        let held = track::forward::<F>(key)?.read();
        (!held.age(clock::now(), settings).is_expired()).then_some(held.service)
    };
    lookup::frontend::<F>(key).map(|frontend| frontend.service).or_else(of_connection)
}

/// What becomes of a packet for no frontend.
#[inline(always)]
fn bypass<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    side: Side,
    settings: &Settings,
) -> Untranslated {
    if side == Side::Node && direct::is_of_interest::<F, C>(context, packet) {
        cold_path();
        if let Some(arrived) = direct::arrive::<F, C>(context, packet, settings) {
            return arrived;
        }
    }
    // Where a pod's packets come in, nobody has translated them yet: for a backend is what its client sends past the VIP.
    if side == Side::Pod
        && packet.segment == Segment::NOT_TCP
        && settings.flags & SettingFlags::ATTACHING == 0
        && lookup::may_be_for_backend::<F>(packet.key)
    {
        connection::forget_bypassed::<F>(packet.key, clock::now(), settings);
    }
    lookup::without_frontend::<F>(packet.key, settings, Reason::NotService).into()
}

/// Sends the answer to a masqueraded packet on to the client.
#[inline(always)]
fn to_client<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    found: Found<SnatEntry<F::Address>>,
    settings: &Settings,
) -> Result<Reason, Reason> {
    let now = clock::now();
    let held = found.read();
    let age = held.age(now, settings);
    if age.is_expired() {
        return Err(Reason::NotService);
    }
    masquerade::seen_answer::<F>(packet.key, (found, &held), age, packet.segment, now);
    rewrite::<F, C>(context, packet, End::Destination, held.client, held.port)?;
    Ok(Reason::Unmasqueraded)
}

/// Sends a packet after its connection; none when the connection is over or its backend no longer right.
#[inline(always)]
fn follow<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    found: Found<ForwardEntry>,
    now: u32,
    settings: &Settings,
) -> Option<Result<Reason, Untranslated>> {
    let held = found.read();
    let of_service = Untranslated::of(held.service);
    let Next { backend, age } = match next::<F>(packet, &held, now, settings)? {
        Ok(next) => next,
        Err(reason) => return Some(Err(of_service(reason))),
    };
    let (address, port) = (backend.address, backend.port);
    connection::seen_forward::<F>(packet.key, (address, port), (found, &held), age, packet.segment, now);
    let sent = to_backend::<F, C>(context, packet, address, port, held.source_port).map(|()| {
        count::forward(held.service, context.length(), false);
        Reason::Forwarded
    });
    Some(sent.map_err(of_service))
}

/// Where a packet of a connection goes.
pub(super) struct Next<A: 'static> {
    pub(super) backend: &'static Backend<A>,
    /// The age of the connection's entry.
    pub(super) age: Age,
}

/// Where the connection of a packet, whose entry is `held`, goes on to; none when it is over or its backend no longer right.
///
/// # Errors
///
/// `BackendGone`, where that is to end the connection.
#[inline(always)]
pub(super) fn next<F: Family>(
    packet: &Packet<'_, F::Address>,
    held: &ForwardEntry,
    now: u32,
    settings: &Settings,
) -> Option<Result<Next<F::Address>, Reason>> {
    let backend = F::maps().backends.get(held.backend)?;
    let state = BackendState::from_number(backend.state);
    let age = held.age(now, settings);
    if !held.goes_on(backend.generation, state, packet.segment, age) {
        cold_path();
        return None;
    }
    if matches!(state, BackendState::Gone) && settings.flags & SettingFlags::RESET_GONE != 0 {
        return Some(Err(Reason::BackendGone));
    }
    // A flow without an end follows its frontend: looked at once a second, like everything that changes seldom.
    if packet.segment == Segment::NOT_TCP
        && !age.is_fresh()
        && lookup::frontend::<F>(packet.key).is_none_or(|frontend| frontend.service != held.service)
    {
        return None;
    }
    Some(Ok(Next { backend, age }))
}

/// Rewrites a client's packet for the backend at `address` and `port`.
#[inline(always)]
fn to_backend<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    address: F::Address,
    port: Port,
    source_port: Port,
) -> Result<(), Reason> {
    rewrite::<F, C>(context, packet, End::Destination, address, port)?;
    if source_port != Port::default() {
        cold_path();
        rewrite::<F, C>(context, packet, End::Source, packet.key.source, source_port)?;
    }
    Ok(())
}

/// Picks a backend for a packet that belongs to no connection yet.
#[inline(always)]
fn open<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    frontend: &Frontend,
    side: Side,
    now: u32,
    settings: &Settings,
) -> Result<Reason, Reason> {
    let client = packet.key.source;
    if frontend.has(FrontendFlags::SOURCE_RANGES) && !lookup::is_in_source_ranges::<F>(frontend.service, client) {
        return Err(Reason::SourceRange);
    }
    let candidates = Candidates::of(frontend, is_inside::<F>(client, side, settings))?;
    let remembered = match frontend.affinity {
        0 => None,
        seconds => candidates.remembered::<F>(client, seconds, now, settings),
    };
    let hash = frontend.spread(packet.key);
    let mut failure = Reason::NoEndpoint;
    let mut attempt = 0;
    // The last attempt is made with another port for the client, when its own is taken with all the others. SCTP has none, for its
    // checksum covers the whole packet.
    while attempt <= SLOT_TRIES {
        let takes_other_port = attempt == SLOT_TRIES;
        let slot = if takes_other_port { 0 } else { attempt };
        attempt += 1;
        let is_in_vain = takes_other_port && (failure != Reason::ReplyClash || packet.content == Content::Sctp);
        if slot >= candidates.count() || is_in_vain {
            continue;
        }
        let Some((id, backend)) = remembered.or_else(|| candidates.pick::<F>(hash, slot)) else { continue };
        let source_port = if takes_other_port { masquerade::random_port(settings) } else { Port::default() };
        let connection = connection::scratch::<F>().ok_or(Reason::TableRefused)?;
        let (address, port) = (backend.address, backend.port);
        connection.set_backend(packet.key, address, port, source_port, frontend.service);
        match connection::open::<F>(connection, (id, backend.generation), packet.segment, now, settings) {
            Ok(()) => {
                if frontend.affinity != 0 {
                    pick::remember::<F>(client, frontend.service, id, backend.generation, now);
                }
                let (protocol, by_node_device) = (packet.key.protocol, side == Side::Node);
                match settings.passage(frontend, backend.flags, protocol, by_node_device, address == client) {
                    Passage::Plain => (),
                    // The client would not know an answer to a port that is not its own.
                    Passage::Direct if !takes_other_port && direct::is_possible::<F, C>(context, packet) => {
                        cold_path();
                        track::direct::request::<F>(connection, packet.segment, now, settings)?;
                    }
                    Passage::Masqueraded | Passage::Direct => {
                        masquerade::request::<F>(&connection.leaving, frontend.service, packet.segment, now, settings)?;
                    }
                }
                to_backend::<F, C>(context, packet, address, port, source_port)?;
                count::forward(frontend.service, context.length(), true);
                return Ok(Reason::Opened);
            }
            Err(Reason::ReplyClash) => failure = Reason::ReplyClash,
            Err(reason) => return Err(reason),
        }
    }
    Err(failure)
}

/// Whether a client belongs to the cluster: a pod of this node, or a source that is said to be a pod's.
#[inline(always)]
fn is_inside<F: Family>(client: F::Address, side: Side, settings: &Settings) -> bool {
    // Whether it matters is looked at before the search.
    side == Side::Pod
        || (settings.flags & SettingFlags::INSIDE_BY_NETWORK != 0
            && settings.knows_inside(lookup::network::<F>(client)))
}
