//! Which rows are shown. Pure.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::{Args, ValueEnum};
use dsproxy_common::{IpFamily, Protocol};
use ipnet::IpNet;

use crate::cli::TransportProtocol;

/// What every row has: a service port, of a family, and addresses.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Which are shown")]
pub struct RowFilter {
    /// Those of service ports with this in their name: NAMESPACE/NAME, or a part of it
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,

    /// Those of one family
    #[arg(long, value_name = "FAMILY")]
    pub family: Option<FamilyName>,

    /// Those with this address anywhere: ADDRESS, ADDRESS:PORT with an IPv6 address in brackets, or a CIDR
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<AddressFilter>,
}

/// As [`RowFilter`], of rows that have a protocol as well.
#[derive(Clone, Debug, Default, Args)]
pub struct FlowFilter {
    /// Those of one protocol
    #[arg(long, value_name = "PROTOCOL", help_heading = "Which are shown")]
    pub protocol: Option<TransportProtocol>,

    /// What every row has.
    #[command(flatten)]
    pub row: RowFilter,
}

/// A family, as it is written on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FamilyName {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl From<FamilyName> for IpFamily {
    fn from(family: FamilyName) -> Self {
        match family {
            FamilyName::Ipv4 => Self::V4,
            FamilyName::Ipv6 => Self::V6,
        }
    }
}

/// Which addresses are meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressFilter {
    /// Those of a network; of a single host, if it is that small.
    Network(IpNet),
    /// This one, with this port.
    Socket(SocketAddr),
}

/// An address that is none.
#[derive(Debug, thiserror::Error)]
#[error("neither ADDRESS, ADDRESS:PORT, [ADDRESS]:PORT nor a CIDR")]
pub struct NoAddress;

impl FromStr for AddressFilter {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address.into()));
        }
        let network = text.parse::<IpNet>().map(|network| Self::Network(network.trunc()));
        network.or_else(|_| text.parse().map(Self::Socket)).map_err(|_| NoAddress)
    }
}

impl AddressFilter {
    fn takes(&self, address: &SocketAddr) -> bool {
        match self {
            Self::Network(network) => network.contains(&address.ip()),
            Self::Socket(socket) => socket == address,
        }
    }
}

impl RowFilter {
    /// Whether a row is shown that has this service port's name, is of this family and tells of these addresses.
    pub fn takes(&self, name: &str, family: IpFamily, addresses: &[SocketAddr]) -> bool {
        self.family.is_none_or(|wanted| IpFamily::from(wanted) == family)
            && self.service.as_deref().is_none_or(|service| name.contains(service))
            && self.address.is_none_or(|wanted| addresses.iter().any(|address| wanted.takes(address)))
    }
}

impl FlowFilter {
    /// Whether there is nothing that it does not take.
    pub fn takes_all(&self) -> bool {
        let Self { protocol, row: RowFilter { service, family, address } } = self;
        protocol.is_none() && service.is_none() && family.is_none() && address.is_none()
    }

    /// As [`RowFilter::takes`], of a row of this protocol.
    pub fn takes(&self, protocol: Protocol, name: &str, family: IpFamily, addresses: &[SocketAddr]) -> bool {
        self.protocol.is_none_or(|wanted| Protocol::from(wanted) == protocol) && self.row.takes(name, family, addresses)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        filter: FlowFilter,
    }

    fn filter(arguments: &[&str]) -> FlowFilter {
        Command::try_parse_from(std::iter::once("list").chain(arguments.iter().copied())).expect("valid").filter
    }

    fn takes(arguments: &[&str]) -> [bool; 2] {
        let filter = filter(arguments);
        [
            ("shop/web:http", Protocol::Tcp, "10.96.0.10:80", "10.244.1.7:8080"),
            ("dns/dns:dns", Protocol::Udp, "[fd00::a]:53", "[fd00:10::7]:53"),
        ]
        .map(|(name, protocol, frontend, backend)| {
            let addresses: [SocketAddr; 2] = [frontend, backend].map(|address| address.parse().expect("an address"));
            filter.takes(protocol, name, IpFamily::of(addresses[0].ip()), &addresses)
        })
    }

    #[test]
    fn a_row_is_shown_that_is_all_that_was_asked_for() {
        for (arguments, expected) in [
            (&[][..], [true, true]),
            (&["--service", "shop/web"], [true, false]),
            (&["--service", "dns"], [false, true]),
            (&["--family", "ipv6"], [false, true]),
            (&["--protocol", "tcp"], [true, false]),
            (&["--protocol", "sctp"], [false, false]),
            (&["--address", "10.244.1.7"], [true, false]),
            (&["--address", "10.244.0.0/16"], [true, false]),
            (&["--address", "10.244.1.9/16"], [true, false]),
            (&["--address", "fd00:10::/32"], [false, true]),
            (&["--address", "10.96.0.10:80"], [true, false]),
            (&["--address", "10.96.0.10:443"], [false, false]),
            (&["--address", "[fd00::a]:53"], [false, true]),
            (&["--family", "ipv4", "--protocol", "udp"], [false, false]),
        ] {
            assert_eq!(takes(arguments), expected, "{arguments:?}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["web", "10.96.0", "10.96.0.10:x", "fd00::a:53:"] {
            text.parse::<AddressFilter>().expect_err(text);
        }
    }
}
