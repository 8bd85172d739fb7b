//! IPv6 extension headers (RFC 8200, section 4; RFC 4302 for the authentication header).

use std::net::Ipv6Addr;

use bytes::{BufMut, BytesMut};

/// An extension header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Hop-by-hop options: so many octets of padding options, in units of eight, beyond the first eight.
    HopByHop(u8),
    /// Destination options, filled as `HopByHop` is.
    DestinationOptions(u8),
    /// Destination options: one, which says a VIP (`dsproxy-ebpf/src/direct.rs`).
    Vip(Ipv6Addr, u16),
    /// A routing header of type 4 without segments left, with room for so many addresses.
    Routing(u8),
    /// An authentication header with so many 32-bit words of integrity check value.
    Authentication(u8),
    /// A fragment header.
    Fragment {
        /// The offset in bytes, a multiple of eight.
        offset: u16,
        /// Whether more fragments follow.
        more: bool,
    },
}

impl Extension {
    /// The header's protocol number.
    pub fn number(self) -> u8 {
        match self {
            Self::HopByHop(_) => 0,
            Self::Routing(_) => 43,
            Self::Fragment { .. } => 44,
            Self::Authentication(_) => 51,
            Self::DestinationOptions(_) | Self::Vip(..) => 60,
        }
    }

    /// Appends the header to `packet`; `next` is the number of what follows, `identification` a fragment's.
    pub(super) fn put(self, packet: &mut BytesMut, next: u8, identification: u32) {
        packet.put_u8(next);
        match self {
            Self::HopByHop(units) | Self::DestinationOptions(units) => {
                packet.put_u8(units);
                let mut room = 6 + usize::from(units) * 8;
                // PadN holds at most 255 bytes of padding.
                while room > 0 {
                    let option = room.min(257);
                    if option == 1 {
                        packet.put_u8(0);
                    } else {
                        packet.put_u8(1);
                        packet.put_u8((option - 2) as u8);
                        packet.put_bytes(0, option - 2);
                    }
                    room -= option;
                }
            }
            Self::Vip(address, port) => {
                packet.put_slice(&[2, 0x1e, 20]);
                packet.put_u16(port);
                packet.put_u16(0);
                packet.put_slice(&address.octets());
            }
            Self::Routing(addresses) => {
                packet.put_u8(addresses * 2);
                packet.put_u8(4);
                packet.put_u8(0);
                packet.put_u8(addresses.saturating_sub(1));
                packet.put_bytes(0, 3 + usize::from(addresses) * 16);
            }
            Self::Authentication(words) => {
                // In 32-bit words, less two (RFC 4302, section 2.2): three words are fixed.
                packet.put_u8(words + 1);
                packet.put_u16(0);
                packet.put_u32(0x1234_5678);
                packet.put_u32(1);
                packet.put_bytes(0xa5, usize::from(words) * 4);
            }
            Self::Fragment { offset, more } => {
                packet.put_u8(0);
                packet.put_u16(offset & !7 | u16::from(more));
                packet.put_u32(identification);
            }
        }
    }
}
