//! ICMP errors about translated packets: what they quote is translated back to what its sender knows, and they go to it.
//! Without that neither end of a connection would hear of a smaller path MTU.
//!
//! What is quoted has gone the other way. Turned round, its addresses and ports are those of a packet of the same connection
//! that goes the error's way, and so the key of an entry that says what the far end is called on the other side.

use dsproxy_common::{
    Address as _, Port, Protocol, checksum,
    count::Reason,
    flow::{EgressKind, FlowKey},
    settings::Settings,
};

use crate::{
    clock,
    family::Family,
    icmp,
    packet::{BufferContext, Linear, Short, View},
    parse::{LONGEST_HEADERS, Transport, transport},
    rewrite::End,
    track::{self, Entry as _, masquerade},
    verifier,
};

/// How much of the packet is made accessible: headers of both packets, with room for options and extension headers.
const REACH: u32 = 512;

/// The part of a transport header that every error quotes (RFC 792; RFC 4443 wants more).
const LEAST_QUOTED: usize = 8;

/// A TCP header as far as its checksum, in bytes.
const TCP_SUMMED: usize = transport::TCP_CHECKSUM + 2;

/// Where an error and what it quotes stand in the packet.
pub(crate) struct Places {
    /// The IP header of the error.
    l3: usize,
    /// Its ICMP header.
    l4: usize,
    /// The quoted packet's transport header; its IP header follows the ICMP header.
    quoted_l4: usize,
    quoted_protocol: u8,
    /// Where the error ends.
    end: usize,
}

/// What the far end of a connection is called.
struct Name<A> {
    address: A,
    port: Port,
    /// The near end's port, should it be another one there; else zero.
    other_port: Port,
}

/// Translates an error that enters, in `context` at `l3` and `l4`; `key` holds its own addresses.
///
/// It is about a packet that left with a VIP or an address of the node as its source.
#[inline(always)]
pub(crate) fn enter<F: Family, C: BufferContext>(
    context: &C,
    (l3, l4): (usize, usize),
    key: &mut FlowKey<F::Address>,
    settings: &Settings,
) -> Result<Reason, Reason> {
    let receiver = key.destination;
    let places = quoted::<F, C>(context, l3, l4, key)?;
    // Sent to somebody else than the sender of the packet, it is no error of that packet.
    if key.destination != receiver {
        return Err(Reason::OtherProtocol);
    }
    let name = sender::<F>(key, clock::now(), settings).ok_or(Reason::OtherProtocol)?;
    rename::<F>(context.linear(), &places, key, End::Source, &name, true)
        .map_err(|Short { .. }| Reason::RewriteFailed)?;
    Ok(Reason::IcmpError)
}

/// Translates an error that leaves, as `enter` does.
///
/// It is about a packet that entered and got a backend or a client as its destination. Whoever sends the error keeps the name
/// it has, unless it is that destination itself.
#[inline(always)]
pub(crate) fn leave<F: Family, C: BufferContext>(
    context: &C,
    (l3, l4): (usize, usize),
    key: &mut FlowKey<F::Address>,
    settings: &Settings,
) -> Result<Reason, Reason> {
    let reporter = key.source;
    let places = quoted::<F, C>(context, l3, l4, key)?;
    let name = receiver::<F>(key, clock::now(), settings).ok_or(Reason::OtherProtocol)?;
    let is_reporter = key.source == reporter;
    rename::<F>(context.linear(), &places, key, End::Destination, &name, is_reporter)
        .map_err(|Short { .. }| Reason::RewriteFailed)?;
    Ok(Reason::IcmpError)
}

/// Who sent a packet that left: the client behind the node's address, or the backend behind the VIP.
#[inline(always)]
fn sender<F: Family>(key: &FlowKey<F::Address>, now: u32, settings: &Settings) -> Option<Name<F::Address>> {
    if masquerade::may_be_answer(key, settings)
        && let Some(found) = track::client_behind::<F>(key)
    {
        let held = found.read();
        let is_alive = !held.age(now, settings).is_expired();
        return is_alive.then_some(Name { address: held.client, port: held.port, other_port: Port::default() });
    }
    let held = track::forward::<F>(key)?.read();
    let backend = F::maps().backends.get(held.backend)?;
    let is_alive = held.generation == backend.generation && !held.age(now, settings).is_expired();
    is_alive.then_some(Name { address: backend.address, port: backend.port, other_port: held.source_port })
}

/// Whom a packet that entered was sent to, by its sender's words.
#[inline(always)]
fn receiver<F: Family>(key: &FlowKey<F::Address>, now: u32, settings: &Settings) -> Option<Name<F::Address>> {
    let held = track::egress::<F>(key)?.read();
    let is_replaced = !matches!(EgressKind::from_number(held.kind), EgressKind::Unsettled | EgressKind::Direct);
    let is_alive = is_replaced && !held.age(now, settings).is_expired();
    is_alive.then_some(Name { address: held.address, port: held.port, other_port: held.client_port })
}

/// Finds the headers of the quoted packet, and fills `key` with its addresses and ports turned round.
#[inline(always)]
pub(crate) fn quoted<F: Family, C: BufferContext>(
    context: &C,
    l3: usize,
    l4: usize,
    key: &mut FlowKey<F::Address>,
) -> Result<Places, Reason> {
    let reach = context.length().min(l4 as u32 + REACH);
    context.pull(reach).map_err(|crate::packet::Refused| Reason::Malformed)?;
    let linear = context.linear();
    let quoted_l3 = l4 + icmp::HEADER;
    let Ok(Ok(Transport { protocol, offset, piece, .. })) = F::parse(linear, quoted_l3, key) else {
        return Err(Reason::OtherProtocol);
    };
    if piece.is_later() {
        return Err(Reason::OtherProtocol);
    }
    let quoted_l4 = verifier::forget(offset, context.length(), LONGEST_HEADERS).ok_or(Reason::OtherProtocol)?;
    let length = F::length(linear, l3).ok().flatten();
    let end = length.map_or(context.length() as usize, |length| l3 + length);
    // What stands behind the end is no part of the error.
    if end < quoted_l4 + LEAST_QUOTED {
        return Err(Reason::OtherProtocol);
    }
    let header = View::<LEAST_QUOTED>::at(linear, quoted_l4).map_err(|Short { .. }| Reason::OtherProtocol)?;
    let (source_port, destination_port) = match Protocol::from_number(protocol) {
        Some(Protocol::Tcp | Protocol::Udp | Protocol::Sctp) => transport::ports(&header),
        None if protocol == F::ICMP.protocol => transport::echo_ports::<F, _>(&header).ok_or(Reason::OtherProtocol)?,
        None => return Err(Reason::OtherProtocol),
    };
    core::mem::swap(&mut key.source, &mut key.destination);
    (key.source_port, key.destination_port) = (destination_port, source_port);
    key.protocol = protocol.into();
    Ok(Places { l3, l4, quoted_l4, quoted_protocol: protocol, end })
}

/// Gives `end` of the quoted packet the name `name`, and with `is_both` the other end of the error itself the address. All
/// checksums are updated.
///
/// The checksum of the error covers what is quoted, so it makes up for all that changes there, and for its own IP header's
/// change there is either the header's own checksum or the pseudo-header. The sum over the whole packet, which a device may
/// have given, stays what it was.
#[inline(always)]
fn rename<F: Family>(
    linear: Linear,
    places: &Places,
    key: &FlowKey<F::Address>,
    end: End,
    name: &Name<F::Address>,
    is_both: bool,
) -> Result<(), Short> {
    let Places { l3, l4, quoted_l4, quoted_protocol, end: end_of_error } = *places;
    // Looked at from front to back: of what lies in front of a place that was found to be in the packet, the compiler needs no
    // check, and the verifier does.
    let error = View::<{ icmp::HEADER }>::at(linear, l4)?;
    // The key is turned round.
    let (old, outer_end) = match end {
        End::Source => (&key.destination, End::Destination),
        End::Destination => (&key.source, End::Source),
    };
    let address = checksum::difference(old.words(), name.address.words());
    let mut difference = 0;
    if is_both {
        F::write_address(linear, l3, outer_end, name.address, address)?;
        if F::ICMP.has_pseudo_header {
            difference = address;
        }
    }
    F::write_address(linear, l4 + icmp::HEADER, end, name.address, address)?;
    if !F::HAS_HEADER_CHECKSUM {
        difference = checksum::add(difference, address);
    }

    let header = View::<LEAST_QUOTED>::at(linear, quoted_l4)?;
    let ports = match Protocol::from_number(quoted_protocol) {
        // Never changed: the checksum covers the whole packet.
        Some(Protocol::Sctp) => 0,
        Some(Protocol::Tcp | Protocol::Udp) => transport::replace_ports(&header, end, name.port, name.other_port),
        None => transport::replace_identifier(&header, name.port),
    };
    difference = checksum::add(difference, ports);
    let with_pseudo_header = checksum::add(address, ports);
    let quoted = match Protocol::from_number(quoted_protocol) {
        Some(Protocol::Udp) => transport::update_udp_checksum(&header, with_pseudo_header),
        // Not part of what the least of errors quote.
        Some(Protocol::Tcp) if quoted_l4 + TCP_SUMMED <= end_of_error => {
            match View::<TCP_SUMMED>::at(linear, quoted_l4) {
                Ok(header) => transport::update_checksum::<{ transport::TCP_CHECKSUM }, _>(&header, with_pseudo_header),
                Err(Short { .. }) => 0,
            }
        }
        Some(Protocol::Tcp | Protocol::Sctp) => 0,
        None => {
            let covered = if F::ICMP.has_pseudo_header { with_pseudo_header } else { ports };
            transport::update_checksum::<{ icmp::CHECKSUM }, _>(&header, covered)
        }
    };
    difference = checksum::add(difference, quoted);

    transport::update_checksum::<{ icmp::CHECKSUM }, _>(&error, difference);
    Ok(())
}
