//! What went wrong, and the least that makes it go wrong.

use std::fmt;

use super::{
    scene::Scene,
    site::{Outcome, Site},
    step::{Place, Step},
};
use crate::{packet::show, prog::ProgError};

/// How often a scene is gone through again at most, to find what can be left out.
const MOST_RUNS: u32 = 2_000;

/// A packet that did not become what it should.
#[derive(Debug)]
pub struct Failure {
    seed: u64,
    why: String,
    scene: String,
    steps: Vec<String>,
    packet: String,
}

impl Failure {
    /// The failure that the last of `steps` has met, with as few of the others as still lead to one.
    pub(super) fn found(
        site: &mut Site,
        scene: &Scene,
        seed: u64,
        steps: Vec<Step>,
        why: String,
    ) -> Result<Self, ProgError> {
        site.compare_each();
        let mut least = Least { site, scene, steps, why, runs: 0 };
        least.shrink()?;
        let Least { steps, why, .. } = least;
        let packet = match steps.last() {
            Some(Step::Packet { place, bytes, .. }) => shown(*place, bytes),
            Some(Step::Evict { .. } | Step::Pass(_) | Step::Change(_)) | None => String::new(),
        };
        Ok(Self { seed, why, scene: format!("{scene:?}"), steps: steps.iter().map(Step::to_string).collect(), packet })
    }
}

struct Least<'a> {
    site: &'a mut Site,
    scene: &'a Scene,
    steps: Vec<Step>,
    why: String,
    runs: u32,
}

impl Least<'_> {
    /// Leaves out ever smaller parts, for as long as something goes wrong.
    fn shrink(&mut self) -> Result<(), ProgError> {
        let all = self.steps.clone();
        self.keep_if_wrong(&all)?;
        let mut size = self.steps.len() / 2;
        while size > 0 {
            let mut at = 0;
            while at < self.steps.len() && self.runs < MOST_RUNS {
                let rest = [&self.steps[..at], &self.steps[(at + size).min(self.steps.len())..]].concat();
                if !self.keep_if_wrong(&rest)? {
                    at += size;
                }
            }
            size /= 2;
        }
        Ok(())
    }

    fn keep_if_wrong(&mut self, steps: &[Step]) -> Result<bool, ProgError> {
        self.runs += 1;
        self.site.prepare(self.scene)?;
        for (index, step) in steps.iter().enumerate() {
            match self.site.take(step)? {
                Outcome::Right(_) | Outcome::NotTaken => {}
                Outcome::Unknowable => return Ok(false),
                Outcome::Wrong(why) => {
                    self.steps = steps[..=index].to_vec();
                    self.why = why;
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

fn shown(place: Place, bytes: &[u8]) -> String {
    show(place.link(), bytes)
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, why, scene, steps, packet } = self;
        writeln!(f, "{scene}")?;
        writeln!(f, "a packet became what it should not, in the scene of seed {seed}; these lead there:")?;
        steps.iter().try_for_each(|step| writeln!(f, "  {step}"))?;
        writeln!(f, "the last is\n{packet}{why}")?;
        write!(f, "again: cargo xtask fuzz packets --count 400 --seed {seed}")
    }
}
