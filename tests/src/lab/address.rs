//! The lab's address plan, the same in every lab: namespaces keep them apart.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use dsproxy_common::IpFamily;

/// An address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DualStack {
    /// The IPv4 address.
    pub v4: Ipv4Addr,
    /// The IPv6 address.
    pub v6: Ipv6Addr,
}

impl DualStack {
    /// The address of `family`.
    pub fn of(&self, family: IpFamily) -> IpAddr {
        match family {
            IpFamily::V4 => self.v4.into(),
            IpFamily::V6 => self.v6.into(),
        }
    }

    /// The address of `family` with `port`.
    pub fn socket(&self, family: IpFamily, port: u16) -> SocketAddr {
        SocketAddr::new(self.of(family), port)
    }

    /// The ClusterIPs with the host part `host`, in 10.96.0.0/16 and fd00:10:96::/112.
    pub const fn cluster_ip(host: u16) -> Self {
        let [high, low] = host.to_be_bytes();
        Self { v4: Ipv4Addr::new(10, 96, high, low), v6: Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, host) }
    }

    /// The pod address with the host part `host` in `subnet`: 10.244.`subnet`.0/24 and
    /// fd00:10:244:`subnet`::/64, written alike (subnet 11 is fd00:10:244:11::).
    pub(crate) fn pod(subnet: u8, host: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(10, 244, subnet, host),
            v6: Ipv6Addr::new(0xfd00, 0x10, 0x244, read_as_hexadecimal(subnet), 0, 0, 0, read_as_hexadecimal(host)),
        }
    }

    /// An address that a load balancer or somebody else has given out, in 198.51.100.0/24 and 2001:db8:51::/64.
    pub const fn external(host: u16) -> Self {
        Self { v4: Ipv4Addr::new(198, 51, 100, host as u8), v6: Ipv6Addr::new(0x2001, 0xdb8, 0x51, 0, 0, 0, 0, host) }
    }

    /// The address with the host part `host` on the network outside: 192.0.2.0/24 and 2001:db8::/64.
    pub const fn outside(host: u16) -> Self {
        Self { v4: Ipv4Addr::new(192, 0, 2, host as u8), v6: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host) }
    }

    /// The node address with the host part `host` on the wire.
    pub(crate) fn node(host: u8) -> Self {
        Self {
            v4: Ipv4Addr::new(172, 30, 0, host),
            v6: Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, read_as_hexadecimal(host)),
        }
    }
}

impl fmt::Display for DualStack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.v4, self.v6)
    }
}

/// The number whose hexadecimal digits are the decimal digits of `number`, so that both families read alike.
fn read_as_hexadecimal(number: u8) -> u16 {
    let number = u16::from(number);
    ((number / 100) << 8) | ((number / 10 % 10) << 4) | (number % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_read_alike() {
        assert_eq!(DualStack::pod(11, 123).to_string(), "10.244.11.123, fd00:10:244:11::123");
        assert_eq!(DualStack::node(2).to_string(), "172.30.0.2, fd00:172:30::2");
        assert_eq!(DualStack::cluster_ip(0x10).to_string(), "10.96.0.16, fd00:10:96::10");
    }
}
