//! Who has a frontend that several service ports want, whatever the order in which they came. So all nodes agree, before and after a
//! restart.
//!
//! Knows nothing of maps: `reconcile` tells what each Service wants, and asks what it is to have.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::SystemTime,
};

use dsproxy_common::service::FrontendKind;

use crate::{
    few::Few,
    maps::FrontendAddress,
    model::ObjectName,
    resolve::{ResolvedPort, ServicePortName},
};

/// A service port that wants a frontend. The least has it: who wants it for an address of its own before who wants it for a NodePort, as
/// kube-proxy looks for them; then the one of the oldest Service, and of equally old ones the first by name. Services that do not say when
/// they were made, as those of manifests, are older than all that do.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    is_node_port: bool,
    created: Option<SystemTime>,
    port: ServicePortName,
}

/// A frontend that a service port wants and that is another's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The frontend.
    pub address: FrontendAddress,
    /// Which service port has it.
    pub holder: ServicePortName,
}

/// What every Service wants.
#[derive(Debug, Default)]
pub struct Claims {
    /// Never empty.
    by_address: HashMap<FrontendAddress, Few<Arc<Claim>>>,
    by_service: HashMap<ObjectName, Few<(FrontendAddress, Arc<Claim>)>>,
}

impl Claims {
    /// Enters that `service` wants just what `ports` are reached at. Gives the other Services that have more or less by it.
    pub fn set(
        &mut self,
        service: &ObjectName,
        created: Option<SystemTime>,
        ports: &[ResolvedPort],
    ) -> BTreeSet<ObjectName> {
        let wanted: Few<(FrontendAddress, Arc<Claim>)> = ports
            .iter()
            .flat_map(|port| {
                let claim = |is_node_port| Arc::new(Claim { is_node_port, created, port: port.name.clone() });
                let [for_address, for_node_port] = [false, true].map(claim);
                let frontends = port.families.iter().flat_map(|family| &family.frontends);
                frontends.map(move |frontend| {
                    let is_node_port = frontend.kind == FrontendKind::NodePort;
                    (frontend.address, Arc::clone(if is_node_port { &for_node_port } else { &for_address }))
                })
            })
            .collect();
        let held = self.by_service.remove(service).unwrap_or_default();
        let mut concerned = BTreeSet::new();
        // What is new comes first, so that a frontend is nobody else's for a moment only because its port has another name.
        for (address, claim) in wanted.iter().filter(|claimed| !held.contains(*claimed)) {
            concerned.extend(self.holder(address).map(|holder| holder.service.clone()));
            self.by_address.entry(*address).or_default().insert(Arc::clone(claim));
        }
        for (address, claim) in held.iter().filter(|claimed| !wanted.contains(*claimed)) {
            if let Some(claims) = self.by_address.get_mut(address) {
                let had_it = claims.first() == Some(claim);
                claims.remove(claim);
                match claims.first() {
                    None => drop(self.by_address.remove(address)),
                    Some(next) if had_it => drop(concerned.insert(next.port.service.clone())),
                    Some(_) => {}
                }
            }
        }
        if !wanted.is_empty() {
            self.by_service.insert(service.clone(), wanted);
        }
        concerned.remove(service);
        concerned
    }

    /// The service port that has the frontend at `address`.
    pub fn holder(&self, address: &FrontendAddress) -> Option<&ServicePortName> {
        Some(&self.by_address.get(address)?.first()?.port)
    }

    /// `ports` with those frontends alone that they have, and what is others'.
    pub fn settle(&self, mut ports: Vec<ResolvedPort>) -> (Vec<ResolvedPort>, Vec<Conflict>) {
        let mut conflicts: BTreeMap<FrontendAddress, Conflict> = BTreeMap::new();
        for ResolvedPort { name, families, .. } in &mut ports {
            for family in families {
                family.frontends.retain(|frontend| match self.holder(&frontend.address) {
                    Some(holder) if holder != name => {
                        let conflict = Conflict { address: frontend.address, holder: holder.clone() };
                        conflicts.insert(frontend.address, conflict);
                        false
                    }
                    Some(_) | None => true,
                });
            }
        }
        (ports, conflicts.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use std::{net::IpAddr, time::Duration};

    use dsproxy_common::Protocol;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        model::IpFamily,
        resolve::{Distribution, ResolvedFamily, ResolvedFrontend},
    };

    fn name(number: u8) -> ObjectName {
        ObjectName::new("default", &format!("s{number}"))
    }

    fn address(number: u8) -> FrontendAddress {
        let address: IpAddr = if number.is_multiple_of(2) {
            [192, 0, 2, number].into()
        } else {
            [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)].into()
        };
        FrontendAddress { address, port: 80, protocol: Protocol::Tcp }
    }

    /// The port `port` of a Service, which wants these addresses.
    fn port(service: u8, port: u8, addresses: &BTreeSet<u8>) -> ResolvedPort {
        let families = IpFamily::ALL.map(|family| {
            let addresses = addresses.iter().map(|number| address(*number));
            ResolvedFamily {
                family,
                frontends: addresses
                    .filter(|address| address.family() == family)
                    .map(ResolvedFrontend::cluster_ip)
                    .collect(),
                endpoints: Vec::new(),
                distribution: Distribution::List,
                source_ranges: Vec::new(),
            }
        });
        let name = ServicePortName {
            service: name(service),
            port: format!("p{port}").as_str().into(),
            protocol: Protocol::Tcp,
        };
        ResolvedPort { name, affinity: None, families: families.to_vec() }
    }

    /// What a Service wants, port by port, and when it was made.
    type Wanted = (u64, Vec<BTreeSet<u8>>);

    fn created(seconds: u64) -> Option<SystemTime> {
        // Zero stands for one that does not say.
        (seconds > 0).then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    }

    fn ports(service: u8, wanted: &[BTreeSet<u8>]) -> Vec<ResolvedPort> {
        (0..).zip(wanted).map(|(number, addresses)| port(service, number, addresses)).collect()
    }

    /// Everybody's frontends, found by looking at all of them.
    fn expected(all: &BTreeMap<u8, Wanted>) -> BTreeMap<FrontendAddress, ServicePortName> {
        let mut claims: Vec<(Option<SystemTime>, ServicePortName, FrontendAddress)> = Vec::new();
        for (service, (seconds, wanted)) in all {
            for port in ports(*service, wanted) {
                claims.extend(port.frontends().map(|address| (created(*seconds), port.name.clone(), address)));
            }
        }
        claims.sort();
        // The first stays.
        claims.into_iter().rev().map(|(_, port, address)| (address, port)).collect()
    }

    proptest! {
        #[test]
        fn the_oldest_has_it_whatever_the_order(
            history in proptest::collection::vec(
                (0u8..4, proptest::option::weighted(0.8, (0u64..3, proptest::collection::vec(proptest::collection::btree_set(0u8..5, 0..4), 0..3)))),
                1..20,
            ),
        ) {
            let mut claims = Claims::default();
            let mut all: BTreeMap<u8, Wanted> = BTreeMap::new();
            for (service, wanted) in history {
                let before = expected(&all);
                let (seconds, of_ports) = wanted.clone().unwrap_or_default();
                match wanted {
                    Some(wanted) => drop(all.insert(service, wanted)),
                    None => drop(all.remove(&service)),
                }
                let concerned = claims.set(&name(service), created(seconds), &ports(service, &of_ports));
                let after = expected(&all);
                for number in 0..5 {
                    let address = address(number);
                    prop_assert_eq!(claims.holder(&address), after.get(&address));
                    let changed = [before.get(&address), after.get(&address)];
                    if changed[0] != changed[1] {
                        for holder in changed.into_iter().flatten().filter(|holder| holder.service != name(service)) {
                            prop_assert!(concerned.contains(&holder.service), "{} passes by {}", address, holder);
                        }
                    }
                }
                // What everybody has, together, is everything, each once.
                let mut settled = BTreeMap::new();
                for (service, (_, wanted)) in &all {
                    let (ports, conflicts) = claims.settle(ports(*service, wanted));
                    for port in ports {
                        for address in port.frontends() {
                            prop_assert_eq!(settled.insert(address, port.name.clone()), None);
                        }
                    }
                    for Conflict { address, holder } in conflicts {
                        prop_assert_eq!(after.get(&address), Some(&holder));
                    }
                }
                prop_assert_eq!(settled, after);
            }
            for service in 0..4 {
                claims.set(&name(service), None, &[]);
            }
            prop_assert!(claims.by_address.is_empty() && claims.by_service.is_empty());
        }
    }

    #[test]
    fn an_address_of_a_service_goes_before_a_node_port() {
        let wanted = [BTreeSet::from([1, 2])];
        let mut of_node_port = ports(1, &wanted);
        for family in &mut of_node_port[0].families {
            family.frontends.iter_mut().for_each(|frontend| frontend.kind = FrontendKind::NodePort);
        }
        let mut claims = Claims::default();
        claims.set(&name(1), created(1), &of_node_port);
        assert_eq!(claims.set(&name(2), created(2), &ports(2, &wanted)), BTreeSet::from([name(1)]), "for all its age");
        for number in [1, 2] {
            assert_eq!(claims.holder(&address(number)).map(|holder| &holder.service), Some(&name(2)));
        }
        assert_eq!(
            claims.set(&name(1), created(1), &ports(1, &wanted)),
            BTreeSet::from([name(2)]),
            "as an address, the older"
        );
    }

    #[test]
    fn the_older_takes_it_over_and_gives_it_back() {
        let mut claims = Claims::default();
        let wanted = [BTreeSet::from([1, 2])];
        assert!(claims.set(&name(1), created(2), &ports(1, &wanted)).is_empty());
        assert_eq!(
            claims.set(&name(2), created(1), &ports(2, &wanted)),
            BTreeSet::from([name(1)]),
            "the holder loses it"
        );
        let (left, conflicts) = claims.settle(ports(1, &wanted));
        assert_eq!(left[0].frontends().count(), 0);
        let holders: BTreeSet<_> = conflicts.iter().map(|conflict| conflict.holder.to_string()).collect();
        assert_eq!(holders, BTreeSet::from(["default/s2:p0/TCP".to_owned()]));
        assert_eq!(claims.set(&name(3), created(3), &ports(3, &wanted)), BTreeSet::from([name(2)]), "and looks again");
        assert_eq!(claims.set(&name(2), None, &[]), BTreeSet::from([name(1)]));
        assert_eq!(claims.settle(ports(1, &wanted)).1, []);
    }
}
