//! Sockets, which are led to a backend where their program names a VIP: the kernel then sends packets that need no rewriting.
//!
//! A socket is translated once, when it is connected; one that is not connected, with every datagram. What the program hears
//! of the other end is the VIP again. `towards` holds the one way, `back` the other, `context` what the kernel hands over.
//!
//! SCTP has no such hooks in the kernel (net/sctp/socket.c); a socket of it would be led like any other.

mod back;
pub(crate) mod context;
mod towards;

use aya_ebpf::bindings::bpf_sock_addr;
use dsproxy_common::{Port, Protocol, socket::SocketKey};

use self::context::{InV4, InV6, Mapped, SocketContext};
use crate::{family::Family, maps};

/// What the kernel does next.
#[derive(Clone, Copy)]
#[repr(i32)]
pub(crate) enum Verdict {
    /// The system call fails, with the error that was set.
    Refuse = 0,
    /// It goes on.
    GoOn = 1,
}

/// A system call that says where a socket's packets are to go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    /// All of them, from now on.
    Connect,
    /// One datagram, or several in one go.
    Send,
}

/// connect(2) of an IPv4 address.
#[inline(always)]
pub(crate) fn connect4(raw: *mut bpf_sock_addr) -> Verdict {
    towards::translate::<InV4>(SocketContext::new(raw), Call::Connect)
}

/// connect(2) of an IPv6 address, or an IPv4 one in it.
#[inline(always)]
pub(crate) fn connect6(raw: *mut bpf_sock_addr) -> Verdict {
    let context = SocketContext::new(raw);
    if context.is_mapped() {
        towards::translate::<Mapped>(context, Call::Connect)
    } else {
        towards::translate::<InV6>(context, Call::Connect)
    }
}

/// A datagram to an IPv4 address, of an IPv6 socket too.
#[inline(always)]
pub(crate) fn sendmsg4(raw: *mut bpf_sock_addr) -> Verdict {
    towards::translate::<InV4>(SocketContext::new(raw), Call::Send)
}

/// A datagram to an IPv6 address: the kernel takes the IPv4 ones out before (`udpv6_sendmsg` in net/ipv6/udp.c).
#[inline(always)]
pub(crate) fn sendmsg6(raw: *mut bpf_sock_addr) -> Verdict {
    towards::translate::<InV6>(SocketContext::new(raw), Call::Send)
}

/// The source of a datagram, an IPv4 address.
#[inline(always)]
pub(crate) fn recvmsg4(raw: *mut bpf_sock_addr) -> Verdict {
    back::source::<InV4>(SocketContext::new(raw))
}

/// The source of a datagram, an IPv6 address, or an IPv4 one in it.
#[inline(always)]
pub(crate) fn recvmsg6(raw: *mut bpf_sock_addr) -> Verdict {
    let context = SocketContext::new(raw);
    if context.is_mapped() { back::source::<Mapped>(context) } else { back::source::<InV6>(context) }
}

/// getpeername(2) of an IPv4 socket.
#[inline(always)]
pub(crate) fn getpeername4(raw: *mut bpf_sock_addr) -> Verdict {
    back::peer::<InV4>(SocketContext::new(raw))
}

/// getpeername(2) of an IPv6 socket.
#[inline(always)]
pub(crate) fn getpeername6(raw: *mut bpf_sock_addr) -> Verdict {
    let context = SocketContext::new(raw);
    if context.is_mapped() { back::peer::<Mapped>(context) } else { back::peer::<InV6>(context) }
}

/// The table of such sockets. TCP has one of its own: its sockets may be many, come and go without a word, and would push out those whose
/// programs would hear strangers then.
#[inline(always)]
pub(crate) fn table<F: Family>(protocol: u16) -> &'static maps::Sockets<F::Address> {
    if protocol == u16::from(Protocol::Tcp.number()) { F::maps().tcp_sockets } else { F::maps().sockets }
}

/// The key of a socket and one other end of it.
#[inline(always)]
pub(crate) fn key<F: Family>(
    cookie: u64,
    address: F::Address,
    port: Port,
    protocol: Protocol,
) -> SocketKey<F::Address> {
    SocketKey { cookie: [cookie as u32, (cookie >> 32) as u32], address, port, protocol: protocol.number().into() }
}
