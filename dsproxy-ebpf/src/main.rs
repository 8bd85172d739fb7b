//! The kernel programs of dsproxy: entry points only. What a packet goes through stands in `pipeline`.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]
// On the host the crate is only checked: nothing calls the programs there.
#![cfg_attr(not(target_arch = "bpf"), allow(dead_code))]
// The program attribute makes public functions without documentation around ours.
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::needless_pass_by_value, reason = "the program attribute hands the context over by value")]

mod answer;
mod clock;
mod count;
mod direct;
mod family;
mod forward;
mod icmp;
mod icmp_error;
mod lookup;
mod maps;
mod observe;
mod outcome;
mod packet;
mod parse;
mod pick;
mod pipeline;
mod refuse;
mod reset;
mod rewrite;
mod shortcut;
mod socket;
mod track;
mod verifier;
mod wire;

use aya_ebpf::{
    bindings::{
        TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC,
        xdp_action::{XDP_DROP, XDP_PASS},
    },
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use dsproxy_common::{count::Reason, event::EventHook};

use crate::{
    packet::{BufferContext as _, FrameContext as _},
    parse::link::Link,
    pipeline::Side,
};

/// Packets of a pod that enter the stack.
#[classifier]
#[inline(always)]
pub fn pod_ingress_ethernet(context: TcContext) -> i32 {
    let reason = pipeline::ingress(&context, Link::Ethernet, Side::Pod);
    shortcut::enter(&context, reason);
    ended(&context, Link::Ethernet, EventHook::PodIngress, reason)
}

/// Packets that leave the stack towards a pod.
#[classifier]
#[inline(always)]
pub fn pod_egress_ethernet(context: TcContext) -> i32 {
    ended(&context, Link::Ethernet, EventHook::PodEgress, pipeline::egress(&context, Link::Ethernet, Side::Pod))
}

/// Packets from other nodes and the world that enter the stack.
#[classifier]
#[inline(always)]
pub fn node_ingress_ethernet(context: TcContext) -> i32 {
    ended(&context, Link::Ethernet, EventHook::NodeIngress, pipeline::ingress(&context, Link::Ethernet, Side::Node))
}

/// Packets that leave the stack towards other nodes and the world.
#[classifier]
#[inline(always)]
pub fn node_egress_ethernet(context: TcContext) -> i32 {
    ended(&context, Link::Ethernet, EventHook::NodeEgress, pipeline::egress(&context, Link::Ethernet, Side::Node))
}

/// As `pod_ingress_ethernet`, on a device without a link-layer header.
#[classifier]
#[inline(always)]
pub fn pod_ingress_ip(context: TcContext) -> i32 {
    ended(&context, Link::None, EventHook::PodIngress, pipeline::ingress(&context, Link::None, Side::Pod))
}

/// As `pod_egress_ethernet`, on a device without a link-layer header.
#[classifier]
#[inline(always)]
pub fn pod_egress_ip(context: TcContext) -> i32 {
    ended(&context, Link::None, EventHook::PodEgress, pipeline::egress(&context, Link::None, Side::Pod))
}

/// As `node_ingress_ethernet`, on a device without a link-layer header.
#[classifier]
#[inline(always)]
pub fn node_ingress_ip(context: TcContext) -> i32 {
    ended(&context, Link::None, EventHook::NodeIngress, pipeline::ingress(&context, Link::None, Side::Node))
}

/// As `node_egress_ethernet`, on a device without a link-layer header.
#[classifier]
#[inline(always)]
pub fn node_egress_ip(context: TcContext) -> i32 {
    ended(&context, Link::None, EventHook::NodeEgress, pipeline::egress(&context, Link::None, Side::Node))
}

/// Frames from other nodes and the world, before the stack sees them.
#[xdp]
#[inline(always)]
pub fn node_xdp(context: XdpContext) -> u32 {
    let Some(sent) = pipeline::fast_path(&context) else { return XDP_PASS };
    observe::frame(&context, &sent);
    context.send_out(sent.device)
}

/// The end of a packet of a pod that may go past the stack.
#[classifier]
#[inline(always)]
pub fn shortcut(context: TcContext) -> i32 {
    let Some(reason) = observe::left() else { return TC_ACT_UNSPEC };
    let exit = shortcut::send::<TcContext>(&context, reason).unwrap_or_default();
    log(&context, reason);
    observe::packet(&context, Link::Ethernet, EventHook::PodIngress, reason, exit);
    verdict_of(&context, reason, exit)
}

/// The end of a packet that somebody listens to.
#[classifier]
#[inline(always)]
pub fn observe_ethernet(context: TcContext) -> i32 {
    observe::tell_packet(&context, Link::Ethernet)
        .map_or(TC_ACT_UNSPEC, |told| verdict_of(&context, told.reason, told.exit))
}

/// As `observe_ethernet`, on a device without a link-layer header.
#[classifier]
#[inline(always)]
pub fn observe_ip(context: TcContext) -> i32 {
    observe::tell_packet(&context, Link::None).map_or(TC_ACT_UNSPEC, |told| verdict(&context, told.reason))
}

/// As `observe_ethernet`, of a frame that XDP sends on.
#[xdp]
#[inline(always)]
pub fn observe_xdp(context: XdpContext) -> u32 {
    observe::tell_frame(&context).map_or(XDP_DROP, |device| context.send_out(device))
}

/// Where a socket is connected to.
#[cgroup_sock_addr(connect4)]
pub fn socket_connect4(context: SockAddrContext) -> i32 {
    socket::connect4(context.sock_addr) as i32
}

/// As `socket_connect4`, of an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn socket_connect6(context: SockAddrContext) -> i32 {
    socket::connect6(context.sock_addr) as i32
}

/// Where a datagram of a socket that is not connected goes.
#[cgroup_sock_addr(sendmsg4)]
pub fn socket_sendmsg4(context: SockAddrContext) -> i32 {
    socket::sendmsg4(context.sock_addr) as i32
}

/// As `socket_sendmsg4`, to an IPv6 address.
#[cgroup_sock_addr(sendmsg6)]
pub fn socket_sendmsg6(context: SockAddrContext) -> i32 {
    socket::sendmsg6(context.sock_addr) as i32
}

/// Where a datagram is said to come from.
#[cgroup_sock_addr(recvmsg4)]
pub fn socket_recvmsg4(context: SockAddrContext) -> i32 {
    socket::recvmsg4(context.sock_addr) as i32
}

/// As `socket_recvmsg4`, on an IPv6 socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn socket_recvmsg6(context: SockAddrContext) -> i32 {
    socket::recvmsg6(context.sock_addr) as i32
}

/// Whom a socket is said to be connected to.
#[cgroup_sock_addr(getpeername4)]
pub fn socket_getpeername4(context: SockAddrContext) -> i32 {
    socket::getpeername4(context.sock_addr) as i32
}

/// As `socket_getpeername4`, of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn socket_getpeername6(context: SockAddrContext) -> i32 {
    socket::getpeername6(context.sock_addr) as i32
}

/// The end of every packet, of which whoever listens is told.
#[inline(always)]
fn ended(context: &TcContext, link: Link, hook: EventHook, reason: Reason) -> i32 {
    log(context, reason);
    observe::packet(context, link, hook, reason, 0);
    verdict(context, reason)
}

/// As `verdict`; with an `exit`, the kernel has been told already where the packet goes.
#[inline(always)]
fn verdict_of(context: &TcContext, reason: Reason, exit: u32) -> i32 {
    if exit == 0 { verdict(context, reason) } else { TC_ACT_REDIRECT }
}

/// What is not dropped goes on to whatever program is attached after ours, and from there to the stack. An answer in place of
/// the packet goes back.
#[inline(always)]
fn verdict(context: &TcContext, reason: Reason) -> i32 {
    if reason.is_answer() {
        context.send_back()
    } else if reason.is_drop() {
        TC_ACT_SHOT
    } else {
        TC_ACT_UNSPEC
    }
}

/// One line a packet, for debugging; no instruction of it is there without the feature.
#[inline(always)]
#[cfg_attr(not(feature = "log"), expect(unused_variables, reason = "nothing is logged without the feature"))]
fn log(context: &TcContext, reason: Reason) {
    #[cfg(feature = "log")]
    aya_log_ebpf::info!(context, "{} bytes: {}", context.len(), reason.name());
}

dsproxy_common::kernel_object!();
