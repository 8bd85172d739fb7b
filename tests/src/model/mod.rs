//! What the kernel programs have to do with a packet, said once more in plain Rust, for reading: no limits of the verifier, no
//! tables of fixed size, no checksum updated in place. It shares types and names with the programs and calls nothing of theirs,
//! so that a mistake of one is not the other's.
//!
//! Where a program may choose, which backend a connection goes to or with which port a packet is masqueraded, the model looks at
//! what it chose, says whether it might have, and remembers it. All else follows, byte by byte.
//!
//! Time stands still but when it is told to pass.

mod answer;
mod direct;
mod edit;
mod egress;
mod icmp_error;
mod ingress;
mod node;
mod parse;
mod shortcut;
mod sum;
mod tables;
mod xdp;

use std::{net::SocketAddr, ops::RangeInclusive};

use dsproxy_common::{
    IpFamily,
    count::{Reason, ServiceCounters},
};

use self::{
    edit::{Draft, End},
    parse::{Content, Parsed},
    tables::{Flags, Flow, Instant, Tables},
};
pub use self::{
    node::{Node, Rules, Served},
    shortcut::{Route, Shortcut},
    tables::State,
};
use crate::{packet::Link, prog::Verdict};

/// By what kind of device a packet comes or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A pod's.
    Pod,
    /// One that leads to other nodes, or the world.
    Node,
}

/// A packet that meets a program.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// The packet.
    pub bytes: &'a [u8],
    /// What stands in front of its IP header.
    pub link: Link,
    /// The kind of device.
    pub device: Device,
    /// The index of the device, if it is a pod's that packets may go on from past the stack.
    pub index: u32,
    /// Whether it is several packets at once.
    pub is_aggregate: bool,
}

/// What a program was seen to do.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// What it returned.
    pub verdict: Verdict,
    /// The packet afterwards.
    pub packet: &'a [u8],
}

/// What it has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// What it returns.
    pub verdict: Verdict,
    /// The packet afterwards.
    pub packet: Vec<u8>,
    /// Where checksums stand of which zero and all ones are the same.
    pub either_zero: Vec<usize>,
    /// What it counts the packet under.
    pub reason: Option<(Reason, Option<IpFamily>)>,
    /// What it counts for which service port.
    pub service: Option<(u32, ServiceCounters)>,
    /// The service port for which it counts a drop.
    pub drop_of: Option<u32>,
}

/// Why there is nothing that the program should have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objection {
    /// It chose what it may not choose.
    Wrong(String),
    /// What it chose cannot be seen from the packet; what comes after cannot be judged.
    Unknowable,
}

/// The data path of one node.
#[derive(Clone, Debug)]
pub struct Model {
    node: Node,
    tables: Tables,
    now: Instant,
}

/// A second.
pub const SIXTEENTHS: Instant = 16;

/// For how many seconds the fragments of a packet are waited for.
const FRAGMENTS_WAIT: u64 = 60;

/// What becomes of a packet, before it is looked at as a whole.
#[derive(Clone, Debug)]
enum Ruling {
    /// It goes on, changed.
    Rewritten(Reason, Draft, Option<(usize, ServiceCounters)>),
    /// It becomes the answer to its sender; if it was a service port's, that is known.
    Answered(Reason, Draft, Option<usize>),
    /// A packet of a service port does not go on.
    Dropped(Reason, Option<usize>),
    /// It does not go on, or goes on as it is, as the reason says; it is no service port's.
    Left(Reason),
}

type Judged = Result<Ruling, Objection>;

impl Model {
    /// A node that has seen no packet.
    pub fn new(node: Node) -> Self {
        let mut model = Self { node, tables: Tables::default(), now: 0 };
        model.note_backends();
        model
    }

    /// The node, to be told something else.
    pub fn change(&mut self, change: impl FnOnce(&mut Node)) {
        change(&mut self.node);
        self.note_backends();
    }

    /// Forgets how packets from `source` to `destination` are translated where they enter or, with `leaves`, where they leave.
    pub fn forget(&mut self, leaves: bool, protocol: u8, source: SocketAddr, destination: SocketAddr) {
        let flow = Flow { source, destination, protocol };
        if leaves {
            self.tables.egress.remove(&flow);
        } else {
            self.tables.forward.remove(&flow);
        }
    }

    /// So many sixteenths of a second pass.
    pub fn pass(&mut self, sixteenths: u64) {
        self.now += sixteenths;
    }

    /// Whole seconds since `then`.
    fn seconds_since(&self, then: Instant) -> u64 {
        (self.now - then) / SIXTEENTHS
    }

    /// Whether an entry that was written `then` is to be written anew.
    fn is_stale(&self, then: Instant) -> bool {
        self.seconds_since(then) >= 1
    }

    /// Whether an entry in `state` that was written `then` counts no more. No second is only just over.
    fn is_over(&self, state: State, then: Instant) -> bool {
        self.seconds_since(then) >= state.lifetime().into()
    }

    /// Everything that is remembered of packets that enter (`false`) and leave (`true`): protocol and both ends.
    pub fn entries(&self) -> Vec<(bool, u8, SocketAddr, SocketAddr)> {
        let of = |leaves| move |flow: &Flow| (leaves, flow.protocol, flow.source, flow.destination);
        let mut entries: Vec<_> =
            self.tables.forward.keys().map(of(false)).chain(self.tables.egress.keys().map(of(true))).collect();
        // A run is to be repeatable, and the order of a hash table is not.
        entries.sort_unstable();
        entries
    }

    fn note_backends(&mut self) {
        let ends = self.node.served.iter().flat_map(|served| {
            let protocol = served.port.name.protocol.number();
            served
                .port
                .families
                .iter()
                .flat_map(|family| &family.endpoints)
                .map(move |endpoint| (SocketAddr::new(endpoint.address, endpoint.port), protocol))
        });
        self.tables.backends.extend(ends);
    }

    fn parse(&self, at: &Arrival<'_>) -> Result<Parsed, (Reason, Option<IpFamily>)> {
        let (family, l3) = parse::link(at.bytes, at.link).ok_or((Reason::NotIp, None))?;
        parse::network(at.bytes, l3, family)
            .and_then(|network| {
                parse::transport(at.bytes, network, |network| {
                    let parse::Piece::Later(identification) = network.piece else { return None };
                    let key = (network.source, network.destination, network.protocol, identification);
                    let (ports, seen) = self.tables.fragments.get(&key)?;
                    (self.seconds_since(*seen) < FRAGMENTS_WAIT).then_some(*ports)
                })
            })
            .map_err(|reason| (reason, Some(family)))
    }

    /// Remembers the ports of a packet whose first fragment this is, unless it is nobody's concern.
    fn remember_ports(&mut self, parsed: &Parsed, ruling: &Ruling) {
        let is_nobodys = matches!(ruling, Ruling::Left(reason) if !is_drop(*reason));
        if let parse::Piece::First(identification) = parsed.network.piece
            && !is_nobodys
        {
            let parse::Network { source, destination, protocol, .. } = parsed.network;
            self.tables.fragments.insert((source, destination, protocol, identification), (parsed.ports, self.now));
        }
    }

    /// The whole of what a program has to do, by what becomes of the packet.
    fn fate(&self, at: &Arrival<'_>, family: Option<IpFamily>, ruling: Ruling) -> Fate {
        let id = |service: usize| self.node.served[service].id;
        match ruling {
            Ruling::Rewritten(reason, draft, service) => Fate {
                verdict: Verdict::Pass,
                packet: draft.bytes,
                either_zero: draft.either_zero,
                reason: Some((reason, family)),
                service: service.map(|(service, counters)| (id(service), counters)),
                drop_of: None,
            },
            Ruling::Answered(reason, draft, service) => Fate {
                verdict: Verdict::Redirect,
                packet: draft.bytes,
                either_zero: draft.either_zero,
                reason: Some((reason, family)),
                service: None,
                drop_of: service.map(id),
            },
            Ruling::Dropped(reason, service) => {
                Fate { drop_of: service.map(id), ..self.fate(at, family, Ruling::Left(reason)) }
            }
            Ruling::Left(reason) => Fate {
                verdict: if is_drop(reason) { Verdict::Drop } else { Verdict::Pass },
                packet: at.bytes.to_vec(),
                either_zero: Vec::new(),
                reason: Some((reason, family)),
                service: None,
                drop_of: None,
            },
        }
    }
}

impl Fate {
    /// Whether a program that was `seen` has done this, counters aside.
    pub fn is(&self, seen: &Seen<'_>) -> bool {
        let is_either = |at: usize| {
            let zero = |bytes: &[u8]| matches!(bytes.get(at & !1..(at & !1) + 2), Some([0, 0] | [0xff, 0xff]));
            let field = |bytes: &[u8]| bytes.get(at..at + 2).map(<[u8]>::to_vec);
            zero(seen.packet) && zero(&self.packet) || field(seen.packet) == field(&self.packet)
        };
        let at_checksum = |at: &usize| self.either_zero.iter().find(|field| (**field..**field + 2).contains(at));
        self.verdict == seen.verdict
            && self.packet.len() == seen.packet.len()
            && (0..self.packet.len())
                .all(|at| self.packet[at] == seen.packet[at] || at_checksum(&at).is_some_and(|field| is_either(*field)))
    }
}

impl Parsed {
    fn flow(&self) -> Flow {
        let parse::Network { source, destination, protocol, .. } = self.network;
        Flow {
            source: SocketAddr::new(source, self.ports.0),
            destination: SocketAddr::new(destination, self.ports.1),
            protocol,
        }
    }

    fn flags(&self) -> Flags {
        match self.content {
            Content::Tcp(flags) => Some(flags),
            _ => None,
        }
    }

    /// What stands at one end of the packet `bytes`, which has come of this one; none where no port is to be seen.
    fn end_of(&self, bytes: &[u8], end: End) -> Option<SocketAddr> {
        let network = &self.network;
        let address =
            parse::address(bytes, network.l3 + edit::address_offset(network.family, end), network.family).ok()?;
        let at = match (self.content, end) {
            _ if network.piece.is_later() => return None,
            (Content::Echo, _) => network.l4 + 4,
            (_, End::Source) => network.l4,
            (_, End::Destination) => network.l4 + 2,
        };
        let port = bytes.get(at..at + 2)?;
        Some(SocketAddr::new(address, u16::from_be_bytes([port[0], port[1]])))
    }
}

/// Whether a packet that is counted under `reason` goes no further.
fn is_drop(reason: Reason) -> bool {
    use Reason::{
        BackendGone, NoEndpoint, NoLocalEndpoint, NoNodeAddress, NoPort, Pretended, RefusalLimit, ReplyClash,
        RewriteFailed, SnatExhausted, SourceRange, TableRefused, Unallocated, Unanswerable,
    };
    matches!(
        reason,
        NoEndpoint
            | NoPort
            | RefusalLimit
            | Unanswerable
            | NoLocalEndpoint
            | SourceRange
            | Pretended
            | Unallocated
            | BackendGone
            | ReplyClash
            | SnatExhausted
            | NoNodeAddress
            | TableRefused
            | RewriteFailed
    )
}

/// Ports that masqueraded packets leave with.
pub type SnatPorts = RangeInclusive<u16>;
