//! `--cluster-cidr`: the addresses of the cluster's pods, one CIDR or one of each family.

use std::{fmt, net::IpAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use thiserror::Error;

use crate::model::IpFamily;

/// At least one CIDR, at most one of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterCidrs {
    /// The IPv4 CIDR.
    pub v4: Option<Ipv4Net>,
    /// The IPv6 CIDR.
    pub v6: Option<Ipv6Net>,
}

/// What is wrong with the flag's value. The command line names flag and value around it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CidrError {
    /// Nothing, or nothing beside a comma.
    #[error(
        "an empty CIDR; write one, as in 10.244.0.0/16, or two of different families, as in 10.244.0.0/16,fd00:10:244::/56"
    )]
    Empty,
    /// Not an address with a prefix length.
    #[error("{0:?} is not a CIDR; write an address, a slash and a prefix length of at most 32 (IPv4) or 128 (IPv6)")]
    Malformed(String),
    /// The address has bits behind the prefix.
    #[error("{given} has host bits set; the network is {network}")]
    HostBits {
        /// As written.
        given: IpNet,
        /// Without the host bits.
        network: IpNet,
    },
    /// The same addresses twice.
    #[error("{0} and {1} overlap; write one CIDR, or one of each family")]
    Overlap(IpNet, IpNet),
    /// Two of one family.
    #[error("{0} and {1} are both {2}; write one CIDR, or one of each family")]
    SameFamily(IpNet, IpNet, IpFamily),
    /// More than two.
    #[error("{0} CIDRs; write one, or one of each family")]
    TooMany(usize),
}

impl ClusterCidrs {
    /// Reads the value of the flag.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it and what would be right.
    pub fn parse(value: &str) -> Result<Self, CidrError> {
        let cidrs = value.split(',').map(|text| parse_one(text.trim())).collect::<Result<Vec<_>, _>>()?;
        let mut parsed = Self { v4: None, v6: None };
        match cidrs.as_slice() {
            [] => return Err(CidrError::Empty),
            [only] => parsed.set(*only),
            [first, second] => {
                let family = family(*first);
                if first.contains(second) || second.contains(first) {
                    return Err(CidrError::Overlap(*first, *second));
                }
                if family == self::family(*second) {
                    return Err(CidrError::SameFamily(*first, *second, family));
                }
                parsed.set(*first);
                parsed.set(*second);
            }
            more => return Err(CidrError::TooMany(more.len())),
        }
        Ok(parsed)
    }

    fn set(&mut self, cidr: IpNet) {
        match cidr {
            IpNet::V4(cidr) => self.v4 = Some(cidr),
            IpNet::V6(cidr) => self.v6 = Some(cidr),
        }
    }

    /// The CIDRs.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> {
        self.v4.map(IpNet::V4).into_iter().chain(self.v6.map(IpNet::V6))
    }

    /// Whether `address` is a pod's; none when there is no CIDR of its family to tell by.
    pub fn contains(&self, address: IpAddr) -> Option<bool> {
        match address {
            IpAddr::V4(address) => Some(self.v4?.contains(&address)),
            IpAddr::V6(address) => Some(self.v6?.contains(&address)),
        }
    }
}

impl fmt::Display for ClusterCidrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.v4, self.v6) {
            (Some(v4), Some(v6)) => write!(f, "{v4},{v6}"),
            (Some(v4), None) => write!(f, "{v4}"),
            (None, Some(v6)) => write!(f, "{v6}"),
            (None, None) => Ok(()),
        }
    }
}

fn parse_one(text: &str) -> Result<IpNet, CidrError> {
    if text.is_empty() {
        return Err(CidrError::Empty);
    }
    let given: IpNet = text.parse().map_err(|_| CidrError::Malformed(text.to_owned()))?;
    let network = given.trunc();
    if network != given { Err(CidrError::HostBits { given, network }) } else { Ok(given) }
}

fn family(cidr: IpNet) -> IpFamily {
    IpFamily::of(cidr.addr())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(value: &str) -> String {
        ClusterCidrs::parse(value).expect_err(value).to_string()
    }

    #[test]
    fn one_cidr_or_one_of_each_family_in_either_order() {
        for (value, v4, v6) in [
            ("10.244.0.0/16", true, false),
            ("fd00:10:244::/56", false, true),
            ("10.244.0.0/16,fd00:10:244::/56", true, true),
            ("fd00:10:244::/56, 10.244.0.0/16", true, true),
        ] {
            let cidrs = ClusterCidrs::parse(value).expect(value);
            assert_eq!((cidrs.v4.is_some(), cidrs.v6.is_some()), (v4, v6), "{value}");
        }
        let both = ClusterCidrs::parse("fd00::/8,0.0.0.0/0").expect("valid");
        assert_eq!(both.to_string(), "0.0.0.0/0,fd00::/8");
        assert_eq!(both.contains("10.0.0.1".parse().expect("address")), Some(true));
        assert_eq!(both.contains("2001:db8::1".parse().expect("address")), Some(false));
        assert_eq!(ClusterCidrs::parse("10.0.0.0/8").expect("valid").contains("::1".parse().expect("address")), None);
    }

    #[test]
    fn what_is_wrong_is_said_with_the_value() {
        assert!(error("10.244.0.0/16,10.245.0.0/16").contains("10.244.0.0/16 and 10.245.0.0/16 are both IPv4"));
        assert!(error("fd00::/56,fd00:1::/56").contains("are both IPv6"));
        assert!(error("10.0.0.0/8,10.244.0.0/16").contains("overlap"));
        assert!(error("10.244.0.1/16").contains("10.244.0.1/16 has host bits set; the network is 10.244.0.0/16"));
        for malformed in ["10.244.0.0/33", "fd00::/129", "10.244.0.0", "pods", "10.0.0.0/-1", "256.0.0.0/8"] {
            assert!(error(malformed).contains(malformed), "{malformed}");
        }
        for empty in ["", ",", "10.0.0.0/8,", " "] {
            assert!(error(empty).contains("empty"), "{empty:?}");
        }
        assert!(error("10.0.0.0/8,fd00::/8,fd01::/16").contains("3 CIDRs"));
    }
}
