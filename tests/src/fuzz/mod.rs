//! Packets by the million, most of them nearly right, thrown at the programs and held against the model, byte by byte and counter
//! by counter.
//!
//! It goes by scenes: each serves other Services at other addresses by other rules, and lives for some hundred packets, among
//! which endpoints go, entries are evicted and time passes. A scene follows from its seed. What fails is thrown again without
//! one packet after the other, until no more can be left out.

mod failure;
mod ground;
mod journey;
mod mutate;
mod packets;
mod scene;
mod site;
mod step;

use std::{collections::BTreeMap, fmt, io, panic::resume_unwind, thread, time::Instant};

use dsproxy_common::count::Reason;
use thiserror::Error;

pub use self::failure::Failure;
use self::{packets::Packets, scene::Scene, site::Site};
use crate::prog::ProgError;

/// How many steps a scene lives for.
const STEPS: u64 = 400;

/// What a run was.
#[derive(Debug, Default)]
pub struct Report {
    /// How many packets were thrown.
    pub packets: u64,
    /// In how many scenes.
    pub scenes: u64,
    /// How many scenes ended early, for what a program chose could not be seen.
    pub given_up: u64,
    /// How many the kernel takes at no test, for they are too short.
    pub not_taken: u64,
    /// What became of how many packets; of none that XDP left alone.
    pub reasons: BTreeMap<Reason, u64>,
    /// How many went from pod to pod past the stack.
    pub past_stack: u64,
    /// How many frames XDP left alone.
    pub left_by_xdp: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Why a run has come to nothing.
#[derive(Debug, Error)]
pub enum FuzzError {
    /// A program did what it should not.
    #[error("{0}")]
    Wrong(Box<Failure>),
    /// There was no network namespace to run them in.
    #[error("make a network namespace; needs root")]
    Ground(#[source] io::Error),
    /// The programs could not be run.
    #[error(transparent)]
    Prog(#[from] ProgError),
}

/// Throws `count` packets, in scenes that follow from `seed` and the numbers behind it.
///
/// # Errors
///
/// At the first that does not become what the model says.
pub fn packets(count: u64, seed: u64) -> Result<Report, FuzzError> {
    // Only a thread that ends there is to be in the namespace.
    let thrown = thread::scope(|scope| scope.spawn(|| throw(count, seed)).join());
    thrown.unwrap_or_else(|panic| resume_unwind(panic))
}

fn throw(count: u64, seed: u64) -> Result<Report, FuzzError> {
    ground::enter().map_err(FuzzError::Ground)?;
    let started = Instant::now();
    let mut report = Report::default();
    let mut site = Site::load()?;
    while report.packets < count {
        let seed = seed.wrapping_add(report.scenes);
        scene(&mut site, seed, (count - report.packets).min(STEPS), &mut report)?;
        report.scenes += 1;
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

fn scene(site: &mut Site, seed: u64, steps: u64, report: &mut Report) -> Result<(), FuzzError> {
    let mut random = fastrand::Rng::with_seed(seed);
    let scene = Scene::random(&mut random);
    site.prepare(&scene)?;
    let mut packets = Packets::of(&scene, random);
    let mut taken = Vec::new();
    for _ in 0..steps {
        let step = packets.next(site.model());
        taken.push(step.clone());
        match site.take(&step)? {
            site::Outcome::Right(seen) => {
                report.packets += u64::from(seen.is_some());
                packets.saw(&step, seen.as_ref());
            }
            site::Outcome::NotTaken => {
                report.packets += 1;
                report.not_taken += 1;
                packets.saw(&step, None);
            }
            site::Outcome::Unknowable => {
                report.packets += 1;
                report.given_up += 1;
                // Nor can be told what it has counted.
                return Ok(());
            }
            site::Outcome::Wrong(why) => {
                return Err(FuzzError::Wrong(Box::new(Failure::found(site, &scene, seed, taken, why)?)));
            }
        }
    }
    if let Some(why) = site.check_counters()? {
        return Err(FuzzError::Wrong(Box::new(Failure::found(site, &scene, seed, taken, why)?)));
    }
    report.left_by_xdp += site.left_by_xdp();
    report.past_stack += site.past_stack();
    for (reason, count) in site.reasons() {
        *report.reasons.entry(reason).or_default() += count;
    }
    Ok(())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { packets, scenes, given_up, not_taken, reasons, past_stack, left_by_xdp, seconds } = self;
        writeln!(f, "{packets} packets in {scenes} scenes, each as the model says ({seconds:.0} s)")?;
        for (reason, count) in reasons {
            writeln!(f, "{count:>10}  {}", reason.name())?;
        }
        writeln!(f, "{past_stack:>10}  of these past the stack from pod to pod")?;
        writeln!(f, "{left_by_xdp:>10}  left alone by XDP")?;
        writeln!(f, "{not_taken:>10}  too short for the kernel's test")?;
        write!(f, "{given_up:>10}  scenes given up, for a choice could not be seen")
    }
}
