//! Addresses, ports and protocols as they stand in packets and map keys.

use core::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// An IP address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum IpFamily {
    /// IP version 4.
    V4 = 4,
    /// IP version 6.
    V6 = 6,
}

impl IpFamily {
    /// Both families, IPv4 first.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// A transport protocol that is balanced. The discriminant is the IANA protocol number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Protocol {
    /// TCP.
    Tcp = 6,
    /// UDP.
    Udp = 17,
    /// SCTP. Its addresses are translated; its ports are not, for its checksum covers the whole packet (RFC 9260,
    /// section 6.8).
    Sctp = 132,
}

impl Protocol {
    /// All balanced protocols.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The protocol with this IANA number, when it is one that is balanced.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }

    /// The IANA protocol number.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        })
    }
}

/// A port number in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Port(u16);

impl Port {
    /// From a number in host byte order.
    #[inline(always)]
    pub const fn new(number: u16) -> Self {
        Self(number.to_be())
    }

    /// From the two bytes as they stand in a packet, read as a native integer.
    #[inline(always)]
    pub const fn from_wire(wire: u16) -> Self {
        Self(wire)
    }

    /// The number in host byte order.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The two bytes as they stand in a packet, as a native integer.
    #[inline(always)]
    pub const fn wire(self) -> u16 {
        self.0
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

/// What an address of either family can do. Code over both families is generic over this.
pub trait Address: Copy + Default + Eq + Ord + core::hash::Hash + fmt::Debug + Into<IpAddr> + Sized + 'static {
    /// The family.
    const FAMILY: IpFamily;

    /// `address`, if it is of this family.
    fn from_ip(address: IpAddr) -> Option<Self>;

    /// The address as 32-bit words, each holding four bytes of the packet in the packet's order.
    fn words(&self) -> &[u32];

    /// As `words`, to be changed.
    fn words_mut(&mut self) -> &mut [u32];

    /// The address as one of IPv6: an IPv4 address mapped to it (RFC 4291, section 2.5.5.2).
    fn mapped(&self) -> Addr6;
}

/// An IPv4 address in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr4([u32; 1]);

/// An IPv6 address in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Default, Eq, PartialOrd, Ord)]
pub struct Addr6([u32; 4]);

impl PartialEq for Addr6 {
    /// Word by word: compared as one integer of 128 bits, as an array would be, a copy on the stack gets an alignment that
    /// LLVM's code generator for bpf does not know how to copy with, and crashes over (22.1).
    #[inline(always)]
    fn eq(&self, other: &Self) -> bool {
        let ([a, b, c, d], [e, f, g, h]) = (self.0, other.0);
        (a ^ e) | (b ^ f) | (c ^ g) | (d ^ h) == 0
    }
}

impl core::hash::Hash for Addr6 {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl Address for Addr4 {
    const FAMILY: IpFamily = IpFamily::V4;

    fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Some(address.into()),
            IpAddr::V6(_) => None,
        }
    }

    #[inline(always)]
    fn words(&self) -> &[u32] {
        &self.0
    }

    #[inline(always)]
    fn words_mut(&mut self) -> &mut [u32] {
        &mut self.0
    }

    #[inline(always)]
    fn mapped(&self) -> Addr6 {
        Addr6([0, 0, 0xffff_u32.to_be(), self.0[0]])
    }
}

impl Address for Addr6 {
    const FAMILY: IpFamily = IpFamily::V6;

    fn from_ip(address: IpAddr) -> Option<Self> {
        match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(address.into()),
        }
    }

    #[inline(always)]
    fn words(&self) -> &[u32] {
        &self.0
    }

    #[inline(always)]
    fn words_mut(&mut self) -> &mut [u32] {
        &mut self.0
    }

    #[inline(always)]
    fn mapped(&self) -> Addr6 {
        *self
    }
}

impl From<Ipv4Addr> for Addr4 {
    fn from(address: Ipv4Addr) -> Self {
        Self([u32::from_ne_bytes(address.octets())])
    }
}

impl From<Addr4> for Ipv4Addr {
    fn from(address: Addr4) -> Self {
        Self::from(address.0[0].to_ne_bytes())
    }
}

impl From<Addr4> for IpAddr {
    fn from(address: Addr4) -> Self {
        Self::V4(address.into())
    }
}

impl From<Ipv6Addr> for Addr6 {
    fn from(address: Ipv6Addr) -> Self {
        let o = address.octets();
        let word = |i: usize| u32::from_ne_bytes([o[i], o[i + 1], o[i + 2], o[i + 3]]);
        Self([word(0), word(4), word(8), word(12)])
    }
}

impl From<Addr6> for Ipv6Addr {
    fn from(address: Addr6) -> Self {
        let mut octets = [0u8; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(address.0) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Self::from(octets)
    }
}

impl From<Addr6> for IpAddr {
    fn from(address: Addr6) -> Self {
        Self::V6(address.into())
    }
}

impl fmt::Debug for Addr4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Ipv4Addr::from(*self), f)
    }
}

impl fmt::Debug for Addr6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Ipv6Addr::from(*self), f)
    }
}

crate::record::record! {
    Addr4 { 0 }
    Addr6 { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_stand_in_packet_order() {
        let v4: Ipv4Addr = "10.1.2.3".parse().expect("address");
        assert_eq!(Ipv6Addr::from(Addr4::from(v4).mapped()), v4.to_ipv6_mapped());
        assert_eq!(Addr4::from(v4).words()[0].to_ne_bytes(), [10, 1, 2, 3]);
        assert_eq!(Ipv4Addr::from(Addr4::from(v4)), v4);
        let v6: Ipv6Addr = "fd00:1:2:3:4:5:6:789a".parse().expect("address");
        assert_eq!(Addr6::from(v6).words()[3].to_ne_bytes(), [0, 6, 0x78, 0x9a]);
        assert_eq!(Ipv6Addr::from(Addr6::from(v6)), v6);
        assert_eq!(Port::new(80).wire().to_ne_bytes(), [0, 80]);
        assert_eq!(Port::new(80).number(), 80);
    }
}
