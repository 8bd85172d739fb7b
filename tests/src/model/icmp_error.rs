//! ICMP errors about translated packets. What they quote has gone the other way: turned round, it is a packet of the same
//! connection that goes theirs.

use std::net::SocketAddr;

use dsproxy_common::{IpFamily, count::Reason};

use super::{
    Arrival, Model, Ruling,
    edit::{Draft, End},
    parse::{self, Network, Parsed},
    tables::{Flow, Kind},
};
use crate::packet::number;

/// What every error quotes of a transport header.
const LEAST_QUOTED: usize = 8;

/// What is quoted.
struct Quote {
    network: Network,
    /// Turned round.
    flow: Flow,
    /// Where the error ends.
    end: usize,
}

/// What the far end is called on the other side, and the near end's port there, should it be another.
struct Name {
    end: SocketAddr,
    other_port: Option<u16>,
}

impl Model {
    /// An error about what left with a VIP or the node as its source: it goes on to who sent that.
    pub(super) fn error_enters(&self, at: &Arrival<'_>, parsed: &Parsed) -> Ruling {
        let quote = Quote::of(at, parsed).filter(|quote| quote.flow.destination.ip() == parsed.network.destination);
        match quote.as_ref().and_then(|quote| self.sender(&quote.flow)) {
            Some(name) => renamed(at, parsed, &quote.expect("what has a sender"), End::Source, &name, true),
            None => Ruling::Left(Reason::OtherProtocol),
        }
    }

    /// An error about what entered, and went to a backend or a client: it is told whom the sender meant.
    pub(super) fn error_leaves(&self, at: &Arrival<'_>, parsed: &Parsed) -> Ruling {
        let quote = Quote::of(at, parsed);
        match quote.as_ref().and_then(|quote| self.receiver(&quote.flow)) {
            Some(name) => {
                let quote = quote.expect("what has a receiver");
                let is_reporter = quote.flow.source.ip() == parsed.network.source;
                renamed(at, parsed, &quote, End::Destination, &name, is_reporter)
            }
            None => Ruling::Left(Reason::OtherProtocol),
        }
    }

    fn sender(&self, flow: &Flow) -> Option<Name> {
        if self.may_be_answer(flow)
            && let Some(held) = self.tables.snat.get(flow)
        {
            let is_alive = !self.is_over(held.state, held.seen);
            return is_alive.then_some(Name { end: held.client, other_port: None });
        }
        let held = self.tables.forward.get(flow)?;
        let is_alive = !self.is_over(held.state, held.seen);
        is_alive.then_some(Name { end: held.backend.address, other_port: held.other_port })
    }

    fn receiver(&self, flow: &Flow) -> Option<Name> {
        let held = self.tables.egress.get(flow)?;
        let is_replaced = !matches!(held.kind, Kind::Unsettled | Kind::Direct);
        let is_alive = is_replaced && !self.is_over(held.state, held.seen);
        is_alive.then_some(Name { end: held.end?, other_port: held.client_port })
    }
}

impl Quote {
    fn of(at: &Arrival<'_>, parsed: &Parsed) -> Option<Self> {
        let outer = &parsed.network;
        let network = parse::network(at.bytes, outer.l4 + 8, outer.family).ok().filter(|it| !it.piece.is_later())?;
        let end = outer.end.unwrap_or(at.bytes.len());
        let header = at.bytes.get(network.l4..network.l4 + LEAST_QUOTED)?;
        if end < network.l4 + LEAST_QUOTED {
            return None;
        }
        let (source, destination) = match network.protocol {
            number::TCP | number::UDP | number::SCTP => (parse::be(header, 0), parse::be(header, 2)),
            icmp if icmp == parse::icmp_protocol(outer.family) => parse::echo(outer.family, header)?,
            _ => return None,
        };
        let flow = Flow {
            source: SocketAddr::new(network.destination, destination),
            destination: SocketAddr::new(network.source, source),
            protocol: network.protocol,
        };
        Some(Self { network, flow, end })
    }
}

/// The error with `name` at `end` of what it quotes and, with `is_both`, at the other end of itself.
fn renamed(at: &Arrival<'_>, parsed: &Parsed, quote: &Quote, end: End, name: &Name, is_both: bool) -> Ruling {
    let (outer, quoted) = (&parsed.network, &quote.network);
    let family = outer.family;
    let mut draft = Draft::of(at.bytes);
    if is_both {
        let outer_end = if end == End::Source { End::Destination } else { End::Source };
        draft.put_address(outer.l3, family, outer_end, name.end.ip());
        draft.mend_header(at.bytes, outer.l3, outer.l4, family);
    }
    draft.put_address(quoted.l3, family, end, name.end.ip());
    draft.mend_header(at.bytes, quoted.l3, quoted.l4, family);
    let (near, far) = match end {
        End::Source => (2, 0),
        End::Destination => (0, 2),
    };
    match quoted.protocol {
        number::TCP | number::UDP => {
            draft.put(quoted.l4 + far, name.end.port());
            if let Some(port) = name.other_port {
                draft.put(quoted.l4 + near, port);
            }
        }
        // Its checksum covers the whole packet, so its ports were never changed.
        number::SCTP => {}
        _ => draft.put(quoted.l4 + 4, name.end.port()),
    }
    // Of a TCP header the least of errors do not quote the checksum.
    let is_quoted = quoted.protocol != number::TCP || quoted.l4 + 18 <= quote.end.min(at.bytes.len());
    if is_quoted {
        draft.mend_transport(at.bytes, quoted.l3, (quoted.l4, quote.end), family, quoted.protocol);
    }
    // The error's own checksum covers all of that; ICMPv6's its addresses, too.
    let protocol = if family == IpFamily::V4 { number::ICMP } else { number::ICMPV6 };
    draft.mend_transport(at.bytes, outer.l3, (outer.l4, quote.end), family, protocol);
    Ruling::Rewritten(Reason::IcmpError, draft, None)
}
