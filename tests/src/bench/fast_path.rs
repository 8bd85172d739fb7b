//! What a packet costs that XDP sends on: from a client outside to a backend on another node, and back, over a program that
//! sends a frame back as it came.

use dsproxy::{
    datapath::load::DatapathSettings,
    maps::{Capacities, Write},
};
use dsproxy_common::{
    IpFamily, Protocol, cached_flow,
    count::Reason,
    layout::capacity,
    next_hop::{Routing, XdpDevice, XdpDeviceFlags},
};

use super::{
    BenchError, Figure,
    path::{Path, Place, Range},
    probe::{Effort, Probe, figure, measure_all, run},
    services::{PORT, background, background_vip, capacities, client, endpoint, vip},
    wrapper::Wrapper,
};
use crate::{
    lab::DualStack,
    prog::{Datapath, Hook, LOOPBACK, of_family},
};

/// The first port of clients: the first of those that a masqueraded packet keeps, of which there are 16,384.
const CLIENT_PORT: u16 = 49_152;
pub(super) const LOG_PORTS: u32 = 14;

/// 64 k and a million flows: clients' ports, and Services with a backend each.
pub(super) const MANY: Range = Range { ports: LOG_PORTS, addresses: 2 };
const MOST: Range = Range { ports: LOG_PORTS, addresses: 6 };

/// What is measured with tables of one size.
struct Room {
    /// What figures call it.
    name: &'static str,
    /// Connections.
    connections: u32,
    /// Flows that are remembered.
    cached_flows: u32,
    /// Each with what a packet should cost at most.
    flows: &'static [(&'static str, Range, Option<f64>)],
}

/// As it comes, and with room for every flow: two places for each.
const ROOMS: [Room; 3] = [
    Room {
        name: "",
        connections: capacity::CONNECTIONS,
        cached_flows: capacity::CACHED_FLOWS,
        flows: &[("", Range::ONE, None), (", 64 k flows", MANY, Some(246.0))],
    },
    Room {
        name: ", with room for 64 k flows",
        connections: capacity::CONNECTIONS,
        cached_flows: 1 << 17,
        flows: &[(", 64 k flows", MANY, Some(246.0))],
    },
    Room {
        name: ", with room for 1 M flows",
        connections: 1 << 21,
        cached_flows: 1 << 21,
        flows: &[(", 1 M flows", MOST, Some(600.0))],
    },
];

/// The node.
fn node() -> DualStack {
    DualStack::node(1)
}

/// A Service that is not there.
const NO_SERVICE: u32 = 99;

/// The ways of one family, all flows of one kind. What enters and leaves the stack is what XDP does at once.
pub(super) struct Ways {
    pub(super) family: IpFamily,
    pub(super) flows: Range,
}

impl Ways {
    fn path(&self, name: &str, ends: [End; 2], place: Place, reason: Reason) -> Path {
        let Self { family, flows } = *self;
        let ports = Range { ports: flows.ports, addresses: 0 };
        let services = Range { ports: 0, addresses: flows.addresses };
        let [source, destination] = ends.map(|end| {
            let (address, port) = match end {
                End::Client => (client(family).ip(), CLIENT_PORT),
                End::Node => (node().of(family), CLIENT_PORT),
                End::Vip => (background_vip(family, 0), PORT),
                End::Backend => (endpoint(family, 0).ip(), endpoint(family, 0).port()),
            };
            ((address, port).into(), if matches!(end, End::Client | End::Node) { ports } else { services })
        });
        let mut path = Path::at(name, Protocol::Tcp, source, destination, (place, reason));
        // The next Service when all ports have been.
        for end in [&mut path.plan.source, &mut path.plan.destination] {
            end.address_shift = flows.ports;
        }
        path
    }

    /// Has the stack see all flows, until they are confirmed and have been seen to leave.
    pub(super) fn establish(&self, wrapper: &mut Wrapper, datapath: &Datapath) -> Result<(), BenchError> {
        // With the confirmation the backend's entry is made anew: how its packets leave is seen after that.
        let passages = [self.passages(Reason::Opened), self.passages(Reason::Forwarded)];
        // What is opening has less room than what is confirmed.
        let together = self.flows.len().min(1 << LOG_PORTS);
        for first in (0..self.flows.len()).step_by(together as usize) {
            for passage in passages.iter().flatten() {
                run(wrapper, passage, Some(datapath), first, together)?;
            }
        }
        Ok(())
    }

    /// A packet of the client's through the stack, and the backend's answer.
    pub(super) fn passages(&self, entering: Reason) -> [Path; 4] {
        use End::{Backend, Client, Node, Vip};
        let (ingress, egress) = (Place::Tc(Hook::NodeIngress), Place::Tc(Hook::NodeEgress));
        [
            self.path("entering", [Client, Vip], ingress, entering),
            turned_round(self.path("leaving", [Client, Backend], egress, Reason::Masqueraded)),
            self.path("answering", [Backend, Node], ingress, Reason::Unmasqueraded),
            turned_round(self.path("answered", [Backend, Client], egress, Reason::Replied)),
        ]
    }

    /// What is measured, with what it should cost at most.
    pub(super) fn measured(&self, name: &str, at_most: f64) -> [Path; 2] {
        use End::{Backend, Client, Node, Vip};
        [
            self.path(&format!("XDP, to a backend{name}"), [Client, Vip], Place::Xdp, Reason::SentToBackend),
            self.path(&format!("XDP, to a client{name}"), [Backend, Node], Place::Xdp, Reason::SentToClient),
        ]
        .map(|path| path.at_most(at_most))
    }
}

/// With the link-layer addresses of a frame that leaves, the node's own in the place of the sender.
fn turned_round(mut path: Path) -> Path {
    let (destination, source) = (path.packet.slice(..6), path.packet.slice(6..12));
    path.packet = [&source[..], &destination[..], &path.packet[12..]].concat().into();
    path
}

#[derive(Clone, Copy)]
enum End {
    Client,
    Node,
    Vip,
    Backend,
}

/// Every way past the stack, among `services` Services.
///
/// # Errors
///
/// When something cannot be loaded or run, or packets do not go the way that is measured.
pub fn measure_fast_path(services: u32, effort: Effort<'_>) -> Result<Vec<Figure>, BenchError> {
    let mut figures = Vec::new();
    for room in &ROOMS {
        figures.extend(measure_room(services, effort, room)?);
    }
    Ok(figures)
}

/// The data path with tables as they come, among `services` Services.
pub(super) fn as_it_comes(services: u32) -> Result<Datapath, BenchError> {
    load(services, &ROOMS[0])
}

fn load(services: u32, room: &Room) -> Result<Datapath, BenchError> {
    let Room { name: _, connections, cached_flows, flows } = *room;
    let needed = flows.iter().map(|(_, flows, _)| flows.len() >> LOG_PORTS).max().unwrap_or_default();
    let services = services.max(needed);
    let capacities =
        Capacities { brief_connections: Capacities::default().brief_connections, ..capacities(services, connections) };
    let settings = DatapathSettings { cached_flows, ..DatapathSettings::default() };
    let mut datapath = Datapath::load_with(&capacities, &settings)?;
    datapath.serve_all((0..services).map(background))?;
    site(&mut datapath, cached_flows)?;
    Ok(datapath)
}

fn measure_room(services: u32, effort: Effort<'_>, room: &Room) -> Result<Vec<Figure>, BenchError> {
    let Effort { filter, rounds, repeat } = effort;
    let mut wrapper = Wrapper::load()?;
    let datapath = &load(services, room)?;

    let mut floors = Vec::new();
    let mut probes = Vec::new();
    for family in IpFamily::ALL {
        let mut most = None;
        for (name, flows, aim) in room.flows {
            let ways = Ways { family, flows: *flows };
            let aim = aim.unwrap_or(of_family(family, 118.0, 116.0));
            let wanted = ways
                .measured(&format!("{name}{}", room.name), aim)
                .into_iter()
                .filter(|path| path.name.contains(filter));
            // Many times round: the first time each flow is looked up, some seconds having passed.
            let repeat = repeat.max(16 * flows.len().min(1 << 17));
            let count = probes.len();
            probes.extend(wanted.map(|path| Probe::new(path, Some(datapath), repeat)));
            if probes.len() > count {
                most = Some(ways);
            }
        }
        // The fewer flows are among the most.
        if let Some(ways) = most {
            let nothing = Ways { family, flows: MANY }.measured("", 0.0)[0].clone();
            floors.push(Probe::new(nothing, None, repeat));
            probes.push(Probe::new(nobody(family, room.name), Some(datapath), repeat));
            ways.establish(&mut wrapper, datapath)?;
        }
    }
    for _ in 0..rounds {
        measure_all(&mut wrapper, &mut floors, 1)?;
        measure_all(&mut wrapper, &mut probes, 1)?;
    }
    let empty = floors.iter().map(|floor| {
        let name = format!("XDP, an empty program and the wrapper{}, {}", room.name, floor.path.family);
        Figure::new(name, "ns", floor.minimum(), floor.median())
    });
    Ok(empty.chain(probes.iter().map(|probe| figure(probe, &floors))).collect())
}

/// Packets for no Service; figures call their room `room`.
pub(super) fn nobody(family: IpFamily, room: &str) -> Path {
    let source = (client(family), Range::ONE);
    let destination = (vip(family, NO_SERVICE), Range::ONE);
    let name = format!("XDP, for nobody{room}");
    Path::at(&name, Protocol::Tcp, source, destination, (Place::Xdp, Reason::NotService)).at_most(40.0)
}

/// Tells XDP that everything comes and goes by one device.
pub(super) fn site(datapath: &mut Datapath, cached_flows: u32) -> Result<(), BenchError> {
    datapath.write(&IpFamily::ALL.map(|family| Write::Masquerade { device: 0, address: node().of(family) }))?;
    let next_hops = datapath.next_hops();
    // The address is that of the other devices' frames alone.
    let device = XdpDevice { address: [0; 3], flags: XdpDeviceFlags::TRANSMITS, mtu: 1500, ..XdpDevice::default() };
    next_hops.set_device(LOOPBACK, device)?;
    let second = dsproxy::jiffies::per_second().map_err(BenchError::Clock)?;
    // Long enough for one size of tables at the usual ticks.
    let lease = dsproxy::jiffies::now(second).map_err(BenchError::Clock)?.wrapping_add(Routing::LONGEST_LEASE - second);
    Ok(next_hops.set_routing(Routing { epoch: 1, lease, flow_mask: cached_flow::places_in_half(cached_flows) - 1 })?)
}
