//! The packet's way, to be read from top to bottom: parse -> lookup -> pick -> track -> rewrite -> forward.
//!
//! Inside the host's network stack a packet always carries backend addresses, and the client's own: `ingress` replaces
//! destinations before the stack sees the packet, a VIP by a backend and the node by the client behind it; `egress`
//! replaces sources after it, a backend by the VIP and a client by the node.

mod egress;
mod fast_path;
mod ingress;

use dsproxy_common::{IpFamily, count::Reason};

use crate::{
    count,
    family::{Family, V4, V6},
    maps,
    outcome::Untranslated,
    packet::{BufferContext, FrameContext},
    parse::link::{self, Link},
};

/// What a device is to the node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The host side of a pod's interface.
    Pod,
    /// It leads to other nodes, or the world.
    Node,
}

/// A packet that is sent on past the stack.
#[derive(Clone, Copy)]
pub(crate) struct Sent {
    /// What became of it.
    pub(crate) reason: Reason,
    /// The index of the device that it is to leave by.
    pub(crate) device: u32,
}

/// Before the stack. Says what became of the packet.
#[inline(always)]
pub(crate) fn ingress<C: BufferContext>(context: &C, link: Link, side: Side) -> Reason {
    match link::parse(context, link) {
        Ok((IpFamily::V4, l3)) => counted::<V4>(ingress::enter::<V4, C>(context, l3, side)),
        Ok((IpFamily::V6, l3)) => counted::<V6>(ingress::enter::<V6, C>(context, l3, side)),
        Err(reason) => not_ip(reason),
    }
}

/// After the stack. Says what became of the packet.
#[inline(always)]
pub(crate) fn egress<C: BufferContext>(context: &C, link: Link, side: Side) -> Reason {
    match link::parse(context, link) {
        Ok((IpFamily::V4, l3)) => counted::<V4>(egress::leave::<V4, C>(context, l3, side)),
        Ok((IpFamily::V6, l3)) => counted::<V6>(egress::leave::<V6, C>(context, l3, side)),
        Err(reason) => not_ip(reason),
    }
}

/// In place of the stack, where the device hands its frames over to XDP. None if the packet is for the stack.
#[inline(always)]
pub(crate) fn fast_path<C: FrameContext>(context: &C) -> Option<Sent> {
    let routing = maps::ROUTING.get(0)?;
    match link::untagged(context.linear())? {
        IpFamily::V4 => fast_path::cross::<V4, C>(context, routing),
        IpFamily::V6 => fast_path::cross::<V6, C>(context, routing),
    }
}

#[inline(always)]
fn counted<F: Family>(outcome: Result<Reason, Untranslated>) -> Reason {
    let reason = match outcome {
        Ok(reason) => reason,
        Err(Untranslated { reason, service }) => {
            count::drop(service, reason);
            reason
        }
    };
    count::packet(reason, Some(F::FAMILY));
    reason
}

#[inline(always)]
fn not_ip(reason: Reason) -> Reason {
    count::packet(reason, None);
    reason
}
