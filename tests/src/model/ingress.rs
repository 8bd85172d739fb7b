//! Packets that enter the stack: a VIP becomes a backend, and the node the client behind it.

use std::net::SocketAddr;

use dsproxy::resolve::{Distribution, Reach};
use dsproxy_common::{
    count::{Reason, ServiceCounters},
    service::FrontendKind,
    settings::{NetworkFlags, Passage},
};

use super::{
    Arrival, Device, Fate, Judged, Model, Objection, Ruling, Seen, answer, direct,
    edit::{Draft, End},
    node::{Node, Standing},
    parse::{Content, Parsed},
    tables::{Backend, Egress, Flow, Forward, Kind, State, opens},
};
use crate::{packet::number, prog::Verdict};

/// How many endpoints are tried at most.
const TRIES: usize = 4;

impl Model {
    /// What has to become of a packet in front of the stack.
    ///
    /// # Errors
    ///
    /// When what was `seen` may not be.
    pub fn ingress(&mut self, at: &Arrival<'_>, seen: &Seen<'_>) -> Result<Fate, Objection> {
        let fate = self.translated(at, seen)?;
        Ok(self.past_the_stack(at, fate))
    }

    fn translated(&mut self, at: &Arrival<'_>, seen: &Seen<'_>) -> Result<Fate, Objection> {
        let parsed = match self.parse(at) {
            Ok(parsed) => parsed,
            Err((reason, family)) => return Ok(self.fate(at, family, Ruling::Left(reason))),
        };
        let family = Some(parsed.network.family);
        if parsed.content == Content::Error {
            let ruling = self.error_enters(at, &parsed);
            return Ok(self.fate(at, family, ruling));
        }
        let ruling = self.enter(at, &parsed, seen)?;
        self.remember_ports(&parsed, &ruling);
        let ruling = match ruling {
            Ruling::Left(reason @ Reason::NoPort) => {
                answer::refuse(at, &parsed, (reason, None), self.node.rules.answers)
            }
            Ruling::Dropped(reason @ (Reason::NoEndpoint | Reason::BackendGone), whose) => {
                answer::refuse(at, &parsed, (reason, whose), self.node.rules.answers)
            }
            ruling => ruling,
        };
        Ok(self.fate(at, family, ruling))
    }

    fn enter(&mut self, at: &Arrival<'_>, parsed: &Parsed, seen: &Seen<'_>) -> Judged {
        let flow = parsed.flow();
        let nowhere = |model: &Self, reason| Ruling::Left(model.node.without_frontend(flow.destination.ip(), reason));
        if parsed.content == Content::Other {
            return Ok(nowhere(self, Reason::OtherProtocol));
        }
        if self.may_be_answer(&flow) && self.tables.snat.contains_key(&flow) {
            return Ok(self.led_to_client(at, parsed));
        }
        if parsed.content == Content::Echo {
            return Ok(nowhere(self, Reason::OtherProtocol));
        }
        let held = self.tables.forward.get(&flow).copied();
        let frontends = self.node.frontend(flow.destination, flow.protocol).map(|(service, _, _)| service);
        // Only nodes say VIPs, and they to backends.
        if let Some(service) =
            frontends.or(held.filter(|held| !self.is_over(held.state, held.seen)).map(|held| held.backend.service))
            && direct::said(at.bytes, &parsed.network).is_some()
        {
            return Ok(Ruling::Dropped(Reason::Pretended, Some(service)));
        }
        if let Some(held) = held {
            if let Some(ruling) = self.go_on(at, parsed, held) {
                return Ok(ruling);
            }
            // The next of this name would not be found behind one that both sides have confirmed.
            if held.is_confirmed {
                self.tables.forward.remove(&flow);
            }
        }
        if at.device == Device::Node
            && frontends.is_none()
            && let Some(arrived) = self.arrives_directly(at, parsed)
        {
            return Ok(arrived);
        }
        let is_left_to_others = self.node.rules.beside_others && flow.protocol == number::TCP && !opens(parsed.flags());
        // What is for no frontend may look as if it were, by a frontend that has gone.
        if is_left_to_others && (frontends.is_some() || seen.verdict == Verdict::Pass) {
            return Ok(Ruling::Left(Reason::NotService));
        }
        if frontends.is_some() {
            return self.open(at, parsed, seen);
        }
        if at.device == Device::Pod && parsed.flags().is_none() {
            self.notice_bypass(&flow);
        }
        Ok(nowhere(self, Reason::NotService))
    }

    /// Masqueraded packets are answered at ports of the range alone; SCTP keeps its ports.
    pub(super) fn may_be_answer(&self, flow: &Flow) -> bool {
        self.node.rules.snat_ports.contains(&flow.destination.port()) || flow.protocol == number::SCTP
    }

    /// The answer to a masqueraded packet goes on to the client.
    fn led_to_client(&mut self, at: &Arrival<'_>, parsed: &Parsed) -> Ruling {
        let flow = parsed.flow();
        let held = self.tables.snat[&flow];
        if self.is_over(held.state, held.seen) {
            return Ruling::Left(Reason::NotService);
        }
        let next = held.state.backend_sends(parsed.flags());
        if next != held.state || self.is_stale(held.seen) {
            let seen = self.now;
            self.tables.snat.insert(flow, super::tables::Snat { state: next, seen, ..held });
            let forward = Flow { source: held.client, destination: flow.source, protocol: flow.protocol };
            if let Some(entry) = self.tables.egress.get_mut(&forward)
                && entry.end == Some(flow.destination)
            {
                (entry.state, entry.seen) = (next, seen);
            }
        }
        let mut draft = Draft::of(at.bytes);
        draft.replace(parsed, End::Destination, held.client);
        Ruling::Rewritten(Reason::Unmasqueraded, draft, None)
    }

    /// Whether the connection `held` of a packet goes on to the backend it has.
    pub(super) fn goes_on(&self, parsed: &Parsed, held: &Forward) -> bool {
        if self.is_over(held.state, held.seen) {
            return false;
        }
        let standing = self.node.standing(&held.backend);
        if held.state == State::Stateless {
            // What has no end follows its Service, which is looked at once a second.
            let flow = parsed.flow();
            let leads_on = self
                .node
                .frontend(flow.destination, flow.protocol)
                .is_some_and(|(service, _, _)| service == held.backend.service);
            return standing != Standing::Gone && (leads_on || !self.is_stale(held.seen));
        }
        // TCP has two ends that say when it is over. What opens anew goes where new connections go, and not on with what ends.
        !opens(parsed.flags()) || standing == Standing::Active && !held.state.may_be_over()
    }

    fn go_on(&mut self, at: &Arrival<'_>, parsed: &Parsed, held: Forward) -> Option<Ruling> {
        if !self.goes_on(parsed, &held) {
            return None;
        }
        if self.node.rules.reset_gone && self.node.standing(&held.backend) == Standing::Gone {
            return Some(Ruling::Dropped(Reason::BackendGone, Some(held.backend.service)));
        }
        self.client_was_seen(parsed, held);
        let counters = ServiceCounters { packets: 1, bytes: at.bytes.len() as u64, ..ServiceCounters::default() };
        let draft = to_backend(at, parsed, held.backend.address, held.other_port);
        Some(Ruling::Rewritten(Reason::Forwarded, draft, Some((held.backend.service, counters))))
    }

    fn client_was_seen(&mut self, parsed: &Parsed, held: Forward) {
        let flow = parsed.flow();
        let next = held.state.client_sends(parsed.flags());
        if next == held.state && !self.is_stale(held.seen) {
            return;
        }
        let reply = reply_to(&flow, held.backend.address, held.other_port);
        let wanted = self.reply_entry(&flow, held.backend.service, held.other_port, next);
        // Another connection may have taken the backend's packets over.
        let is_taken = self.tables.egress.get(&reply).is_some_and(|entry| !entry.is_same(&wanted));
        let is_confirmed = held.is_confirmed || next == State::Established && !is_taken;
        self.tables.forward.insert(flow, Forward { state: next, is_confirmed, seen: self.now, ..held });
        if is_taken {
            return;
        }
        match self.tables.egress.get_mut(&reply) {
            Some(entry) if is_confirmed == held.is_confirmed => (entry.state, entry.seen) = (next, wanted.seen),
            _ => {
                self.tables.egress.insert(reply, Egress { is_confirmed, ..wanted });
            }
        }
    }

    /// Opens a connection through a frontend.
    fn open(&mut self, at: &Arrival<'_>, parsed: &Parsed, seen: &Seen<'_>) -> Judged {
        let flow = parsed.flow();
        let client = flow.source.ip();
        let Some((service, family, frontend)) = self.node.frontend(flow.destination, flow.protocol) else {
            return Ok(Ruling::Left(Reason::NotService));
        };
        if frontend.checks_source && !family.source_ranges.iter().any(|range| range.contains(&client)) {
            return Ok(Ruling::Dropped(Reason::SourceRange, Some(service)));
        }
        let is_pods = self.node.rules.inside_by_network && self.node.network(client) & NetworkFlags::POD != 0;
        let is_inside = at.device == Device::Pod || is_pods;
        let reach: Reach = if is_inside { frontend.inside } else { frontend.outside };
        let candidates = match Node::candidates(family, reach) {
            Ok(candidates) => candidates,
            Err(reason) => return Ok(Ruling::Dropped(reason, Some(service))),
        };
        let affinity = self.node.served[service].port.affinity;
        let remembered = self
            .tables
            .affinity
            .get(&(client, service))
            .filter(|(_, seen)| affinity.is_some_and(|timeout| self.seconds_since(*seen) <= timeout.into()))
            .map(|(backend, _)| backend.address)
            .filter(|address| candidates.contains(address));
        let (kind, is_list) = (frontend.kind, family.distribution == Distribution::List);
        let pool = remembered.map_or(candidates, |address| vec![address]);

        // Where the backend's answers are another connection's of this client, the next backend is taken. If there is none,
        // another port of the client's; SCTP has its own alone.
        let clashes = |address: SocketAddr, other_port| self.clashes(parsed, service, address, other_port);
        let clashing = pool.iter().filter(|address| clashes(**address, None)).count();
        // With so few each is tried.
        let tries_all = remembered.is_some() || is_list && pool.len() <= TRIES;
        let may_clash = if tries_all { clashing == pool.len() } else { clashing > 0 };
        let ports = self.node.rules.offered_ports.clone();
        if seen.verdict == Verdict::Drop {
            let has_other = flow.protocol != number::SCTP;
            let may_find_none =
                !has_other || pool.iter().any(|address| ports.clone().any(|port| clashes(*address, Some(port))));
            return if may_clash && may_find_none {
                Ok(Ruling::Dropped(Reason::ReplyClash, Some(service)))
            } else {
                Err(wrong(format!("dropped, of {pool:?} {clashing} clash")))
            };
        }
        let (address, other_port) = chosen(parsed, seen, &pool, clashing > 0)?;
        let is_right = match other_port {
            None => !clashes(address, None),
            Some(port) => {
                may_clash && ports.contains(&port) && flow.protocol != number::SCTP && !clashes(address, Some(port))
            }
        };
        if !is_right {
            return Err(wrong(format!("led to {address} with port {other_port:?}: {clashing} of {pool:?} clash")));
        }

        let backend = Backend { service, address };
        let state = State::first(parsed.flags());
        let reply = reply_to(&flow, address, other_port);
        let entry = self.reply_entry(&flow, service, other_port, state);
        self.tables.egress.insert(reply, entry);
        self.tables.forward.insert(flow, Forward { backend, other_port, state, seen: self.now, is_confirmed: false });
        if affinity.is_some() {
            self.tables.affinity.insert((client, service), (backend, self.now));
        }
        let passage = self.passage(at, parsed, (kind, &backend));
        // What a pod sends to itself from the port that it listens at looks like its own answer, and comes from the VIP, unless
        // it breaks off what it opens.
        let is_its_own_answer = reply == reply.reversed() && !state.is_over();
        match passage {
            // The client would not know an answer to a port that is not its own.
            Passage::Direct if other_port.is_none() => self.request_direct(&flow, reply.reversed(), service, state),
            Passage::Masqueraded | Passage::Direct if !is_its_own_answer => {
                self.request_masquerade(reply.reversed(), service, state);
            }
            Passage::Plain | Passage::Masqueraded | Passage::Direct => {}
        }
        let bytes = at.bytes.len() as u64;
        let counters = ServiceCounters { connections: 1, packets: 1, bytes, ..ServiceCounters::default() };
        let draft = to_backend(at, parsed, address, other_port);
        Ok(Ruling::Rewritten(Reason::Opened, draft, Some((service, counters))))
    }

    /// How a new connection leaves: masqueraded where the answer would not come back by itself, and where that is wanted.
    fn passage(&self, at: &Arrival<'_>, parsed: &Parsed, (kind, backend): (FrontendKind, &Backend)) -> Passage {
        let is_cluster_ip = kind == FrontendKind::ClusterIp;
        if backend.address.ip() == parsed.network.source || self.node.rules.masquerade_all && is_cluster_ip {
            Passage::Masqueraded
        } else if at.device == Device::Pod || self.node.is_local(backend) {
            Passage::Plain
        } else if !is_cluster_ip && self.node.is_on_node(backend) && self.may_go_directly(at, parsed) {
            Passage::Direct
        } else {
            Passage::Masqueraded
        }
    }

    /// What becomes of what the backend answers to `flow`.
    fn reply_entry(&self, flow: &Flow, service: usize, other_port: Option<u16>, state: State) -> Egress {
        let client_port = other_port.map(|_| flow.source.port());
        let entry = Egress::new(Kind::Reply, Some(flow.destination), Some(service), state, self.now);
        Egress { client_port, ..entry }
    }

    /// Whether what `address` answers belongs to another living connection.
    fn clashes(&self, parsed: &Parsed, service: usize, address: SocketAddr, other_port: Option<u16>) -> bool {
        let flow = parsed.flow();
        let wanted = self.reply_entry(&flow, service, other_port, State::first(parsed.flags()));
        self.tables
            .egress
            .get(&reply_to(&flow, address, other_port))
            .is_some_and(|held| !held.is_same(&wanted) && self.is_living(held))
    }

    /// Notes that packets of `leaving` are to leave with an address of the node.
    fn request_masquerade(&mut self, leaving: Flow, service: usize, state: State) {
        if self.tables.egress.get(&leaving).is_some_and(|held| self.is_living(held)) {
            // It was masqueraded before, and goes on so.
            return;
        }
        let entry = Egress::new(Kind::Unsettled, None, Some(service), state, self.now);
        self.tables.egress.insert(leaving, entry);
    }

    /// A pod sends straight to a backend of another flow of its own through a VIP: that flow is over, for what comes back is not
    /// to be taken for its answer.
    fn notice_bypass(&mut self, flow: &Flow) {
        let is_reply = |held: &&Egress| held.kind.is_of_backend();
        // Unless it is itself an answer to what the other sent through a VIP.
        let own = self.tables.egress.get(flow).filter(is_reply);
        if own.is_some_and(|held| !self.is_over(held.state, held.seen)) {
            return;
        }
        let reply = flow.reversed();
        let Some(held) = self.tables.egress.get(&reply).filter(is_reply).copied() else { return };
        self.tables.egress.remove(&reply);
        let client = client_of(&reply, &held);
        if self.tables.forward.get(&client).is_some_and(|forward| forward.backend.address == flow.destination) {
            self.tables.forward.remove(&client);
        }
    }
}

/// What the client sent, whose `reply` is `held`.
pub(super) fn client_of(reply: &Flow, held: &Egress) -> Flow {
    let port = held.client_port.unwrap_or(reply.destination.port());
    Flow {
        source: SocketAddr::new(reply.destination.ip(), port),
        destination: held.end.unwrap_or(reply.source),
        protocol: reply.protocol,
    }
}

/// What the backend at `address` answers to `flow`.
pub(super) fn reply_to(flow: &Flow, address: SocketAddr, other_port: Option<u16>) -> Flow {
    let client = SocketAddr::new(flow.source.ip(), other_port.unwrap_or(flow.source.port()));
    Flow { source: address, destination: client, protocol: flow.protocol }
}

fn to_backend(at: &Arrival<'_>, parsed: &Parsed, address: SocketAddr, other_port: Option<u16>) -> Draft {
    let mut draft = Draft::of(at.bytes);
    draft.replace(parsed, End::Destination, address);
    if let Some(port) = other_port {
        draft.replace(parsed, End::Source, SocketAddr::new(parsed.network.source, port));
    }
    draft
}

/// The backend that a packet was led to, and the port that was put in place of the client's own.
fn chosen(
    parsed: &Parsed,
    seen: &Seen<'_>,
    pool: &[SocketAddr],
    may_have_other_port: bool,
) -> Result<(SocketAddr, Option<u16>), Objection> {
    let network = &parsed.network;
    let at = network.l3 + super::edit::address_offset(network.family, End::Destination);
    let address = super::parse::address(seen.packet, at, network.family).ok();
    let Some(chosen) = pool.iter().find(|end| Some(end.ip()) == address) else {
        return Err(wrong(format!("led to {address:?}, which is none of {pool:?} ({:?})", seen.verdict)));
    };
    match parsed.end_of(seen.packet, End::Source) {
        Some(source) if source.port() != parsed.ports.0 => Ok((*chosen, Some(source.port()))),
        // A later fragment does not show it.
        None if may_have_other_port => Err(Objection::Unknowable),
        Some(_) | None => Ok((*chosen, None)),
    }
}

pub(super) fn wrong(what: String) -> Objection {
    Objection::Wrong(what)
}
