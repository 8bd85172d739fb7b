//! The socket and the address in the kernel's hands: the one place where they are read and written.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{BPF_TCP_ESTABLISHED, bpf_sock, bpf_sock_addr},
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_set_retval},
};
use dsproxy_common::{Addr4, Addr6, Address, Port, Protocol};

use crate::{
    family::{Family, V4, V6},
    wire::Wire as _,
};

/// The last word but one of an IPv4 address in an IPv6 one (RFC 4291, section 2.5.5.2), the two before it being zero.
const MAPPED: u32 = 0xffff_u32.to_be();

/// What a hook of a socket is given: the socket, and the address that its program said or is about to hear.
#[derive(Clone, Copy)]
pub(crate) struct SocketContext {
    raw: *mut bpf_sock_addr,
}

impl SocketContext {
    #[inline(always)]
    pub(crate) fn new(raw: *mut bpf_sock_addr) -> Self {
        Self { raw }
    }

    /// The socket's cookie.
    #[inline(always)]
    pub(crate) fn cookie(self) -> u64 {
        // SAFETY: a helper that takes the context that the kernel gave us.
        unsafe { bpf_get_socket_cookie(self.raw.cast()) }
    }

    /// The cookie of the socket's network namespace. The helper is there in these hooks since Linux 5.7.
    #[inline(always)]
    pub(crate) fn namespace(self) -> u64 {
        // SAFETY: as in `cookie`.
        unsafe { bpf_get_netns_cookie(self.raw.cast()) }
    }

    /// The socket's protocol, when it is one that is balanced.
    #[inline(always)]
    pub(crate) fn protocol(self) -> Option<Protocol> {
        let number = self.load::<{ offset_of!(bpf_sock_addr, protocol) }>();
        if number > 0xff { None } else { Protocol::from_number(number as u8) }
    }

    /// The port of the address.
    #[inline(always)]
    pub(crate) fn port(self) -> Port {
        Port::from_wire(self.load::<{ offset_of!(bpf_sock_addr, user_port) }>() as u16)
    }

    /// Whether an IPv6 socket means an IPv4 address.
    #[inline(always)]
    pub(crate) fn is_mapped(self) -> bool {
        self.load::<{ offset_of!(bpf_sock_addr, user_ip6) }>() == 0
            && self.load::<{ offset_of!(bpf_sock_addr, user_ip6) + 4 }>() == 0
            && self.load::<{ offset_of!(bpf_sock_addr, user_ip6) + 8 }>() == MAPPED
    }

    /// Puts another address and port in place of what stands there.
    #[inline(always)]
    pub(crate) fn replace<S: Place>(self, address: &<S::Family as Family>::Address, port: Port) {
        S::write(self, address);
        self.store::<{ offset_of!(bpf_sock_addr, user_port) }>(port.wire().into());
    }

    /// Makes `error` the answer of the system call. There is no such helper where answers are only looked at (`recvmsg`,
    /// `getpeername`), nor before Linux 5.18.
    #[inline(always)]
    pub(crate) fn answer(self, error: i32) {
        // SAFETY: a helper that takes an integer.
        unsafe { bpf_set_retval(-error) };
    }

    /// Whether a UDP socket is connected.
    #[inline(always)]
    pub(crate) fn is_connected(self) -> bool {
        // SAFETY: a field of the kernel's socket.
        unsafe { u32::load::<{ offset_of!(bpf_sock, state) }>(self.socket()) == BPF_TCP_ESTABLISHED }
    }

    /// The port that the socket is connected to.
    #[inline(always)]
    pub(crate) fn peer_port(self) -> Port {
        // SAFETY: a field of the kernel's socket, of two bytes.
        Port::from_wire(unsafe { u16::load::<{ offset_of!(bpf_sock, dst_port) }>(self.socket()) })
    }

    #[inline(always)]
    fn socket(self) -> *const u8 {
        // SAFETY: the context that the kernel gave us, and the kernel's own pointer to a socket that is there while we run.
        unsafe { (*self.raw).__bindgen_anon_1.sk.cast_const().cast() }
    }

    /// The word at `OFFSET`. One load of its own: the verifier takes neither parts of some fields nor two in one.
    #[inline(always)]
    fn load<const OFFSET: usize>(self) -> u32 {
        const { assert!(OFFSET + size_of::<u32>() <= size_of::<bpf_sock_addr>()) };
        // SAFETY: within the context that the kernel gave us.
        unsafe { u32::load::<OFFSET>(self.raw.cast_const().cast()) }
    }

    #[inline(always)]
    fn store<const OFFSET: usize>(self, value: u32) {
        const { assert!(OFFSET + size_of::<u32>() <= size_of::<bpf_sock_addr>()) };
        // SAFETY: as in `load`; the kernel says which fields may be written, and these may.
        unsafe { u32::store::<OFFSET>(self.raw.cast(), value) };
    }
}

/// Where an address of a family stands.
pub(crate) trait Place {
    /// The family.
    type Family: Family;

    /// The address that the program said, or is about to hear.
    fn read(context: SocketContext, address: &mut <Self::Family as Family>::Address);

    /// Puts another in its place.
    fn write(context: SocketContext, address: &<Self::Family as Family>::Address);

    /// The address that the socket is bound to; unspecified when it is to none.
    fn read_source(context: SocketContext, address: &mut <Self::Family as Family>::Address);

    /// The address that the socket is connected to.
    fn read_peer(context: SocketContext, address: &mut <Self::Family as Family>::Address);
}

/// An IPv4 address.
pub(crate) enum InV4 {}

/// An IPv4 address in an IPv6 one.
pub(crate) enum Mapped {}

/// An IPv6 address.
pub(crate) enum InV6 {}

impl Place for InV4 {
    type Family = V4;

    #[inline(always)]
    fn read(context: SocketContext, address: &mut Addr4) {
        address.words_mut()[0] = context.load::<{ offset_of!(bpf_sock_addr, user_ip4) }>();
    }

    #[inline(always)]
    fn write(context: SocketContext, address: &Addr4) {
        context.store::<{ offset_of!(bpf_sock_addr, user_ip4) }>(address.words()[0]);
    }

    #[inline(always)]
    fn read_source(context: SocketContext, address: &mut Addr4) {
        // SAFETY: a field of the kernel's socket.
        address.words_mut()[0] = unsafe { u32::load::<{ offset_of!(bpf_sock, src_ip4) }>(context.socket()) };
    }

    #[inline(always)]
    fn read_peer(context: SocketContext, address: &mut Addr4) {
        // SAFETY: a field of the kernel's socket, which an IPv6 one that is connected to an IPv4 address has as well.
        address.words_mut()[0] = unsafe { u32::load::<{ offset_of!(bpf_sock, dst_ip4) }>(context.socket()) };
    }
}

impl Place for Mapped {
    type Family = V4;

    #[inline(always)]
    fn read(context: SocketContext, address: &mut Addr4) {
        address.words_mut()[0] = context.load::<{ offset_of!(bpf_sock_addr, user_ip6) + 12 }>();
    }

    #[inline(always)]
    fn write(context: SocketContext, address: &Addr4) {
        context.store::<{ offset_of!(bpf_sock_addr, user_ip6) + 12 }>(address.words()[0]);
    }

    #[inline(always)]
    fn read_source(context: SocketContext, address: &mut Addr4) {
        InV4::read_source(context, address);
    }

    #[inline(always)]
    fn read_peer(context: SocketContext, address: &mut Addr4) {
        InV4::read_peer(context, address);
    }
}

impl Place for InV6 {
    type Family = V6;

    #[inline(always)]
    fn read(context: SocketContext, address: &mut Addr6) {
        let words = address.words_mut();
        words[0] = context.load::<{ offset_of!(bpf_sock_addr, user_ip6) }>();
        words[1] = context.load::<{ offset_of!(bpf_sock_addr, user_ip6) + 4 }>();
        words[2] = context.load::<{ offset_of!(bpf_sock_addr, user_ip6) + 8 }>();
        words[3] = context.load::<{ offset_of!(bpf_sock_addr, user_ip6) + 12 }>();
    }

    #[inline(always)]
    fn write(context: SocketContext, address: &Addr6) {
        let words = address.words();
        context.store::<{ offset_of!(bpf_sock_addr, user_ip6) }>(words[0]);
        context.store::<{ offset_of!(bpf_sock_addr, user_ip6) + 4 }>(words[1]);
        context.store::<{ offset_of!(bpf_sock_addr, user_ip6) + 8 }>(words[2]);
        context.store::<{ offset_of!(bpf_sock_addr, user_ip6) + 12 }>(words[3]);
    }

    #[inline(always)]
    fn read_source(context: SocketContext, address: &mut Addr6) {
        let (words, socket) = (address.words_mut(), context.socket());
        // SAFETY: fields of the kernel's socket.
        unsafe {
            words[0] = u32::load::<{ offset_of!(bpf_sock, src_ip6) }>(socket);
            words[1] = u32::load::<{ offset_of!(bpf_sock, src_ip6) + 4 }>(socket);
            words[2] = u32::load::<{ offset_of!(bpf_sock, src_ip6) + 8 }>(socket);
            words[3] = u32::load::<{ offset_of!(bpf_sock, src_ip6) + 12 }>(socket);
        }
    }

    #[inline(always)]
    fn read_peer(context: SocketContext, address: &mut Addr6) {
        let (words, socket) = (address.words_mut(), context.socket());
        // SAFETY: fields of the kernel's socket.
        unsafe {
            words[0] = u32::load::<{ offset_of!(bpf_sock, dst_ip6) }>(socket);
            words[1] = u32::load::<{ offset_of!(bpf_sock, dst_ip6) + 4 }>(socket);
            words[2] = u32::load::<{ offset_of!(bpf_sock, dst_ip6) + 8 }>(socket);
            words[3] = u32::load::<{ offset_of!(bpf_sock, dst_ip6) + 12 }>(socket);
        }
    }
}
