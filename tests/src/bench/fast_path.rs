//! What a packet costs that XDP sends on: from a client outside to a backend on another node, and back, over a program that
//! sends a frame back as it came.

use std::{thread, time::Duration};

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
const LOG_PORTS: u32 = 14;

/// 64 k and a million flows: clients' ports, and Services with a backend each.
const MANY: Range = Range { ports: LOG_PORTS, addresses: 2 };
const MOST: Range = Range { ports: LOG_PORTS, addresses: 6 };

/// What is measured with tables of one size.
struct Room {
    /// Connections.
    connections: u32,
    /// Flows that are remembered.
    cached_flows: u32,
    /// Each with what a packet should cost at most.
    flows: &'static [(&'static str, Range, Option<f64>)],
}

/// As it comes, and with room for every flow.
const ROOMS: [Room; 3] = [
    Room {
        connections: capacity::CONNECTIONS,
        cached_flows: capacity::CACHED_FLOWS,
        flows: &[("", Range::ONE, None), (", 64 k flows", MANY, Some(246.0))],
    },
    Room {
        connections: capacity::CONNECTIONS,
        cached_flows: 1 << 17,
        flows: &[(", 64 k flows, with room for them", MANY, Some(246.0))],
    },
    Room {
        connections: 1 << 21,
        cached_flows: 1 << 20,
        flows: &[(", 1 M flows, with room for them", MOST, Some(600.0))],
    },
];

/// The node.
fn node() -> DualStack {
    DualStack::node(1)
}

/// A Service that is not there.
const NO_SERVICE: u32 = 99;

/// The ways of one family, all flows of one kind. What enters and leaves the stack is what XDP does at once.
struct Ways {
    family: IpFamily,
    flows: Range,
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

    /// What the stack sees of flows that are opened, until they are confirmed and have been seen to leave.
    fn opening(&self) -> Vec<Path> {
        let [enters, leaves, answers, answered] = self.passages(Reason::Opened);
        let opened = [enters, leaves, answers, answered];
        // With the confirmation the backend's entry is made anew: how its packets leave is seen after that.
        [&opened[..], &self.passing()[..]].concat()
    }

    /// What the stack sees of flows that go on.
    fn passing(&self) -> [Path; 4] {
        self.passages(Reason::Forwarded)
    }

    fn passages(&self, entering: Reason) -> [Path; 4] {
        use End::{Backend, Client, Node, Vip};
        let (ingress, egress) = (Place::Tc(Hook::NodeIngress), Place::Tc(Hook::NodeEgress));
        [
            self.path("entering", [Client, Vip], ingress, entering),
            turned_round(self.path("leaving", [Client, Backend], egress, Reason::Masqueraded)),
            self.path("answering", [Backend, Node], ingress, Reason::Unmasqueraded),
            turned_round(self.path("answered", [Backend, Client], egress, Reason::Replied)),
        ]
    }

    /// Runs all flows through `passages`.
    fn run(&self, wrapper: &mut Wrapper, datapath: &Datapath, passages: &[Path]) -> Result<(), BenchError> {
        // What is opening has less room than what is confirmed.
        let together = self.flows.len().min(1 << LOG_PORTS);
        for first in (0..self.flows.len()).step_by(together as usize) {
            for passage in passages {
                run(wrapper, passage, Some(datapath), first, together)?;
            }
        }
        Ok(())
    }

    /// What is measured, with what it should cost at most.
    fn measured(&self, name: &str, at_most: f64) -> [Path; 2] {
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

fn measure_room(services: u32, effort: Effort<'_>, room: &Room) -> Result<Vec<Figure>, BenchError> {
    let Effort { filter, rounds, repeat } = effort;
    let Room { connections, cached_flows, flows: all_flows } = *room;
    let mut wrapper = Wrapper::load()?;
    let services = services.max(MOST.len() >> LOG_PORTS);
    let capacities =
        Capacities { brief_connections: Capacities::default().brief_connections, ..capacities(services, connections) };
    let settings = DatapathSettings { cached_flows, ..DatapathSettings::default() };
    let mut datapath = Datapath::load_with(&capacities, &settings)?;
    datapath.serve_all((0..services).map(background))?;
    site(&mut datapath, cached_flows)?;
    let datapath = &datapath;

    let mut floors = Vec::new();
    let mut groups = Vec::new();
    for family in IpFamily::ALL {
        let mut probes = Vec::new();
        let mut most = Ways { family, flows: Range::ONE };
        for (name, flows, aim) in all_flows {
            let ways = Ways { family, flows: *flows };
            let aim = aim.unwrap_or(of_family(family, 118.0, 116.0));
            let wanted = ways.measured(name, aim).into_iter().filter(|path| path.name.contains(filter));
            // Many times round: the first time each flow is looked up, a second having passed.
            let repeat = repeat.max(16 * flows.len().min(1 << 17));
            let count = probes.len();
            probes.extend(wanted.map(|path| Probe::new(path, Some(datapath), repeat)));
            if probes.len() > count {
                most = ways;
            }
        }
        if !probes.is_empty() {
            let nothing = Ways { family, flows: MANY }.measured("", 0.0)[0].clone();
            floors.push(Probe::new(nothing, None, repeat));
            probes.push(Probe::new(nobody(family), Some(datapath), repeat));
            // The fewer flows are among the most.
            most.run(&mut wrapper, datapath, &most.opening())?;
            groups.push((Turn::new(most)?, probes));
        }
    }
    for _ in 0..rounds {
        measure_all(&mut wrapper, &mut floors, 1)?;
        for (turn, probes) in &mut groups {
            for probe in probes {
                turn.take(&mut wrapper, datapath, PER_PACKET * probe.repeat)?;
                probe.measure(&mut wrapper)?;
            }
        }
    }
    let empty = floors.iter().map(|floor| {
        let name = format!("XDP, an empty program and the wrapper, {}", floor.path.family);
        Figure::new(name, "ns", floor.minimum(), floor.median())
    });
    let measured = groups.iter().flat_map(|(_, probes)| probes).map(|probe| figure(probe, &floors));
    Ok(empty.chain(measured).collect())
}

/// More than packets take, so that what is measured is over before the stack has its turn again.
const PER_PACKET: Duration = Duration::from_nanos(2_500);

/// The stack's turn with every flow (`dsproxy_common::cached_flow::is_stacks_turn`), which comes in the midst of nothing that is
/// measured: it is taken before.
struct Turn {
    ways: Ways,
    /// How long one is, and a second: in jiffies.
    length: u32,
    second: u32,
    /// The number of the one that was taken.
    taken: Option<u32>,
}

impl Turn {
    fn new(ways: Ways) -> Result<Self, BenchError> {
        let second = dsproxy::jiffies::per_second().map_err(BenchError::Clock)?;
        Ok(Self { ways, length: cached_flow::TURN * second, second, taken: None })
    }

    /// Returns where XDP has all packets to itself for `duration`.
    fn take(&mut self, wrapper: &mut Wrapper, datapath: &Datapath, duration: Duration) -> Result<(), BenchError> {
        let Self { ways, length, second, taken } = self;
        let passing = ways.passing();
        // An entry is written to when it is a second old, so the turn is not taken before it has lasted for longer than that; the
        // kernel's clock is some ticks ahead, too.
        let late = 2 * *second;
        let needed = late + *second + u32::try_from(duration.as_millis()).unwrap_or(u32::MAX) / 1_000 * *second;
        loop {
            let now = dsproxy::jiffies::now(*second).map_err(BenchError::Clock)?.wrapping_sub(late);
            let (turn, left) = (now / *length, *length - now % *length);
            if *taken != Some(turn) {
                ways.run(wrapper, datapath, &passing)?;
                *taken = Some(turn);
            } else if left >= needed.min(*length / 2) {
                return Ok(());
            } else {
                thread::sleep(Duration::from_secs(1) * left / *second);
            }
        }
    }
}

/// Packets for no Service.
fn nobody(family: IpFamily) -> Path {
    let source = (client(family), Range::ONE);
    let destination = (vip(family, NO_SERVICE), Range::ONE);
    Path::at("XDP, for nobody", Protocol::Tcp, source, destination, (Place::Xdp, Reason::NotService)).at_most(40.0)
}

/// Tells XDP that everything comes and goes by one device.
fn site(datapath: &mut Datapath, cached_flows: u32) -> Result<(), BenchError> {
    datapath.write(&IpFamily::ALL.map(|family| Write::Masquerade { device: 0, address: node().of(family) }))?;
    let next_hops = datapath.next_hops();
    // The address is that of the other devices' frames alone.
    let device = XdpDevice { address: [0; 3], flags: XdpDeviceFlags::TRANSMITS, mtu: 1500 };
    next_hops.set_device(LOOPBACK, device)?;
    let second = dsproxy::jiffies::per_second().map_err(BenchError::Clock)?;
    // Long enough for one size of tables at the usual ticks.
    let lease = dsproxy::jiffies::now(second).map_err(BenchError::Clock)?.wrapping_add(Routing::LONGEST_LEASE - second);
    Ok(next_hops.set_routing(Routing { epoch: 1, lease, flow_mask: cached_flows - 1 })?)
}
