//! Frames that the device's driver hands over: those in the middle of a connection between a client outside and a backend on
//! another node are sent on as the stack was last seen to do. Everything else is left as it came.
//!
//! A program may go by what it remembers of a flow for some seconds; that may be older than what the tables say.

use std::net::SocketAddr;

use dsproxy_common::{
    IpFamily,
    count::{Reason, ServiceCounters},
};

use super::{
    Arrival, Fate, Model, Objection, Seen,
    edit::{Draft, End},
    ingress::wrong,
    node::Standing,
    parse::{self, Content, Parsed, Piece},
    tables::{Backend, Egress, Flow, Instant, Kind, State, is_plain},
};
use crate::{packet::Link, prog::Verdict};

/// A MAC address.
pub(super) type Mac = [u8; 6];

/// How the stack has sent a packet on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NextHop {
    /// How often routing had changed by then.
    pub(super) epoch: u32,
    to: Mac,
    from: Mac,
    mtu: u16,
}

impl NextHop {
    pub(super) fn of(frame: &[u8], epoch: u32, mtu: u16) -> Option<Self> {
        let mac = |at: usize| frame.get(at..at + 6)?.try_into().ok();
        Some(Self { epoch, to: mac(0)?, from: mac(6)?, mtu })
    }
}

/// What becomes of a flow's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Remembered {
    next_hop: NextHop,
    source: SocketAddr,
    destination: SocketAddr,
    service: Option<usize>,
    /// None of those that go to a client.
    backend: Option<Backend>,
    arrival: Mac,
}

impl Model {
    /// What has to become of a frame in front of everything.
    ///
    /// # Errors
    ///
    /// When what was `seen` may not be.
    pub fn xdp(&mut self, at: &Arrival<'_>, seen: &Seen<'_>) -> Result<Fate, Objection> {
        let left = Fate {
            verdict: Verdict::Pass,
            packet: at.bytes.to_vec(),
            either_zero: Vec::new(),
            reason: None,
            service: None,
            drop_of: None,
        };
        let (Some(parsed), Some((epoch, _))) = (plain(at.bytes), self.node.xdp) else { return Ok(left) };
        let flow = parsed.flow();
        if !is_plain(parsed.flags()) {
            self.tables.remembered.remove(&flow);
            return Ok(left);
        }
        let arrival: Mac = at.bytes[..6].try_into().expect("an Ethernet header");
        let is_good = |held: &&Remembered| {
            held.arrival == arrival
                && held.next_hop.epoch == epoch
                && held.backend.is_none_or(|backend| self.node.standing(&backend) != Standing::Gone)
        };
        let remembered = self.tables.remembered.get(&flow).filter(is_good).copied();
        let found = self.look_up(&parsed, epoch, arrival);
        // What is remembered may have given its place to another flow.
        let may: Vec<Remembered> = remembered.into_iter().chain(found).collect();
        let sent: Vec<(Remembered, Fate)> =
            may.iter().filter_map(|flow| Some((*flow, self.sent(at, &parsed, flow)?))).collect();
        match found {
            Some(found) if remembered.is_none() => {
                self.tables.remembered.insert(flow, found);
            }
            None if remembered.is_none() => {
                self.tables.remembered.remove(&flow);
            }
            Some(_) | None => {}
        }
        let has_to_be_sent = !sent.is_empty() && sent.len() == may.len() && found.is_some();
        if seen.verdict == Verdict::Pass {
            return if has_to_be_sent {
                Err(wrong(format!("not sent on, which it may be: {may:?}")))
            } else {
                Ok(left)
            };
        }
        match sent.iter().find(|(_, fate)| fate.is(seen)).or(sent.first()) {
            Some((flow_now, fate)) => {
                self.tables.remembered.insert(flow, *flow_now);
                Ok(fate.clone())
            }
            None => Err(wrong(format!("sent on, which it may not be: {:?}", seen.verdict))),
        }
    }

    fn look_up(&self, parsed: &Parsed, epoch: u32, arrival: Mac) -> Option<Remembered> {
        let flow = parsed.flow();
        if self.may_be_answer(&flow)
            && let Some(held) = self.tables.snat.get(&flow)
        {
            let inner = Flow { source: flow.source, destination: held.client, protocol: flow.protocol };
            let exit = self.exit(&inner, epoch, arrival).filter(|exit| exit.kind == Kind::Reply)?;
            self.settled(held.state, held.seen)?;
            let client = SocketAddr::new(held.client.ip(), exit.client_port.unwrap_or(held.client.port()));
            return Some(Remembered {
                next_hop: exit.next_hop?,
                source: exit.end?,
                destination: client,
                service: exit.service,
                backend: None,
                arrival,
            });
        }
        let held = self.tables.forward.get(&flow)?;
        let standing = self.node.standing(&held.backend);
        let is_reset = self.node.rules.reset_gone && standing == Standing::Gone;
        if !self.goes_on(parsed, held) || is_reset || self.node.is_local(&held.backend) {
            return None;
        }
        let port = held.other_port.unwrap_or(flow.source.port());
        let inner = Flow {
            source: SocketAddr::new(flow.source.ip(), port),
            destination: held.backend.address,
            protocol: flow.protocol,
        };
        let exit = self.exit(&inner, epoch, arrival)?;
        let source = match exit.kind {
            Kind::Masquerade => exit.end?,
            // Each datagram has to say the VIP.
            Kind::Direct if parsed.flags().is_some() => inner.source,
            Kind::Direct | Kind::DirectReply | Kind::Reply | Kind::Unsettled => return None,
        };
        self.settled(held.state, held.seen)?;
        Some(Remembered {
            next_hop: exit.next_hop?,
            source,
            destination: held.backend.address,
            service: Some(held.backend.service),
            backend: Some(held.backend),
            arrival,
        })
    }

    /// How packets of `flow` leave, if the stack has lately sent one on, and they would come to the device's own address.
    fn exit(&self, flow: &Flow, epoch: u32, arrival: Mac) -> Option<&Egress> {
        let exit = self.tables.egress.get(flow)?;
        self.settled(exit.state, exit.seen)?;
        exit.next_hop.filter(|next| next.epoch == epoch && next.from == arrival).map(|_| exit)
    }

    /// TCP that both sides have confirmed, or what knows no such thing.
    fn settled(&self, state: State, seen: Instant) -> Option<()> {
        let is_settled = matches!(state, State::Established | State::Stateless);
        (is_settled && !self.is_over(state, seen)).then_some(())
    }

    /// The frame as it is sent on; none if it is at its last hop, or too long.
    fn sent(&self, at: &Arrival<'_>, parsed: &Parsed, flow: &Remembered) -> Option<Fate> {
        let network = &parsed.network;
        let hop = network.l3 + if network.family == IpFamily::V4 { 8 } else { 7 };
        if at.bytes[hop] <= 1 || at.bytes.len() - 14 > flow.next_hop.mtu.into() {
            return None;
        }
        let mut draft = Draft::of(at.bytes);
        draft.replace(parsed, End::Source, flow.source);
        draft.replace(parsed, End::Destination, flow.destination);
        let before = draft.bytes.clone();
        draft.bytes[hop] -= 1;
        draft.mend_header(&before, network.l3, network.l4, network.family);
        draft.bytes[..6].copy_from_slice(&flow.next_hop.to);
        draft.bytes[6..12].copy_from_slice(&flow.next_hop.from);
        let bytes = at.bytes.len() as u64;
        let (reason, counters) = match flow.backend {
            Some(_) => (Reason::SentToBackend, ServiceCounters { packets: 1, bytes, ..ServiceCounters::default() }),
            None => (
                Reason::SentToClient,
                ServiceCounters { reply_packets: 1, reply_bytes: bytes, ..ServiceCounters::default() },
            ),
        };
        Some(Fate {
            verdict: Verdict::Transmit,
            packet: draft.bytes,
            either_zero: draft.either_zero,
            reason: Some((reason, Some(network.family))),
            service: flow.service.map(|service| (self.node.served[service].id, counters)),
            drop_of: None,
        })
    }
}

/// A frame with TCP or UDP, whole, behind headers without tags, options or extensions.
fn plain(bytes: &[u8]) -> Option<Parsed> {
    let (family, l3) = parse::link(bytes, Link::Ethernet).filter(|(_, l3)| *l3 == 14)?;
    let header = parse::header(family);
    // A length of zero, which stands for any, is as good as too short a one.
    let network = parse::network(bytes, l3, family).ok().filter(|network| {
        network.l4 == l3 + header && network.piece == Piece::Whole && network.end.is_some_and(|end| end <= bytes.len())
    })?;
    let parsed = parse::transport(bytes, network, |_| None).ok()?;
    matches!(parsed.content, Content::Tcp(_) | Content::Udp).then_some(parsed)
}
