//! Which sockets the `healthCheckNodePort`s of all Services ask for. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use crate::{model::ObjectName, reconcile::HealthChecks, resolve::HealthCheck};

/// What is to be open, and what cannot be.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// The sockets, and whose they are.
    pub(super) sockets: BTreeMap<SocketAddr, ObjectName>,
    /// The Services whose port another has, with that one.
    pub(super) conflicts: BTreeMap<ObjectName, ObjectName>,
}

/// The Service that is answered for at a port: the first by name, where several say the same.
pub(super) fn holder(checks: &HealthChecks, port: u16) -> Option<(&ObjectName, &HealthCheck)> {
    checks.iter().find(|(_, check)| check.port == port)
}

pub(super) fn plan(checks: &HealthChecks, addresses: &BTreeSet<IpAddr>) -> Plan {
    let mut plan = Plan::default();
    let mut holders: BTreeMap<u16, &ObjectName> = BTreeMap::new();
    for (service, HealthCheck { port, local_endpoints: _ }) in checks {
        // By name, as `holder` looks for it.
        let holder = *holders.entry(*port).or_insert(service);
        if holder == service {
            plan.sockets.extend(addresses.iter().map(|address| (SocketAddr::new(*address, *port), service.clone())));
        } else {
            plan.conflicts.insert(service.clone(), holder.clone());
        }
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_socket_for_each_address_and_port_and_the_first_by_name_has_it() {
        let name = |name| ObjectName::new("default", name);
        let check = |port| HealthCheck { port, local_endpoints: BTreeMap::new() };
        let checks: HealthChecks = [("a", 30_001), ("b", 30_002), ("c", 30_001)]
            .into_iter()
            .map(|(service, port)| (name(service), check(port)))
            .collect();
        let addresses = ["192.0.2.1", "2001:db8::1"].map(|address| address.parse().expect("an address"));
        let Plan { sockets, conflicts } = plan(&checks, &addresses.into());
        let sockets: Vec<_> = sockets.iter().map(|(socket, service)| format!("{socket} {service}")).collect();
        assert_eq!(
            sockets,
            [
                "192.0.2.1:30001 default/a",
                "192.0.2.1:30002 default/b",
                "[2001:db8::1]:30001 default/a",
                "[2001:db8::1]:30002 default/b"
            ]
        );
        assert_eq!(conflicts, BTreeMap::from([(name("c"), name("a"))]));
        assert_eq!(holder(&checks, 30_001).map(|(service, _)| service), Some(&name("a")));
        assert_eq!(holder(&checks, 30_003), None);
        assert_eq!(plan(&checks, &BTreeSet::new()).sockets, BTreeMap::new());
    }
}
