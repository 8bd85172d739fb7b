//! Where the time of a packet goes: how many instructions and calls it takes, counted by following the program, what a call costs here,
//! and what is left of the measured time for the program's own instructions.

mod interpret;
mod price;

use dsproxy::resolve::Distribution;
use dsproxy_common::{IpFamily, Protocol, count::Reason};

pub use self::interpret::Fault;
use self::{
    interpret::{Call, Followed, Interpreter, Shape, Work},
    price::{Prices, Rotation},
};
use super::{
    BenchError, Effort, Figure, fast_path,
    path::{Path, Place, Range},
    probe::{Probe, measure_all, net},
    services::{background, capacities, client, endpoint, measured, vip},
    wrapper::Wrapper,
};
use crate::{
    packet::{Link, flags},
    prog::{Datapath, Hook, LOOPBACK, TestRun, Verdict, program_name, repeat, repeat_frame},
};

/// The name of the part, by which tables find these figures.
pub(super) const PART: &str = "account";
/// And of the one of what calls cost.
pub(super) const PRICES: &str = "prices";

/// The Service that packets are sent to, by number.
const SERVICE: u32 = 1;
/// Connections that have room in one family's table.
const CONNECTIONS: u32 = 262_144;
/// Connections that are in the same step of their lives at a time.
const TOGETHER: u32 = 1 << 10;
/// The number of the flow that is followed: none of those that are measured.
const FOLLOWED: u32 = 1 << 30;

/// Accounts for each way of a packet, among `services` Services.
///
/// # Errors
///
/// When something cannot be loaded, run or followed, or packets do not go the way that is measured.
pub fn measure_account(services: u32, effort: Effort<'_>) -> Result<Vec<Figure>, BenchError> {
    let Effort { filter: _, rounds, repeat } = effort;
    let rotations = [Rotation::ONE, Rotation::FEW, Rotation::MANY];
    let prices = Prices::measure(&rotations, CONNECTIONS, (rounds, repeat))?;
    let prices = prices.and(Prices::measure(&[Rotation::MOST], 1 << 21, (rounds.min(5), repeat))?);
    let mut figures = figures_of(&prices);
    figures.extend(account_of_connections(services, effort, &prices)?);
    figures.extend(account_of_fast_path(services, effort, &prices)?);
    Ok(figures)
}

fn figures_of(prices: &Prices) -> Vec<Figure> {
    let mut known: Vec<_> = prices.0.iter().collect();
    known.sort_by_key(|(which, _)| **which);
    known
        .into_iter()
        .map(|((item, family, rotation), (minimum, median))| {
            let name = format!("{}, {family}, {}", item.title(), rotation.title());
            Figure::new(name, "ns", *minimum, *median)
                .at("part", PRICES)
                .at("call", item.title())
                .at("family", family)
                .at("keys", rotation.title())
        })
        .collect()
}

/// One step in the life of a connection from a pod to a pod of the node.
struct Step {
    name: &'static str,
    is_from_client: bool,
    /// Whether its other end is the VIP, as the client sees it, or the backend.
    by_vip: bool,
    hook: Hook,
    flags: u8,
    reason: Reason,
}

/// All steps, in the order in which they come. The server closes first, as that of the traffic does.
const LIFE: [Step; 14] = {
    use Hook::{Egress, Ingress};
    use Reason::{Forwarded, NotReply, NotService, Opened, Replied};
    const DATA: u8 = flags::ACK;
    const END: u8 = flags::FIN | flags::ACK;
    const fn client(name: &'static str, hook: Hook, flags: u8, reason: Reason) -> Step {
        Step { name, is_from_client: true, by_vip: matches!(hook, Hook::Ingress), hook, flags, reason }
    }
    const fn backend(name: &'static str, hook: Hook, flags: u8, reason: Reason) -> Step {
        Step { name, is_from_client: false, by_vip: false, hook, flags, reason }
    }
    [
        client("SYN, from the client's device", Ingress, flags::SYN, Opened),
        client("SYN, to the backend's device", Egress, flags::SYN, NotReply),
        backend("SYN+ACK, from the backend's device", Ingress, flags::SYN | flags::ACK, NotService),
        backend("SYN+ACK, to the client's device", Egress, flags::SYN | flags::ACK, Replied),
        client("first ACK, from the client's device", Ingress, DATA, Forwarded),
        client("first ACK, to the backend's device", Egress, DATA, NotReply),
        client("data, from the client's device", Ingress, DATA, Forwarded),
        client("data, to the backend's device", Egress, DATA, NotReply),
        backend("data, from the backend's device", Ingress, DATA, NotService),
        backend("data, to the client's device", Egress, DATA, Replied),
        backend("FIN, to the client's device", Egress, END, Replied),
        client("FIN in answer, from the client's device", Ingress, END, Forwarded),
        client("FIN in answer, to the backend's device", Egress, END, NotReply),
        backend("last ACK, to the client's device", Egress, DATA, Replied),
    ]
};

impl Step {
    fn path(&self, family: IpFamily) -> Path {
        let Self { name, is_from_client, by_vip, hook, flags, reason } = *self;
        let client = (client(family), Range::ENDLESS);
        let other = if by_vip { vip(family, SERVICE) } else { endpoint(family, 0x0080_0000 + SERVICE * 1_000) };
        let other = (other, Range::ONE);
        let (source, destination) = if is_from_client { (client, other) } else { (other, client) };
        Path::at(name, Protocol::Tcp, source, destination, (Place::Tc(hook), reason)).segments(flags)
    }
}

/// The calls that a packet takes, of those that cost most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Hash lookups, in vain or not.
    pub lookups: u32,
    /// Entries entered.
    pub entered: u32,
    /// Entries removed.
    pub removed: u32,
    /// Checksums made right.
    pub checksums: u32,
}

impl Taken {
    fn of(work: &Work) -> Self {
        let of = |columns: &[&str]| {
            let calls = work.calls.iter().filter(|(call, _)| column(call).is_some_and(|name| columns.contains(&name)));
            calls.map(|(_, count)| *count).sum()
        };
        Self {
            lookups: of(&["hash lookups", "hash lookups in vain"]),
            entered: of(&["entered"]),
            removed: of(&["removed"]),
            checksums: of(&["checksums"]),
        }
    }
}

/// What each step takes in the life of a connection from a pod to a pod of its node, by its name. Each is followed, and has to come out as
/// it does in the kernel.
///
/// # Errors
///
/// When something cannot be loaded, run or followed, or comes out otherwise.
pub fn follow_life(family: IpFamily) -> Result<Vec<(&'static str, Taken)>, BenchError> {
    let datapath = serve(0)?;
    let mut followers = Followers::default();
    let follow = |step: &Step| {
        let work = followers.follow(&datapath, &step.path(family), FOLLOWED)?;
        Ok((step.name, Taken::of(&work)))
    };
    LIFE.iter().map(follow).collect()
}

/// The data path with the Service that packets are sent to, among `services` others.
fn serve(services: u32) -> Result<Datapath, BenchError> {
    let mut datapath = Datapath::load(&capacities(services, CONNECTIONS))?;
    datapath.serve_all((0..services).map(background))?;
    datapath.serve_all([measured(SERVICE, Protocol::Tcp, 1, Distribution::List)].into_iter())?;
    Ok(datapath)
}

/// Every step in the life of a connection.
fn account_of_connections(services: u32, effort: Effort<'_>, prices: &Prices) -> Result<Vec<Figure>, BenchError> {
    let datapath = serve(services)?;
    let mut wrapper = Wrapper::load()?;
    let mut followers = Followers::default();
    let mut figures = Vec::new();
    for family in IpFamily::ALL {
        let paths: Vec<Path> = LIFE.iter().map(|step| step.path(family)).collect();
        let works =
            paths.iter().map(|path| followers.follow(&datapath, path, FOLLOWED)).collect::<Result<Vec<_>, _>>()?;
        let mut floors = [Probe::new(paths[0].clone(), None, effort.repeat).endless()];
        let mut probes: Vec<_> =
            paths.into_iter().map(|path| Probe::new(path, Some(&datapath), TOGETHER).endless()).collect();
        for _ in 0..effort.rounds {
            measure_all(&mut wrapper, &mut floors, 1)?;
            measure_all(&mut wrapper, &mut probes, 1)?;
        }
        for ((probe, work), step) in probes.iter().zip(&works).zip(&LIFE) {
            let is_first = step.flags == flags::SYN;
            figures.extend(account(probe, &floors, work, (prices, Rotation::FEW, is_first)));
        }
    }
    Ok(figures)
}

/// What XDP sends on: a flow that is remembered, and those that have to be looked for.
fn account_of_fast_path(services: u32, effort: Effort<'_>, prices: &Prices) -> Result<Vec<Figure>, BenchError> {
    let datapath = fast_path::as_it_comes(services)?;
    let mut wrapper = Wrapper::load()?;
    let mut figures = Vec::new();
    for family in IpFamily::ALL {
        let (one, many) =
            (fast_path::Ways { family, flows: Range::ONE }, fast_path::Ways { family, flows: fast_path::MANY });
        many.establish(&mut wrapper, &datapath)?;
        let mut followers = Followers::default();
        let mut works = Vec::new();
        let mut probes = Vec::new();
        for path in one.measured("", 0.0) {
            // The first time it is looked for, the second it is remembered.
            let searched = followers.follow(&datapath, &path, 0)?;
            let remembered = followers.follow(&datapath, &path, 0)?;
            works.push((searched, remembered, path));
        }
        for ((searched, remembered, path), of_many) in works.iter().zip(many.measured(", 64 k flows", 0.0)) {
            probes.push((Probe::new(path.clone(), Some(&datapath), effort.repeat), remembered, Rotation::ONE));
            let repeat = effort.repeat.max(16 * fast_path::MANY.len());
            probes.push((Probe::new(of_many, Some(&datapath), repeat), searched, Rotation::MANY));
        }
        let mut floors = [Probe::new(works[0].2.clone(), None, effort.repeat)];
        for _ in 0..effort.rounds {
            measure_all(&mut wrapper, &mut floors, 1)?;
            for (probe, ..) in &mut probes {
                probe.measure(&mut wrapper)?;
            }
        }
        for (probe, work, rotation) in &probes {
            figures.extend(account(probe, &floors, work, (prices, *rotation, false)));
        }
    }
    Ok(figures)
}

/// The programs that packets are followed through.
#[derive(Default)]
struct Followers(Vec<(&'static str, Interpreter)>);

impl Followers {
    /// Follows the packet of `path` with this number, and holds what becomes of it against what the kernel makes of it.
    fn follow(&mut self, datapath: &Datapath, path: &Path, number: u32) -> Result<Work, BenchError> {
        let fault = |source| BenchError::Follow { path: path.name.clone(), source };
        let second = dsproxy::jiffies::per_second().map_err(BenchError::Clock)?;
        let now = dsproxy::jiffies::now(second).map_err(BenchError::Clock)?;
        let (name, info, shape) = match path.place {
            Place::Tc(hook) => {
                let info = datapath.info(hook, Link::Ethernet)?;
                (program_name(hook, Link::Ethernet), info, Shape::Buffer { device: LOOPBACK })
            }
            Place::Xdp => ("node_xdp", datapath.xdp_info()?, Shape::Frame { device: LOOPBACK }),
        };
        let place = match self.0.iter().position(|(known, _)| *known == name) {
            Some(place) => place,
            None => {
                self.0.push((name, Interpreter::of(name, &info).map_err(fault)?));
                self.0.len() - 1
            }
        };
        let packet = path.numbered(number);
        let Followed { verdict, packet: followed, work } =
            self.0[place].1.follow(&packet, shape, now).map_err(fault)?;
        // The connection is there now, and the kernel does the same with its packet once more.
        let (TestRun { verdict: kernel, packet: there, .. }, here) = match path.place {
            Place::Tc(hook) => (repeat(datapath.program(hook, Link::Ethernet)?, &packet, 1)?, Verdict::of_tc(verdict)),
            Place::Xdp => (repeat_frame(datapath.xdp_program()?, &packet, 1)?, Verdict::of_xdp(verdict)),
        };
        if (kernel, &there) != (here, &followed) {
            return Err(BenchError::Unlike {
                path: path.name.clone(),
                followed: format!("{here:?} {followed:02x?}"),
                kernel: format!("{kernel:?} {there:02x?}"),
            });
        }
        Ok(work)
    }
}

/// How calls are gathered in the account.
fn column(call: &Call) -> Option<&'static str> {
    Some(match call {
        Call::Array => "array lookups",
        Call::Flows => "places of flows",
        Call::Found(_) => "hash lookups",
        Call::Missed(_) | Call::RemovedNothing(_) => "hash lookups in vain",
        Call::Trie => "tries",
        Call::Inserted(_) | Call::Replaced(_) => "entered",
        Call::Removed(_) => "removed",
        Call::Checksum => "checksums",
        Call::Random => "random numbers",
        Call::Jiffies | Call::Processor | Call::NoProgram | Call::Pull | Call::Redirect | Call::Cookie => return None,
    })
}

/// The columns, in their order.
pub(super) const COLUMNS: [&str; 9] = [
    "array lookups",
    "places of flows",
    "hash lookups",
    "hash lookups in vain",
    "tries",
    "entered",
    "removed",
    "checksums",
    "random numbers",
];

/// What a packet of `probe` costs, and of what that is made up.
fn account(
    probe: &Probe<'_>,
    floors: &[Probe<'_>],
    work: &Work,
    (prices, rotation, is_first): (&Prices, Rotation, bool),
) -> Vec<Figure> {
    let path = &probe.path;
    let way = path.name.replace(&format!(", {}, {}", path.protocol, path.family), "");
    let figure = |what: &str, unit, minimum, median| {
        Figure::new(format!("{}: {what}", path.name), unit, minimum, median)
            .at("part", PART)
            .at("way", &way)
            .at("family", path.family)
            .at("what", what)
    };
    let (minimum, median) = net(probe, floors);
    let mut figures = vec![figure("measured", "ns", minimum, median)];
    let instructions = work.instructions as f64;
    figures.push(figure("instructions", "", instructions, instructions));
    let mut accounted = 0.0;
    for name in COLUMNS {
        let calls = || work.calls.iter().filter(|(call, _)| column(call) == Some(name));
        let count: u32 = calls().map(|(_, count)| *count).sum();
        let price = |call| prices.of(call, path.family, (rotation, is_first));
        let time: f64 = calls().map(|(call, count)| f64::from(*count) * price(call)).sum();
        accounted += time;
        figures.push(figure(name, "", count.into(), count.into()).also("ns", time));
    }
    figures.push(figure("the calls together", "ns", accounted, accounted));
    figures.push(figure("the rest", "ns", minimum - accounted, median - accounted));
    figures
}
