//! The configuration beside the families that the host has.

use std::net::{IpAddr, Ipv6Addr};

use super::{Config, ConfigError, LocalDetection, places::Places};
use crate::model::IpFamily;

/// Looks at the configuration beside the families that the host has, and says what does not fit. A host of both
/// families can be told about one.
///
/// # Errors
///
/// When pods could not be known at all.
pub fn check_families(config: &Config, host: &[IpFamily]) -> Result<Vec<String>, ConfigError> {
    let places = Places::of(config);
    let mut warnings = Vec::new();
    let only = match host {
        [only] => Some(*only),
        _ => None,
    };
    if let (Some(family), Some(cidrs)) = (only, config.cluster_cidr) {
        let missing = match family {
            IpFamily::V4 => cidrs.v4.is_none(),
            IpFamily::V6 => cidrs.v6.is_none(),
        };
        if missing && config.local_detection == LocalDetection::ClusterCidr {
            return Err(ConfigError::OtherFamily { place: places.cluster_cidr, cidrs, family, mode: places.detection });
        }
    }
    if let (None, Some(cidrs)) = (only, config.cluster_cidr) {
        let missing = if cidrs.v4.is_none() { Some(IpFamily::V4) } else { cidrs.v6.is_none().then_some(IpFamily::V6) };
        if let Some(family) = missing {
            warnings.push(format!(
                "{} has no CIDR of {family}: pods are not known by addresses of it",
                places.cluster_cidr
            ));
        }
    }
    if let Some(family) = config.node_port_addresses.family_left_out().filter(|family| host.contains(family)) {
        let place = places.node_port_addresses;
        warnings.push(format!("{place} has no CIDR of {family}: NodePorts are served at all addresses of it"));
    }
    for (place, address) in
        [(places.healthz, config.healthz_bind_address), (places.metrics, config.metrics_bind_address)]
    {
        // "Any IPv6 address" is any address of whatever there is.
        let other = address.filter(|address| address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED));
        if let Some(address) = other.filter(|address| !host.contains(&IpFamily::of(address.ip()))) {
            warnings.push(format!("{place} {address} is of a family that this host does not have"));
        }
    }
    Ok(warnings)
}
