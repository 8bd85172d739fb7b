//! What packets became, told to whoever listens (`dsproxy events`). While nobody does, a packet pays for one look at whether.
//!
//! A packet that is listened to ends in another program, by a tail call. That one reads it as it goes on, and finds out from the
//! tables what it was: the programs of packets need not keep that in mind, and neither their stack nor the verifier's patience with
//! them becomes less.

#![allow(
    clippy::needless_borrows_for_generic_args,
    reason = "an event passed by value is copied to the stack, of which there are 512 bytes"
)]

use core::hint::cold_path;

use aya_ebpf::{
    bindings::BPF_RB_NO_WAKEUP,
    helpers::bpf_ktime_get_boot_ns,
    programs::{TcContext, XdpContext},
};
use dsproxy_common::{
    Address, IpFamily, Port,
    count::Reason,
    event::{Ends, Event, EventHook},
    flow::{EgressKind, FlowKey, NO_SERVICE},
};

use crate::{
    clock, count,
    family::{Family, V4, V6},
    icmp_error, lookup, maps,
    packet::{BufferContext, FrameContext, PacketContext},
    parse::{
        self, Content,
        link::{self, Link},
    },
    pipeline::Sent,
    socket::{
        self,
        context::{Place, SocketContext},
    },
    track,
};

/// What a program leaves for the one that tells of its packet.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Left {
    reason: u32,
    hook: u32,
    /// The device that the packet is sent out of past the stack; zero: none.
    exit: u32,
}

/// A packet that has been told of.
#[derive(Clone, Copy)]
pub(crate) struct Told {
    /// What became of it.
    pub(crate) reason: Reason,
    /// As `Left::exit`.
    pub(crate) exit: u32,
}

/// Whether somebody listens to packets, or calls, that end so.
#[inline(always)]
fn is_asked_for(reason: Reason) -> bool {
    let Some(filter) = maps::EVENT_FILTER.get_ptr_mut(0) else { return false };
    // SAFETY: a map value, valid until the program returns. User space may write to it meanwhile: then one event is told, or not,
    // by half of the old filter and half of the new.
    if !unsafe { &*filter }.wants(reason) {
        return false;
    }
    cold_path();
    // SAFETY: as above.
    if unsafe { &*filter }.holds(clock::now()) {
        return true;
    }
    // Whoever listened has ended without a word.
    // SAFETY: as above.
    unsafe { (&raw mut (*filter).until).write_volatile(0) };
    false
}

/// Ends the program in the one that tells of a packet in a buffer, if somebody listens to such. `exit` is the device that it is
/// sent out of past the stack, or zero.
#[inline(always)]
pub(crate) fn packet(context: &TcContext, link: Link, hook: EventHook, reason: Reason, exit: u32) {
    if is_asked_for(reason) && leave(Left { reason: reason as u32, hook: hook.number(), exit }) {
        // SAFETY: nothing is left to be done here that the other program does not do.
        unsafe { maps::OBSERVERS.tail_call(context, link as u32) };
    }
}

/// Likewise, of a frame that is sent on.
#[inline(always)]
pub(crate) fn frame(context: &XdpContext, sent: &Sent) {
    let Sent { reason, device } = *sent;
    if is_asked_for(reason) && leave(Left { reason: reason as u32, hook: EventHook::Xdp.number(), exit: device }) {
        // SAFETY: as in `packet`.
        unsafe { maps::XDP_OBSERVERS.tail_call(context, 0) };
    }
}

/// Leaves to a program that comes next what a packet from a pod has become.
#[inline(always)]
pub(crate) fn leave_of_pod(reason: Reason) -> bool {
    leave(Left { reason: reason as u32, hook: EventHook::PodIngress.number(), exit: 0 })
}

/// What the program before has left of its packet.
#[inline(always)]
pub(crate) fn left() -> Option<Reason> {
    Reason::from_number(maps::LEFT.get(0)?.reason)
}

#[inline(always)]
fn leave(left: Left) -> bool {
    let Some(place) = maps::LEFT.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own value; the programs run with bottom halves disabled, so none interrupts another on a CPU, and what is
    // left is read before another packet comes.
    unsafe { *place = left };
    true
}

/// Tells of the packet that another program has just ended with, and says what becomes of it.
#[inline(always)]
pub(crate) fn tell_packet(context: &TcContext, link: Link) -> Option<Told> {
    let Left { reason, hook, exit } = *maps::LEFT.get(0)?;
    let reason = Reason::from_number(reason)?;
    let mut event = event(context, reason, hook);
    let family = match link::parse(context, link) {
        Ok((IpFamily::V4, l3)) => {
            read::<V4, _>(context, l3, reason, &mut event);
            Some(IpFamily::V4)
        }
        Ok((IpFamily::V6, l3)) => {
            read::<V6, _>(context, l3, reason, &mut event);
            Some(IpFamily::V6)
        }
        Err(_) => None,
    };
    tell(&mut event, family);
    Some(Told { reason, exit })
}

/// As `tell_packet`, of a frame; the device that it leaves by.
#[inline(always)]
pub(crate) fn tell_frame(context: &XdpContext) -> Option<u32> {
    let Left { reason, hook, exit } = *maps::LEFT.get(0)?;
    let reason = Reason::from_number(reason)?;
    let mut event = event(context, reason, hook);
    let family = link::untagged(context.linear());
    match family {
        Some(IpFamily::V4) => read_plain::<V4, _>(context, reason, &mut event),
        Some(IpFamily::V6) => read_plain::<V6, _>(context, reason, &mut event),
        None => {}
    }
    tell(&mut event, family);
    Some(exit)
}

/// Tells of a socket's call, if somebody listens to such.
#[inline(always)]
pub(crate) fn call<S: Place>(context: SocketContext, reason: Reason) {
    if !is_asked_for(reason) {
        return;
    }
    let mut event = Event::new(reason, EventHook::Socket);
    let Some(protocol) = context.protocol() else { return };
    let mut after = FlowKey::<<S::Family as Family>::Address>::default();
    S::read_source(context, &mut after.source);
    S::read(context, &mut after.destination);
    after.destination_port = context.port();
    after.protocol = protocol.number().into();
    let key = socket::key::<S::Family>(context.cookie(), after.destination, after.destination_port, protocol);
    let mut before = after;
    // SAFETY: copied at once. An entry of a socket is written by that socket's own calls alone.
    if let Some(held) = unsafe { socket::table::<S::Family>(key.protocol).get(key) } {
        (before.destination, before.destination_port) = (held.vip, held.vip_port);
        event.service = held.service;
    } else {
        event.service = lookup::service::<S::Family>(&before);
    }
    fill::<S::Family>(&mut event, &before, &after);
    tell(&mut event, Some(<S::Family as Family>::FAMILY));
}

/// Tells of a datagram from `sender` whose program hears the VIP, if somebody listens to such.
#[inline(always)]
pub(crate) fn heard<S: Place>(context: SocketContext, sender: &FlowKey<<S::Family as Family>::Address>) {
    if !is_asked_for(Reason::Replied) {
        return;
    }
    let mut event = Event::new(Reason::Replied, EventHook::Socket);
    let Some(protocol) = context.protocol() else { return };
    let key = socket::key::<S::Family>(context.cookie(), sender.source, sender.source_port, protocol);
    // SAFETY: as in `call`.
    if let Some(held) = unsafe { socket::table::<S::Family>(key.protocol).get(key) } {
        event.service = held.service;
    }
    let mut after = *sender;
    S::read(context, &mut after.source);
    after.source_port = context.port();
    fill::<S::Family>(&mut event, sender, &after);
    tell(&mut event, Some(<S::Family as Family>::FAMILY));
}

#[inline(always)]
fn event<C: PacketContext>(context: &C, reason: Reason, hook: u32) -> Event {
    let mut event = Event::new(reason, EventHook::PodIngress);
    event.hook = hook;
    event.device = context.device();
    event.length = context.length();
    event
}

/// Hands an event over, if it is wanted.
#[inline(always)]
fn tell(event: &mut Event, family: Option<IpFamily>) {
    let Some(filter) = maps::EVENT_FILTER.get(0) else { return };
    if !filter.takes(event, family) {
        return;
    }
    // SAFETY: a helper without arguments.
    event.time = unsafe { bpf_ktime_get_boot_ns() };
    if maps::EVENTS.output(&*event, BPF_RB_NO_WAKEUP.into()).is_err()
        && let Some(lost) = maps::EVENTS_LOST.get_ptr_mut(0)
    {
        // SAFETY: this CPU's own value.
        unsafe { count::add_one(lost) };
    }
}

/// Fills in what the packet in a buffer was and is.
#[inline(always)]
fn read<F: Family, C: BufferContext>(context: &C, l3: usize, reason: Reason, event: &mut Event) {
    let mut key = FlowKey::default();
    let content = match parse::packet::<F, C>(context, l3, &mut key) {
        Ok(packet) if packet.content == Content::Error && reason.is_answer() => {
            // What was refused is what the error quotes; only what has ports is turned round there.
            let (l3, l4) = (packet.l3, packet.l4);
            if icmp_error::quoted::<F, C>(context, l3, l4, &mut key).is_err() {
                key = FlowKey { source_port: Port::default(), destination_port: Port::default(), ..key.answer() };
                key.protocol = 0;
            }
            Content::Error
        }
        Ok(packet) => packet.content,
        // The addresses are there, or nothing is; ports may be those of an earlier packet.
        Err(_) => {
            (key.source_port, key.destination_port) = (Port::default(), Port::default());
            Content::Other
        }
    };
    if reason.is_answer() {
        // The answer goes the other way, and so does what is quoted, as it was turned round to be looked up.
        let refused = key.answer();
        event.service = lookup::service::<F>(&refused);
        return fill::<F>(event, &refused, &refused);
    }
    if matches!(content, Content::Error | Content::Other) {
        return fill::<F>(event, &key, &key);
    }
    describe::<F>(event, &key, reason);
}

/// As `read`, of a frame that XDP sends on.
#[inline(always)]
fn read_plain<F: Family, C: FrameContext>(context: &C, reason: Reason, event: &mut Event) {
    let mut key = FlowKey::default();
    if parse::plain::<F>(context.linear(), &mut key).is_some() {
        describe::<F>(event, &key, reason);
    }
}

/// Fills in a packet that is `after`, and what it was before that, as far as its connection's entries still tell.
#[inline(always)]
fn describe<F: Family>(event: &mut Event, after: &FlowKey<F::Address>, reason: Reason) {
    let mut before = *after;
    let service = match reason {
        Reason::Opened | Reason::Forwarded => was_for_vip::<F>(&mut before),
        Reason::Replied => was_from_backend::<F>(&mut before),
        Reason::Masqueraded => was_from_client::<F>(&mut before),
        Reason::Unmasqueraded => was_for_node::<F>(&mut before),
        Reason::SentDirect => track::egress::<F>(&before).map(|found| found.read().service),
        Reason::SentToBackend => {
            was_from_client::<F>(&mut before);
            was_for_vip::<F>(&mut before)
        }
        Reason::SentToClient => {
            let service = was_from_backend::<F>(&mut before);
            was_for_node::<F>(&mut before);
            service
        }
        reason if reason.is_drop() => Some(lookup::service::<F>(&before)),
        _ => None,
    };
    event.service = service.unwrap_or(NO_SERVICE);
    fill::<F>(event, &before, after);
}

/// Makes the key of a client's packet to a backend that of the same packet to the VIP. Gives its service port.
#[inline(always)]
fn was_for_vip<F: Family>(key: &mut FlowKey<F::Address>) -> Option<u32> {
    let held = track::egress::<F>(&key.answer())?.read();
    if !EgressKind::from_number(held.kind).is_of_backend() {
        return None;
    }
    (key.destination, key.destination_port) = (held.address, held.port);
    if held.client_port != Port::default() {
        key.source_port = held.client_port;
    }
    Some(held.service)
}

/// Makes the key of a packet from a VIP that of the same packet from the backend. Gives its service port.
#[inline(always)]
fn was_from_backend<F: Family>(key: &mut FlowKey<F::Address>) -> Option<u32> {
    let held = track::forward::<F>(&key.answer())?.read();
    let backend = F::maps().backends.get(held.backend).filter(|backend| backend.generation == held.generation)?;
    (key.source, key.source_port) = (backend.address, backend.port);
    if held.source_port != Port::default() {
        key.destination_port = held.source_port;
    }
    Some(held.service)
}

/// Makes the key of a packet from the node that of the same packet from the client. Gives its service port, if it has one.
#[inline(always)]
fn was_from_client<F: Family>(key: &mut FlowKey<F::Address>) -> Option<u32> {
    let held = track::client_behind::<F>(&key.answer())?.read();
    (key.source, key.source_port) = (held.client, held.port);
    track::egress::<F>(key).map(|found| found.read().service)
}

/// Makes the key of a packet to a client that of the same packet to the node, if it was. Gives its service port, if it has one.
#[inline(always)]
fn was_for_node<F: Family>(key: &mut FlowKey<F::Address>) -> Option<u32> {
    let held = track::egress::<F>(&key.answer())?.read();
    if held.kind != EgressKind::Masquerade.number() {
        return None;
    }
    (key.destination, key.destination_port) = (held.address, held.port);
    Some(held.service)
}

#[inline(always)]
fn fill<F: Family>(event: &mut Event, before: &FlowKey<F::Address>, after: &FlowKey<F::Address>) {
    event.before = ends(before);
    event.after = ends(after);
    event.protocol = after.protocol;
}

#[inline(always)]
fn ends<A: Address>(key: &FlowKey<A>) -> Ends {
    Ends {
        source: key.source.mapped(),
        destination: key.destination.mapped(),
        source_port: key.source_port,
        destination_port: key.destination_port,
    }
}
