//! Packets changed as a translation is to change them: an end replaced, and every checksum that covers it.

use std::net::{IpAddr, SocketAddr};

use dsproxy_common::IpFamily;

use super::{
    parse::{self, Content, Parsed, be},
    sum,
};
use crate::packet::number;

/// Which end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Source,
    Destination,
}

/// A packet that is being changed.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    pub(super) bytes: Vec<u8>,
    /// Where checksums stand of which zero and all ones are the same, both being written for the same sum.
    pub(super) either_zero: Vec<usize>,
}

impl Draft {
    pub(super) fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.to_vec(), either_zero: Vec::new() }
    }

    /// Puts `with` at one end of the packet.
    pub(super) fn replace(&mut self, parsed: &Parsed, end: End, with: SocketAddr) {
        let network = &parsed.network;
        let before = self.bytes.clone();
        self.put_address(network.l3, network.family, end, with.ip());
        self.mend_header(&before, network.l3, network.l4, network.family);
        // What follows the header of a later fragment is payload, and SCTP's checksum leaves no room for other ports.
        if network.piece.is_later() || !matches!(parsed.content, Content::Tcp(_) | Content::Udp | Content::Echo) {
            return;
        }
        match parsed.content {
            Content::Echo => self.put(network.l4 + 4, with.port()),
            _ => self.put(network.l4 + if end == End::Source { 0 } else { 2 }, with.port()),
        }
        let covered = (network.l4, network.end.unwrap_or(usize::MAX));
        self.mend_transport(&before, network.l3, covered, network.family, network.protocol);
    }

    pub(super) fn put(&mut self, at: usize, number: u16) {
        self.bytes[at..at + 2].copy_from_slice(&number.to_be_bytes());
    }

    pub(super) fn put_address(&mut self, l3: usize, family: IpFamily, end: End, address: IpAddr) {
        let at = l3 + address_offset(family, end);
        match address {
            IpAddr::V4(address) => self.bytes[at..at + 4].copy_from_slice(&address.octets()),
            IpAddr::V6(address) => self.bytes[at..at + 16].copy_from_slice(&address.octets()),
        }
    }

    /// Makes up for what has changed in the IP header from `l3` to `l4` since it was `before`.
    pub(super) fn mend_header(&mut self, before: &[u8], l3: usize, l4: usize, family: IpFamily) {
        if family == IpFamily::V4 {
            self.mend(before, l3 + 10, (l3, l4), (0, 0));
        }
    }

    /// Makes up for what has changed in a transport header of `protocol`, or in the addresses of the IP header at `l3`.
    pub(super) fn mend_transport(
        &mut self,
        before: &[u8],
        l3: usize,
        (l4, end): (usize, usize),
        family: IpFamily,
        protocol: u8,
    ) {
        let field = match protocol {
            number::TCP => l4 + 16,
            number::UDP => l4 + 6,
            number::ICMP | number::ICMPV6 => l4 + 2,
            _ => return,
        };
        let pseudo = |bytes: &[u8]| {
            let address = |end| parse::address(bytes, l3 + address_offset(family, end), family).expect("an IP header");
            sum::addresses(address(End::Source), address(End::Destination))
        };
        let addresses = if protocol == number::ICMP { (0, 0) } else { (pseudo(before), pseudo(&self.bytes)) };
        if protocol != number::UDP {
            self.mend(before, field, (l4, end), addresses);
        } else if be(before, field) != 0 {
            // Zero says that there is no checksum (RFC 768).
            self.mend(before, field, (l4, end), addresses);
            self.either_zero.pop();
            if be(&self.bytes, field) == 0 {
                self.put(field, 0xffff);
            }
        }
    }

    /// Makes the checksum at `field` right for what has changed between `start` and `end`, and in sums beside.
    fn mend(&mut self, before: &[u8], field: usize, (start, end): (usize, usize), beside: (u16, u16)) {
        let covered = |bytes: &[u8]| {
            let end = end.min(bytes.len());
            let without_field = [&bytes[start..field], &[0, 0], &bytes[(field + 2).min(end)..end]].concat();
            sum::sum(&without_field)
        };
        let (old, new) = (sum::add(covered(before), beside.0), sum::add(covered(&self.bytes), beside.1));
        self.put(field, sum::mended(be(before, field), old, new));
        self.either_zero.push(field);
    }
}

pub(super) fn address_offset(family: IpFamily, end: End) -> usize {
    match (family, end) {
        (IpFamily::V4, End::Source) => 12,
        (IpFamily::V4, End::Destination) => 16,
        (IpFamily::V6, End::Source) => 8,
        (IpFamily::V6, End::Destination) => 24,
    }
}
