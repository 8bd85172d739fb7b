//! Packets that leave: their source becomes the VIP, or an address of the node.

use core::hint::cold_path;

use dsproxy_common::{
    Port,
    count::Reason,
    flow::{Age, EgressEntry, EgressKind, FlowKey, FlowState, NO_SERVICE},
    settings::{NetworkFlags, SettingFlags, Settings},
};

use super::Side;
use crate::{
    clock, count, direct,
    family::Family,
    forward, icmp_error, lookup, maps,
    outcome::Untranslated,
    packet::BufferContext,
    parse::{self, Content, Packet, fragment},
    rewrite::{End, rewrite},
    track::{self, Entry as _, Found, connection, masquerade},
};

#[inline(always)]
pub(super) fn leave<F: Family, C: BufferContext>(context: &C, l3: usize, side: Side) -> Result<Reason, Untranslated> {
    let mut key = FlowKey::default();
    let packet = parse::packet::<F, C>(context, l3, &mut key)?;
    let settings = maps::SETTINGS.get(0).ok_or(Reason::NotReply)?;
    match packet.content {
        Content::Tcp | Content::Udp | Content::Sctp | Content::Echo => (),
        Content::Error => {
            cold_path();
            let places = (packet.l3, packet.l4);
            return Ok(icmp_error::leave::<F, C>(context, places, &mut key, settings)?);
        }
        Content::Other => {
            cold_path();
            return Err(Reason::OtherProtocol.into());
        }
    }
    let outcome = translate::<F, C>(context, &packet, side, settings);
    fragment::remember::<F>(packet.piece, packet.key, &outcome);
    outcome
}

#[inline(always)]
fn translate<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    side: Side,
    settings: &Settings,
) -> Result<Reason, Untranslated> {
    let masquerades = side == Side::Node && settings.flags & SettingFlags::MASQUERADE_EGRESS != 0;
    if !masquerades && !lookup::may_leave_rewritten::<F>(packet.key, settings) {
        return Err(Reason::NotReply.into());
    }
    let now = clock::now();
    let mut unsettled = None;
    if let Some(found) = track::egress_beside::<F>(packet.key, packet.segment.synchronizes()) {
        // Before the entry may move. What leaves by a pod's device is nothing that XDP could send on.
        if side == Side::Node {
            forward::note(context, packet.l3, found);
        }
        let held = found.read();
        let age = held.age(now, settings);
        if age.is_expired() {
            cold_path();
            // As good as none; but one that both sides had confirmed would be found before what may follow.
            track::give_way_egress::<F>(packet.key, found);
        } else {
            match EgressKind::from_number(held.kind) {
                EgressKind::Reply | EgressKind::DirectReply => {
                    return to_vip::<F, C>(context, packet, (found, &held), age, now);
                }
                EgressKind::Masquerade => {
                    if masquerade::seen_forward::<F>(packet.key, (found, &held), age, packet.segment, now) {
                        rewrite::<F, C>(context, packet, End::Source, held.address, held.port)
                            .map_err(Untranslated::of(held.service))?;
                        return Ok(Reason::Masqueraded);
                    }
                    cold_path();
                    unsettled = Some((found, held.service));
                }
                EgressKind::Direct if side == Side::Node => {
                    cold_path();
                    track::direct::seen_forward::<F>(packet.key, (found, &held), age, packet.segment, now);
                    return direct::send::<F, C>(context, packet, held.address, held.port)
                        .map_err(Untranslated::of(held.service));
                }
                EgressKind::Direct => return Err(Reason::NotReply.into()),
                EgressKind::Unsettled => unsettled = Some((found, held.service)),
            }
        }
    }
    let service = match unsettled {
        Some((_, service)) => service,
        None if masquerades && leaves_cluster::<F>(packet) => NO_SERVICE,
        None => return Err(Reason::NotReply.into()),
    };
    let (address, port) = masquerade::settle::<F>(packet.key, service, context.device(), packet.segment, now, settings)
        .map_err(Untranslated::of(service))?;
    if let Some((found, _)) = unsettled {
        track::give_way_egress::<F>(packet.key, found);
    }
    rewrite::<F, C>(context, packet, End::Source, address, port).map_err(Untranslated::of(service))?;
    Ok(Reason::Masqueraded)
}

/// Gives a backend's packet the VIP as its source.
#[inline(always)]
fn to_vip<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    (found, held): (Found<EgressEntry<F::Address>>, &EgressEntry<F::Address>),
    age: Age,
    now: u32,
) -> Result<Reason, Untranslated> {
    // The backend accepts a connection that the client opened past the VIP, from a port it had just used through it: the
    // entry is for what is over, and must not be taken for what follows.
    if packet.segment.accepts() && FlowState::from_number(held.state.into()).may_be_over() {
        track::forget_egress::<F>(packet.key, found);
        return Err(Reason::NotReply.into());
    }
    if held.kind == EgressKind::DirectReply.number() {
        cold_path();
        track::direct::seen_reply::<F>(packet.key, (found, held), age, packet.segment, now);
    } else {
        connection::seen_reply::<F>(packet.key, (found, held), age, packet.segment, now);
    }
    rewrite::<F, C>(context, packet, End::Source, held.address, held.port).map_err(Untranslated::of(held.service))?;
    if held.client_port != Port::default() {
        cold_path();
        rewrite::<F, C>(context, packet, End::Destination, packet.key.destination, held.client_port)
            .map_err(Untranslated::of(held.service))?;
    }
    count::reply(held.service, context.length());
    Ok(Reason::Replied)
}

/// Whether the packet opens a connection of a pod to where pods' addresses mean nothing.
///
/// A TCP segment in the middle may belong to a connection that somebody opened towards the pod, and an echo reply does.
#[inline(always)]
fn leaves_cluster<F: Family>(packet: &Packet<'_, F::Address>) -> bool {
    let opens = match packet.content {
        Content::Tcp => packet.segment.opens(),
        Content::Udp | Content::Sctp => true,
        Content::Echo => packet.key.source_port != Port::default(),
        Content::Error | Content::Other => false,
    };
    opens
        && lookup::network::<F>(packet.key.source) & NetworkFlags::POD != 0
        && lookup::network::<F>(packet.key.destination) & (NetworkFlags::POD | NetworkFlags::NOT_MASQUERADED) == 0
}
