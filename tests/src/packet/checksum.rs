//! Checksums over whole packets, computed from nothing (RFC 1071).

use std::net::IpAddr;

use thiserror::Error;

use super::{
    Link,
    dissect::{Checksum, Dissection},
};

/// The one's complement of the one's complement sum of `parts`, each of which but the last has an even length.
pub(super) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum: u64 = 0;
    for part in parts {
        for word in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or_default()]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The pseudo-header of a transport checksum (RFC 9293, section 3.1; RFC 8200, section 8.1).
pub(super) fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => bytes.extend(address.octets()),
            IpAddr::V6(address) => bytes.extend(address.octets()),
        }
    }
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// A checksum that is wrong, or a packet that is not whole.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum ChecksumError {
    /// Another one would be right.
    #[error("the {layer} checksum{} is {found:#06x}, and {right:#06x} would be right", if *is_quoted { " of the quoted packet" } else { "" })]
    Wrong {
        /// Which header it stands in.
        layer: &'static str,
        /// Whether it stands in the packet that an ICMP error quotes.
        is_quoted: bool,
        /// What stands there.
        found: u32,
        /// What should stand there.
        right: u32,
    },
    /// The packet is shorter than its IP header says.
    #[error("the packet is cut off")]
    CutOff,
}

/// Checks every checksum in a whole packet, and in what it quotes of another as far as that goes.
///
/// # Errors
///
/// Names the first one that is wrong.
pub fn verify(link: Link, packet: &[u8]) -> Result<(), ChecksumError> {
    let dissection = Dissection::of(link, packet);
    if dissection.network.is_some_and(|network| network.is_cut) {
        return Err(ChecksumError::CutOff);
    }
    layers(&dissection, false)?;
    dissection.quoted.map_or(Ok(()), |quoted| layers(&quoted, true))
}

fn layers(Dissection { network, transport, .. }: &Dissection, is_quoted: bool) -> Result<(), ChecksumError> {
    let checksums = [
        ("IPv4", network.and_then(|network| network.checksum)),
        ("transport", transport.and_then(|transport| transport.checksum)),
    ];
    for (layer, checksum) in checksums {
        if let Some(Checksum { found, right }) = checksum
            && found != right
        {
            return Err(ChecksumError::Wrong { layer, is_quoted, found, right });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_of_a_captured_packet_sums_up() {
        // A well-known example header; its checksum is 0xb861.
        let header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00, 0x01, 0xc0, 0xa8,
            0x00, 0xc7,
        ];
        assert_eq!(checksum(&[&header]), 0xb861);
    }

    #[test]
    fn an_odd_last_byte_counts_as_the_high_half() {
        assert_eq!(checksum(&[&[0x12, 0x34], &[0x56]]), !(0x1234 + 0x5600));
    }
}
