//! Packets in fragments: what the first fragment shows, remembered for the others.

use crate::{
    Port,
    record::{family_record, record},
};

/// What the fragments of one packet have in common (RFC 791, section 3.2; RFC 8200, section 4.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    /// The source address.
    pub source: A,
    /// The destination address.
    pub destination: A,
    /// The identification, as it stands in the packet; IPv4 has 16 bits of it.
    pub identification: u32,
    /// The IANA protocol number of the transport header.
    pub protocol: u32,
}

/// What only the first fragment shows.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The source port.
    pub source_port: Port,
    /// The destination port.
    pub destination_port: Port,
    /// When the first fragment was seen: the low half of the jiffies. Others count for as long as a stack waits for them.
    pub seen: u32,
}

/// How long the fragments of a packet are waited for, in seconds: as in the kernel's reassembly (`IP_FRAG_TIME`,
/// include/net/ip.h; RFC 8200 wants 60).
pub const LIFETIME: u32 = 60;

family_record! {
    FragmentKey { source, destination, identification, protocol }
}

record! {
    Fragment { source_port, destination_port, seen }
}
