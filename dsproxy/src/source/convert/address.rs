//! Addresses as the Kubernetes API writes them, and which of them a proxy can use.
//!
//! It knows nothing of the objects that hold them.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;
use thiserror::Error;

use super::Skipped;
use crate::model::IpFamily;

/// What an address is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressUse {
    /// A VIP of a Service.
    Vip,
    /// An endpoint of a slice.
    Endpoint,
}

/// What is wrong with an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddressProblem {
    /// Not an IP address.
    #[error("is not an IP address")]
    NotAnAddress,
    /// An address of the other family than announced.
    #[error("is not of family {0}")]
    WrongFamily(IpFamily),
    /// 0.0.0.0 or ::.
    #[error("is the unspecified address")]
    Unspecified,
    /// 127.0.0.0/8 or ::1.
    #[error("is a loopback address")]
    Loopback,
    /// 169.254.0.0/16 or fe80::/10.
    #[error("is a link-local address")]
    LinkLocal,
    /// 224.0.0.0/4 or ff00::/8.
    #[error("is a multicast address")]
    Multicast,
    /// 255.255.255.255.
    #[error("is the broadcast address")]
    Broadcast,
}

/// Reads an address that has to be of `family`, where that is known.
pub(super) fn parse(text: &str, family: Option<IpFamily>, usage: AddressUse) -> Result<IpAddr, AddressProblem> {
    let address = parse_any(text).ok_or(AddressProblem::NotAnAddress)?;
    if let Some(family) = family
        && IpFamily::of(address) != family
    {
        return Err(AddressProblem::WrongFamily(family));
    }
    match problem(address, usage) {
        Some(problem) => Err(problem),
        None => Ok(address),
    }
}

/// Reads networks in CIDR notation; those that are none are left out. White space around them and bits beyond the
/// prefix count for nothing, as kube-proxy reads them.
pub(super) fn networks(field: &'static str, texts: &[String], skipped: &mut Vec<Skipped>) -> Vec<IpNet> {
    let mut kept = Vec::with_capacity(texts.len());
    for text in texts {
        match network(text.trim()) {
            Some(network) if !kept.contains(&network) => kept.push(network),
            Some(_) => {}
            None => skipped.push(Skipped::Cidr { field, cidr: text.clone() }),
        }
    }
    kept
}

fn network(text: &str) -> Option<IpNet> {
    let (address, prefix) = text.split_once('/')?;
    let address: IpAddr = address.parse().ok().or_else(|| with_leading_zeros(address).map(IpAddr::V4))?;
    Some(IpNet::new(address, prefix.parse().ok()?).ok()?.trunc())
}

fn problem(address: IpAddr, usage: AddressUse) -> Option<AddressProblem> {
    let (link_local, broadcast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.is_broadcast()),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), false),
    };
    if address.is_unspecified() {
        Some(AddressProblem::Unspecified)
    } else if address.is_loopback() {
        Some(AddressProblem::Loopback)
    } else if address.is_multicast() {
        Some(AddressProblem::Multicast)
    } else if broadcast {
        Some(AddressProblem::Broadcast)
    } else if link_local && usage == AddressUse::Endpoint {
        // The API server refuses link-local endpoints; a ClusterIP range may well be link-local.
        Some(AddressProblem::LinkLocal)
    } else {
        None
    }
}

/// What the API server and kube-proxy have always read as an address: leading zeros are decimal, and an
/// IPv4-mapped IPv6 address is an IPv4 address.
fn parse_any(text: &str) -> Option<IpAddr> {
    match text.parse::<IpAddr>() {
        Ok(address) => Some(address.to_canonical()),
        Err(_) => with_leading_zeros(text).map(IpAddr::V4),
    }
}

fn with_leading_zeros(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *octet = part.parse().ok()?;
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}
