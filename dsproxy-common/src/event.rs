//! What the programs tell of packets to whoever listens, and of which. Nobody listens most of the time.

use core::net::Ipv6Addr;

use crate::{Addr6, Address, IpFamily, Port, count::Reason, flow::NO_SERVICE, record::record};

/// How many bytes of events wait for whoever listens; a power of two.
pub const WAITING_BYTES: u32 = 1 << 20;

/// For how many seconds a filter counts, unless it is renewed: who listens may end without a word.
pub const LEASE: u32 = 5;

/// How many service ports a filter may name.
pub const FILTER_SERVICES: usize = 8;

/// Every reason has its bit in [`EventFilter::reasons`].
const _: () = assert!(Reason::COUNT <= u64::BITS as usize);

/// Addresses and ports of a packet. An IPv4 address stands as an IPv6 address mapped to it (RFC 4291, section 2.5.5.2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ends {
    /// The source address.
    pub source: Addr6,
    /// The destination address.
    pub destination: Addr6,
    /// The source port; of ICMP echo the identifier.
    pub source_port: Port,
    /// The destination port, likewise.
    pub destination_port: Port,
}

/// A packet, or a socket's call, and what became of it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// When, in nanoseconds since the machine was started, sleep included (`CLOCK_BOOTTIME`).
    pub time: u64,
    /// As it came.
    pub before: Ends,
    /// As it went on; the same, if it was dropped.
    pub after: Ends,
    /// The number of a [`Reason`].
    pub reason: u32,
    /// An [`EventHook`].
    pub hook: u32,
    /// The index of the device; zero for a socket's call.
    pub device: u32,
    /// How many bytes the packet has as it goes on, or the answer in its place, link-layer header included; zero for a socket's call.
    pub length: u32,
    /// The id of the service port; [`NO_SERVICE`] if it is for none.
    pub service: u32,
    /// The IANA protocol number.
    pub protocol: u32,
}

impl Event {
    /// One of which nothing is known but what became of it, and where.
    #[inline(always)]
    pub fn new(reason: Reason, hook: EventHook) -> Self {
        Self { reason: reason as u32, hook: hook.number(), service: NO_SERVICE, ..Self::default() }
    }

    /// The one whose fields stand in `bytes` one after the other. None if these are too few or too many.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        let event = Self {
            time: u64::from_ne_bytes(rest.take()?),
            before: rest.ends()?,
            after: rest.ends()?,
            reason: rest.number()?,
            hook: rest.number()?,
            device: rest.number()?,
            length: rest.number()?,
            service: rest.number()?,
            protocol: rest.number()?,
        };
        rest.0.is_empty().then_some(event)
    }
}

/// The bytes that have not been read yet.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn number(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn address(&mut self) -> Option<Addr6> {
        self.take::<16>().map(|bytes| Ipv6Addr::from(bytes).into())
    }

    fn port(&mut self) -> Option<Port> {
        self.take().map(u16::from_ne_bytes).map(Port::from_wire)
    }

    fn ends(&mut self) -> Option<Ends> {
        Some(Ends {
            source: self.address()?,
            destination: self.address()?,
            source_port: self.port()?,
            destination_port: self.port()?,
        })
    }
}

/// Which program tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum EventHook {
    /// At a pod's device, of what it sends.
    PodIngress = 0,
    /// At a pod's device, of what it gets.
    PodEgress = 1,
    /// At a node's device, of what comes.
    NodeIngress = 2,
    /// At a node's device, of what leaves.
    NodeEgress = 3,
    /// At a node's device, in front of the stack.
    Xdp = 4,
    /// Where a socket says whom it wants.
    Socket = 5,
}

impl EventHook {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::PodIngress, Self::PodEgress, Self::NodeIngress, Self::NodeEgress, Self::Xdp, Self::Socket];

    /// The number in a record.
    #[inline(always)]
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// The one with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).copied()
    }

    /// The name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PodIngress => "pod-ingress",
            Self::PodEgress => "pod-egress",
            Self::NodeIngress => "node-ingress",
            Self::NodeEgress => "node-egress",
            Self::Xdp => "xdp",
            Self::Socket => "socket",
        }
    }
}

/// What whoever listens wants to hear. All zero: nothing.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Of what becomes of packets: a bit for the number of each [`Reason`].
    pub reasons: u64,
    /// Of packets with an address, before or after, that is this in all bits of `mask`.
    pub address: Addr6,
    /// Which bits of an address count; none: all addresses are heard of.
    pub mask: Addr6,
    /// Of these service ports, by id: as many as `service_count`, and of all if that is zero.
    pub services: [u32; FILTER_SERVICES],
    /// How many of them there are.
    pub service_count: u32,
    /// Until when this counts: the low half of the jiffies, and never zero. Zero: nobody listens.
    pub until: u32,
    /// Of packets whose address that counts has this port, network byte order; zero: any.
    pub port: u32,
    /// Of packets of this IANA protocol number; zero: any.
    pub protocol: u32,
    /// Of one family, by its number; zero: of both.
    pub family: u32,
    /// Zero.
    pub reserved: u32,
}

impl EventFilter {
    /// Whether anybody asks for packets that end so. The time is not looked at.
    #[inline(always)]
    pub const fn wants(&self, reason: Reason) -> bool {
        self.until != 0 && self.reasons >> reason as u32 & 1 != 0
    }

    /// Whether this still counts at `now`, in jiffies.
    #[inline(always)]
    pub const fn holds(&self, now: u32) -> bool {
        self.until.wrapping_sub(now) <= u32::MAX / 2
    }

    /// Whether an event is wanted whose reason is. `family` is that of its packet, if it is IP.
    #[inline(always)]
    pub fn takes(&self, event: &Event, family: Option<IpFamily>) -> bool {
        let family = match family {
            None => 0,
            Some(family) => family as u32,
        };
        (self.family == 0 || self.family == family)
            && (self.protocol == 0 || self.protocol == event.protocol)
            && self.takes_service(event.service)
            && (self.takes_ends(&event.before) || self.takes_ends(&event.after))
    }

    #[inline(always)]
    fn takes_service(&self, service: u32) -> bool {
        let mut is_named = self.service_count == 0;
        let mut index = 0;
        while index < FILTER_SERVICES {
            is_named |= (index as u32) < self.service_count && self.services[index] == service;
            index += 1;
        }
        is_named
    }

    #[inline(always)]
    fn takes_ends(&self, ends: &Ends) -> bool {
        self.takes_end(&ends.source, ends.source_port) || self.takes_end(&ends.destination, ends.destination_port)
    }

    #[inline(always)]
    fn takes_end(&self, address: &Addr6, port: Port) -> bool {
        let (address, wanted, mask) = (address.words(), self.address.words(), self.mask.words());
        let mut difference = 0;
        let mut index = 0;
        while index < address.len() && index < wanted.len() && index < mask.len() {
            difference |= (address[index] ^ wanted[index]) & mask[index];
            index += 1;
        }
        difference == 0 && (self.port == 0 || self.port == u32::from(port.wire()))
    }
}

record! {
    Ends { source, destination, source_port, destination_port }
    Event { time, before, after, reason, hook, device, length, service, protocol }
    EventFilter { reasons, address, mask, services, service_count, until, port, protocol, family, reserved }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::record::Record as _;

    fn address(text: &str) -> Addr6 {
        let address: IpAddr = text.parse().expect("an address");
        match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().into(),
            IpAddr::V6(address) => address.into(),
        }
    }

    fn event() -> Event {
        let before = Ends {
            source: address("10.1.0.5"),
            destination: address("10.96.0.1"),
            source_port: Port::new(40_000),
            destination_port: Port::new(80),
        };
        let after = Ends { destination: address("10.1.0.7"), destination_port: Port::new(8080), ..before };
        Event { before, after, service: 7, protocol: 6, ..Event::new(Reason::Opened, EventHook::PodIngress) }
    }

    fn takes(filter: EventFilter) -> bool {
        filter.takes(&event(), Some(IpFamily::V4))
    }

    #[test]
    fn nobody_is_told_unless_somebody_asks() {
        assert!(!EventFilter::default().wants(Reason::Opened));
        let asked = EventFilter { reasons: 1 << Reason::Opened as u32, until: 100, ..EventFilter::default() };
        assert!(asked.wants(Reason::Opened) && !asked.wants(Reason::Forwarded));
        assert!(asked.holds(99) && asked.holds(100) && !asked.holds(101));
        let round = EventFilter { until: 5, ..asked };
        assert!(round.holds(u32::MAX - 5) && !round.holds(6), "jiffies wrap around");
    }

    #[test]
    fn what_is_wanted_is_told_by_either_side_of_the_translation() {
        assert!(takes(EventFilter::default()));
        let all = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let at = |text: &str, mask: &str, port: u16| EventFilter {
            address: address(text),
            mask: address(mask),
            port: Port::new(port).wire().into(),
            ..EventFilter::default()
        };
        for (host, port, is_taken) in [
            ("10.96.0.1", 0, true),
            ("10.1.0.7", 8080, true),
            ("10.1.0.7", 80, false),
            ("10.1.0.6", 0, false),
            ("10.1.0.5", 40_000, true),
        ] {
            assert_eq!(takes(at(host, all, port)), is_taken, "{host} {port}");
        }
        let bits = Ipv6Addr::from(u128::MAX << 16).to_string();
        assert!(takes(at("10.96.0.0", &bits, 0)) && !takes(at("10.97.0.0", &bits, 0)), "a network");
    }

    #[test]
    fn of_one_protocol_family_or_service_port() {
        assert!(takes(EventFilter { protocol: 6, family: 4, ..EventFilter::default() }));
        assert!(!takes(EventFilter { protocol: 17, ..EventFilter::default() }));
        assert!(!takes(EventFilter { family: 6, ..EventFilter::default() }));
        let of = |services: [u32; FILTER_SERVICES], service_count| EventFilter {
            services,
            service_count,
            ..EventFilter::default()
        };
        assert!(takes(of([1, 7, 0, 0, 0, 0, 0, 0], 2)));
        assert!(!takes(of([1, 7, 0, 0, 0, 0, 0, 0], 1)), "what stands behind the count is nobody's");
        assert!(takes(of([0, 1, 2, 3, 4, 5, 6, 7], 8)));
    }

    #[test]
    fn an_event_is_read_from_its_bytes() {
        let bytes: Vec<u8> = (1..=size_of::<Event>() as u8).collect();
        let read = Event::from_bytes(&bytes).expect("as many as there are");
        let number = |field: &str| {
            let field = Event::FIELDS.iter().find(|found| found.name == field).expect("a field");
            u32::from_ne_bytes(bytes[field.offset..field.offset + 4].try_into().expect("four"))
        };
        for (field, value) in [
            ("reason", read.reason),
            ("hook", read.hook),
            ("device", read.device),
            ("length", read.length),
            ("service", read.service),
            ("protocol", read.protocol),
            ("before", read.before.source.words()[0]),
            ("after", read.after.source.words()[0]),
        ] {
            assert_eq!(value, number(field), "{field}");
        }
        assert_eq!(read.time, u64::from_ne_bytes([1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!(read.before.destination_port.wire(), u16::from_ne_bytes([43, 44]));
        assert_eq!(Event::from_bytes(&bytes[1..]), None);
        assert_eq!(Event::from_bytes(&[0; 105]), None);
    }

    #[test]
    fn every_hook_has_its_number() {
        for hook in EventHook::ALL {
            assert_eq!(EventHook::from_number(hook.number()), Some(hook));
        }
        assert_eq!(EventHook::from_number(6), None);
    }
}
