//! What one packet costs: each way through the programs, over one that does nothing.

use dsproxy::resolve::Distribution;
use dsproxy_common::{IpFamily, Protocol, count::Reason};

use super::{
    BenchError, Figure,
    node_port::measure_node_port,
    path::{Path, Range},
    probe::{Effort, Probe, figure, measure_all, run},
    services::{PORT, TARGET_PORT, background, capacities, client, endpoint, measured, vip},
    wrapper::Wrapper,
};
use crate::prog::{Datapath, of_family};

/// The Services that packets are sent to, by number.
const SINGLE_TCP: u32 = 1;
const SINGLE_UDP: u32 = 2;
pub(super) const LIST: u32 = 3;
const MAGLEV: u32 = 4;
const NO_SERVICE: u32 = 99;

/// What the first packet of a flow should cost at most, in nanoseconds.
pub(super) const FIRST_PACKET: f64 = 960.0;

/// Connections that have room in one family's table.
pub(super) const CONNECTIONS: u32 = 262_144;

pub(super) fn load(background_services: u32, connections: u32) -> Result<Datapath, BenchError> {
    let mut datapath = Datapath::load(&capacities(background_services, connections))?;
    datapath.serve_all((0..background_services).map(background))?;
    let ports = [
        measured(SINGLE_TCP, Protocol::Tcp, 1, Distribution::List),
        measured(SINGLE_UDP, Protocol::Udp, 1, Distribution::List),
        measured(LIST, Protocol::Tcp, 10, Distribution::List),
        measured(MAGLEV, Protocol::Tcp, 10, Distribution::Maglev),
    ];
    datapath.serve_all(ports.into_iter())?;
    Ok(datapath)
}

fn single(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Tcp => SINGLE_TCP,
        Protocol::Udp | Protocol::Sctp => SINGLE_UDP,
    }
}

/// From clients to the Service with one endpoint.
pub(super) fn forward(name: &str, family: IpFamily, protocol: Protocol, clients: Range, reason: Reason) -> Path {
    Path::new(name, protocol, (client(family), clients), (vip(family, single(protocol)), Range::ONE), reason)
}

/// From that endpoint to clients.
pub(super) fn reply(name: &str, family: IpFamily, protocol: Protocol, clients: Range) -> Path {
    let backend = endpoint(family, 0x0080_0000 + single(protocol) * 1_000);
    Path::new(name, protocol, (backend, Range::ONE), (client(family), clients), Reason::Replied)
}

/// From clients to no Service.
pub(super) fn miss(name: &str, family: IpFamily, destinations: Range) -> Path {
    let nobody = if destinations.len() == 1 {
        vip(family, NO_SERVICE)
    } else {
        let mut first = endpoint(family, 0);
        first.set_port(TARGET_PORT);
        first
    };
    Path::new(name, Protocol::Tcp, (client(family), Range::ONE), (nobody, destinations), Reason::NotService)
}

/// New connections to the Service `number`.
pub(super) fn open(name: &str, family: IpFamily, number: u32) -> Path {
    Path::new(name, Protocol::Tcp, (client(family), Range::ENDLESS), (vip(family, number), Range::ONE), Reason::Opened)
}

/// Opens the connections of `clients` to the Service with one endpoint, and lets both sides be heard: TCP that has not been
/// confirmed is looked for in two tables.
pub(super) fn establish(
    wrapper: &mut Wrapper,
    datapath: &Datapath,
    family: IpFamily,
    protocol: Protocol,
    clients: Range,
) -> Result<(), BenchError> {
    for path in [
        forward("opening", family, protocol, clients, Reason::Opened),
        reply("answering", family, protocol, clients),
        forward("confirming", family, protocol, clients, Reason::Forwarded),
    ] {
        run(wrapper, &path, Some(datapath), 0, clients.len())?;
    }
    Ok(())
}

/// The probes of what is taken off, for each family and protocol.
pub(super) fn floors<'a>(repeat: u32) -> Vec<Probe<'a>> {
    let all =
        IpFamily::ALL.into_iter().flat_map(|family| [Protocol::Tcp, Protocol::Udp].map(|protocol| (family, protocol)));
    all.map(|(family, protocol)| {
        let path = forward("nothing", family, protocol, Range::MANY, Reason::Forwarded);
        Probe::new(path, None, repeat).endless()
    })
    .collect()
}

/// Every way through the programs, among `services` Services.
///
/// # Errors
///
/// When something cannot be loaded or run, or packets do not go the way that is measured.
pub fn measure_packets(services: u32, effort: Effort<'_>) -> Result<Vec<Figure>, BenchError> {
    let Effort { filter, rounds, repeat } = effort;
    let mut wrapper = Wrapper::load()?;
    // Maps for each protocol, so that the 64 k flows in rotation are all that the tables hold.
    let (mut tcp, udp) = (load(services, CONNECTIONS)?, load(services, CONNECTIONS)?);
    let datapath = |protocol| match protocol {
        Protocol::Tcp => &tcp,
        Protocol::Udp | Protocol::Sctp => &udp,
    };
    let mut figures = Vec::new();
    for family in IpFamily::ALL {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            // The first of the many is the one that is measured alone, too.
            establish(&mut wrapper, datapath(protocol), family, protocol, Range::MANY)?;
        }
    }
    let mut all = floors(repeat);
    let floor_count = all.len();
    let paths = IpFamily::ALL.into_iter().flat_map(paths).filter(|path| path.name.contains(filter));
    all.extend(paths.map(|path| {
        // Ten times round, so that finding the caches as others left them counts for little.
        let repeat = if path.is_rotation { repeat.max(10 * Range::MANY.len()) } else { repeat };
        let datapath = datapath(path.protocol);
        Probe::new(path, Some(datapath), repeat)
    }));
    measure_all(&mut wrapper, &mut all, rounds)?;
    let (floor, measured) = all.split_at(floor_count);
    for floor in floor {
        let name = format!("an empty program and the wrapper, {}, {}", floor.path.protocol, floor.path.family);
        figures.push(Figure::new(name, "ns", floor.minimum(), floor.median()));
    }
    figures.extend(measured.iter().map(|probe| figure(probe, floor)));
    drop(all);

    figures.extend(measure_opening(&mut wrapper, &mut tcp, effort)?);
    figures.extend(measure_node_port(&mut wrapper, effort)?);
    Ok(figures)
}

/// All ways of packets of `family` that belong to a connection or to none.
fn paths(family: IpFamily) -> Vec<Path> {
    let translated = of_family(family, 80.0, 90.0);
    let mut paths = Vec::new();
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        paths.extend([
            forward("established", family, protocol, Range::ONE, Reason::Forwarded).at_most(translated),
            reply("reply", family, protocol, Range::ONE).at_most(translated),
            forward("established, 64 k flows", family, protocol, Range::MANY, Reason::Forwarded).at_most(200.0),
            reply("reply, 64 k flows", family, protocol, Range::MANY).at_most(200.0),
        ]);
    }
    let mut server = client(family);
    server.set_port(PORT);
    let no_reply = (client(family), Range::ONE);
    paths.extend([
        miss("for no Service", family, Range::ONE).at_most(40.0),
        miss("for no Service, 64 k destinations", family, Range::ADDRESSES),
        Path::new("no reply", Protocol::Tcp, no_reply, (server, Range::ONE), Reason::NotReply),
    ]);
    paths
}

/// First packets of connections, while the table has room and when it is full.
fn measure_opening(
    wrapper: &mut Wrapper,
    datapath: &mut Datapath,
    Effort { filter, rounds, .. }: Effort<'_>,
) -> Result<Vec<Figure>, BenchError> {
    let mut figures = Vec::new();
    let kinds = [("one endpoint", SINGLE_TCP), ("10 endpoints", LIST), ("10 endpoints by Maglev", MAGLEV)];
    for (room, is_full) in [("", false), (", table full", true)] {
        datapath.connections().clear()?;
        let datapath: &Datapath = datapath;
        let mut all = Vec::new();
        // What fits while there is room, for the kinds together; the same when there is none.
        let repeat = CONNECTIONS / (rounds * (kinds.len() as u32 + 1));
        for family in IpFamily::ALL {
            let mut floor = Probe::new(open("nothing", family, SINGLE_TCP), None, repeat).endless();
            floor.path.reason = Reason::Opened;
            all.push(floor);
            for (name, number) in kinds {
                let path = open(&format!("new flow, {name}{room}"), family, number).at_most(FIRST_PACKET);
                if path.name.contains(filter) {
                    all.push(Probe::new(path, Some(datapath), repeat).endless());
                }
            }
            if is_full {
                let filling = forward("filling", family, Protocol::Udp, Range::ENDLESS, Reason::Opened);
                run(wrapper, &filling, Some(datapath), 0, CONNECTIONS + CONNECTIONS / 4)?;
            }
        }
        measure_all(wrapper, &mut all, rounds)?;
        let (floor, measured): (Vec<_>, Vec<_>) = all.into_iter().partition(|probe| probe.datapath.is_none());
        figures.extend(measured.iter().map(|probe| figure(probe, &floor)));
    }
    Ok(figures)
}
