//! The same ways of a packet among few and among very many Services, and how much the many add.

use dsproxy_common::{IpFamily, Protocol, count::Reason};

use super::{
    BenchError, Figure,
    fast_path::{self, MANY, Ways, nobody},
    packets::{LIST, establish, floors, forward, load, miss, open, reply},
    path::{Path, Range},
    probe::{Effort, Probe, figure, measure_all, net, run},
    services::{background_vip, client, endpoint, vip},
    wrapper::Wrapper,
};
use crate::prog::Datapath;

/// What the most Services should add to the cost among the fewest at most, in percent.
const GROWTH: f64 = 10.0;

/// Connections that have room in one family's table: what is looked at is the number of Services.
const CONNECTIONS: u32 = 65_536;

/// Each way among each number of Services, and by how much it grows from the fewest to the most.
///
/// # Errors
///
/// When something cannot be loaded or run, or packets do not go the way that is measured.
pub fn measure_scale(counts: &[u32], effort: Effort<'_>) -> Result<Vec<Figure>, BenchError> {
    let Effort { rounds, repeat, .. } = effort;
    let mut wrapper = Wrapper::load()?;
    let mut datapaths = counts.iter().map(|count| load(*count, CONNECTIONS)).collect::<Result<Vec<_>, _>>()?;
    let of_connections = |family| {
        let both = [Protocol::Tcp, Protocol::Udp].into_iter().flat_map(move |protocol| {
            [
                forward("established", family, protocol, Range::ONE, Reason::Forwarded),
                reply("reply", family, protocol, Range::ONE),
            ]
        });
        both.chain([miss("for no Service", family, Range::ONE)])
    };
    for datapath in &datapaths {
        for family in IpFamily::ALL {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                establish(&mut wrapper, datapath, family, protocol, Range::ONE)?;
            }
        }
    }
    let old = IpFamily::ALL.into_iter().flat_map(of_connections).map(|path| (path, repeat, false)).collect();
    let mut figures = grow(&mut wrapper, counts, &datapaths, old, effort)?;

    // What fits while there is room, with some to spare; the same when there is none.
    let repeat = CONNECTIONS / (2 * (rounds + 1));
    for (room, is_full) in [("", false), (", table full", true)] {
        for datapath in &mut datapaths {
            datapath.connections().clear()?;
            for family in IpFamily::ALL.into_iter().filter(|_| is_full) {
                let filling = forward("filling", family, Protocol::Udp, Range::ENDLESS, Reason::Opened);
                run(&mut wrapper, &filling, Some(datapath), 0, CONNECTIONS + CONNECTIONS / 2)?;
            }
        }
        let name = format!("new flow, 10 endpoints{room}");
        let new = IpFamily::ALL.map(|family| (open(&name, family, LIST), repeat, true));
        figures.extend(grow(&mut wrapper, counts, &datapaths, new.into(), effort)?);
    }
    figures.extend(measure_spread(&mut wrapper, counts, &datapaths, effort)?);
    drop(datapaths);
    if let [fewest, .., most] = counts {
        figures.extend(measure_past_the_stack(&mut wrapper, [*fewest, *most], effort)?);
    }
    Ok(figures)
}

/// Measures `ways` through each of `datapaths`, which are of `counts` Services. Each way has the number of packets for one measurement, and
/// whether they are others in each round.
fn grow(
    wrapper: &mut Wrapper,
    counts: &[u32],
    datapaths: &[Datapath],
    ways: Vec<(Path, u32, bool)>,
    Effort { filter, rounds, repeat }: Effort<'_>,
) -> Result<Vec<Figure>, BenchError> {
    let mut all = floors(repeat);
    let nothing = |family| Ways { family, flows: MANY }.measured("", 0.0)[0].clone();
    all.extend(IpFamily::ALL.map(|family| Probe::new(nothing(family), None, repeat)));
    let floor_count = all.len();
    for (path, repeat, is_new) in ways.into_iter().filter(|(path, ..)| path.name.contains(filter)) {
        for datapath in datapaths {
            let probe = Probe::new(Path { aim: None, ..path.clone() }, Some(datapath), repeat);
            all.push(if is_new { probe.endless() } else { probe });
        }
    }
    measure_all(wrapper, &mut all, rounds)?;
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
            figures.push(Figure::new(name, "%", growth(few.0, many.0), growth(few.1, many.1)).at_most(GROWTH));
        }
    }
    Ok(figures)
}

/// The ways by XDP, with tables as they come.
fn measure_past_the_stack(
    wrapper: &mut Wrapper,
    counts: [u32; 2],
    effort: Effort<'_>,
) -> Result<Vec<Figure>, BenchError> {
    let mut ways = Vec::new();
    for family in IpFamily::ALL {
        for (name, flows) in [("", Range::ONE), (", 64 k flows", MANY)] {
            // As many times round as where these ways are measured by themselves.
            let repeat = effort.repeat.max(16 * flows.len());
            ways.extend(Ways { family, flows }.measured(name, 0.0).map(|path| (path, repeat, false)));
        }
        ways.push((nobody(family, ""), effort.repeat, false));
    }
    ways.retain(|(path, ..)| path.name.contains(effort.filter));
    if ways.is_empty() {
        return Ok(Vec::new());
    }
    let datapaths = counts.iter().map(|count| fast_path::as_it_comes(*count)).collect::<Result<Vec<_>, _>>()?;
    for datapath in &datapaths {
        for family in IpFamily::ALL {
            Ways { family, flows: MANY }.establish(wrapper, datapath)?;
        }
    }
    grow(wrapper, &counts, &datapaths, ways, effort)
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
