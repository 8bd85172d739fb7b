//! Packets as bytes: built layer by layer with lengths and checksums computed, taken apart again, compared.
//!
//! Written from the RFCs and sharing no code with the kernel programs, so that a mistake in those is not repeated here.

mod answer;
mod build;
mod checksum;
mod dissect;
mod encode;
mod extension;
mod icmp;
mod sctp;
#[cfg(test)]
mod tests;

pub use build::{Packet, Part, Tag, flags};
pub use checksum::{ChecksumError, verify};
pub use dissect::{Checksum, Dissection, Network, Transport, TransportKind, difference, show};
pub use extension::Extension;
pub use icmp::Message;

/// What stands in front of the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// Nothing.
    None,
}

impl Link {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ethernet, Self::None];
}

/// Numbers that IEEE and IANA have assigned.
pub mod number {
    /// `EtherType` of IPv4.
    pub const ETHERTYPE_IPV4: u16 = 0x0800;
    /// `EtherType` of ARP.
    pub const ETHERTYPE_ARP: u16 = 0x0806;
    /// `EtherType` of a VLAN tag (802.1Q).
    pub const ETHERTYPE_VLAN: u16 = 0x8100;
    /// `EtherType` of IPv6.
    pub const ETHERTYPE_IPV6: u16 = 0x86dd;
    /// `EtherType` of a service VLAN tag (802.1ad).
    pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8;
    /// Protocol number of ICMP.
    pub const ICMP: u8 = 1;
    /// Protocol number of TCP.
    pub const TCP: u8 = 6;
    /// Protocol number of UDP.
    pub const UDP: u8 = 17;
    /// Protocol number of ESP.
    pub const ESP: u8 = 50;
    /// Protocol number of ICMPv6.
    pub const ICMPV6: u8 = 58;
    /// Protocol number of SCTP.
    pub const SCTP: u8 = 132;
}
