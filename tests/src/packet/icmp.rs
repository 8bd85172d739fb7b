//! ICMP and ICMPv6 messages (RFC 792, RFC 1191, RFC 4443).

use std::net::SocketAddr;

use bytes::{BufMut, BytesMut};

/// A message that means the same in both families; its numbers are the family's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// Asks for the payload back.
    EchoRequest {
        /// Tells one asker from another.
        identifier: u16,
        /// Counts the requests.
        sequence: u16,
    },
    /// Gives the payload back.
    EchoReply {
        /// As in the request.
        identifier: u16,
        /// As in the request.
        sequence: u16,
    },
    /// An error: there is no way to the host.
    HostUnreachable,
    /// An error: nobody listens on the port.
    PortUnreachable,
    /// An error: the packet is longer than the next link takes and may not be cut up.
    TooBig {
        /// What that link takes, in bytes. IPv4 has 16 bits for it.
        mtu: u32,
    },
    /// An error: the packet has passed more routers than it may.
    TimeExceeded,
    /// An error: a field of the packet makes no sense.
    ParameterProblem {
        /// Which byte of the packet.
        pointer: u8,
    },
    /// Any other.
    Other {
        /// The type, as the family numbers it.
        kind: u8,
        /// The code.
        code: u8,
        /// The four bytes behind the checksum.
        rest: u32,
    },
}

impl Message {
    /// The header's length, in bytes.
    pub const HEADER: usize = 8;

    /// Type, code and the four bytes behind the checksum.
    fn numbers(self, is_v4: bool) -> (u8, u8, u32) {
        let pair = |high: u16, low: u16| u32::from(high) << 16 | u32::from(low);
        match (self, is_v4) {
            (Self::EchoRequest { identifier, sequence }, true) => (8, 0, pair(identifier, sequence)),
            (Self::EchoRequest { identifier, sequence }, false) => (128, 0, pair(identifier, sequence)),
            (Self::EchoReply { identifier, sequence }, true) => (0, 0, pair(identifier, sequence)),
            (Self::EchoReply { identifier, sequence }, false) => (129, 0, pair(identifier, sequence)),
            (Self::HostUnreachable, true) => (3, 1, 0),
            (Self::HostUnreachable, false) => (1, 0, 0),
            (Self::PortUnreachable, true) => (3, 3, 0),
            (Self::PortUnreachable, false) => (1, 4, 0),
            (Self::TooBig { mtu }, true) => (3, 4, mtu & 0xffff),
            (Self::TooBig { mtu }, false) => (2, 0, mtu),
            (Self::TimeExceeded, true) => (11, 0, 0),
            (Self::TimeExceeded, false) => (3, 0, 0),
            (Self::ParameterProblem { pointer }, true) => (12, 0, u32::from(pointer) << 24),
            (Self::ParameterProblem { pointer }, false) => (4, 0, pointer.into()),
            (Self::Other { kind, code, rest }, _) => (kind, code, rest),
        }
    }

    /// Appends the header to `packet`, its checksum zero.
    pub(super) fn put(self, packet: &mut BytesMut, is_v4: bool) {
        let (kind, code, rest) = self.numbers(is_v4);
        packet.put_u8(kind);
        packet.put_u8(code);
        packet.put_u16(0);
        packet.put_u32(rest);
    }

    /// From `end` instead: a request's identifier is its sender's port, so to speak.
    pub(super) fn from(self, end: SocketAddr) -> Self {
        match self {
            Self::EchoRequest { sequence, .. } => Self::EchoRequest { identifier: end.port(), sequence },
            other => other,
        }
    }

    /// To `end` instead, whose port is a reply's identifier.
    pub(super) fn to(self, end: SocketAddr) -> Self {
        match self {
            Self::EchoReply { sequence, .. } => Self::EchoReply { identifier: end.port(), sequence },
            other => other,
        }
    }
}
