//! Packets that leave the stack: a backend becomes the VIP, a client the node.

use std::net::SocketAddr;

use dsproxy_common::{
    count::{Reason, ServiceCounters},
    settings::NetworkFlags,
};

use super::{
    Arrival, Device, Fate, Judged, Model, Objection, Ruling, Seen,
    edit::{Draft, End},
    ingress::{client_of, wrong},
    parse::{Content, Parsed},
    tables::{Egress, Flow, Kind, Snat, State, accepts, opens},
    xdp::NextHop,
};
use crate::{
    packet::{Link, number},
    prog::Verdict,
};

/// For how many seconds an opening that nobody answers keeps its port.
const UNANSWERED: u64 = 3;

/// For how many seconds what is not TCP keeps it from those that find no other.
const SILENT: u64 = 50;

impl Model {
    /// What has to become of a packet behind the stack.
    ///
    /// # Errors
    ///
    /// When what was `seen` may not be.
    pub fn egress(&mut self, at: &Arrival<'_>, seen: &Seen<'_>) -> Result<Fate, Objection> {
        let parsed = match self.parse(at) {
            Ok(parsed) => parsed,
            Err((reason, family)) => return Ok(self.fate(at, family, Ruling::Left(reason))),
        };
        let family = Some(parsed.network.family);
        let ruling = match parsed.content {
            Content::Error => self.error_leaves(at, &parsed),
            Content::Other => Ruling::Left(Reason::OtherProtocol),
            Content::Tcp(_) | Content::Udp | Content::Sctp | Content::Echo => {
                let ruling = self.leave(at, &parsed, seen)?;
                self.remember_ports(&parsed, &ruling);
                ruling
            }
        };
        Ok(self.fate(at, family, ruling))
    }

    fn leave(&mut self, at: &Arrival<'_>, parsed: &Parsed, seen: &Seen<'_>) -> Judged {
        let flow = parsed.flow();
        let masquerades = at.device == Device::Node && self.node.rules.masquerade_egress;
        let is_backends =
            [flow.source, flow.destination].iter().any(|end| self.tables.backends.contains(&(*end, flow.protocol)));
        // Only where all that pods send out is masqueraded can it be of nobody in the cluster.
        if !masquerades && !is_backends {
            return Ok(Ruling::Left(Reason::NotReply));
        }
        let held = self.tables.egress.get(&flow).copied();
        if held.is_some_and(|held| held.is_confirmed && self.is_over(held.state, held.seen)) {
            self.tables.egress.remove(&flow);
        }
        let Some(held) = held.filter(|held| !self.is_over(held.state, held.seen)) else {
            return if masquerades && self.leaves_cluster(parsed) {
                self.settle(at, parsed, None, seen)
            } else {
                Ok(Ruling::Left(Reason::NotReply))
            };
        };
        let held = self.note_next_hop(at, parsed, held);
        match (held.kind, held.end) {
            (Kind::Reply | Kind::DirectReply, Some(vip)) => Ok(self.named_vip(at, parsed, held, vip)),
            (Kind::Masquerade, Some(node)) if self.masqueraded_was_seen(parsed, held, node) => {
                Ok(masqueraded(at, parsed, node))
            }
            (Kind::Direct, Some(vip)) if at.device == Device::Node => Ok(self.goes_directly(at, parsed, held, vip)),
            (Kind::Direct, _) => Ok(Ruling::Left(Reason::NotReply)),
            (_, _) => self.settle(at, parsed, held.service, seen),
        }
    }

    /// What XDP may do alike is noted with what leaves by a node's device with a plain Ethernet header.
    fn note_next_hop(&mut self, at: &Arrival<'_>, parsed: &Parsed, held: Egress) -> Egress {
        let is_plain = at.link == Link::Ethernet && parsed.network.l3 == 14;
        let Some((epoch, mtu)) = self.node.xdp else { return held };
        if at.device != Device::Node || !is_plain || held.next_hop.is_some_and(|next| next.epoch == epoch) {
            return held;
        }
        let next_hop = NextHop::of(at.bytes, epoch, mtu);
        let held = Egress { next_hop, ..held };
        self.tables.egress.insert(parsed.flow(), held);
        held
    }

    /// A backend's packet to a client.
    fn named_vip(&mut self, at: &Arrival<'_>, parsed: &Parsed, held: Egress, vip: SocketAddr) -> Ruling {
        let flow = parsed.flow();
        // It accepts what the client has opened past the VIP, from a port that it had used through it.
        if accepts(parsed.flags()) && held.state.may_be_over() {
            self.tables.egress.remove(&flow);
            return Ruling::Left(Reason::NotReply);
        }
        let is_direct = held.kind == Kind::DirectReply;
        let next = if is_direct {
            held.state.direct_backend_sends(parsed.flags())
        } else {
            held.state.backend_sends(parsed.flags())
        };
        if next != held.state || self.is_stale(held.seen) {
            let seen = self.now;
            let is_confirmed = held.is_confirmed || is_direct && next == State::Established;
            self.tables.egress.insert(flow, Egress { state: next, seen, is_confirmed, ..held });
            if !is_direct
                && let Some(forward) = self.tables.forward.get_mut(&client_of(&flow, &held))
                && forward.backend.address == flow.source
            {
                (forward.state, forward.seen) = (next, seen);
            }
        }
        let mut draft = Draft::of(at.bytes);
        draft.replace(parsed, End::Source, vip);
        if let Some(port) = held.client_port {
            draft.replace(parsed, End::Destination, SocketAddr::new(flow.destination.ip(), port));
        }
        let bytes = at.bytes.len() as u64;
        let counters = ServiceCounters { reply_packets: 1, reply_bytes: bytes, ..ServiceCounters::default() };
        Ruling::Rewritten(Reason::Replied, draft, held.service.map(|service| (service, counters)))
    }

    /// False when another connection has its port by now.
    fn masqueraded_was_seen(&mut self, parsed: &Parsed, held: Egress, node: SocketAddr) -> bool {
        let flow = parsed.flow();
        let next = held.state.client_sends(parsed.flags());
        if next == held.state && !self.is_stale(held.seen) {
            return true;
        }
        let seen = self.now;
        let answer = Flow { source: flow.destination, destination: node, protocol: flow.protocol };
        let entry = self.tables.snat.entry(answer).or_insert(Snat { client: flow.source, state: next, seen });
        if entry.client != flow.source {
            return false;
        }
        (entry.state, entry.seen) = (next, seen);
        let is_confirmed = held.is_confirmed || next == State::Established;
        self.tables.egress.insert(flow, Egress { state: next, is_confirmed, seen, ..held });
        true
    }

    /// Finds an address and port of the node for a packet that is the first to leave.
    fn settle(&mut self, at: &Arrival<'_>, parsed: &Parsed, service: Option<usize>, seen: &Seen<'_>) -> Judged {
        let flow = parsed.flow();
        let Some(address) = self.node.addresses.get(&parsed.network.family).copied() else {
            return Ok(Ruling::Dropped(Reason::NoNodeAddress, service));
        };
        let answer_at = |port| Flow {
            source: flow.destination,
            destination: SocketAddr::new(address, port),
            protocol: flow.protocol,
        };
        let is_free = |port, in_need| {
            self.tables.snat.get(&answer_at(port)).is_none_or(|held| {
                let silent = self.seconds_since(held.seen);
                // XDP may remember where the answers of what has just ended went.
                match held.state {
                    _ if held.client == flow.source => true,
                    state if state.is_over() => self.is_stale(held.seen),
                    State::Opening if silent >= UNANSWERED => true,
                    State::Stateless if in_need && silent >= SILENT => true,
                    state => self.is_over(state, held.seen),
                }
            })
        };
        let (own, ports) = (flow.source.port(), &self.node.rules.offered_ports);
        // SCTP has no other.
        let keeps_port = flow.protocol == number::SCTP;
        let port = if (keeps_port || ports.contains(&own)) && is_free(own, false) {
            own
        } else if seen.verdict == Verdict::Drop {
            let may_find_none = keeps_port || ports.clone().any(|port| !is_free(port, false));
            return if may_find_none {
                Ok(Ruling::Dropped(Reason::SnatExhausted, service))
            } else {
                Err(wrong("dropped, with all ports free".to_owned()))
            };
        } else {
            // A later fragment does not show it.
            parsed.end_of(seen.packet, End::Source).ok_or(Objection::Unknowable)?.port()
        };
        // It takes what is silent if it finds no other.
        if !is_free(port, true) || !(keeps_port || ports.contains(&port)) {
            return Err(wrong(format!("masqueraded with port {port}, of {ports:?}, free: {}", is_free(port, true))));
        }
        let state = State::first(parsed.flags());
        self.tables.snat.insert(answer_at(port), Snat { client: flow.source, state, seen: self.now });
        let node = SocketAddr::new(address, port);
        let entry = Egress::new(Kind::Masquerade, Some(node), service, state, self.now);
        self.tables.egress.insert(flow, entry);
        Ok(masqueraded(at, parsed, node))
    }

    /// Whether a packet opens a connection of a pod to where pods' addresses mean nothing.
    fn leaves_cluster(&self, parsed: &Parsed) -> bool {
        let opens = match parsed.content {
            Content::Tcp(_) => opens(parsed.flags()),
            Content::Udp | Content::Sctp => true,
            Content::Echo => parsed.ports.0 != 0,
            Content::Error | Content::Other => false,
        };
        let (source, destination) = (parsed.network.source, parsed.network.destination);
        opens
            && self.node.network(source) & NetworkFlags::POD != 0
            && self.node.network(destination) & (NetworkFlags::POD | NetworkFlags::NOT_MASQUERADED) == 0
    }
}

fn masqueraded(at: &Arrival<'_>, parsed: &Parsed, node: SocketAddr) -> Ruling {
    let mut draft = Draft::of(at.bytes);
    draft.replace(parsed, End::Source, node);
    Ruling::Rewritten(Reason::Masqueraded, draft, None)
}
