//! What is known of networks: which hold pods, which are not masqueraded, and where ClusterIPs are.
//!
//! The programs look an address up in a trie, which finds the smallest network only; so each entry tells of all networks
//! that hold it. And they look only for what is in the one network that holds every ClusterIP, which is widened before an
//! entry counts and made smaller after one has gone.
//!
//! Work follows the change: a ClusterIP that comes or goes is one write, however many there are.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use dsproxy_common::{IpFamily, settings::NetworkFlags};
use ipnet::IpNet;

use crate::{
    maps::{Contents, Write},
    model::ObjectName,
};

/// Flags of what counts among the networks of Services.
const OF_SERVICES: u32 = NetworkFlags::SERVICE | NetworkFlags::CLUSTER_IP;

/// What the configuration says of networks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfiguredNetworks {
    /// Ranges with their [`NetworkFlags`].
    pub ranges: Vec<(IpNet, u32)>,
    /// Whether this node's pods are those in the `podCIDRs` of its Node object.
    pub node_says_pods: bool,
}

impl ConfiguredNetworks {
    /// All ranges, with those that ClusterIPs are given out from and the `podCIDRs` of the Node object.
    pub fn ranges<'a>(
        &'a self,
        service_cidrs: impl IntoIterator<Item = IpNet> + 'a,
        pod_cidrs: &'a [IpNet],
    ) -> impl Iterator<Item = (IpNet, u32)> + 'a {
        let of_services = NetworkFlags::SERVICE | NetworkFlags::NOT_MASQUERADED;
        let of_pods = NetworkFlags::POD | NetworkFlags::NOT_MASQUERADED;
        let pods = pod_cidrs.iter().filter(|_| self.node_says_pods).map(move |cidr| (*cidr, of_pods));
        let services = service_cidrs.into_iter().map(move |cidr| (cidr, of_services));
        self.ranges.iter().copied().chain(pods).chain(services)
    }
}

/// Who serves a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// This one: ports that the Service does not have are refused.
    This,
    /// Another: whatever is for the Service is left alone.
    Another,
}

/// How many Services have a ClusterIP.
#[derive(Debug, Default)]
struct Owners {
    of_this: u32,
    of_another: u32,
}

impl Owners {
    fn count(&mut self, proxy: Proxy) -> &mut u32 {
        match proxy {
            Proxy::This => &mut self.of_this,
            Proxy::Another => &mut self.of_another,
        }
    }
}

/// What should stand in the maps, and what does.
#[derive(Debug, Default)]
pub struct Networks {
    /// What is said of ranges: few.
    ranges: BTreeMap<IpNet, u32>,
    /// Whose each ClusterIP is.
    cluster_ips: BTreeMap<IpAddr, Owners>,
    of_services: HashMap<ObjectName, (Vec<IpAddr>, Proxy)>,
    /// What stands in the maps.
    held: HashMap<IpNet, u32>,
    entries: BTreeMap<IpFamily, u32>,
    held_service_networks: BTreeMap<IpFamily, IpNet>,
    /// What may stand in the maps otherwise than it should.
    stale: BTreeSet<IpNet>,
}

impl Networks {
    /// What maps with these contents hold, of which nothing is wanted yet.
    pub fn new(contents: &Contents) -> Self {
        let held: HashMap<IpNet, u32> = contents.networks.iter().copied().collect();
        let service_networks = contents.service_networks.iter();
        let mut entries: BTreeMap<IpFamily, u32> = BTreeMap::new();
        held.keys().for_each(|network| *entries.entry(IpFamily::of(network.addr())).or_default() += 1);
        Self {
            entries,
            stale: held.keys().copied().collect(),
            held,
            held_service_networks: service_networks
                .filter_map(|(family, network)| Some((*family, (*network)?)))
                .collect(),
            ..Self::default()
        }
    }

    /// Makes `ranges` all that is said of ranges. What is said of one twice holds together.
    pub fn set_ranges(&mut self, ranges: impl IntoIterator<Item = (IpNet, u32)>) {
        let mut wanted: BTreeMap<IpNet, u32> = BTreeMap::new();
        for (range, flags) in ranges {
            *wanted.entry(range.trunc()).or_default() |= flags;
        }
        if wanted == self.ranges {
            return;
        }
        let before = std::mem::replace(&mut self.ranges, wanted);
        let changed: Vec<IpNet> = before
            .keys()
            .chain(self.ranges.keys())
            .filter(|range| before.get(range) != self.ranges.get(range))
            .copied()
            .collect();
        for range in changed {
            self.stale.insert(range);
            self.stale.extend(self.ranges.keys().filter(|inner| range.contains(*inner)));
            let inner = self.cluster_ips.range(range.network()..=range.broadcast());
            self.stale.extend(inner.map(|(address, _)| IpNet::from(*address)));
        }
    }

    /// Makes `cluster_ips` those of `service`, which `proxy` serves.
    pub fn set_service(&mut self, service: &ObjectName, cluster_ips: &[IpAddr], proxy: Proxy) {
        let held = self.of_services.get(service);
        if held.map_or(cluster_ips.is_empty(), |(held, by)| held == cluster_ips && *by == proxy) {
            return;
        }
        cluster_ips.iter().for_each(|address| self.add_cluster_ip(*address, proxy));
        let before = if cluster_ips.is_empty() {
            self.of_services.remove(service)
        } else {
            self.of_services.insert(service.clone(), (cluster_ips.to_vec(), proxy))
        };
        let Some((before, proxy)) = before else { return };
        before.into_iter().for_each(|address| self.remove_cluster_ip(address, proxy));
    }

    fn add_cluster_ip(&mut self, address: IpAddr, proxy: Proxy) {
        *self.cluster_ips.entry(address).or_default().count(proxy) += 1;
        self.stale.insert(address.into());
    }

    fn remove_cluster_ip(&mut self, address: IpAddr, proxy: Proxy) {
        if let Some(owners) = self.cluster_ips.get_mut(&address) {
            *owners.count(proxy) -= 1;
            if (owners.of_this, owners.of_another) == (0, 0) {
                self.cluster_ips.remove(&address);
            }
            self.stale.insert(address.into());
        }
    }

    /// The writes that bring the maps up to date.
    pub fn plan(&self) -> Vec<Write> {
        let mut writes = Vec::new();
        let wanted = IpFamily::ALL.map(|family| (family, self.service_network(family)));
        let held = |family: &IpFamily| self.held_service_networks.get(family).copied();
        for (family, network) in &wanted {
            let network = network.map(|network| held(family).map_or(network, |held| covering(network, held)));
            if network.is_some() && network != held(family) {
                writes.push(Write::ServiceNetwork { family: *family, network });
            }
        }
        // What is said of ranges goes for many, so that it has the room there is.
        let (addresses, ranges): (Vec<&IpNet>, Vec<_>) = self.stale.iter().partition(|network| is_address(network));
        for network in ranges.into_iter().chain(addresses) {
            match (self.flags(network), self.held.get(network)) {
                (Some(flags), held) if held != Some(&flags) => {
                    writes.push(Write::Network { network: *network, flags });
                }
                (None, Some(_)) => writes.push(Write::RemoveNetwork { network: *network }),
                _ => {}
            }
        }
        for (family, network) in wanted {
            let widened = network.map(|network| held(&family).map_or(network, |held| covering(network, held)));
            if network != widened.or(held(&family)) {
                writes.push(Write::ServiceNetwork { family, network });
            }
        }
        writes
    }

    /// Enters a write that the store has taken.
    pub fn applied(&mut self, write: &Write) {
        match write {
            Write::Network { network, flags } => {
                let is_new = self.held.insert(*network, *flags).is_none();
                *self.entries.entry(IpFamily::of(network.addr())).or_default() += u32::from(is_new);
            }
            Write::RemoveNetwork { network } => {
                let was_there = self.held.remove(network).is_some();
                *self.entries.entry(IpFamily::of(network.addr())).or_default() -= u32::from(was_there);
            }
            Write::ServiceNetwork { family, network: Some(network) } => {
                self.held_service_networks.insert(*family, *network);
            }
            Write::ServiceNetwork { family, network: None } => drop(self.held_service_networks.remove(family)),
            _ => {}
        }
    }

    /// Enters that everything planned was written, except what was `refused`.
    pub fn settled_but(&mut self, refused: &[Write]) {
        let networks = refused.iter().filter_map(|write| match write {
            Write::Network { network, .. } => Some(*network),
            _ => None,
        });
        self.stale = networks.collect();
    }

    /// How many entries of `family` stand in the maps.
    pub fn entries(&self, family: IpFamily) -> u32 {
        self.entries.get(&family).copied().unwrap_or_default()
    }

    /// What the entry of `network` should say, if there is to be one.
    fn flags(&self, network: &IpNet) -> Option<u32> {
        let owners = if is_address(network) { self.cluster_ips.get(&network.addr()) } else { None };
        let ranges = self.ranges.iter().filter(|(range, _)| range.contains(network));
        let of_ranges = ranges.fold(0, |flags, (_, more)| flags | more);
        match owners {
            Some(Owners { of_this: 1.., .. }) => Some(of_ranges | NetworkFlags::CLUSTER_IP),
            // Elsewhere nobody would miss it.
            Some(_) if of_ranges & NetworkFlags::SERVICE != 0 => Some(of_ranges & !NetworkFlags::SERVICE),
            _ => self.ranges.contains_key(network).then_some(of_ranges),
        }
    }

    /// The smallest network that holds all ClusterIPs of `family` that are served here, and the ranges they are given out from.
    fn service_network(&self, family: IpFamily) -> Option<IpNet> {
        let (first, last): (IpAddr, IpAddr) = match family {
            IpFamily::V4 => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::BROADCAST.into()),
            IpFamily::V6 => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::from_bits(u128::MAX).into()),
        };
        let mut addresses = self.cluster_ips.range(first..=last).filter(|(_, owners)| owners.of_this > 0);
        let ends = [addresses.next(), addresses.next_back()];
        let addresses = ends.into_iter().flatten().map(|(address, _)| IpNet::from(*address));
        let ranges = self
            .ranges
            .iter()
            .filter(|(range, flags)| IpFamily::of(range.addr()) == family && **flags & OF_SERVICES != 0);
        addresses.chain(ranges.map(|(range, _)| *range)).reduce(covering)
    }
}

fn is_address(network: &IpNet) -> bool {
    network.prefix_len() == network.max_prefix_len()
}

/// The smallest network that holds both, which are of one family.
fn covering(one: IpNet, other: IpNet) -> IpNet {
    let mut network = one;
    while !network.contains(&other) {
        match network.supernet() {
            Some(wider) => network = wider,
            None => break,
        }
    }
    network
}

#[cfg(test)]
mod tests {
    use dsproxy_common::count::Reason;
    use proptest::prelude::*;

    use super::*;

    /// Maps in memory.
    #[derive(Clone, Debug, Default, PartialEq)]
    struct Maps {
        networks: BTreeMap<IpNet, u32>,
        service_networks: BTreeMap<IpFamily, IpNet>,
    }

    impl Maps {
        fn write(&mut self, write: &Write) {
            match write {
                Write::Network { network, flags } => drop(self.networks.insert(*network, *flags)),
                Write::RemoveNetwork { network } => drop(self.networks.remove(network)),
                Write::ServiceNetwork { family, network: Some(network) } => {
                    self.service_networks.insert(*family, *network);
                }
                Write::ServiceNetwork { family, network: None } => drop(self.service_networks.remove(family)),
                other => panic!("{other:?}"),
            }
        }

        /// What a program finds for `address`: the entry of the longest prefix.
        fn find(&self, address: IpAddr) -> u32 {
            let longest = self.networks.iter().filter(|(network, _)| network.contains(&address));
            longest.max_by_key(|(network, _)| network.prefix_len()).map_or(0, |(_, flags)| *flags)
        }

        /// Whether a program would look for `address` among those of Services.
        fn looks_for(&self, address: IpAddr) -> bool {
            let network = self.service_networks.get(&IpFamily::of(address));
            network.is_some_and(|network| network.contains(&address))
        }

        fn contents(&self) -> Contents {
            Contents {
                networks: self.networks.iter().map(|(network, flags)| (*network, *flags)).collect(),
                service_networks: IpFamily::ALL
                    .map(|family| (family, self.service_networks.get(&family).copied()))
                    .to_vec(),
                ..Contents::default()
            }
        }
    }

    /// What should be found for `address`, by looking at everything that holds it.
    fn expected(address: IpAddr, ranges: &[(IpNet, u32)], cluster_ips: &[(IpAddr, Proxy)]) -> u32 {
        let of_ranges =
            ranges.iter().filter(|(range, _)| range.contains(&address)).fold(0, |all, (_, flags)| all | flags);
        if cluster_ips.contains(&(address, Proxy::This)) {
            of_ranges | NetworkFlags::CLUSTER_IP
        } else if cluster_ips.contains(&(address, Proxy::Another)) {
            of_ranges & !NetworkFlags::SERVICE
        } else {
            of_ranges
        }
    }

    fn address() -> impl Strategy<Value = IpAddr> {
        // Few addresses, so that networks meet and nest.
        let v4 = (0u8..2, 0u8..4).prop_map(|(a, b)| Ipv4Addr::new(10, 96, a * 128, b).into());
        let v6 = (0u16..2, 0u16..4).prop_map(|(a, b)| Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, a << 15, b).into());
        prop_oneof![v4, v6]
    }

    fn range() -> impl Strategy<Value = (IpNet, u32)> {
        let bits = prop_oneof![Just(0u8), Just(1), Just(2), Just(7), Just(8), Just(9), Just(20), Just(32)];
        (address(), bits, 1u32..8).prop_map(|(address, host_bits, flags)| {
            let length = IpNet::from(address).max_prefix_len() - host_bits;
            (IpNet::new(address, length).expect("a length of the family"), flags)
        })
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ranges(Vec<(IpNet, u32)>),
        Add(IpAddr, Proxy),
        Remove(prop::sample::Index),
        /// So many writes are done, then the daemon starts again.
        Restart(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            2 => proptest::collection::vec(range(), 0..4).prop_map(Step::Ranges),
            4 => (address(), prop_oneof![Just(Proxy::This), Just(Proxy::Another)])
                .prop_map(|(address, proxy)| Step::Add(address, proxy)),
            3 => any::<prop::sample::Index>().prop_map(Step::Remove),
            1 => (0usize..4).prop_map(Step::Restart),
        ]
    }

    fn samples() -> Vec<IpAddr> {
        let ends = (0..2).flat_map(|a| (0..5).map(move |b| (a, b)));
        ends.flat_map(|(a, b): (u8, u8)| {
            [
                IpAddr::from(Ipv4Addr::new(10, 96, a * 128, b)),
                Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, u16::from(a) << 15, b.into()).into(),
            ]
        })
        .chain(["192.0.2.1", "2001:db8::1"].map(|text| text.parse().expect("an address")))
        .collect()
    }

    proptest! {
        #[test]
        fn every_address_is_known_for_what_it_is(steps in proptest::collection::vec(step(), 1..25)) {
            let (mut networks, mut maps) = (Networks::default(), Maps::default());
            let (mut ranges, mut cluster_ips) = (Vec::new(), Vec::new());
            for step in steps {
                match step {
                    Step::Ranges(wanted) => {
                        networks.set_ranges(wanted.clone());
                        ranges = wanted;
                    }
                    Step::Add(address, proxy) => {
                        networks.add_cluster_ip(address, proxy);
                        cluster_ips.push((address, proxy));
                    }
                    Step::Remove(at) if !cluster_ips.is_empty() => {
                        let (address, proxy) = cluster_ips.swap_remove(at.index(cluster_ips.len()));
                        networks.remove_cluster_ip(address, proxy);
                    }
                    Step::Remove(_) => {}
                    Step::Restart(done) => {
                        networks.plan().iter().take(done).for_each(|write| maps.write(write));
                        networks = Networks::new(&maps.contents());
                        networks.set_ranges(ranges.clone());
                        cluster_ips.iter().for_each(|(address, proxy)| networks.add_cluster_ip(*address, *proxy));
                    }
                }
                for write in networks.plan() {
                    maps.write(&write);
                    networks.applied(&write);
                    // What an entry says of Services counts only where it is looked for.
                    for (network, flags) in &maps.networks {
                        let is_known = flags & OF_SERVICES == 0 || maps.looks_for(network.network());
                        prop_assert!(is_known || networks.flags(network) != Some(*flags), "{} after {:?}", network, write);
                    }
                }
                networks.settled_but(&[]);
                prop_assert_eq!(networks.plan(), []);
                for address in samples() {
                    let wanted = expected(address, &ranges, &cluster_ips);
                    prop_assert_eq!(maps.find(address), wanted, "{}", address);
                    prop_assert!(wanted & OF_SERVICES == 0 || maps.looks_for(address), "{}", address);
                }
                // Nothing is left over, and no network of Services is wider than it has to be.
                let is_told = |(address, proxy): &&(IpAddr, Proxy)| {
                    let mut of_services = ranges.iter().filter(|(_, flags)| flags & NetworkFlags::SERVICE != 0);
                    *proxy == Proxy::This || of_services.any(|(range, _)| range.contains(address))
                };
                let told = cluster_ips.iter().filter(is_told).map(|(address, _)| IpNet::from(*address));
                let wanted: BTreeSet<IpNet> = ranges.iter().map(|(range, _)| range.trunc()).chain(told).collect();
                prop_assert_eq!(maps.networks.keys().copied().collect::<BTreeSet<_>>(), wanted);
                let entries = IpFamily::ALL.map(|family| networks.entries(family) as usize);
                prop_assert_eq!(entries.iter().sum::<usize>(), maps.networks.len());
                for family in IpFamily::ALL {
                    let of_ranges = ranges.iter().filter(|(_, flags)| flags & OF_SERVICES != 0).map(|(range, _)| range.trunc());
                    let here = cluster_ips.iter().filter(|(_, proxy)| *proxy == Proxy::This);
                    let of_services = of_ranges.chain(here.map(|(address, _)| IpNet::from(*address)));
                    let smallest = of_services.filter(|network| IpFamily::of(network.addr()) == family).reduce(covering);
                    prop_assert_eq!(maps.service_networks.get(&family).copied(), smallest);
                }
            }
        }
    }

    #[test]
    fn a_cluster_ip_among_many_is_one_write() {
        let mut networks = Networks::default();
        networks.set_ranges([("10.96.0.0/12".parse().expect("a network"), NetworkFlags::SERVICE)]);
        (0..100_000u32)
            .for_each(|number| networks.add_cluster_ip(Ipv4Addr::from_bits(0x0a60_0001 + number).into(), Proxy::This));
        let write_all = |networks: &mut Networks| {
            let writes = networks.plan();
            writes.iter().for_each(|write| networks.applied(write));
            networks.settled_but(&[]);
            writes.len()
        };
        assert_eq!(write_all(&mut networks), 100_002);
        let another = IpAddr::from([10, 111, 255, 1]);
        networks.add_cluster_ip(another, Proxy::This);
        let flags = NetworkFlags::SERVICE | NetworkFlags::CLUSTER_IP;
        assert_eq!(networks.plan(), [Write::Network { network: another.into(), flags }]);
        write_all(&mut networks);
        networks.remove_cluster_ip(another, Proxy::This);
        assert_eq!(networks.plan(), [Write::RemoveNetwork { network: another.into() }]);
        assert_eq!(write_all(&mut networks), 1);
    }

    #[test]
    fn what_another_proxy_serves_is_neither_refused_nor_unallocated() {
        let range: IpNet = "10.96.0.0/12".parse().expect("a network");
        let address = IpAddr::from([10, 96, 0, 50]);
        let service = ObjectName::new("default", "a");
        let mut networks = Networks::default();
        networks.set_ranges([(range, NetworkFlags::SERVICE | NetworkFlags::NOT_MASQUERADED)]);
        for proxy in [Proxy::Another, Proxy::This, Proxy::Another] {
            networks.set_service(&service, &[address], proxy);
            networks.plan().iter().for_each(|write| networks.applied(write));
            networks.settled_but(&[]);
            let reason = NetworkFlags::without_frontend(networks.held[&address.into()]);
            let expected = (proxy == Proxy::This).then_some(Reason::NoPort);
            assert_eq!(reason, expected, "{proxy:?}");
        }
        networks.set_service(&service, &[], Proxy::Another);
        assert_eq!(networks.plan(), [Write::RemoveNetwork { network: address.into() }]);
    }

    #[test]
    fn two_services_share_an_address() {
        let mut networks = Networks::default();
        let (first, second) = (ObjectName::new("default", "a"), ObjectName::new("default", "b"));
        let addresses = ["10.96.0.1", "fd00:96::1"].map(|text| text.parse().expect("an address"));
        networks.set_service(&first, &addresses, Proxy::This);
        networks.set_service(&second, &addresses, Proxy::This);
        networks.set_service(&first, &[], Proxy::This);
        assert_eq!(networks.plan().len(), 4, "in either family the entry, and where ClusterIPs are");
        networks.set_service(&second, &addresses[..1], Proxy::This);
        assert_eq!(networks.plan().len(), 2);
        networks.set_service(&second, &[], Proxy::This);
        assert_eq!(networks.plan(), []);
        assert!(networks.of_services.is_empty() && networks.cluster_ips.is_empty());
    }
}
