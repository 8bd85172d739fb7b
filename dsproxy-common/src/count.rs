//! What became of packets, counted: one numbering for the kernel programs, metrics and documents.

use crate::{
    IpFamily,
    record::{Field, Record, record},
};

/// Declares [`Reason`] with a name and a sentence for each value.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What a program did with a packet, and why.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Reason {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Reason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The reason with this number.
            #[inline(always)]
            pub const fn from_number(number: u32) -> Option<Self> {
                match number {
                    $(number if number == Self::$variant as u32 => Some(Self::$variant),)+
                    _ => None,
                }
            }

            /// The name in metrics and tables.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }

            /// The explanation shown to operators.
            pub const fn explanation(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($doc),+),)+
                }
            }
        }
    };
}

reasons! {
    /// Translated to the backend its connection already had.
    Forwarded = "forwarded",
    /// The first packet of a connection: a backend was picked and the packet translated to it.
    Opened = "opened",
    /// A backend's packet, translated back to the VIP.
    Replied = "replied",
    /// A client's packet that leaves with an address of the node.
    Masqueraded = "masqueraded",
    /// The reply to a masqueraded packet, sent on to the client.
    Unmasqueraded = "unmasqueraded",
    /// A client's packet that leaves with the client's address, for its backend on another node to answer the client directly.
    SentDirect = "sent-direct",
    /// Passed: another node has sent a client's packet to a backend here, which answers the client directly, by the VIP that
    /// the packet says.
    DirectArrived = "direct-arrived",
    /// A client's packet that XDP sent on to its backend on another node, masqueraded or for it to answer directly.
    SentToBackend = "sent-to-backend",
    /// The reply to a masqueraded packet that XDP sent on to the client, translated back to the VIP.
    SentToClient = "sent-to-client",
    /// An ICMP error about a translated packet, translated like it.
    IcmpError = "icmp-error",
    /// Passed: neither IPv4 nor IPv6.
    NotIp = "not-ip",
    /// Passed: an IP protocol that is not balanced.
    OtherProtocol = "other-protocol",
    /// Passed: for no address and port of a Service.
    NotService = "not-service",
    /// Passed: not the reply of a translated connection.
    NotReply = "not-reply",
    /// Passed: a fragment that came before the first of its packet, which alone shows the ports.
    EarlyFragment = "early-fragment",
    /// Passed: a header contradicts itself or the length of the packet.
    Malformed = "malformed",
    /// Dropped and answered with an ICMP error: the ClusterIP has no such port.
    NoPort = "no-port",
    /// Dropped: an address of a range of ClusterIPs that no Service has.
    Unallocated = "unallocated",
    /// Dropped and answered with an ICMP error: the Service has no endpoint.
    NoEndpoint = "no-endpoint",
    /// Dropped, for as many refusals as may be were sent this second: the Service has no endpoint, or the ClusterIP no such
    /// port.
    RefusalLimit = "refusal-limit",
    /// Dropped without an answer, which it may not have: it comes from an address that is no single host's, was sent to
    /// many, or is itself a reset.
    Unanswerable = "unanswerable",
    /// Dropped: a traffic policy wants an endpoint on this node, and those there are are on others.
    NoLocalEndpoint = "no-local-endpoint",
    /// Dropped: the client is not within the Service's source ranges.
    SourceRange = "source-range",
    /// Dropped: a client's packet to a Service says a VIP, as only nodes say it to each other.
    Pretended = "pretended",
    /// Dropped and answered with a reset: the endpoint of a TCP connection has left its Service.
    BackendGone = "backend-gone",
    /// Dropped: another connection of the same client to the same endpoint, through another VIP, holds the ports.
    ReplyClash = "reply-clash",
    /// Dropped: no port was found for a packet to be masqueraded with.
    SnatExhausted = "snat-exhausted",
    /// Dropped: the device has no address, nor has the node, that a packet could be masqueraded with.
    NoNodeAddress = "no-node-address",
    /// Dropped: the connection table did not take the new connection.
    TableRefused = "table-refused",
    /// Dropped: the packet could not be rewritten.
    RewriteFailed = "rewrite-failed",
}

impl Reason {
    /// How many reasons there are.
    pub const COUNT: usize = Self::ALL.len();

    /// Whether the sender was answered in place of the packet, which was dropped.
    #[inline(always)]
    pub const fn is_answer(self) -> bool {
        matches!(self, Self::NoEndpoint | Self::NoPort | Self::BackendGone)
    }

    /// Whether the packet goes on as another: translated, or with its VIP said.
    pub const fn is_translation(self) -> bool {
        matches!(
            self,
            Self::Forwarded
                | Self::Opened
                | Self::Replied
                | Self::Masqueraded
                | Self::Unmasqueraded
                | Self::SentDirect
                | Self::SentToBackend
                | Self::SentToClient
                | Self::IcmpError
        )
    }

    /// Whether the packet was dropped.
    #[inline(always)]
    pub const fn is_drop(self) -> bool {
        match self {
            Self::NoEndpoint
            | Self::NoPort
            | Self::RefusalLimit
            | Self::Unanswerable
            | Self::NoLocalEndpoint
            | Self::SourceRange
            | Self::Pretended
            | Self::Unallocated
            | Self::BackendGone
            | Self::ReplyClash
            | Self::SnatExhausted
            | Self::NoNodeAddress
            | Self::TableRefused
            | Self::RewriteFailed => true,
            Self::Forwarded
            | Self::Opened
            | Self::Replied
            | Self::Masqueraded
            | Self::Unmasqueraded
            | Self::SentDirect
            | Self::DirectArrived
            | Self::SentToBackend
            | Self::SentToClient
            | Self::IcmpError
            | Self::NotIp
            | Self::OtherProtocol
            | Self::NotService
            | Self::NotReply
            | Self::EarlyFragment
            | Self::Malformed => false,
        }
    }
}

/// How many entries the map of counters has: for each reason one without a family and one for each.
pub const COUNTERS: u32 = Reason::COUNT as u32 * 3;

/// The index of the counter for `reason` and the packet's family, if it has one.
#[inline(always)]
pub const fn counter_index(reason: Reason, family: Option<IpFamily>) -> u32 {
    reason as u32 * 3
        + match family {
            None => 0,
            Some(IpFamily::V4) => 1,
            Some(IpFamily::V6) => 2,
        }
}

/// What one CPU has counted for one service port, both families together. Packets are counted as the hook sees them:
/// an aggregate of many segments (GSO, GRO) is one packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceCounters {
    /// Connections opened.
    pub connections: u64,
    /// Packets to backends.
    pub packets: u64,
    /// Bytes to backends, link-layer headers included.
    pub bytes: u64,
    /// Packets from backends.
    pub reply_packets: u64,
    /// Bytes from backends, link-layer headers included.
    pub reply_bytes: u64,
}

impl ServiceCounters {
    /// What `with` makes of each of these and its counterpart.
    #[must_use]
    pub fn each(self, counterparts: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        let Self { connections, packets, bytes, reply_packets, reply_bytes } = self;
        Self {
            connections: with(connections, counterparts.connections),
            packets: with(packets, counterparts.packets),
            bytes: with(bytes, counterparts.bytes),
            reply_packets: with(reply_packets, counterparts.reply_packets),
            reply_bytes: with(reply_bytes, counterparts.reply_bytes),
        }
    }
}

/// What one CPU has counted of one service port's packets, and calls of sockets, that were dropped or refused: by reason, both
/// families together. Its fields are named as the reasons are, so another version finds those again that it knows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceDrops {
    counts: [u64; Self::REASONS.len()],
}

impl ServiceDrops {
    /// The reasons for which a packet is dropped that is some service port's, in the order of their numbers: all from here on.
    /// Before them are the drops of what is for no frontend.
    pub const REASONS: &[Reason] = Reason::ALL.split_at(Reason::NoEndpoint as usize).1;

    /// Where the count for `reason` stands, if it is one of `REASONS`.
    #[inline(always)]
    pub const fn index(reason: Reason) -> Option<usize> {
        let index = (reason as usize).wrapping_sub(Reason::NoEndpoint as usize);
        if index < Self::REASONS.len() { Some(index) } else { None }
    }

    /// `count` for `reason`; nothing where that is none of `REASONS`.
    #[must_use]
    pub fn of(reason: Reason, count: u64) -> Self {
        let mut drops = Self::default();
        if let Some(held) = Self::index(reason).and_then(|index| drops.counts.get_mut(index)) {
            *held = count;
        }
        drops
    }

    /// Each of `REASONS` with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        Self::REASONS.iter().copied().zip(self.counts)
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// What `with` makes of each of these and its counterpart.
    #[must_use]
    pub fn each(self, counterparts: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self { counts: core::array::from_fn(|index| with(self.counts[index], counterparts.counts[index])) }
    }
}

impl Record for ServiceDrops {
    const FIELDS: &'static [Field] = &{
        let size = size_of::<u64>();
        let mut fields = [Field { name: "", offset: 0, size }; Self::REASONS.len()];
        let mut index = 0;
        while index < fields.len() {
            fields[index] = Field { name: Self::REASONS[index].name(), offset: index * size, size };
            index += 1;
        }
        fields
    };
}

// SAFETY: the type is `repr(C)`, and an array of integers.
#[cfg(feature = "user")]
unsafe impl aya::Pod for ServiceDrops {}

record! {
    ServiceCounters { connections, packets, bytes, reply_packets, reply_bytes }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_reason_and_family_has_its_own_counter() {
        let indices: HashSet<_> = Reason::ALL
            .iter()
            .flat_map(|reason| {
                [None, Some(IpFamily::V4), Some(IpFamily::V6)].map(|family| counter_index(*reason, family))
            })
            .collect();
        assert_eq!(indices.len(), COUNTERS as usize);
        for (number, reason) in (0..).zip(Reason::ALL) {
            assert_eq!(Reason::from_number(number), Some(*reason));
        }
        assert_eq!(Reason::from_number(Reason::COUNT as u32), None);
        assert!(indices.iter().all(|index| *index < COUNTERS));
    }

    #[test]
    fn names_are_unique_and_explanations_say_pass_or_drop() {
        let names: HashSet<_> = Reason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(names.len(), Reason::COUNT);
        for reason in Reason::ALL {
            assert_eq!(reason.explanation().trim().starts_with("Dropped"), reason.is_drop(), "{reason:?}");
            let says_answer = reason.explanation().contains("Dropped and answered");
            assert_eq!(says_answer, reason.is_answer(), "{reason:?}");
        }
    }

    #[test]
    fn drops_are_a_service_ports_but_where_there_is_no_frontend() {
        let of_none: Vec<_> = Reason::ALL
            .iter()
            .filter(|reason| reason.is_drop() && ServiceDrops::index(**reason).is_none())
            .copied()
            .collect();
        assert_eq!(of_none, [Reason::NoPort, Reason::Unallocated]);
        for (index, reason) in ServiceDrops::REASONS.iter().enumerate() {
            assert!(reason.is_drop(), "{reason:?}");
            assert_eq!(ServiceDrops::index(*reason), Some(index));
            assert_eq!(ServiceDrops::FIELDS[index].name, reason.name());
        }
        assert_eq!(crate::record::size_of_fields(ServiceDrops::FIELDS), size_of::<ServiceDrops>());
    }

    #[test]
    fn drops_are_counted_by_reason() {
        let drops = ServiceDrops::of(Reason::SourceRange, 3)
            .each(ServiceDrops::of(Reason::NoEndpoint, 4), u64::saturating_add)
            .each(ServiceDrops::of(Reason::NoPort, 5), u64::saturating_add);
        let counted: Vec<_> = drops.iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [(Reason::NoEndpoint, 4), (Reason::SourceRange, 3)]);
        assert_eq!(drops.total(), 7);
    }
}
