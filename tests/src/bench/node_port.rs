//! The first packet of a connection from outside to a NodePort whose backend is on another node: translated where it enters, and
//! masqueraded where it leaves, by two programs.

use dsproxy::datapath::load::DatapathSettings;
use dsproxy_common::{IpFamily, count::Reason, layout::capacity};

use super::{
    BenchError, Figure,
    fast_path::{LOG_PORTS, Ways, site},
    packets::{CONNECTIONS, FIRST_PACKET},
    path::Range,
    probe::{Effort, Probe, measure_all, net, run},
    services::{capacities, node_port},
    wrapper::Wrapper,
};
use crate::prog::Datapath;

/// The logarithm of how many Services connections are opened to, one after the other: a client's port is kept once for each backend.
const LOG_SERVICES: u32 = 9;

/// The number of the first of those packets that fill the tables; before it come those that are measured.
const FIRST_FILLING: u32 = 1 << (LOG_PORTS + LOG_SERVICES - 1);

/// What opening costs while the tables have room and when they are full.
///
/// # Errors
///
/// When something cannot be loaded or run, or packets do not go the way that is measured.
pub(super) fn measure_node_port(
    wrapper: &mut Wrapper,
    Effort { filter, rounds, .. }: Effort<'_>,
) -> Result<Vec<Figure>, BenchError> {
    let name = |what: &str, room: &str| format!("new flow, NodePort to a remote backend, {what}{room}");
    let rooms = [("", false), (", table full", true)];
    if !rooms.iter().any(|(room, _)| name("both programs", room).contains(filter)) {
        return Ok(Vec::new());
    }
    let mut datapath = Datapath::load_with(&capacities(1 << LOG_SERVICES, CONNECTIONS), &DatapathSettings::default())?;
    datapath.serve_all((0..1 << LOG_SERVICES).map(node_port))?;
    site(&mut datapath, capacity::CACHED_FLOWS)?;
    let flows = Range { ports: LOG_PORTS, addresses: LOG_SERVICES };
    // What fits while there is room; the same when there is none.
    let repeat = CONNECTIONS / (2 * (rounds + 1));
    let mut figures = Vec::new();
    for (room, is_full) in rooms {
        datapath.connections().clear()?;
        let mut probes = Vec::new();
        for family in IpFamily::ALL {
            let [entering, leaving, ..] = Ways { family, flows }.passages(Reason::Opened);
            if is_full {
                let together = 1 << LOG_PORTS;
                for first in (FIRST_FILLING..FIRST_FILLING + CONNECTIONS + CONNECTIONS / 4).step_by(together as usize) {
                    for passage in [&entering, &leaving] {
                        run(wrapper, passage, Some(&datapath), first, together)?;
                    }
                }
            }
            probes.push(Probe::new(entering.clone(), None, repeat).endless());
            probes.push(Probe::new(entering, Some(&datapath), repeat).endless());
            probes.push(Probe::new(leaving, Some(&datapath), repeat).endless());
        }
        measure_all(wrapper, &mut probes, rounds)?;
        let (floors, measured): (Vec<_>, Vec<_>) = probes.into_iter().partition(|probe| probe.datapath.is_none());
        for both in measured.chunks(2) {
            let [entering, leaving] = both else { continue };
            let (first, second) = (net(entering, &floors), net(leaving, &floors));
            let of = |what, (minimum, median): (f64, f64)| {
                let ends = format!("{}, {}", entering.path.protocol, entering.path.family);
                Figure::new(format!("{}, {ends}", name(what, room)), "ns", minimum, median)
            };
            figures.push(of("as it enters", first));
            figures.push(of("as it leaves", second));
            figures.push(of("both programs", (first.0 + second.0, first.1 + second.1)).at_most(FIRST_PACKET));
        }
    }
    Ok(figures)
}
