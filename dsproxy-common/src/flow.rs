//! The connection table: its entries, and the rules for how long they count.
//!
//! Packets that enter the stack have their destination replaced: a *forward* entry (client -> VIP) remembers the backend that
//! was picked, a *SNAT* entry (backend -> node) the client behind the node's address. Packets that leave have their source
//! replaced: an *egress* entry remembers by what, the VIP (backend -> client) or the node (client -> backend). Keys are packets
//! as the hook sees them. All of it is pure: the time is a parameter, in the kernel's jiffies.

use crate::{
    Port,
    next_hop::NextHop,
    record::{family_record, record},
    service::BackendState,
    settings::Settings,
};

/// Addresses, ports and protocol of a packet, as they stand in it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    /// The source address.
    pub source: A,
    /// The destination address.
    pub destination: A,
    /// The source port.
    pub source_port: Port,
    /// The destination port.
    pub destination_port: Port,
    /// The IANA protocol number. Four bytes wide, so that nothing is left to fill.
    pub protocol: u32,
}

impl<A: Copy> FlowKey<A> {
    /// The key of what is sent back in answer.
    #[inline(always)]
    pub const fn answer(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

/// What the connection table knows of a connection from the client's packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForwardEntry {
    /// The id of the backend that was picked.
    pub backend: u32,
    /// The generation that the backend's id had then.
    pub generation: u32,
    /// The id of the service port, for its counters.
    pub service: u32,
    /// When a packet of the connection was last seen, to within a second: the low half of the jiffies.
    pub last_seen: u32,
    /// A [`FlowState`].
    pub state: u16,
    /// The port that packets to the backend have in place of the client's, where another connection holds that; else zero.
    pub source_port: Port,
}

/// What stands in place of the source of a packet that leaves the stack.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EgressEntry<A> {
    /// Nothing, in front of all else.
    #[cfg(feature = "next-layout")]
    pub next: u32,
    /// The address.
    pub address: A,
    /// The id of the service port, for its counters; [`NO_SERVICE`] for traffic that is masqueraded without one.
    pub service: u32,
    /// When a packet of the connection was last seen, to within a second: the low half of the jiffies.
    pub last_seen: u32,
    /// The port; for ICMP echo the identifier.
    pub port: Port,
    /// A [`FlowState`].
    pub state: u8,
    /// An [`EgressKind`].
    pub kind: u8,
    /// The client's port, where a reply's destination port is not it; else zero.
    pub client_port: Port,
    /// Zero.
    pub reserved: u16,
    /// How the stack sent the last packet on.
    pub next_hop: NextHop,
}

impl<A> EgressEntry<A> {
    /// Whether another connection may take the place of this one's, as far as its state says. Of a connection that is answered
    /// directly not all is seen on either node: where it may be over, it is taken for that.
    #[inline(always)]
    pub const fn may_be_followed(&self) -> bool {
        let state = FlowState::from_number(self.state as u16);
        match EgressKind::from_number(self.kind) {
            EgressKind::Direct | EgressKind::DirectReply => state.may_be_over(),
            EgressKind::Reply | EgressKind::Unsettled | EgressKind::Masquerade => state.is_over(),
        }
    }
}

/// The service of an entry that belongs to none.
pub const NO_SERVICE: u32 = u32::MAX;

/// What a packet is whose source is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EgressKind {
    /// A backend's packet to the client: its source becomes the VIP.
    Reply = 0,
    /// A client's packet that is to be masqueraded; which address and port of the node it gets is settled when the first
    /// packet leaves, for that depends on the device.
    Unsettled = 1,
    /// A client's packet that is masqueraded: its source becomes the node.
    Masquerade = 2,
    /// A client's packet whose backend, on another node, answers the client directly, by the VIP that stands here: it keeps its
    /// source.
    Direct = 3,
    /// As `Reply`, of a client whose packets another node sends here directly: this node has no forward entry.
    DirectReply = 4,
}

impl EgressKind {
    /// The kind with this number; a number from a later version counts as a reply.
    #[inline(always)]
    pub const fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Unsettled,
            2 => Self::Masquerade,
            3 => Self::Direct,
            4 => Self::DirectReply,
            _ => Self::Reply,
        }
    }

    /// Whether it is a backend's packet that leaves with the VIP as its source.
    #[inline(always)]
    pub const fn is_of_backend(self) -> bool {
        matches!(self, Self::Reply | Self::DirectReply)
    }

    /// The number stored in the map.
    #[inline(always)]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

/// Who is behind an address and port of the node: what the destination of a reply to a masqueraded packet becomes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnatEntry<A> {
    /// The client's address.
    pub client: A,
    /// When a packet of the connection was last seen, to within a second: the low half of the jiffies.
    pub last_seen: u32,
    /// The client's port; for ICMP echo the identifier.
    pub port: Port,
    /// A [`FlowState`], and perhaps [`FOREIGN`].
    pub state: u16,
}

/// Bit of a SNAT entry's state: another version's programs serve the connection. The port is taken, and answers to it are theirs, for
/// they may have given it to another meanwhile. It goes with the client's next packet but those within a second: the connection is this
/// version's then.
pub const FOREIGN: u16 = 1 << 15;

/// Where a connection stands in its life; it decides how long its entries count without traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum FlowState {
    /// TCP: the client has sent its SYN, or the connection was met in the middle by the client's packets alone.
    Opening = 0,
    /// TCP: the client has acknowledged the backend's answer.
    Established = 1,
    /// TCP: the client has sent its FIN and may still be sent to.
    ClientClosed = 2,
    /// TCP: the backend has sent its FIN and may still be sent to.
    BackendClosed = 3,
    /// TCP: both sides have sent their FIN.
    Closing = 4,
    /// TCP: a RST was seen, and nothing since that shows that it was ignored.
    Reset = 5,
    /// Not TCP: packets are all there is to go by.
    Stateless = 6,
    /// TCP: the backend has answered, and the client not yet acknowledged it.
    Answered = 7,
}

impl FlowState {
    /// How many numbers there are for states: a power of two, so that any number can be made an index by
    /// masking it.
    pub const COUNT: usize = 8;

    /// The state with this number.
    #[inline(always)]
    pub const fn from_number(number: u16) -> Self {
        match number & (Self::COUNT as u16 - 1) {
            0 => Self::Opening,
            1 => Self::Established,
            2 => Self::ClientClosed,
            3 => Self::BackendClosed,
            4 => Self::Closing,
            5 => Self::Reset,
            6 => Self::Stateless,
            _ => Self::Answered,
        }
    }

    /// The number stored in the map.
    #[inline(always)]
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// The state of a connection whose first packet, as far as we know, is this one. What is met in the middle has to
    /// show by a second packet that it is one.
    #[inline(always)]
    pub const fn first(segment: Segment) -> Self {
        if segment.0 == Segment::NOT_TCP.0 {
            Self::Stateless
        } else if segment.resets() {
            Self::Reset
        } else if segment.finishes() {
            Self::ClientClosed
        } else {
            Self::Opening
        }
    }

    /// As `first`, of a connection whose backend answers past this node: that it does is taken for granted, and the client's
    /// next packet confirms it.
    #[inline(always)]
    pub const fn first_direct(segment: Segment) -> Self {
        match Self::first(segment) {
            Self::Opening => Self::Answered,
            state => state,
        }
    }

    /// The state after one more packet from the client.
    #[inline(always)]
    pub const fn after_forward(self, segment: Segment) -> Self {
        match self {
            Self::Stateless => self,
            // Nearly every packet.
            Self::Established if segment.is_plain() => self,
            _ if segment.resets() => Self::Reset,
            Self::Opening | Self::Answered | Self::Established if segment.finishes() => Self::ClientClosed,
            Self::BackendClosed if segment.finishes() => Self::Closing,
            Self::Answered | Self::Reset if !segment.opens() && !segment.finishes() => Self::Established,
            _ => self,
        }
    }

    /// The state after one more packet from the backend.
    #[inline(always)]
    pub const fn after_reply(self, segment: Segment) -> Self {
        match self {
            Self::Stateless => self,
            // Nearly every packet.
            Self::Established if segment.is_plain() => self,
            _ if segment.resets() => Self::Reset,
            Self::Opening | Self::Answered | Self::Established if segment.finishes() => Self::BackendClosed,
            Self::ClientClosed if segment.finishes() => Self::Closing,
            Self::Opening => Self::Answered,
            Self::Reset if !segment.accepts() && !segment.finishes() => Self::Established,
            _ => self,
        }
    }

    /// The state after one more packet from a backend whose client's packets are not looked at. What it sends after it has
    /// accepted the connection shows that the client has acknowledged that.
    #[inline(always)]
    pub const fn after_direct_reply(self, segment: Segment) -> Self {
        match self {
            Self::Opening | Self::Answered if segment.is_plain() => Self::Established,
            _ => self.after_reply(segment),
        }
    }

    /// Whether the connection may be over: a client that now opens one from the same port means another.
    #[inline(always)]
    pub const fn may_be_over(self) -> bool {
        match self {
            Self::ClientClosed | Self::BackendClosed | Self::Closing | Self::Reset => true,
            Self::Opening | Self::Answered | Self::Established | Self::Stateless => false,
        }
    }

    /// Whether the connection is over, as far as both sides have said.
    #[inline(always)]
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Closing | Self::Reset)
    }
}

/// How many jiffies there are from `then` to `now`, where that is less than half of what their low half counts. What another
/// CPU has just written may seem to come from the future; it is of now.
#[inline(always)]
pub const fn jiffies_since(then: u32, now: u32) -> u32 {
    let age = now.wrapping_sub(then);
    if age > u32::MAX / 2 { 0 } else { age }
}

/// What the time since a connection's last packet makes of its entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// Seen within a second. Nothing is to be written.
    Fresh,
    /// It counts, and another packet makes it fresh.
    Stale,
    /// Past the lifetime of its state.
    Expired,
}

impl Age {
    /// The age at `now` of an entry last seen at `last_seen`, whose state has this number.
    ///
    /// The number is taken as it stands in the map, so that its bound is seen where the lifetime is looked up: the
    /// verifier knows nothing of enums. An entry that another CPU has just refreshed may seem to come from the future;
    /// it is not old. No lifetime is shorter than a second.
    #[inline(always)]
    pub const fn of(state_number: u16, last_seen: u32, now: u32, settings: &Settings) -> Self {
        let second = settings.jiffies_per_second;
        let age = now.wrapping_sub(last_seen);
        if age.wrapping_add(second) < second.wrapping_add(second) {
            Self::Fresh
        } else if age > settings.lifetimes[state_number as usize & (FlowState::COUNT - 1)] {
            Self::Expired
        } else {
            Self::Stale
        }
    }

    /// Whether the entry counts no more.
    #[inline(always)]
    pub const fn is_expired(self) -> bool {
        matches!(self, Self::Expired)
    }

    /// Whether the entry is as it would be written now.
    #[inline(always)]
    pub const fn is_fresh(self) -> bool {
        matches!(self, Self::Fresh)
    }
}

/// The flags byte of a TCP segment (RFC 9293, section 3.1) with a bit beside that says so, or [`Segment::NOT_TCP`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment(u16);

impl Segment {
    const FIN: u16 = 0x01;
    const SYN: u16 = 0x02;
    const RST: u16 = 0x04;
    const ACK: u16 = 0x10;
    const IS_TCP: u16 = 0x100;

    /// A packet that is not TCP.
    pub const NOT_TCP: Self = Self(0);

    /// The segment with these flags.
    #[inline(always)]
    pub const fn tcp(flags: u8) -> Self {
        Self(flags as u16 | Self::IS_TCP)
    }

    /// Neither opens, nor ends, nor resets anything: as nearly all are.
    #[inline(always)]
    pub const fn is_plain(self) -> bool {
        self.0 & (Self::FIN | Self::SYN | Self::RST) == 0
    }

    /// Asks for a new connection: SYN without ACK.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN
    }

    /// Belongs to a TCP connection that has been opened before.
    #[inline(always)]
    pub const fn goes_on(self) -> bool {
        self.0 & Self::IS_TCP != 0 && !self.opens()
    }

    /// Accepts a new connection: SYN with ACK.
    #[inline(always)]
    pub const fn accepts(self) -> bool {
        self.0 & (Self::SYN | Self::ACK) == Self::SYN | Self::ACK
    }

    /// Opens a connection, or accepts one: SYN.
    #[inline(always)]
    pub const fn synchronizes(self) -> bool {
        self.0 & Self::SYN != 0
    }

    /// Ends one direction: FIN.
    #[inline(always)]
    pub const fn finishes(self) -> bool {
        self.0 & Self::FIN != 0
    }

    /// Ends the connection: RST.
    #[inline(always)]
    pub const fn resets(self) -> bool {
        self.0 & Self::RST != 0
    }
}

impl ForwardEntry {
    /// Whether the connection goes on to the backend it has.
    ///
    /// `generation` and `backend` are what the backend array holds now for the entry's id, `age` is the entry's. TCP stays with its
    /// backend for as long as the id still means that backend, even when the endpoint has left the Service: only the
    /// two ends know whether the connection is over. Anything else leaves a backend that is gone at once. A new
    /// SYN never goes to a backend that takes no new connections, nor on with a connection that is closing.
    #[inline(always)]
    pub const fn goes_on(&self, generation: u32, backend: BackendState, segment: Segment, age: Age) -> bool {
        if self.generation != generation || age.is_expired() {
            return false;
        }
        match (FlowState::from_number(self.state), backend) {
            (FlowState::Stateless, BackendState::Gone) => false,
            (FlowState::Stateless, BackendState::Active | BackendState::Draining) => true,
            (state, BackendState::Active) if !state.may_be_over() => true,
            (_, _) => !segment.opens(),
        }
    }
}

family_record! {
    FlowKey { source, destination, source_port, destination_port, protocol }
    SnatEntry { client, last_seen, port, state }
}

#[cfg(not(feature = "next-layout"))]
family_record! {
    EgressEntry { address, service, last_seen, port, state, kind, client_port, reserved, next_hop }
}

#[cfg(feature = "next-layout")]
family_record! {
    EgressEntry { next, address, service, last_seen, port, state, kind, client_port, reserved, next_hop }
}

record! {
    ForwardEntry { backend, generation, service, last_seen, state, source_port }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYN: Segment = Segment::tcp(0x02);
    const SYN_ACK: Segment = Segment::tcp(0x12);
    const ACK: Segment = Segment::tcp(0x10);
    const FIN_ACK: Segment = Segment::tcp(0x11);
    const RST: Segment = Segment::tcp(0x04);

    fn settings() -> Settings {
        let lifetimes = [60, 86_400, 3600, 3600, 120, 10, 120, 60];
        Settings { jiffies_per_second: 1, lifetimes, ..Settings::default() }
    }

    fn entry(state: FlowState) -> ForwardEntry {
        ForwardEntry {
            backend: 1,
            generation: 7,
            service: 1,
            last_seen: 100,
            state: state.number(),
            source_port: Port::default(),
        }
    }

    #[test]
    fn a_tcp_connection_opens_lives_and_closes() {
        let opening = FlowState::first(SYN);
        assert_eq!(opening, FlowState::Opening);
        assert_eq!(opening.after_forward(SYN), FlowState::Opening, "a retransmitted SYN changes nothing");
        assert_eq!(opening.after_forward(ACK), FlowState::Opening, "nobody has answered");
        let answered = opening.after_reply(SYN_ACK);
        assert_eq!(answered, FlowState::Answered);
        assert_eq!(answered.after_reply(SYN_ACK).after_forward(SYN), FlowState::Answered, "retransmitted");
        let established = answered.after_forward(ACK);
        assert_eq!(established, FlowState::Established);
        for (half, other) in [
            (established.after_forward(FIN_ACK), FlowState::after_reply as fn(FlowState, Segment) -> FlowState),
            (established.after_reply(FIN_ACK), FlowState::after_forward),
        ] {
            assert!(half.may_be_over() && !half.is_over());
            assert_eq!(half.after_forward(ACK).after_reply(ACK), half, "half closed, and still sent on");
            assert_eq!(other(half, FIN_ACK), FlowState::Closing);
        }
        assert_eq!(established.after_forward(FIN_ACK).after_forward(FIN_ACK), FlowState::ClientClosed, "retransmitted");
        assert_eq!(FlowState::first(ACK), FlowState::Opening, "met in the middle");
    }

    #[test]
    fn a_reset_that_is_ignored_is_taken_back() {
        let reset = FlowState::Established.after_reply(RST);
        assert_eq!(reset, FlowState::Reset);
        assert_eq!(reset.after_forward(SYN), FlowState::Reset);
        assert_eq!(reset.after_reply(SYN_ACK), FlowState::Reset);
        assert_eq!(reset.after_forward(ACK), FlowState::Established);
        assert_eq!(reset.after_reply(ACK), FlowState::Established);
    }

    #[test]
    fn every_state_has_its_number() {
        use FlowState::{Answered, BackendClosed, ClientClosed, Closing, Established, Opening, Reset, Stateless};
        for state in [Opening, Established, ClientClosed, BackendClosed, Closing, Reset, Stateless, Answered] {
            assert_eq!(FlowState::from_number(state.number()), state);
            assert!(usize::from(state.number()) < FlowState::COUNT);
        }
    }

    #[test]
    fn what_is_answered_directly_may_be_followed_as_soon_as_one_side_has_ended_it() {
        use EgressKind::{Direct, DirectReply, Masquerade, Reply, Unsettled};
        let entry = |kind: EgressKind, state: FlowState| EgressEntry::<crate::Addr4> {
            #[cfg(feature = "next-layout")]
            next: 0,
            address: crate::Addr4::default(),
            service: 0,
            last_seen: 0,
            port: Port::default(),
            state: state.number() as u8,
            kind: kind.number(),
            client_port: Port::default(),
            reserved: 0,
            next_hop: NextHop::default(),
        };
        for kind in [Reply, Unsettled, Masquerade, Direct, DirectReply] {
            let is_direct = matches!(kind, Direct | DirectReply);
            for state in [FlowState::ClientClosed, FlowState::BackendClosed] {
                assert_eq!(entry(kind, state).may_be_followed(), is_direct, "{kind:?} {state:?}");
            }
            assert!(
                entry(kind, FlowState::Closing).may_be_followed() && entry(kind, FlowState::Reset).may_be_followed()
            );
            assert!(!entry(kind, FlowState::Established).may_be_followed());
            assert!(!entry(kind, FlowState::Stateless).may_be_followed());
        }
    }

    #[test]
    fn the_answer_to_an_answer_is_what_it_answers() {
        let key = FlowKey {
            source: 1,
            destination: 2,
            source_port: Port::new(3),
            destination_port: Port::new(4),
            protocol: 6,
        };
        let answer = key.answer();
        assert_eq!((answer.source, answer.destination_port, answer.protocol), (2, Port::new(3), 6));
        assert_eq!(answer.answer(), key);
    }

    #[test]
    fn what_is_not_tcp_has_no_states() {
        assert_eq!(FlowState::first(Segment::NOT_TCP), FlowState::Stateless);
        assert_eq!(FlowState::Stateless.after_forward(Segment::NOT_TCP), FlowState::Stateless);
        assert_eq!(FlowState::Stateless.after_reply(Segment::NOT_TCP), FlowState::Stateless);
        assert_ne!(Segment::tcp(0), Segment::NOT_TCP);
    }

    #[test]
    fn tcp_keeps_its_backend_and_other_traffic_leaves_one_that_is_gone() {
        use BackendState::{Active, Draining, Gone};
        let goes_on = |state, backend, segment| entry(state).goes_on(7, backend, segment, Age::Fresh);
        for backend in [Active, Draining, Gone] {
            assert!(goes_on(FlowState::Established, backend, ACK));
            assert!(goes_on(FlowState::Closing, backend, FIN_ACK));
        }
        assert!(goes_on(FlowState::Opening, Active, SYN), "retransmitted");
        assert!(!goes_on(FlowState::Opening, Draining, SYN));
        assert!(!goes_on(FlowState::Established, Gone, SYN));
        assert!(!goes_on(FlowState::Closing, Active, SYN), "port reuse picks anew");
        assert!(goes_on(FlowState::Stateless, Draining, Segment::NOT_TCP));
        assert!(!goes_on(FlowState::Stateless, Gone, Segment::NOT_TCP));
    }

    #[test]
    fn an_id_given_to_another_endpoint_and_an_old_entry_are_noticed() {
        let flow = entry(FlowState::Established);
        for (generation, age, goes_on) in
            [(7, Age::Fresh, true), (7, Age::Stale, true), (7, Age::Expired, false), (8, Age::Fresh, false)]
        {
            assert_eq!(flow.goes_on(generation, BackendState::Active, ACK, age), goes_on, "{generation} {age:?}");
        }
    }

    #[test]
    fn what_comes_from_the_future_is_of_now() {
        assert_eq!(jiffies_since(100, 107), 7);
        assert_eq!(jiffies_since(u32::MAX - 1, 5), 7);
        assert_eq!(jiffies_since(101, 100), 0);
    }

    #[test]
    fn an_entry_ages_by_the_lifetime_of_its_state() {
        let age = |state: FlowState, last_seen, now| Age::of(state.number(), last_seen, now, &settings());
        assert_eq!(age(FlowState::Established, 100, 100), Age::Fresh);
        assert_eq!(age(FlowState::Established, 100, 101), Age::Stale);
        assert_eq!(age(FlowState::Established, 100, 100 + 86_400), Age::Stale);
        assert_eq!(age(FlowState::Established, 100, 101 + 86_400), Age::Expired);
        assert_eq!(age(FlowState::Reset, 100, 110), Age::Stale);
        assert_eq!(age(FlowState::Reset, 100, 111), Age::Expired);
        assert_eq!(age(FlowState::Reset, 100, 99), Age::Fresh, "refreshed by another CPU meanwhile");
        assert_eq!(age(FlowState::Stateless, u32::MAX - 5, 10), Age::Stale, "jiffies wrap around");
    }
}
