//! Past the stack from pods to pods of this node (`--pod-shortcut`): what has been translated for a backend, and what a backend
//! answers through a VIP, goes to the neighbour that the kernel's routing names, and by the egress hook of the device there, which
//! gives answers their VIP. What is not plainly of that kind is left to the stack.
//!
//! In a program of its own, reached by a tail call: the stack of those that translate has no room, and who does without the shortcut
//! pays for one test. What a packet was is found out from it and the tables anew.

use core::hint::cold_path;

use aya_ebpf::programs::TcContext;
use dsproxy_common::{
    IpFamily,
    count::Reason,
    flow::{EgressKind, FlowKey},
    pod_device::PodDevice,
    settings::{SettingFlags, Settings},
};

use crate::{
    clock,
    family::{Family, V4, V6},
    forward, lookup, maps, observe,
    packet::BufferContext,
    parse::{
        self, Content, Packet,
        link::{self, ETHERNET_HEADER, Link},
    },
    track::{self, Entry as _},
};

/// Ends the program in the one that sends past the stack, if the packet may be one for that.
#[inline(always)]
pub(crate) fn enter(context: &TcContext, reason: Reason) {
    // A backend's answer is for no Service.
    if !matches!(reason, Reason::Opened | Reason::Forwarded | Reason::NotService) {
        return;
    }
    // Looked up again: handed through all that comes before, they take stack that kernels before 6.8 do not have left.
    if maps::SETTINGS.get(0).is_none_or(|settings| settings.flags & SettingFlags::POD_SHORTCUT == 0) {
        return;
    }
    cold_path();
    if observe::leave_of_pod(reason) {
        // SAFETY: nothing is left to be done here that the other program does not do.
        unsafe { maps::SHORTCUTS.tail_call(context, 0) };
    }
}

/// Has the kernel send a packet that became `reason` to a pod of this node. Gives the index of the device; none if it is for the
/// stack, as it came.
#[inline(always)]
pub(crate) fn send<C: BufferContext>(context: &C, reason: Reason) -> Option<u32> {
    let (family, l3) = link::parse(context, Link::Ethernet).ok()?;
    // Tags are the stack's business.
    if l3 != ETHERNET_HEADER || context.has_tag() {
        return None;
    }
    let came_by = device(context.device())?;
    // What is addressed to another goes through the bridge, if anywhere, and not through the node. A backend's answer to a client on
    // its bridge is, but the bridge's rules (`br_netfilter`) have not seen the request: it takes the same way back.
    let is_request = reason != Reason::NotService;
    if is_request && forward::arrival(context.linear()).ok()? != came_by.address {
        return None;
    }
    if context.was_sent_to_many() {
        return None;
    }
    match family {
        IpFamily::V4 => cross::<V4, C>(context, ETHERNET_HEADER, reason),
        IpFamily::V6 => cross::<V6, C>(context, ETHERNET_HEADER, reason),
    }
}

#[inline(always)]
fn cross<F: Family, C: BufferContext>(context: &C, l3: usize, reason: Reason) -> Option<u32> {
    let mut key = FlowKey::default();
    let packet = parse::packet::<F, C>(context, l3, &mut key).ok()?;
    // Masqueraded, as is a pod that reaches itself (also by its bridge), only half of it would come this way.
    let settings = maps::SETTINGS.get(0)?;
    let is_masqueraded =
        packet.key.source == packet.key.destination || settings.flags & SettingFlags::MASQUERADE_ALL != 0;
    if is_masqueraded || !is_plain::<F, C>(context, &packet) {
        return None;
    }
    // The stack forwards nothing of a source that is no single host.
    if !F::is_host(&packet.key.source) {
        return None;
    }
    if reason == Reason::NotService && !answers_through_vip::<F>(&packet, settings) {
        return None;
    }
    let length = if context.is_aggregate() { 0 } else { context.length() - l3 as u32 };
    let neighbour = context.route(packet.key, u16::try_from(length).ok()?)?;
    let is_other = neighbour.device != context.device();
    if !is_other || device(neighbour.device).is_none() || !context.fits(neighbour.device) {
        return None;
    }
    // Before what cannot be taken back.
    context.hand_to(&neighbour).ok()?;
    F::take_hop(context.linear(), l3)?;
    Some(neighbour.device)
}

/// Whether it is a whole packet of a connection, without options or extensions.
#[inline(always)]
fn is_plain<F: Family, C: BufferContext>(context: &C, packet: &Packet<'_, F::Address>) -> bool {
    matches!(packet.content, Content::Tcp | Content::Udp | Content::Sctp)
        && packet.piece.is_whole()
        && !packet.has_options::<F>(context.length())
}

/// Whether a packet gets a VIP as its source where it leaves. What a client sent past the VIP went through the stack, whose trackers
/// of connections are to see the answers as well; so did one from a port that it had just used through the VIP (`pipeline::egress`).
#[inline(always)]
fn answers_through_vip<F: Family>(packet: &Packet<'_, F::Address>, settings: &Settings) -> bool {
    lookup::may_be_from_backend::<F>(packet.key)
        && track::egress::<F>(packet.key).is_some_and(|found| {
            let held = found.read();
            let is_anothers = packet.segment.accepts() && held.state().may_be_over();
            !is_anothers && held.kind == EgressKind::Reply.number() && !held.age(clock::now(), settings).is_expired()
        })
}

/// The device of this index, if nothing but pods is behind it.
#[inline(always)]
fn device(index: u32) -> Option<PodDevice> {
    // SAFETY: copied at once; user space replaces a device by a new element, and rarely.
    unsafe { maps::POD_DEVICES.get(index) }.copied()
}
