//! One way through the programs that is measured, round by round, and what its packets cost over those that nothing is done with.

use dsproxy_common::{IpFamily, Protocol, count::Reason};

use super::{
    BenchError, Figure,
    path::{Path, Place},
    wrapper::Wrapper,
};
use crate::{
    packet::Link,
    prog::{Datapath, TestRun, Verdict},
};

/// How hard to measure.
#[derive(Clone, Copy, Debug)]
pub struct Effort<'a> {
    /// Which ways: those whose name has this in it.
    pub filter: &'a str,
    /// How many rounds; each measures everything once.
    pub rounds: u32,
    /// How many packets for one measurement.
    pub repeat: u32,
}

/// One thing that is measured, round by round.
pub(super) struct Probe<'a> {
    pub(super) path: Path,
    /// Through which programs; none for what is taken off.
    pub(super) datapath: Option<&'a Datapath>,
    /// How many packets for one measurement.
    pub(super) repeat: u32,
    /// The number of the next packet.
    sequence: u32,
    /// Whether numbers go on from round to round.
    is_endless: bool,
    /// Nanoseconds a packet.
    samples: Vec<f64>,
}

impl<'a> Probe<'a> {
    pub(super) fn new(path: Path, datapath: Option<&'a Datapath>, repeat: u32) -> Self {
        Self { path, datapath, repeat, sequence: 0, is_endless: false, samples: Vec::new() }
    }

    /// With packets that are others in each round.
    pub(super) fn endless(self) -> Self {
        Self { is_endless: true, ..self }
    }

    /// Measures once, and makes sure that every packet went the way it was to go.
    pub(super) fn measure(&mut self, wrapper: &mut Wrapper) -> Result<(), BenchError> {
        let Self { path, datapath, repeat, sequence, is_endless, samples } = self;
        let duration = run(wrapper, path, *datapath, *sequence, *repeat)?;
        if *is_endless {
            *sequence += *repeat;
        }
        samples.push(duration);
        Ok(())
    }

    pub(super) fn minimum(&self) -> f64 {
        self.samples.iter().copied().fold(f64::INFINITY, f64::min)
    }

    pub(super) fn median(&self) -> f64 {
        let mut samples = self.samples.clone();
        samples.sort_by(f64::total_cmp);
        samples.get(samples.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The headers that the wrapper puts in place, and where: what is taken off a probe must have the same.
    fn shape(&self) -> (IpFamily, Protocol, bool) {
        (self.path.family, self.path.protocol, self.path.place == Place::Xdp)
    }
}

/// Measures all of `probes` in every round, the ones after the others so that each meets the same noise.
pub(super) fn measure_all(wrapper: &mut Wrapper, probes: &mut [Probe<'_>], rounds: u32) -> Result<(), BenchError> {
    for _ in 0..rounds {
        for probe in &mut *probes {
            probe.measure(wrapper)?;
        }
    }
    Ok(())
}

/// `probe` less the floor of its shape: minimum and median.
pub(super) fn net(probe: &Probe<'_>, floors: &[Probe<'_>]) -> (f64, f64) {
    let floor = floors.iter().find(|floor| floor.shape() == probe.shape());
    let minimum = probe.minimum() - floor.map_or(f64::NAN, Probe::minimum);
    (minimum, probe.median() - floor.map_or(f64::NAN, Probe::median))
}

/// What a packet of `probe` costs over one of `floors`.
pub(super) fn figure(probe: &Probe<'_>, floors: &[Probe<'_>]) -> Figure {
    let (minimum, median) = net(probe, floors);
    let figure = Figure::new(probe.path.name.clone(), "ns", minimum, median);
    match probe.path.aim {
        Some(aim) => figure.at_most(aim),
        None => figure,
    }
}

/// Runs the packets of `path`, makes sure that each went its way, and says what one took, in nanoseconds.
pub(super) fn run(
    wrapper: &mut Wrapper,
    path: &Path,
    datapath: Option<&Datapath>,
    sequence: u32,
    repeat: u32,
) -> Result<f64, BenchError> {
    let Path { family, protocol, place, packet, plan, reason, .. } = path;
    let what = (*family, *protocol);
    let is_sent_on = matches!(reason, Reason::SentToBackend | Reason::SentToClient);
    match place {
        Place::Tc(hook) => {
            let target = datapath.map(|datapath| datapath.program(*hook, Link::Ethernet)).transpose()?;
            let counted = if target.is_some() { repeat } else { 0 };
            checked(path, datapath, (Verdict::Pass, counted), repeat, || {
                wrapper.run(what, target, plan, sequence, packet, repeat)
            })
        }
        Place::Xdp => {
            let target = datapath.map(Datapath::xdp_program).transpose()?;
            let fate = match &target {
                None => (Verdict::Transmit, 0),
                Some(_) if is_sent_on => (Verdict::Transmit, repeat),
                // What is left to the stack is counted there.
                Some(_) => (Verdict::Pass, 0),
            };
            checked(path, datapath, fate, repeat, || wrapper.run_frame(what, target, plan, packet, repeat))
        }
    }
}

/// Makes sure that with `run` each of `repeat` packets of `path` goes its way: to this verdict, and so many of them counted by
/// `datapath`. Says what one took, in nanoseconds.
fn checked(
    path: &Path,
    datapath: Option<&Datapath>,
    (verdict, wanted): (Verdict, u32),
    repeat: u32,
    run: impl FnOnce() -> Result<TestRun, BenchError>,
) -> Result<f64, BenchError> {
    let Path { name, family, reason, .. } = path;
    let counters = |datapath: &Datapath| datapath.maps().counters();
    let count = |counters: &[(Reason, Option<IpFamily>, u64)]| {
        let counter = counters.iter().find(|(held, of, _)| (held, *of) == (reason, Some(*family)));
        counter.map_or(0, |(.., count)| *count)
    };
    let before = datapath.map(counters).transpose()?.unwrap_or_default();
    let run = run()?;
    let after = datapath.map(counters).transpose()?.unwrap_or_default();
    let counted = count(&after) - count(&before);
    if run.verdict != verdict || counted != u64::from(wanted) {
        return Err(BenchError::WrongFate {
            path: name.clone(),
            repeat,
            counted,
            reason: *reason,
            family: *family,
            verdict: run.verdict,
            all: format!("{before:?} before, {after:?} after"),
        });
    }
    Ok(run.duration.as_nanos() as f64)
}
