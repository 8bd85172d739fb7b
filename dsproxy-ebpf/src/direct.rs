//! Direct server return: the node that a client's packet came to tells the backend's node the VIP, and the backend's node gives the
//! answers that as their source. They go to the client past the node in between, and the backend sees the client's address.
//!
//! The VIP stands in the packet: in an IPv4 option, or in an option for the destination of IPv6, of numbers for experiments
//! (RFC 4727), which hosts and routers that do not know them skip. What opens says it, and every datagram, for of those none
//! can be told from the first. Behind the IP header it is the first of its kind, and stays in the packet.

use dsproxy_common::{
    Port,
    count::Reason,
    flow::{FlowKey, NO_SERVICE, Segment},
    service::{Frontend, FrontendKey, FrontendKind},
    settings::{NetworkFlags, SettingFlags, Settings},
};

use crate::{
    clock,
    family::Family,
    lookup,
    outcome::Untranslated,
    packet::{BufferContext, Refused, Short},
    parse::Packet,
    track::{direct, masquerade},
};

/// The longest first datagram of a flow that may go directly, in bytes, before it says the VIP: no link need take more (RFC 8200,
/// section 5).
const LONGEST_FIRST: usize = 1280;

/// Whether a packet of `segment` has to say the VIP.
#[inline(always)]
fn says_vip(segment: Segment) -> bool {
    segment.opens() || segment == Segment::NOT_TCP
}

/// Whether the VIP can be put behind the IP header of `packet`: it is whole, and without options.
#[inline(always)]
fn takes_vip<F: Family, C: BufferContext>(context: &C, packet: &Packet<'_, F::Address>) -> bool {
    packet.piece.is_whole() && !packet.has_options::<F>(context.length())
}

/// Whether `packet`, the first of its connection, may go directly: it comes from outside the cluster, and has room for the VIP on every
/// way that it may take, if it has to say that. For that it is short enough, and one packet.
///
/// What pods send to another node may have to come back to their own, which would not take it in with an address of its own
/// as the source.
#[inline(always)]
pub(crate) fn is_possible<F: Family, C: BufferContext>(context: &C, packet: &Packet<'_, F::Address>) -> bool {
    let has_room = || {
        takes_vip::<F, C>(context, packet)
            && !context.is_aggregate()
            && context.length() as usize <= packet.l3 + LONGEST_FIRST - F::VIP_OPTION
    };
    (!says_vip(packet.segment) || has_room()) && lookup::network::<F>(packet.key.source) & NetworkFlags::POD == 0
}

/// Sends a packet that leaves on to its backend, with the VIP `address` and `port` in it if it has to say that.
///
/// A datagram that has no room for it goes as it is: it is not the first, and so the backend's node has been told. In a segment that
/// opens there is always room.
#[inline(always)]
pub(crate) fn send<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    address: F::Address,
    port: Port,
) -> Result<Reason, Reason> {
    if says_vip(packet.segment) && takes_vip::<F, C>(context, packet) {
        match context.make_room(F::VIP_OPTION as u32) {
            Ok(()) => F::write_vip(context.linear(), packet.l3, address, port)
                .map_err(|Short { .. }| Reason::RewriteFailed)?,
            Err(Refused) if packet.segment.opens() => return Err(Reason::RewriteFailed),
            Err(Refused) => (),
        }
    }
    Ok(Reason::SentDirect)
}

/// What becomes of a packet for no frontend that came by a node device: none, unless it is for a backend and says the VIP that it is
/// to answer by.
#[inline(always)]
pub(crate) fn arrive<F: Family, C: BufferContext>(
    context: &C,
    packet: &Packet<'_, F::Address>,
    settings: &Settings,
) -> Option<Untranslated> {
    let is_meant = settings.flags & SettingFlags::ACCEPT_DIRECT != 0 && lookup::may_be_for_backend::<F>(packet.key);
    if !is_meant {
        return None;
    }
    if !says_vip(packet.segment) {
        direct::seen_end::<F>(packet.key, packet.segment, clock::now(), settings);
        return None;
    }
    let (address, port) = F::read_vip(context.linear(), packet.l3)?;
    let service = service::<F>(packet.key, address, port)?;
    let entered = direct::enter::<F>(packet.key, (address, port), service, packet.segment, clock::now(), settings);
    Some(Untranslated::of(service)(entered.err().unwrap_or(Reason::DirectArrived)))
}

/// Whether a packet of a client's is one that may say a VIP to this node, or end a connection that did.
#[inline(always)]
pub(crate) fn is_of_interest<F: Family, C: BufferContext>(context: &C, packet: &Packet<'_, F::Address>) -> bool {
    packet.has_options::<F>(context.length()) || packet.segment.resets() || packet.segment.finishes()
}

/// Whether a packet says a VIP, which a client's to a frontend may not. Only nodes do that, and towards backends: it would go on with the
/// packet, and the backend's node believe it.
#[inline(always)]
pub(crate) fn pretends<F: Family, C: BufferContext>(context: &C, packet: &Packet<'_, F::Address>) -> bool {
    packet.has_options::<F>(context.length()) && F::read_vip(context.linear(), packet.l3).is_some()
}

/// The service port that is reached at `address` and `port`: a frontend of this node's, or a NodePort, which is at an address of the node
/// that the packet came to, and here at others. None if it is anything else, so that nobody can have a backend answer by a name
/// that is none.
#[inline(always)]
fn service<F: Family>(key: &FlowKey<F::Address>, address: F::Address, port: Port) -> Option<u32> {
    let find = |address| lookup::frontend_at::<F>(&FrontendKey::new(address, port, key.protocol as u8));
    let is_node_port = |frontend: &Frontend| frontend.kind() == Some(FrontendKind::NodePort);
    find(address)
        .or_else(|| find(masquerade::node_address::<F>(0)?).filter(is_node_port))
        .map(|frontend| frontend.service)
        .filter(|service| *service != NO_SERVICE)
}
