//! SCTP packets with one chunk of data (RFC 9260, sections 3.1 and 3.3.1) and their checksum (appendix A).

use bytes::{BufMut, BytesMut};

/// Where the checksum stands in the common header.
pub(super) const CHECKSUM: usize = 8;

/// Appends the common header, its checksum zero, and `payload` in a chunk.
pub(super) fn put(packet: &mut BytesMut, source: u16, destination: u16, payload: &[u8]) {
    const DATA: u8 = 0;
    const WHOLE_MESSAGE: u8 = 0x03;
    const CHUNK_HEADER: usize = 16;
    packet.put_u16(source);
    packet.put_u16(destination);
    packet.put_u32(0x7461_6721);
    packet.put_u32(0);
    packet.put_u8(DATA);
    packet.put_u8(WHOLE_MESSAGE);
    packet.put_u16((CHUNK_HEADER + payload.len()) as u16);
    packet.put_u32(1_000_000);
    packet.put_u16(1);
    packet.put_u16(2);
    packet.put_u32(0);
    packet.put_slice(payload);
    packet.put_bytes(0, payload.len().next_multiple_of(4) - payload.len());
}

/// The checksum of `packet`, in which the field for it counts as zero, as the four bytes to be put there: CRC32c, least
/// significant byte first.
pub(super) fn checksum(packet: &[u8]) -> Option<[u8; 4]> {
    let (before, after) = (packet.get(..CHECKSUM)?, packet.get(CHECKSUM + 4..)?);
    let sum = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]), after);
    Some(sum.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two vectors of RFC 3720, appendix B.4.
    #[test]
    fn it_is_the_castagnoli_polynomial() {
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c::crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn what_stands_in_the_field_does_not_count() {
        let mut packet = BytesMut::new();
        put(&mut packet, 40_000, 80, b"hello");
        assert_eq!(packet.len(), 12 + 16 + 8, "the chunk is padded to whole words");
        let sum = checksum(&packet).expect("a header");
        packet[CHECKSUM..CHECKSUM + 4].copy_from_slice(&sum);
        assert_eq!(checksum(&packet), Some(sum));
        packet[20] ^= 1;
        assert_ne!(checksum(&packet), Some(sum));
        assert_eq!(checksum(&packet[..11]), None);
    }
}
