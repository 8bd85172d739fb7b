//! Direct server return. The node that a client comes to sends its packets on with their source, and says the VIP in those that open;
//! the backend's node has the backend answer by that.

use std::net::SocketAddr;

use dsproxy_common::{IpFamily, count::Reason, service::FrontendKind, settings::NetworkFlags};

use super::{
    Arrival, Model, Ruling,
    edit::Draft,
    parse::{self, Network, Parsed, Piece, be},
    sum,
    tables::{Egress, Flow, Forward, Kind, State, finishes, opens, resets},
};
use crate::packet::Link;

/// The longest first datagram, as it leaves: what every link takes (RFC 8200, section 5).
const LONGEST_FIRST: usize = 1280;

/// IPv4: an option of this type and length, then port and address (RFC 4727 gives the type for experiments).
const V4: [u8; 2] = [158, 8];

/// IPv6: a header of destination options, three times eight bytes long, with one option of this type and length; then the port, two bytes
/// of nothing, and the address.
const V6: [u8; 3] = [2, 0x1e, 20];
const DESTINATION_OPTIONS: u8 = 60;

/// The VIP that stands first behind the IP header `network` of `bytes`.
pub(super) fn said(bytes: &[u8], network: &Network) -> Option<SocketAddr> {
    let header = &bytes[network.l3..];
    let (marks, start, size) = match network.family {
        IpFamily::V4 if header[0] & 0xf < 7 => return None,
        IpFamily::V4 => (&V4[..], 20, room(IpFamily::V4)),
        IpFamily::V6 if header[6] != DESTINATION_OPTIONS => return None,
        IpFamily::V6 => (&V6[..], 41, room(IpFamily::V6) - 1),
    };
    let option = header.get(start..start + size)?.strip_prefix(marks)?;
    let at = if network.family == IpFamily::V4 { 2 } else { 4 };
    Some(SocketAddr::new(parse::address(option, at, network.family).ok()?, be(option, 0)))
}

/// How many bytes it takes.
fn room(family: IpFamily) -> usize {
    match family {
        IpFamily::V4 => 8,
        IpFamily::V6 => 24,
    }
}

/// Whether it is a packet that has to say the VIP: of what is not TCP any may be the first.
fn may_be_first(parsed: &Parsed) -> bool {
    parsed.flags().is_none() || opens(parsed.flags())
}

/// Whether there is a place for a VIP: fragments have none, nor has what is followed by other options.
fn has_place(parsed: &Parsed) -> bool {
    parsed.network.piece == Piece::Whole && !parsed.has_options()
}

impl Model {
    /// Whether an entry still holds its packets.
    pub(super) fn is_living(&self, held: &Egress) -> bool {
        !held.gives_way() && !self.is_over(held.state, held.seen)
    }

    /// Whether the first packet of a connection may go on to another node with its source, and the VIP.
    pub(super) fn may_go_directly(&self, at: &Arrival<'_>, parsed: &Parsed) -> bool {
        let Network { family, l3, source, protocol, .. } = parsed.network;
        let is_wanted = self.node.rules.direct.iter().any(|direct| direct.number() == protocol);
        let has_room = has_place(parsed) && !at.is_aggregate && at.bytes.len() - l3 + room(family) <= LONGEST_FIRST;
        // What a pod sends may come back to its own node, which does not take its own addresses for a source.
        let is_pods = self.node.network(source) & NetworkFlags::POD != 0;
        is_wanted && !is_pods && (has_room || !may_be_first(parsed))
    }

    /// Notes that packets of `leaving`, which is what becomes of `flow`, go on directly.
    pub(super) fn request_direct(&mut self, flow: &Flow, leaving: Flow, service: usize, first: State) {
        // No answer will be seen.
        let state = if first == State::Opening { State::Answered } else { first };
        if let Some(Forward { state: held, .. }) = self.tables.forward.get_mut(flow) {
            *held = state;
        }
        if self.tables.egress.get(&leaving).is_some_and(|held| self.is_living(held)) {
            return;
        }
        let entry = Egress::new(Kind::Direct, Some(flow.destination), Some(service), state, self.now);
        self.tables.egress.insert(leaving, entry);
    }

    /// A client's packet leaves for its backend's node.
    pub(super) fn goes_directly(&mut self, at: &Arrival<'_>, parsed: &Parsed, held: Egress, vip: SocketAddr) -> Ruling {
        let state = held.state.client_sends(parsed.flags());
        if state != held.state || self.is_stale(held.seen) {
            let is_confirmed = held.is_confirmed || state == State::Established;
            self.tables.egress.insert(parsed.flow(), Egress { state, is_confirmed, seen: self.now, ..held });
        }
        let mut draft = Draft::of(at.bytes);
        if may_be_first(parsed) && has_place(parsed) {
            // The kernel lengthens what is one packet, and known to it for IP: that it takes from the Ethernet header, in a test.
            if at.link == Link::Ethernet && parsed.network.l3 == 14 && !at.is_aggregate {
                say(&mut draft, &parsed.network, vip);
            } else if opens(parsed.flags()) {
                // Without the VIP nobody would answer.
                return Ruling::Dropped(Reason::RewriteFailed, held.service);
            }
        }
        Ruling::Rewritten(Reason::SentDirect, draft, None)
    }

    /// A packet for no frontend that came from another node: one that says a VIP to a backend has it answer by that, one that ends a
    /// connection ends it here. None where it is neither.
    pub(super) fn arrives_directly(&mut self, at: &Arrival<'_>, parsed: &Parsed) -> Option<Ruling> {
        let flow = parsed.flow();
        if !self.node.rules.accepts_direct || !self.tables.backends.contains(&(flow.destination, flow.protocol)) {
            return None;
        }
        let reply = flow.reversed();
        let held = self.tables.egress.get(&reply).copied();
        if !may_be_first(parsed) {
            self.client_is_heard(parsed, &reply, held);
            return None;
        }
        let vip = said(at.bytes, &parsed.network)?;
        let service = Some(self.reached_at(vip, flow.protocol)?);
        let state = State::first(parsed.flags());
        let new = Egress::new(Kind::DirectReply, Some(vip), service, state, self.now);
        // A datagram that it sends unasked looks like a client's where all that leaves the cluster is masqueraded.
        let is_guess = |held: &Egress| held.service.is_none() && parsed.flags().is_none();
        let entry = match held.filter(|held| self.is_living(held) && !is_guess(held)) {
            Some(held) if !held.is_same(&new) => return Some(Ruling::Dropped(Reason::ReplyClash, service)),
            // Sent again, or the connection came by this node itself before.
            Some(held) if held.kind == Kind::Reply || held.state == state => Egress { seen: self.now, ..held },
            Some(_) | None => new,
        };
        self.tables.egress.insert(reply, entry);
        Some(Ruling::Left(Reason::DirectArrived))
    }

    /// The client's packets are not followed here, but for those that end its connection; and those that are looked at as closely, because
    /// they have options.
    fn client_is_heard(&mut self, parsed: &Parsed, reply: &Flow, held: Option<Egress>) {
        let is_heard = parsed.has_options() || finishes(parsed.flags()) || resets(parsed.flags());
        if let Some(held) = held.filter(|held| held.kind == Kind::DirectReply && is_heard)
            && !self.is_over(held.state, held.seen)
        {
            let state = held.state.client_sends(parsed.flags());
            self.tables.egress.insert(*reply, Egress { state, seen: self.now, ..held });
        }
    }

    /// The service that is reached at `vip`, which another node has said: a frontend's, or by its port a NodePort's, for those have each
    /// node's own addresses.
    fn reached_at(&self, vip: SocketAddr, protocol: u8) -> Option<usize> {
        let here = || {
            let own = *self.node.own.get(&IpFamily::of(vip.ip()))?;
            let found = self.node.frontend(SocketAddr::new(own, vip.port()), protocol)?;
            (found.2.kind == FrontendKind::NodePort).then_some(found)
        };
        self.node.frontend(vip, protocol).or_else(here).map(|(service, _, _)| service)
    }
}

/// Puts the VIP behind the IP header.
fn say(draft: &mut Draft, network: &Network, vip: SocketAddr) {
    let (l3, family) = (network.l3, network.family);
    let header = parse::header(family);
    let before = draft.bytes[l3..l3 + header].to_vec();
    let mut option = vec![];
    match vip {
        SocketAddr::V4(vip) => {
            option.extend(V4);
            option.extend(vip.port().to_be_bytes());
            option.extend(vip.ip().octets());
        }
        SocketAddr::V6(vip) => {
            option.push(network.protocol);
            option.extend(V6);
            option.extend(vip.port().to_be_bytes());
            option.extend([0, 0]);
            option.extend(vip.ip().octets());
        }
    }
    let length = l3 + if family == IpFamily::V4 { 2 } else { 4 };
    let longer = be(&draft.bytes, length).wrapping_add(option.len() as u16);
    draft.put(length, longer);
    match family {
        IpFamily::V4 => draft.bytes[l3] += (option.len() / 4) as u8,
        IpFamily::V6 => draft.bytes[l3 + 6] = DESTINATION_OPTIONS,
    }
    let at = l3 + header;
    draft.bytes.splice(at..at, option);
    if family == IpFamily::V4 {
        let without_field = |header: &[u8]| sum::add(sum::sum(&header[..10]), sum::sum(&header[12..]));
        let after = without_field(&draft.bytes[l3..at + room(family)]);
        draft.put(l3 + 10, sum::mended(be(&before, 10), without_field(&before), after));
        draft.either_zero.push(l3 + 10);
    }
}
