//! The IPv4 header (RFC 791, section 3.1).

use dsproxy_common::{Addr4, count::Reason, flow::FlowKey};

use super::Transport;
use crate::packet::{Linear, Short, View};

/// The header without options, in bytes.
pub(crate) const HEADER: usize = 20;
/// Where its fields stand.
const VERSION_AND_LENGTH: usize = 0;
const TOTAL_LENGTH: usize = 2;
const FRAGMENT: usize = 6;
const PROTOCOL: usize = 9;
pub(crate) const CHECKSUM: usize = 10;
pub(crate) const SOURCE: usize = 12;
pub(crate) const DESTINATION: usize = 16;

/// "More fragments" and the offset: all zero in a packet that is whole.
const FRAGMENT_MASK: u16 = 0x3fff;

#[inline(always)]
pub(crate) fn parse(linear: Linear, l3: usize, key: &mut FlowKey<Addr4>) -> Result<Result<Transport, Reason>, Short> {
    let header = View::<HEADER>::at(linear, l3)?;
    let version_and_length = header.read::<u8, VERSION_AND_LENGTH>();
    let length = usize::from(version_and_length & 0x0f) * 4;
    let total = usize::from(u16::from_be(header.read::<u16, TOTAL_LENGTH>()));
    // A length of zero stands for "see the packet" in segments larger than 64 KiB (BIG TCP, kernel 6.3).
    if version_and_length >> 4 != 4 || length < HEADER || (total != 0 && total < length) {
        return Ok(Err(Reason::Malformed));
    }
    if u16::from_be(header.read::<u16, FRAGMENT>()) & FRAGMENT_MASK != 0 {
        return Ok(Err(Reason::EarlyFragment));
    }
    header.read_address::<_, SOURCE>(&mut key.source);
    header.read_address::<_, DESTINATION>(&mut key.destination);
    Ok(Ok(Transport {
        protocol: header.read::<u8, PROTOCOL>(),
        offset: l3 + length,
        end: (total != 0).then_some(l3 + total),
    }))
}
