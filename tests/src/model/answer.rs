//! What is refused becomes the answer to itself: an ICMP error, or a reset.

use std::net::IpAddr;

use dsproxy_common::{IpFamily, count::Reason};

use super::{
    Arrival, Ruling,
    edit::Draft,
    parse::{Content, Parsed, be},
    sum,
    tables::{Flags, acknowledges, finishes, opens, resets},
};
use crate::packet::{Link, number};

const TCP_HEADER: usize = 20;
const ICMP_HEADER: usize = 8;

/// What becomes of a packet, of the service port `whose` if it is one's, that is refused for `reason`; `answers` says whether there is any
/// budget for it.
pub(super) fn refuse(
    at: &Arrival<'_>,
    parsed: &Parsed,
    (reason, whose): (Reason, Option<usize>),
    answers: bool,
) -> Ruling {
    let flags = parsed.flags();
    // `connect` over IPv6 takes an error for a hint, and a reset as what it is.
    let is_reset = reason == Reason::BackendGone || parsed.network.family == IpFamily::V6 && opens(flags);
    let is_allowed = !was_sent_to_many(at) && !parsed.network.piece.is_later() && is_host(parsed.network.source);
    if !is_allowed || is_reset && resets(flags) {
        return Ruling::Dropped(Reason::Unanswerable, whose);
    }
    if !answers {
        return Ruling::Dropped(Reason::RefusalLimit, whose);
    }
    let draft = if is_reset { reset(at, parsed, flags) } else { port_unreachable(at, parsed) };
    Ruling::Answered(reason, draft, whose)
}

/// Frames to a group address are answered by nobody (RFC 1122, section 3.2.2).
fn was_sent_to_many(at: &Arrival<'_>) -> bool {
    at.link == Link::Ethernet && at.bytes[0] & 1 != 0
}

/// Whether one host has the address.
pub(super) fn is_host(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !matches!(address.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(address) => !(address.is_unspecified() || address.is_loopback() || address.is_multicast()),
    }
}

/// The packet from its IP header on, without what stands behind its end.
fn whole<'a>(at: &Arrival<'a>, parsed: &Parsed) -> &'a [u8] {
    let end = parsed.network.end.unwrap_or(usize::MAX).min(at.bytes.len());
    &at.bytes[parsed.network.l3..end]
}

fn port_unreachable(at: &Arrival<'_>, parsed: &Parsed) -> Draft {
    let (numbers, longest, class, protocol) = match parsed.network.family {
        IpFamily::V4 => ([3, 3], 576 - 20, 0xc0, number::ICMP),
        IpFamily::V6 => ([1, 4], 1280 - 40, 0, number::ICMPV6),
    };
    let quoted = whole(at, parsed);
    let quoted = &quoted[..quoted.len().min(longest - ICMP_HEADER)];
    let message = [&numbers[..], &[0; 6], quoted].concat();
    answer(at, parsed, protocol, class, message, 2)
}

fn reset(at: &Arrival<'_>, parsed: &Parsed, flags: Flags) -> Draft {
    const RST: u8 = 0x04;
    const RST_ACK: u8 = 0x14;
    let segment = &at.bytes[parsed.network.l4..];
    let number = |at: usize| u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]);
    let (sequence, acknowledgement, sent) = if acknowledges(flags) {
        (number(8), 0, RST)
    } else {
        let headers = parsed.network.l4 - parsed.network.l3 + usize::from(segment[12] >> 4) * 4;
        let said = parsed.network.end.map_or(at.bytes.len(), |end| end) - parsed.network.l3;
        let length = said.saturating_sub(headers) as u32 + u32::from(opens(flags)) + u32::from(finishes(flags));
        (0, number(4).wrapping_add(length), RST_ACK)
    };
    let mut header = Vec::with_capacity(TCP_HEADER);
    header.extend(be(segment, 2).to_be_bytes());
    header.extend(be(segment, 0).to_be_bytes());
    header.extend(sequence.to_be_bytes());
    header.extend(acknowledgement.to_be_bytes());
    header.extend([0x50, sent, 0, 0, 0, 0, 0, 0]);
    answer(at, parsed, number::TCP, 0, header, 16)
}

/// `body`, whose checksum is to stand at `checksum`, in place of the packet and on its way back.
fn answer(at: &Arrival<'_>, parsed: &Parsed, protocol: u8, class: u8, mut body: Vec<u8>, checksum: usize) -> Draft {
    let network = &parsed.network;
    let mut bytes = at.bytes[..network.l3].to_vec();
    if at.link == Link::Ethernet {
        let (to, from) = (at.bytes[0..6].to_vec(), at.bytes[6..12].to_vec());
        bytes[..6].copy_from_slice(&from);
        bytes[6..12].copy_from_slice(&to);
    }
    let mut total = sum::sum(&body);
    if protocol != number::ICMP {
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
        let pseudo_header = sum::add(length, protocol.into());
        total = sum::add(total, sum::add(pseudo_header, sum::addresses(network.source, network.destination)));
    }
    body[checksum..checksum + 2].copy_from_slice(&sum::complete(total).to_be_bytes());
    let mut either_zero = vec![];
    match (network.source, network.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = vec![0x45, class];
            header.extend(((20 + body.len()) as u16).to_be_bytes());
            // Not to be cut into fragments, so without identification (RFC 6864).
            header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
            header.extend(destination.octets());
            header.extend(source.octets());
            let own = sum::complete(sum::sum(&header));
            header[10..12].copy_from_slice(&own.to_be_bytes());
            either_zero.push(bytes.len() + 10);
            bytes.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes.extend((6 << 28 | u32::from(class) << 20).to_be_bytes());
            bytes.extend((body.len() as u16).to_be_bytes());
            bytes.extend([protocol, 64]);
            bytes.extend(destination.octets());
            bytes.extend(source.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => unreachable!("one header has one family"),
    }
    either_zero.push(bytes.len() + checksum);
    bytes.extend(body);
    debug_assert!(!matches!(parsed.content, Content::Error));
    Draft { bytes, either_zero }
}
