//! What one packet costs: each way through the programs, over one that does nothing.

use dsproxy::resolve::Distribution;
use dsproxy_common::{IpFamily, Protocol, count::Reason};

use super::{
    BenchError, Figure,
    path::{Path, Range},
    probe::{Effort, Probe, figure, measure_all, net, run},
    services::{PORT, TARGET_PORT, background, background_vip, capacities, client, endpoint, measured, vip},
    wrapper::Wrapper,
};
use crate::prog::{Datapath, of_family};

/// The Services that packets are sent to, by number.
const SINGLE_TCP: u32 = 1;
const SINGLE_UDP: u32 = 2;
const LIST: u32 = 3;
const MAGLEV: u32 = 4;
const NO_SERVICE: u32 = 99;

/// Connections that have room in one family's table.
const CONNECTIONS: u32 = 262_144;

fn load(background_services: u32, connections: u32) -> Result<Datapath, BenchError> {
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
fn forward(name: &str, family: IpFamily, protocol: Protocol, clients: Range, reason: Reason) -> Path {
    Path::new(name, protocol, (client(family), clients), (vip(family, single(protocol)), Range::ONE), reason)
}

/// From that endpoint to clients.
fn reply(name: &str, family: IpFamily, protocol: Protocol, clients: Range) -> Path {
    let backend = endpoint(family, 0x0080_0000 + single(protocol) * 1_000);
    Path::new(name, protocol, (backend, Range::ONE), (client(family), clients), Reason::Replied)
}

/// From clients to no Service.
fn miss(name: &str, family: IpFamily, destinations: Range) -> Path {
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
fn open(name: &str, family: IpFamily, number: u32) -> Path {
    Path::new(name, Protocol::Tcp, (client(family), Range::ENDLESS), (vip(family, number), Range::ONE), Reason::Opened)
}

/// Opens the connections of `clients` to the Service with one endpoint, and lets both sides be heard: TCP that has not been
/// confirmed is looked for in two tables.
fn establish(
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
fn floors<'a>(repeat: u32) -> Vec<Probe<'a>> {
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
                let path = open(&format!("new flow, {name}{room}"), family, number);
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

/// The same ways among few and among very many Services, and how much the many add.
///
/// # Errors
///
/// As `measure_packets`.
pub fn measure_scale(counts: &[u32], effort: Effort<'_>) -> Result<Vec<Figure>, BenchError> {
    let Effort { filter, rounds, repeat } = effort;
    let mut wrapper = Wrapper::load()?;
    // Small tables of connections: what is looked at is the number of Services.
    let datapaths = counts.iter().map(|count| load(*count, 65_536)).collect::<Result<Vec<_>, _>>()?;
    let opening_repeat = repeat / 20;
    let mut all = floors(repeat);
    let floor_count = all.len();
    for family in IpFamily::ALL {
        let ways = [
            (miss("for no Service", family, Range::ONE), false),
            (forward("established", family, Protocol::Tcp, Range::ONE, Reason::Forwarded), false),
            (reply("reply", family, Protocol::Tcp, Range::ONE), false),
            (open("new flow, 10 endpoints, table full", family, LIST), true),
        ];
        for (path, is_new) in ways.into_iter().filter(|(path, _)| path.name.contains(filter)) {
            for datapath in &datapaths {
                let probe = Probe::new(path.clone(), Some(datapath), if is_new { opening_repeat } else { repeat });
                all.push(if is_new { probe.endless() } else { probe });
            }
        }
        for datapath in &datapaths {
            establish(&mut wrapper, datapath, family, Protocol::Tcp, Range::ONE)?;
            let filling = forward("filling", family, Protocol::Udp, Range::ENDLESS, Reason::Opened);
            run(&mut wrapper, &filling, Some(datapath), 0, 100_000)?;
        }
    }
    measure_all(&mut wrapper, &mut all, rounds)?;
    let (floor, measured) = all.split_at(floor_count);
    let mut figures = Vec::new();
    for group in measured.chunks(counts.len()) {
        for (probe, count) in group.iter().zip(counts) {
            let (minimum, median) = net(probe, floor);
            figures.push(Figure::new(format!("{}, {count} Services", probe.path.name), "ns", minimum, median));
        }
        if let ([first, .., last], [fewest, .., most]) = (group, counts) {
            let (few, many) = (net(first, floor), net(last, floor));
            let growth = |few: f64, many: f64| (many / few - 1.0) * 100.0;
            let name = format!("{}, growth from {fewest} to {most} Services", first.path.name);
            figures.push(Figure::new(name, "%", growth(few.0, many.0), growth(few.1, many.1)).at_most(10.0));
        }
    }
    figures.extend(measure_spread(&mut wrapper, counts, &datapaths, effort)?);
    Ok(figures)
}

/// Flows that each go to a Service of its own, as many as there are Services, up to 64 k.
fn measure_spread(
    wrapper: &mut Wrapper,
    counts: &[u32],
    datapaths: &[Datapath],
    Effort { filter, rounds, repeat }: Effort<'_>,
) -> Result<Vec<Figure>, BenchError> {
    let mut all = floors(repeat);
    let floor_count = all.len();
    for (count, datapath) in counts.iter().zip(datapaths) {
        for family in IpFamily::ALL {
            // Half of what the table of connections holds, so that none is pushed out.
            let addresses = count.ilog2().min(15);
            let services = Range { ports: 0, addresses };
            let mut first = vip(family, 0);
            first.set_ip(background_vip(family, 0));
            let name = format!("established, {} flows to a Service each", services.len());
            let path =
                |reason| Path::new(&name, Protocol::Tcp, (client(family), Range::ONE), (first, services), reason);
            if name.contains(filter) {
                let answering = (endpoint(family, 0), services);
                let to_client = (client(family), Range::ONE);
                let answers = Path::new("answering", Protocol::Tcp, answering, to_client, Reason::Replied);
                for path in [path(Reason::Opened), answers, path(Reason::Forwarded)] {
                    run(wrapper, &path, Some(datapath), 0, services.len())?;
                }
                all.push(Probe::new(path(Reason::Forwarded), Some(datapath), repeat.max(10 * services.len())));
            }
        }
    }
    measure_all(wrapper, &mut all, rounds)?;
    let (floor, measured) = all.split_at(floor_count);
    Ok(measured.iter().map(|probe| figure(probe, floor)).collect())
}
