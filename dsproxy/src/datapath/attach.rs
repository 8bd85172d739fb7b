//! Keeps the programs attached to the interfaces that have a role, at ingress and at egress.
//!
//! Two ways lead there: a *tcx* link, pinned in bpffs, where the kernel has them (6.6 and later);
//! else a *clsact* filter. Either outlives the daemon, which is never in the packet path: dropping
//! an [`Attacher`] leaves everything attached, and the next one adopts what it finds. A program is
//! only ever replaced in place, atomically; a change between the two ways attaches the new before
//! it removes the old, so that there is a moment with both and none with neither (the second
//! program finds no VIP left to translate). Programs of others are left alone.
//!
//! The state is the kernel's: every [`Attacher::sync`] compares with what is really attached. This
//! file decides what should be where; `tcx` and `clsact` do it, `stray` knows our programs from
//! others', `bpf` speaks to the kernel. None of them knows what the programs do.

pub(super) mod bpf;
pub mod cgroup;
mod clsact;
mod error;
mod listing;
mod pins;
mod programs;
mod retire;
mod stray;
mod tcx;
mod xdp;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
};

use serde::Serialize;
use tracing::{debug, info, warn};

pub use error::AttachError;
use error::bpf_error;
pub use listing::{Cleanup, detach_all, list, name_of};
use pins::Place;
pub use programs::Programs;
use programs::{PROGRAM_NAMES, Program};
pub(super) use retire::{retire, retire_sockets_that_lead, take_xdp};
use stray::Strays;
pub use tcx::is_known as kernel_has_tcx;
pub use xdp::{MakeReady, WhyNot, XdpDevices};
use xdp::{Means, Xdp};

use crate::{
    interfaces::{Interface, Interfaces, Role},
    maps::next_hops::NextHopMaps,
    routing::Word,
};

/// How to attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachMode {
    /// With tcx where the kernel has it, else with clsact.
    #[default]
    Auto,
    /// With tcx only.
    Tcx,
    /// With clsact only.
    Clsact,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachKind {
    /// By a tcx link.
    Tcx,
    /// By a filter of the clsact qdisc.
    Clsact,
    /// By an XDP link.
    Xdp,
}

impl fmt::Display for AttachKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Xdp => "xdp",
        })
    }
}

/// Which of an interface's two hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Packets that enter the host's stack.
    Ingress,
    /// Packets that leave it.
    Egress,
}

impl Direction {
    /// Both hooks, in the order in which they are attached: a translated reply needs egress, so
    /// that comes first.
    const BOTH: [Self; 2] = [Self::Egress, Self::Ingress];
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// One hook of one interface.
#[derive(Clone, Copy, Debug)]
struct Hook<'a> {
    index: u32,
    name: &'a str,
    direction: Direction,
}

impl fmt::Display for Hook<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {} (interface {})", self.direction, self.name, self.index)
    }
}

/// A program at a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// The interface index.
    pub index: u32,
    /// The interface's name; empty if it is gone.
    pub interface: String,
    /// The interface's role.
    pub role: Role,
    /// The hook.
    pub direction: Direction,
    /// How the program is attached.
    pub kind: AttachKind,
    /// The id of the program.
    pub program_id: u32,
    /// The id of the link, for tcx and XDP.
    pub link_id: Option<u32>,
}

/// One thing that did not work out; everything else was done all the same.
#[derive(Debug)]
pub struct Failure {
    /// The interface, where there is one.
    pub interface: String,
    /// What happened.
    pub error: AttachError,
}

/// What a sync did.
#[derive(Debug, Default)]
pub struct SyncReport {
    /// Hooks where a program was attached or replaced.
    pub attached: usize,
    /// Attachments that were removed, strays included.
    pub detached: usize,
    /// Programs at hooks that could not be told from ours for want of `CAP_SYS_ADMIN`, and were left.
    pub unexamined: usize,
    /// What failed. The next sync tries it again.
    pub failures: Vec<Failure>,
}

impl SyncReport {
    fn count(&mut self, Strays { detached, unexamined }: Strays) {
        self.detached += detached;
        self.unexamined += unexamined;
    }

    fn failed(&mut self, interface: &str, error: AttachError) {
        if error.is_gone() {
            debug!(interface, %error, "the interface went away");
        } else {
            warn!(interface, %error, "not attached as it should be");
            self.failures.push(Failure { interface: interface.to_owned(), error });
        }
    }
}

/// What attaching to a hook came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It was as it should be.
    Unchanged,
    /// Another program of ours was replaced in place.
    Replaced,
    /// There was none of ours.
    Attached,
}

/// The clsact filters, for the length of one sync; most syncs have no business with them.
#[derive(Default)]
struct Filters(Option<clsact::Session>);

impl Filters {
    fn session(&mut self) -> Result<&mut clsact::Session, AttachError> {
        match &mut self.0 {
            Some(session) => Ok(session),
            none => Ok(none.insert(clsact::Session::open()?)),
        }
    }
}

/// Attaches programs, and keeps them attached.
pub struct Attacher {
    programs: Programs,
    xdp: Option<Xdp>,
    pins: PathBuf,
    mode: AttachMode,
    /// Whether programs of another layout are to stay where they are.
    is_beside_others: bool,
    /// Found out at the first hook.
    kernel_has_tcx: Option<bool>,
    attachments: BTreeMap<(u32, Direction), Attachment>,
    /// Hooks that were searched for what an earlier dsproxy left in another way.
    searched: BTreeSet<(u32, Direction)>,
    /// Whether interfaces without a role were searched.
    swept: bool,
}

impl Attacher {
    /// Will attach these programs, with tcx links pinned in the directory `pins`, which is made if
    /// need be and has to be on a bpffs.
    pub fn new(programs: Programs, pins: &Path, mode: AttachMode) -> Result<Self, AttachError> {
        std::fs::create_dir_all(pins).map_err(|source| AttachError::Pin {
            operation: "make the directory",
            path: pins.to_owned(),
            source,
        })?;
        Ok(Self {
            programs,
            xdp: None,
            pins: pins.to_owned(),
            mode,
            is_beside_others: false,
            kernel_has_tcx: None,
            attachments: BTreeMap::new(),
            searched: BTreeSet::new(),
            swept: false,
        })
    }

    /// With XDP on those node devices that can have it, by the program of `object`, which has to be loaded. It is told of devices
    /// in `maps`, and by `word` that they have changed. Where `make_ready` fails, none has it.
    pub fn with_xdp(
        self,
        object: &aya::Ebpf,
        which: XdpDevices,
        maps: NextHopMaps,
        word: Word,
        make_ready: MakeReady,
    ) -> Result<Self, AttachError> {
        let means = Means { program: Program::of_xdp(object)?, which, make_ready };
        Ok(Self { xdp: Some(Xdp::new(Ok(means), maps, word)), ..self })
    }

    /// Without XDP on any device, which is noted in `maps` of each, and `why`.
    #[must_use]
    pub fn without_xdp(self, why: WhyNot, maps: NextHopMaps, word: Word) -> Self {
        Self { xdp: Some(Xdp::new(Err(why), maps, word)), ..self }
    }

    /// Goes on with these programs, among which there are all those it had.
    pub fn set_programs(&mut self, programs: Programs) {
        self.programs = programs;
    }

    /// Leaves programs of ours that another layout has attached where they are, for as long as `others_serve`: both run then, these
    /// before the others. Afterwards they are leftovers like any other.
    pub fn set_beside_others(&mut self, others_serve: bool) {
        self.is_beside_others = others_serve;
    }

    /// Makes the attachments equal to what these interfaces want. Nothing happens where they are;
    /// where something fails, the rest is done all the same, and calling again tries it again.
    ///
    /// Takes system calls that wait for the kernel's network configuration lock, so it does not
    /// belong on a thread that has to answer others at once.
    pub fn sync(&mut self, wanted: &Interfaces) -> SyncReport {
        let mut report = SyncReport::default();
        let mut filters = Filters::default();
        // Everywhere the one before the other anywhere: what enters at one interface may leave by any.
        for direction in Direction::BOTH {
            for interface in wanted.values() {
                let hook = Hook { index: interface.index, name: &interface.name, direction };
                if let Err(error) = self.attach(interface, hook, &mut filters, &mut report) {
                    self.forget(interface.index, direction);
                    report.failed(&interface.name, error);
                }
            }
        }
        // After tc, which has to serve what XDP leaves to it. No frame goes to a device any more before its program does.
        if let Some(xdp) = &mut self.xdp {
            xdp.sync(wanted, &self.pins, &mut report);
        }
        if !self.is_beside_others {
            self.detach_unwanted(wanted, &mut filters, &mut report);
        }
        report
    }

    /// What is attached, as of the last sync.
    pub fn attachments(&self) -> Vec<Attachment> {
        let xdp = self.xdp.iter().flat_map(Xdp::attachments);
        self.attachments.values().chain(xdp).cloned().collect()
    }

    /// Whether XDP is used on devices that can have it.
    fn may_use_xdp(&self) -> bool {
        self.xdp.as_ref().is_some_and(Xdp::serves)
    }

    fn attach(
        &mut self,
        interface: &Interface,
        hook: Hook<'_>,
        filters: &mut Filters,
        report: &mut SyncReport,
    ) -> Result<(), AttachError> {
        let program = self.programs.fitting(interface.role, interface.link_layer, hook.direction)?;
        let (kind, link_id, outcome) = match (self.mode, self.kernel_has_tcx) {
            (AttachMode::Clsact, _) | (AttachMode::Auto, Some(false)) => {
                (AttachKind::Clsact, None, self.attach_filter(hook, program, filters)?)
            }
            (AttachMode::Auto | AttachMode::Tcx, _) => match tcx::attach(hook, program, &self.pins) {
                Ok((link, outcome)) => {
                    self.kernel_has_tcx = Some(true);
                    (AttachKind::Tcx, Some(link), outcome)
                }
                // The attempt decides, not the kernel's version: distributions carry tcx back.
                Err(AttachError::NoTcx { .. }) if self.mode == AttachMode::Auto && self.kernel_has_tcx.is_none() => {
                    info!("the kernel has no tcx; attaching with clsact");
                    self.kernel_has_tcx = Some(false);
                    (AttachKind::Clsact, None, self.attach_filter(hook, program, filters)?)
                }
                Err(error) => return Err(error),
            },
        };
        let attachment = Attachment {
            index: interface.index,
            interface: interface.name.clone(),
            role: interface.role,
            direction: hook.direction,
            kind,
            program_id: program.id,
            link_id,
        };
        let key = (interface.index, hook.direction);
        if outcome == Outcome::Unchanged {
            debug!(interface = %interface.name, direction = %hook.direction, %kind, "still attached");
        } else {
            report.attached += 1;
            info!(
                interface = %interface.name, role = ?interface.role, direction = %hook.direction,
                %kind, program = program.name, ?outcome, "attached"
            );
        }
        self.attachments.insert(key, attachment);
        if !self.is_beside_others && !self.searched.contains(&key) {
            report.count(self.remove_leftovers(hook, kind, link_id, filters)?);
            self.searched.insert(key);
        }
        Ok(())
    }

    fn attach_filter(&self, hook: Hook<'_>, program: &Program, filters: &mut Filters) -> Result<Outcome, AttachError> {
        let session = filters.session()?;
        if self.is_beside_others { session.attach_beside(hook, program) } else { session.attach(hook, program) }
    }

    /// Removes what an earlier dsproxy left at a hook that is served now: the other kind of
    /// attachment, programs in places where they are not looked for.
    fn remove_leftovers(
        &self,
        hook: Hook<'_>,
        kind: AttachKind,
        link_id: Option<u32>,
        filters: &mut Filters,
    ) -> Result<Strays, AttachError> {
        let other_kind = match kind {
            AttachKind::Tcx | AttachKind::Xdp => filters.session()?.detach(hook)?,
            AttachKind::Clsact => {
                let detached = pins::detach(hook.index, Place::Tcx(hook.direction), &self.pins)?;
                Strays { detached: usize::from(detached), unexamined: 0 }
            }
        };
        let strays = stray::detach(hook, link_id, &self.pins)?;
        let both = other_kind + strays;
        if both.detached > 0 {
            info!(
                interface = %hook.name, direction = %hook.direction,
                other_kind = other_kind.detached, strays = strays.detached, "removed leftovers"
            );
        }
        Ok(both)
    }

    fn detach_unwanted(&mut self, wanted: &Interfaces, filters: &mut Filters, report: &mut SyncReport) {
        match pins::list(&self.pins) {
            Ok(pinned) => {
                for (index, place) in pinned {
                    let is_wanted = match (wanted.get(&index), place) {
                        (None, _) => false,
                        (Some(_), Place::Tcx(_)) => true,
                        (Some(interface), Place::Xdp) => self.may_use_xdp() && interface.role == Role::NodeDevice,
                    };
                    if !is_wanted {
                        match pins::detach(index, place, &self.pins) {
                            Ok(detached) => report.detached += usize::from(detached),
                            Err(error) => report.failed(&listing::name_of(index), error),
                        }
                    }
                }
            }
            Err(error) => report.failed("", error),
        }
        for index in self.unwanted_interfaces(wanted, report) {
            let name = listing::name_of(index);
            for direction in Direction::BOTH {
                let hook = Hook { index, name: &name, direction };
                let result = filters.session().and_then(|session| session.detach(hook));
                match result.and_then(|filters| Ok(filters + stray::detach(hook, None, &self.pins)?)) {
                    Ok(strays) => report.count(strays),
                    Err(error) => report.failed(&name, error),
                }
            }
        }
        for attachment in self.attachments.values() {
            if !wanted.contains_key(&attachment.index) {
                let Attachment { interface, direction, .. } = attachment;
                info!(%interface, %direction, "no longer attached");
            }
        }
        self.attachments.retain(|(index, _), _| wanted.contains_key(index));
        self.searched.retain(|(index, _)| wanted.contains_key(index));
    }

    /// Interfaces without a role that may have programs of ours: those that had a role until now,
    /// and at first all of them, for a role may have ended unseen.
    fn unwanted_interfaces(&mut self, wanted: &Interfaces, report: &mut SyncReport) -> BTreeSet<u32> {
        let mut unwanted: BTreeSet<u32> = self.attachments.keys().map(|(index, _)| *index).collect();
        if !self.swept {
            match listing::all_interfaces() {
                Ok(interfaces) => {
                    self.swept = true;
                    unwanted.extend(interfaces.into_keys());
                }
                Err(error) => report.failed("", error),
            }
        }
        unwanted.retain(|index| !wanted.contains_key(index));
        unwanted
    }

    /// Leaves a hook in an unknown state, to be looked at in full the next time.
    fn forget(&mut self, index: u32, direction: Direction) {
        self.attachments.remove(&(index, direction));
        self.searched.remove(&(index, direction));
        self.swept = false;
    }
}
