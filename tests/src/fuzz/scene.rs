//! A scene: addresses, what is served at them, and the rules.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use dsproxy::{
    maps::FrontendAddress,
    model::ObjectName,
    resolve::{Distribution, Reach, ResolvedEndpoint, ResolvedFamily, ResolvedFrontend, ResolvedPort, ServicePortName},
};
use dsproxy_common::{IpFamily, Protocol, service::FrontendKind, settings::NetworkFlags};
use fastrand::Rng;
use ipnet::IpNet;

use crate::model::{Rules, SnatPorts};

/// All that a scene is.
#[derive(Clone, Debug)]
pub(super) struct Scene {
    pub(super) places: BTreeMap<IpFamily, Places>,
    pub(super) ports: Vec<ResolvedPort>,
    pub(super) networks: Vec<(IpNet, u32)>,
    pub(super) rules: Rules,
    /// By which device a packet leaves whose node's address is this: the one there is, or any.
    pub(super) has_address: Option<AddressOf>,
    /// The longest packet that XDP sends on; none without XDP.
    pub(super) xdp: Option<u16>,
    /// Whether packets go from pod to pod past the stack.
    pub(super) has_shortcut: bool,
    /// Whether somebody listens to what becomes of packets.
    pub(super) is_observed: bool,
}

/// Whose address packets are masqueraded with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AddressOf {
    Device,
    Node,
}

/// Addresses of one family.
#[derive(Clone, Debug)]
pub(super) struct Places {
    pub(super) vips: Vec<IpAddr>,
    pub(super) node: IpAddr,
    /// On this node.
    pub(super) pods: Vec<IpAddr>,
    /// On other nodes.
    pub(super) remote: Vec<IpAddr>,
    pub(super) outsiders: Vec<IpAddr>,
}

/// Ports that clients send from: some also those that others listen at, some in the range of masqueraded packets.
pub(super) const CLIENT_PORTS: [u16; 6] = [40_000, 40_001, 50_000, 60_001, 8080, 53];

/// What goes directly with `--lb-mode dsr`.
const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

const PORTS: [u16; 3] = [80, 53, 8080];
pub(super) const NODE_PORT: u16 = 30_080;

impl Scene {
    pub(super) fn random(random: &mut Rng) -> Self {
        let places: BTreeMap<IpFamily, Places> =
            IpFamily::ALL.into_iter().map(|family| (family, Places::random(family, random))).collect();
        let mut taken = BTreeSet::new();
        let ports = (0..random.usize(4..9)).map(|number| port(number, &places, &mut taken, random)).collect();
        let mut networks = Vec::new();
        for places in places.values() {
            networks.extend(places.pods.iter().chain(&places.remote).map(|pod| (IpNet::from(*pod), NetworkFlags::POD)));
            if random.bool() {
                let flags = NetworkFlags::SERVICE | NetworkFlags::CLUSTER_IP;
                networks.extend(places.vips[..2].iter().map(|vip| (IpNet::from(*vip), flags)));
                networks.push((IpNet::from(places.vips[2]), NetworkFlags::SERVICE));
            }
            if random.bool() {
                networks.push((IpNet::from(places.outsiders[0]), NetworkFlags::NOT_MASQUERADED));
            }
        }
        let snat_ports: SnatPorts =
            [49_152..=65_535, 60_000..=60_003, 50_000..=50_000, 40_000..=65_535][random.usize(..4)].clone();
        let beside_others = random.u8(..6) == 0;
        let (first, last) = (*snat_ports.start(), *snat_ports.end());
        let first_offered = if beside_others { first.midpoint(last) } else { first };
        let rules = Rules {
            masquerade_all: random.u8(..4) == 0,
            masquerade_egress: random.u8(..3) == 0,
            reset_gone: random.bool(),
            inside_by_network: random.bool(),
            answers: random.u8(..8) != 0,
            direct: [&[][..], &[Protocol::Tcp], &BOTH, &BOTH][random.usize(..4)].to_vec(),
            accepts_direct: random.bool(),
            offered_ports: first_offered..=last,
            snat_ports,
            beside_others,
        };
        let has_address = match random.u8(..16) {
            0 => None,
            1..8 => Some(AddressOf::Device),
            _ => Some(AddressOf::Node),
        };
        let xdp = match random.u8(..4) {
            0 => None,
            1 => Some(100),
            _ => Some(1500),
        };
        let is_observed = random.u8(..4) == 0;
        let has_shortcut = random.bool();
        Self { places, ports, networks, rules, has_address, xdp, has_shortcut, is_observed }
    }

    /// Whether `address` is on this node.
    pub(super) fn is_pod(&self, address: IpAddr) -> bool {
        self.places.values().any(|places| places.pods.contains(&address))
    }

    /// Everything that is served, and everything that is not: a port beside, an address without a port.
    pub(super) fn frontends(&self) -> Vec<(Protocol, SocketAddr)> {
        let frontends = self.ports.iter().flat_map(ResolvedPort::frontends);
        frontends.map(|frontend| (frontend.protocol, SocketAddr::new(frontend.address, frontend.port))).collect()
    }

    /// Those of them whose connections may go on directly.
    pub(super) fn direct_frontends(&self) -> Vec<(Protocol, SocketAddr)> {
        let goes_directly = |port: &&ResolvedPort| self.rules.direct.contains(&port.name.protocol);
        let families = self.ports.iter().filter(goes_directly).flat_map(|port| {
            let has_other_node = |family: &&ResolvedFamily| family.endpoints.iter().any(|endpoint| !endpoint.is_local);
            port.families.iter().filter(has_other_node)
        });
        families
            .flat_map(|family| &family.frontends)
            .filter(|frontend| frontend.kind != FrontendKind::ClusterIp)
            .map(|ResolvedFrontend { address: held, .. }| (held.protocol, SocketAddr::new(held.address, held.port)))
            .collect()
    }

    /// The endpoints of those ports that have a frontend as wanted.
    pub(super) fn backends(
        &self,
        family: IpFamily,
        protocol: Protocol,
        is_wanted: impl Fn(SocketAddr) -> bool,
    ) -> Vec<SocketAddr> {
        let of_protocol = self.ports.iter().filter(|port| port.name.protocol == protocol);
        of_protocol
            .flat_map(|port| &port.families)
            .filter(|held| {
                let mut frontends = held.frontends.iter().map(|frontend| frontend.address);
                held.family == family && frontends.any(|held| is_wanted(SocketAddr::new(held.address, held.port)))
            })
            .flat_map(|held| &held.endpoints)
            .map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port))
            .collect()
    }

    /// The endpoints on this node.
    pub(super) fn local(port: &ResolvedPort) -> HashSet<SocketAddr> {
        port.families
            .iter()
            .flat_map(|family| &family.endpoints)
            .filter(|endpoint| endpoint.is_local)
            .map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port))
            .collect()
    }
}

impl Places {
    fn random(family: IpFamily, random: &mut Rng) -> Self {
        let mut some = |count: usize| (0..count).map(|_| address(family, random)).collect::<Vec<IpAddr>>();
        Self { vips: some(4), node: some(1)[0], pods: some(4), remote: some(3), outsiders: some(3) }
    }

    pub(super) fn all(&self) -> Vec<IpAddr> {
        let Self { vips, node, pods, remote, outsiders } = self;
        [&vips[..], &[*node], pods, remote, outsiders].concat()
    }
}

/// Any address that a host may have, but such as the kernel's test takes for an `EtherType`, on devices without.
fn address(family: IpFamily, random: &mut Rng) -> IpAddr {
    match family {
        IpFamily::V4 => {
            let [first, rest @ ..] = random.u32(..).to_be_bytes();
            let first = if matches!(first, 0 | 8 | 127 | 0x86 | 224..) { 10 } else { first };
            IpAddr::from(Ipv4Addr::new(first, rest[0], rest[1], rest[2]))
        }
        // Of few bits and of many: sums that carry and sums that do not.
        IpFamily::V6 if random.bool() => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, random.u16(2..)).into(),
        IpFamily::V6 => Ipv6Addr::from(random.u128(..) >> 8 | 0x20 << 120).into(),
    }
}

type Taken = BTreeSet<(IpAddr, u16, Protocol)>;

fn port(number: usize, places: &BTreeMap<IpFamily, Places>, taken: &mut Taken, random: &mut Rng) -> ResolvedPort {
    let protocol = [Protocol::Tcp, Protocol::Tcp, Protocol::Udp, Protocol::Udp, Protocol::Sctp][random.usize(..5)];
    let own = PORTS[random.usize(..3)];
    let target = if protocol == Protocol::Sctp { own } else { PORTS[random.usize(..3)] };
    let distribution = if random.u8(..8) == 0 { Distribution::Maglev } else { Distribution::List };
    let families = places
        .iter()
        .map(|(family, places)| {
            let mut frontends = Vec::new();
            for _ in 0..random.usize(1..4) {
                frontends.extend(frontend(protocol, own, places, taken, random));
            }
            let mut endpoints = endpoints(target, places, random);
            endpoints.sort_unstable_by_key(|endpoint| (endpoint.address, endpoint.port));
            frontends.sort_unstable_by_key(|frontend| frontend.address);
            let ranges = [&places.pods[..1], &places.outsiders[..2]].concat();
            let source_ranges = ranges.into_iter().map(IpNet::from).collect();
            ResolvedFamily { family: *family, frontends, endpoints, distribution, source_ranges }
        })
        .collect();
    let affinity = (random.u8(..5) == 0).then_some(10_800);
    let service = ObjectName::new("fuzz", &format!("service-{number}"));
    ResolvedPort { name: ServicePortName { service, port: "".into(), protocol }, affinity, families }
}

fn frontend(
    protocol: Protocol,
    port: u16,
    places: &Places,
    taken: &mut Taken,
    random: &mut Rng,
) -> Option<ResolvedFrontend> {
    let kind = FrontendKind::ALL[random.usize(..4)];
    let (address, port) = match kind {
        FrontendKind::NodePort if protocol != Protocol::Sctp => (places.node, NODE_PORT),
        _ => (places.vips[random.usize(..4)], port),
    };
    let reach = |random: &mut Rng| if random.u8(..4) == 0 { Reach::Local } else { Reach::Cluster };
    taken.insert((address, port, protocol)).then(|| ResolvedFrontend {
        address: FrontendAddress { address, port, protocol },
        kind,
        inside: reach(random),
        outside: reach(random),
        checks_source: random.u8(..8) == 0,
    })
}

fn endpoints(port: u16, places: &Places, random: &mut Rng) -> Vec<ResolvedEndpoint> {
    let all = places.pods[..3].iter().map(|pod| (*pod, true)).chain(places.remote.iter().map(|pod| (*pod, false)));
    // Few, so that connections meet: most have one to three.
    let share = random.u8(..5);
    all.filter_map(|(address, is_local)| {
        let takes_new = random.u8(..8) != 0;
        (random.u8(..8) < share).then(|| ResolvedEndpoint {
            address,
            port,
            is_local,
            is_on_node: is_local || random.u8(..8) != 0,
            in_cluster_list: takes_new && random.u8(..8) != 0,
            in_local_list: takes_new && is_local,
        })
    })
    .collect()
}
