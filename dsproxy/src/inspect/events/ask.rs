//! What the programs are asked for. Pure.

use std::{collections::BTreeMap, net::IpAddr};

use dsproxy_common::{
    Addr4, Addr6, Address as _, IpFamily, Port, Protocol,
    count::Reason,
    event::{EventFilter, FILTER_SERVICES},
};
use ipnet::IpNet;

use super::EventsArguments;
use crate::inspect::filter::{AddressFilter, FlowFilter};

/// The reason with this name.
pub(super) fn reason(name: &str) -> Result<Reason, String> {
    let known = || Reason::ALL.iter().map(|reason| reason.name()).collect::<Vec<_>>().join(", ");
    let found = Reason::ALL.iter().find(|reason| reason.name() == name);
    found.copied().ok_or_else(|| format!("not one of {}", known()))
}

/// What nobody's id is: as long as no service port has the name, no packet is asked for.
const NOBODY: u32 = u32::MAX - 1;

/// The service ports with `part` in their name, if it is asked for one: as many as the programs can be asked for, or none, which means
/// all, if they are more.
pub(super) fn services(names: &BTreeMap<u32, String>, part: Option<&str>) -> Vec<u32> {
    let Some(part) = part else { return Vec::new() };
    let named: Vec<u32> = names.iter().filter(|(_, name)| name.contains(part)).map(|(id, _)| *id).collect();
    match named.len() {
        0 => vec![NOBODY],
        1..=FILTER_SERVICES => named,
        _ => Vec::new(),
    }
}

/// What to ask the programs for.
pub(super) fn filter(arguments: &EventsArguments, services: &[u32], until: u32) -> EventFilter {
    let EventsArguments { drops, reason, filter: FlowFilter { protocol, row }, .. } = arguments;
    let (network, port) = match row.address {
        None => (None, 0),
        Some(AddressFilter::Network(network)) => (Some(network), 0),
        Some(AddressFilter::Socket(socket)) => (Some(socket.ip().into()), Port::new(socket.port()).wire().into()),
    };
    let (address, mask) = network.map(|network| (mapped(network.network()), mapped_mask(network))).unwrap_or_default();
    // A wide network of IPv6 would take the mapped addresses of IPv4 for its own.
    let family = network.map(|network| IpFamily::of(network.addr()));
    let mut asked = [0; FILTER_SERVICES];
    for (place, service) in asked.iter_mut().zip(services) {
        *place = *service;
    }
    EventFilter {
        reasons: reasons(*drops, reason),
        address,
        mask,
        services: asked,
        service_count: services.len().min(FILTER_SERVICES) as u32,
        until,
        port,
        protocol: protocol.map_or(0, |protocol| Protocol::from(protocol).number().into()),
        family: row.family.map(IpFamily::from).or(family).map_or(0, |family| family as u32),
        reserved: 0,
    }
}

/// The bits of those that are asked for: what is dropped or translated, unless it is said.
fn reasons(drops: bool, named: &[Reason]) -> u64 {
    let is_asked_for = |reason: &&Reason| match (drops, named) {
        (true, _) => reason.is_drop(),
        (false, []) => reason.is_drop() || reason.is_translation(),
        (false, named) => named.contains(reason),
    };
    Reason::ALL.iter().filter(is_asked_for).map(|reason| 1 << *reason as u32).sum()
}

fn mapped(address: IpAddr) -> Addr6 {
    match address {
        IpAddr::V4(address) => Addr4::from(address).mapped(),
        IpAddr::V6(address) => address.into(),
    }
}

/// The bits of an address that a network has in common.
fn mapped_mask(network: IpNet) -> Addr6 {
    let width = network.max_prefix_len();
    let free = u32::from(width - network.prefix_len());
    Addr6::from(std::net::Ipv6Addr::from(u128::MAX.checked_shl(free).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use dsproxy_common::event::{Ends, Event, EventHook};

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        arguments: EventsArguments,
    }

    fn asked(flags: &[&str]) -> EventFilter {
        let flags = ["events"].iter().chain(flags);
        filter(&Command::try_parse_from(flags).expect("valid").arguments, &[], 1)
    }

    fn takes(flags: &[&str], source: &str, port: u16) -> bool {
        let address: IpAddr = source.parse().expect("an address");
        let before = Ends { source: mapped(address), source_port: Port::new(port), ..Ends::default() };
        let event = Event { before, protocol: 6, ..Event::new(Reason::Opened, EventHook::PodIngress) };
        asked(flags).takes(&event, Some(IpFamily::of(address)))
    }

    #[test]
    fn what_is_asked_for_is_dropped_or_translated_unless_it_is_said() {
        for (flags, yes, no) in [
            (&[][..], &[Reason::Opened, Reason::NoEndpoint][..], &[Reason::NotService, Reason::NotIp][..]),
            (&["--drops"], &[Reason::NoEndpoint], &[Reason::Opened]),
            (&["--reason=not-reply", "--reason", "opened"], &[Reason::NotReply, Reason::Opened], &[Reason::NoEndpoint]),
        ] {
            let filter = asked(flags);
            assert!(yes.iter().all(|reason| filter.wants(*reason)), "{flags:?}");
            assert!(no.iter().all(|reason| !filter.wants(*reason)), "{flags:?}");
        }
        let error = Command::try_parse_from(["events", "--reason", "bad-luck"]).err().expect("no reason").to_string();
        assert!(error.contains("bad-luck") && error.contains("no-endpoint"), "{error}");
    }

    #[test]
    fn addresses_and_networks_of_both_families_are_asked_for() {
        for (flag, source, port, is_taken) in [
            ("10.1.2.3", "10.1.2.3", 1, true),
            ("10.1.2.3", "10.1.2.4", 1, false),
            ("10.1.0.0/16", "10.1.2.4", 1, true),
            ("10.1.0.0/16", "10.2.2.4", 1, false),
            ("0.0.0.0/0", "10.2.2.4", 1, true),
            ("10.1.2.3:80", "10.1.2.3", 80, true),
            ("10.1.2.3:80", "10.1.2.3", 81, false),
            ("fd00::/16", "fd00::1", 1, true),
            ("fd00::/16", "fd01::1", 1, false),
            ("[fd00::1]:80", "fd00::1", 80, true),
            ("::/0", "fd00::1", 80, true),
            ("::/0", "10.1.2.3", 80, false),
            ("::/64", "10.1.2.3", 80, false),
        ] {
            assert_eq!(takes(&["--address", flag], source, port), is_taken, "{flag} {source}:{port}");
        }
        assert!(takes(&["--family", "ipv4", "--protocol", "tcp"], "10.1.2.3", 1));
        assert!(!takes(&["--family", "ipv6"], "10.1.2.3", 1) && !takes(&["--protocol", "udp"], "10.1.2.3", 1));
    }

    #[test]
    fn service_ports_are_asked_for_by_number_as_long_as_there_is_room() {
        let names = |count: u32| (0..count).map(|id| (id, format!("shop/web-{id}:http"))).collect();
        assert_eq!(services(&names(3), Some("web-1")), [1]);
        assert!(services(&names(3), None).is_empty());
        assert_eq!(services(&names(3), Some("nobody")), [NOBODY], "no packet, and not all");
        assert_eq!(services(&names(FILTER_SERVICES as u32), Some("shop/")).len(), FILTER_SERVICES);
        assert!(services(&names(FILTER_SERVICES as u32 + 1), Some("shop/")).is_empty(), "all, and told apart later");
    }
}
