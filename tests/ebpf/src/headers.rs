//! Headers put in place: what a plan says of a packet's addresses, ports and checksums.

use dsproxy_bench_ebpf::{End, Plan, TEMPLATE_WORDS};

use crate::wire::Wire;

const ETHERNET: usize = 14;

/// Where the fields stand in the packets of one shape: Ethernet, no tags, no options.
pub(crate) trait Shape {
    const WORDS: usize;
    const SOURCE: usize;
    const DESTINATION: usize;
    const HEADER_CHECKSUM: Option<usize>;
    const SOURCE_PORT: usize;
    const DESTINATION_PORT: usize = Self::SOURCE_PORT + 2;
    const TRANSPORT_CHECKSUM: usize;
    const LENGTH: usize;
}

macro_rules! shapes {
    ($($(#[$attribute:meta])* $shape:ident: $words:literal words at $source:literal, checksum $checksum:expr,
        transport at $transport:literal, checksum at $transport_checksum:literal of $length:literal;)+) => {
        $(
            $(#[$attribute])*
            pub(crate) enum $shape {}

            impl Shape for $shape {
                const WORDS: usize = $words;
                const SOURCE: usize = ETHERNET + $source;
                const DESTINATION: usize = Self::SOURCE + $words * 4;
                const HEADER_CHECKSUM: Option<usize> = $checksum;
                const SOURCE_PORT: usize = ETHERNET + $transport;
                const TRANSPORT_CHECKSUM: usize = Self::SOURCE_PORT + $transport_checksum;
                const LENGTH: usize = Self::SOURCE_PORT + $length;
            }
        )+
    };
}

shapes! {
    #[allow(dead_code, reason = "not every object has programs for it")]
    TcpV4: 1 words at 12, checksum Some(ETHERNET + 10), transport at 20, checksum at 16 of 20;
    UdpV4: 1 words at 12, checksum Some(ETHERNET + 10), transport at 20, checksum at 6 of 8;
    #[allow(dead_code, reason = "not every object has programs for it")]
    TcpV6: 4 words at 8, checksum None, transport at 40, checksum at 16 of 20;
    UdpV6: 4 words at 8, checksum None, transport at 40, checksum at 6 of 8;
}

/// Puts `template` at `start`.
///
/// # Safety
///
/// As many bytes must be writable there.
#[inline(always)]
#[allow(dead_code, reason = "not every object has programs that need it")]
pub(crate) unsafe fn write_template(start: *mut u8, template: &[u32; TEMPLATE_WORDS]) {
    let mut word = 0;
    while word < TEMPLATE_WORDS {
        // SAFETY: given by the caller.
        unsafe { u32::store::<0>(start.add(word * 4), template[word]) };
        word += 1;
    }
}

/// Makes the headers of the packet that begins at `start` what `plan` says of run number `sequence`.
///
/// # Safety
///
/// `S::LENGTH` bytes must be writable there.
#[inline(always)]
pub(crate) unsafe fn write<S: Shape>(start: *mut u8, plan: &Plan, sequence: u32) {
    let Plan { source, destination, header_checksum, transport_checksum } = plan;
    // SAFETY: every offset of a shape lies within its length.
    unsafe {
        write_end::<S>(start, S::SOURCE, S::SOURCE_PORT, source, sequence);
        write_end::<S>(start, S::DESTINATION, S::DESTINATION_PORT, destination, sequence);
        if let Some(offset) = S::HEADER_CHECKSUM {
            u16::store::<0>(start.add(offset), *header_checksum as u16);
        }
        u16::store::<0>(start.add(S::TRANSPORT_CHECKSUM), *transport_checksum as u16);
    }
}

/// Puts an end in place, field by field as the programs that are measured read it: a processor that finds two stores
/// behind one load has to wait.
///
/// # Safety
///
/// The fields must lie within the packet.
#[inline(always)]
unsafe fn write_end<S: Shape>(start: *mut u8, address: usize, port: usize, end: &End, sequence: u32) {
    let mut word = 0;
    while word + 1 < S::WORDS {
        // SAFETY: given by the caller.
        unsafe { u32::store::<0>(start.add(address + word * 4), end.prefix[word]) };
        word += 1;
    }
    // SAFETY: as above.
    unsafe {
        u32::store::<0>(start.add(address + word * 4), end.address_in(sequence).to_be());
        u16::store::<0>(start.add(port), end.port_in(sequence).to_be());
    }
}
