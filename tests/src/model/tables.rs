//! What is remembered of connections, and how their packets move them through their lives.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use super::xdp::{NextHop, Remembered};

/// A packet's two ends and protocol; of ICMP the identifier is the port of the side that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Flow {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) protocol: u8,
}

impl Flow {
    pub(super) fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source, ..self }
    }
}

/// A moment, in sixteenths of a second.
pub(super) type Instant = u64;

/// An endpoint of a service, by the place of that among all that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Backend {
    pub(super) service: usize,
    pub(super) address: SocketAddr,
}

/// A client's packets to a VIP.
#[derive(Clone, Copy, Debug)]
pub(super) struct Forward {
    pub(super) backend: Backend,
    /// In place of the client's own port.
    pub(super) other_port: Option<u16>,
    pub(super) state: State,
    pub(super) seen: Instant,
    /// Whether both sides have confirmed it: it is then out of reach of floods.
    pub(super) is_confirmed: bool,
}

/// What becomes of packets that leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A backend's: they come from the VIP.
    Reply,
    /// A client's, to be masqueraded: by what is found out when the first leaves.
    Unsettled,
    /// A client's: they come from the node.
    Masquerade,
    /// A client's, whose backend on another node answers by itself: they keep their source, and those that open say the VIP.
    Direct,
    /// A backend's, whose client's packets come from another node and say the VIP: they come from that.
    DirectReply,
}

impl Kind {
    /// Whether they come from the VIP.
    pub(super) fn is_of_backend(self) -> bool {
        matches!(self, Self::Reply | Self::DirectReply)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Egress {
    pub(super) kind: Kind,
    /// What the source becomes; of what goes directly, the VIP that is said.
    pub(super) end: Option<SocketAddr>,
    /// What the destination port becomes.
    pub(super) client_port: Option<u16>,
    /// For its counters.
    pub(super) service: Option<usize>,
    pub(super) state: State,
    pub(super) seen: Instant,
    pub(super) is_confirmed: bool,
    pub(super) next_hop: Option<NextHop>,
}

impl Egress {
    /// Of a connection that begins at `seen`.
    pub(super) fn new(
        kind: Kind,
        end: Option<SocketAddr>,
        service: Option<usize>,
        state: State,
        seen: Instant,
    ) -> Self {
        Self { kind, end, client_port: None, service, state, seen, is_confirmed: false, next_hop: None }
    }

    /// Whether both say the same of their packets.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        self.kind.is_of_backend() == other.kind.is_of_backend()
            && (self.end, self.client_port) == (other.end, other.client_port)
    }

    /// Whether another connection may have its packets, as far as its state says. Of what is answered directly neither node sees all, so
    /// one end is enough.
    pub(super) fn gives_way(&self) -> bool {
        match self.kind {
            Kind::Direct | Kind::DirectReply => self.state.may_be_over(),
            Kind::Reply | Kind::Unsettled | Kind::Masquerade => self.state.is_over(),
        }
    }
}

/// Packets that enter for the node, in answer to what was masqueraded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Snat {
    pub(super) client: SocketAddr,
    pub(super) state: State,
    pub(super) seen: Instant,
}

/// Which packet a fragment is of: addresses, protocol, identification.
type FragmentOf = (IpAddr, IpAddr, u8, u32);

/// The ports of its source and destination.
type Ports = (u16, u16);

/// All that is remembered.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    pub(super) forward: HashMap<Flow, Forward>,
    pub(super) egress: HashMap<Flow, Egress>,
    pub(super) snat: HashMap<Flow, Snat>,
    pub(super) fragments: HashMap<FragmentOf, (Ports, Instant)>,
    pub(super) affinity: HashMap<(IpAddr, usize), (Backend, Instant)>,
    pub(super) remembered: HashMap<Flow, Remembered>,
    /// Every end that was a backend, with its protocol.
    pub(super) backends: HashSet<(SocketAddr, u8)>,
}

/// Where a connection stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The client has sent something, the backend nothing.
    Opening,
    /// The backend has answered, the client not acknowledged it.
    Answered,
    /// Both have.
    Established,
    /// The client has sent its FIN.
    ClientClosed,
    /// The backend has sent its FIN.
    BackendClosed,
    /// Both have.
    Closing,
    /// A RST was seen.
    Reset,
    /// Not TCP.
    Stateless,
}

/// The TCP flags of a segment; none of what is not TCP.
pub(super) type Flags = Option<u8>;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

fn has(flags: Flags, bit: u8) -> bool {
    flags.is_some_and(|flags| flags & bit != 0)
}

pub(super) fn opens(flags: Flags) -> bool {
    has(flags, SYN) && !has(flags, ACK)
}

pub(super) fn accepts(flags: Flags) -> bool {
    has(flags, SYN) && has(flags, ACK)
}

pub(super) fn finishes(flags: Flags) -> bool {
    has(flags, FIN)
}

pub(super) fn resets(flags: Flags) -> bool {
    has(flags, RST)
}

pub(super) fn acknowledges(flags: Flags) -> bool {
    has(flags, ACK)
}

/// Neither begins, ends nor breaks off anything.
pub(super) fn is_plain(flags: Flags) -> bool {
    !has(flags, SYN | FIN | RST)
}

impl State {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Opening,
        Self::Answered,
        Self::Established,
        Self::ClientClosed,
        Self::BackendClosed,
        Self::Closing,
        Self::Reset,
        Self::Stateless,
    ];

    /// How long a connection counts without a packet, in seconds: what nf_conntrack has, or kube-proxy sets there.
    pub fn lifetime(self) -> u32 {
        match self {
            Self::Opening | Self::Answered | Self::Closing | Self::Stateless => 120,
            Self::Established => 86_400,
            Self::ClientClosed | Self::BackendClosed => 3_600,
            Self::Reset => 10,
        }
    }

    pub(super) fn first(flags: Flags) -> Self {
        match flags {
            None => Self::Stateless,
            _ if resets(flags) => Self::Reset,
            _ if finishes(flags) => Self::ClientClosed,
            _ => Self::Opening,
        }
    }

    /// After one more packet of the client.
    pub(super) fn client_sends(self, flags: Flags) -> Self {
        if self == Self::Stateless {
            return self;
        }
        if resets(flags) {
            return Self::Reset;
        }
        match (self, finishes(flags)) {
            (Self::Opening | Self::Answered | Self::Established, true) => Self::ClientClosed,
            (Self::BackendClosed, true) => Self::Closing,
            // An acknowledgement of the answer; or of whatever, so that a reset was not heeded.
            (Self::Answered | Self::Reset, false) if !opens(flags) => Self::Established,
            _ => self,
        }
    }

    /// After one more packet of the backend.
    pub(super) fn backend_sends(self, flags: Flags) -> Self {
        if self == Self::Stateless {
            return self;
        }
        if resets(flags) {
            return Self::Reset;
        }
        match (self, finishes(flags)) {
            (Self::Opening | Self::Answered | Self::Established, true) => Self::BackendClosed,
            (Self::ClientClosed, true) => Self::Closing,
            (Self::Opening, false) => Self::Answered,
            (Self::Reset, false) if !accepts(flags) => Self::Established,
            _ => self,
        }
    }

    /// After one more packet of a backend whose client is not listened to. What it sends once it has accepted shows that the client has
    /// acknowledged that.
    pub(super) fn direct_backend_sends(self, flags: Flags) -> Self {
        match self {
            Self::Opening | Self::Answered if is_plain(flags) => Self::Established,
            _ => self.backend_sends(flags),
        }
    }

    /// A client that opens a connection from the same port now means another.
    pub(super) fn may_be_over(self) -> bool {
        matches!(self, Self::ClientClosed | Self::BackendClosed | Self::Closing | Self::Reset)
    }

    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Closing | Self::Reset)
    }
}
