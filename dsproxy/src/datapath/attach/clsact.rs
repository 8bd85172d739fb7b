//! Attaching with clsact: one filter for each hook, in direct-action mode.
//!
//! A filter is found again by its handle and name, at one of a few priorities: the first that no
//! one else uses. Sharing a priority, others could remove ours along with theirs; replacing what is
//! there, we would do the same to them. A filter stays when the daemon goes, and its program is
//! replaced in place. Nothing here knows of tcx.

use std::{collections::BTreeMap, ops::RangeInclusive, os::fd::AsRawFd};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::{
    AttachError, Direction, Hook, Outcome, PROGRAM_NAMES, Program, bpf_error,
    stray::{self, Owner, Strays},
};
use crate::netlink::{BlockingSocket, Message, NetlinkError, Request, attributes, number, text};

/// "ds" in ASCII: what others would hardly choose by chance.
const HANDLE: u32 = 0x6473;

/// Stands before the program's name in a filter's name.
const NAME_PREFIX: &str = "dsproxy_";

/// Ours is the outermost: at ingress it comes first, but for the very first place, over which
/// others are known to quarrel; at egress it comes last.
const fn priorities(direction: Direction) -> RangeInclusive<u16> {
    match direction {
        Direction::Ingress => 2..=17,
        Direction::Egress => 60_000..=60_015,
    }
}

/// How many of those are kept for programs of other layouts that have to come before: one for each that takes over before the last has.
const KEPT: u16 = 3;

const CLSACT: &str = "clsact";
const BPF: &str = "bpf";
const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const CLSACT_INGRESS: u32 = 0xffff_fff2;
const CLSACT_EGRESS: u32 = 0xffff_fff3;
const HEADER: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_ID: u16 = 11;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

fn parent(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => CLSACT_INGRESS,
        Direction::Egress => CLSACT_EGRESS,
    }
}

/// The fixed header of messages about qdiscs and filters.
fn header(index: u32, handle: u32, parent: u32, priority: u16) -> [u8; HEADER] {
    let info = u32::from(priority) << 16 | if priority == 0 { 0 } else { u32::from((libc::ETH_P_ALL as u16).to_be()) };
    let mut header = [0; HEADER];
    for (at, value) in [(4, index), (8, handle), (12, parent), (16, info)] {
        header[at..at + 4].copy_from_slice(&value.to_ne_bytes());
    }
    header
}

fn netlink_error(operation: &'static str, object: impl std::fmt::Display) -> impl FnOnce(NetlinkError) -> AttachError {
    let object = object.to_string();
    move |source| AttachError::Netlink { operation, object, source }
}

/// A filter at a hook. The kernel also lists each priority by itself, with a handle of zero.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Filter {
    handle: u32,
    priority: u16,
    kind: String,
    name: String,
    program_id: u32,
}

impl Filter {
    fn read(message: &Message<'_>) -> Option<Self> {
        let mut filter = Self {
            handle: number(message.payload.get(8..)?)?,
            priority: (number(message.payload.get(16..)?)? >> 16) as u16,
            ..Self::default()
        };
        for (kind, value) in attributes(message.payload, HEADER) {
            match kind {
                TCA_KIND => filter.kind = text(value),
                TCA_OPTIONS if filter.kind == BPF => {
                    for (kind, value) in attributes(value, 0) {
                        match kind {
                            TCA_BPF_NAME => filter.name = text(value),
                            TCA_BPF_ID => filter.program_id = number(value).unwrap_or_default(),
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        Some(filter)
    }

    /// Whether it bears our marks, wherever it stands.
    fn is_marked(&self) -> bool {
        let program = self.name.strip_prefix(NAME_PREFIX);
        self.kind == BPF && program.is_some_and(|program| PROGRAM_NAMES.contains(&program))
    }

    /// Whether it is where ours belong.
    fn is_in_place(&self, direction: Direction) -> bool {
        self.is_marked() && self.handle == HANDLE && priorities(direction).contains(&self.priority)
    }
}

/// A run of changes: one socket, and the qdiscs as they were listed at its start.
pub(super) struct Session {
    socket: BlockingSocket,
    /// The kind of what sits in clsact's place, by interface.
    qdiscs: BTreeMap<u32, String>,
}

impl Session {
    /// Lists the qdiscs. For all interfaces at once, because asking for a single one makes the
    /// kernel tell everyone who listens to changes.
    pub(super) fn open() -> Result<Self, AttachError> {
        let failed = || netlink_error("list", "the qdiscs of all interfaces");
        let mut session = Self { socket: BlockingSocket::open().map_err(failed())?, qdiscs: BTreeMap::new() };
        session.list_qdiscs().map_err(failed())?;
        Ok(session)
    }

    fn list_qdiscs(&mut self) -> Result<(), NetlinkError> {
        let Self { socket, qdiscs } = self;
        loop {
            qdiscs.clear();
            let listed = socket.exchange(Request::dump(libc::RTM_GETQDISC, &[0; HEADER]), |message| {
                qdiscs.extend(qdisc(&message));
            });
            match listed {
                Err(NetlinkError::Interrupted) => {}
                result => return result,
            }
        }
    }

    /// The interfaces that have a clsact qdisc, whoever made it.
    pub(super) fn interfaces(&self) -> Vec<u32> {
        self.qdiscs.iter().filter(|(_, kind)| *kind == CLSACT).map(|(index, _)| *index).collect()
    }

    /// Sees to it that a hook runs the program beside those of ours that are there, before them if there is room.
    pub(super) fn attach_beside(&mut self, hook: Hook<'_>, program: &Program) -> Result<Outcome, AttachError> {
        self.ensure_qdisc(hook)?;
        let filters = self.filters(hook, hook.direction)?;
        let mut ours = filters.iter().filter(|filter| filter.is_in_place(hook.direction));
        if ours.clone().any(|filter| filter.program_id == program.id) {
            return Ok(Outcome::Unchanged);
        }
        let before = ours.next().and_then(|first| priority_before(&filters, first.priority, hook.direction));
        let priority = before.map_or_else(|| free_priority(&filters, hook), Ok)?;
        self.set(hook, program, priority, NLM_F_CREATE | NLM_F_EXCL)?;
        Ok(Outcome::Attached)
    }

    /// Sees to it that a hook runs the program, and no other filter of ours.
    pub(super) fn attach(&mut self, hook: Hook<'_>, program: &Program) -> Result<Outcome, AttachError> {
        self.ensure_qdisc(hook)?;
        let filters = self.filters(hook, hook.direction)?;
        let in_place = || filters.iter().filter(|filter| filter.is_in_place(hook.direction));
        // Of two, the program has just been put beside the other: that one's is the place to keep.
        let present = in_place().find(|filter| filter.program_id != program.id).or_else(|| in_place().next());
        let outcome = match present {
            Some(filter) if filter.program_id == program.id => Outcome::Unchanged,
            Some(filter) => {
                // Neither to be created nor to be new: replaced in place.
                self.set(hook, program, filter.priority, 0)?;
                Outcome::Replaced
            }
            None => {
                let priority = free_priority(&filters, hook)?;
                self.set(hook, program, priority, NLM_F_CREATE | NLM_F_EXCL)?;
                Outcome::Attached
            }
        };
        self.remove_ours(hook, &filters, present)?;
        Ok(outcome)
    }

    /// Removes our filters from a hook. With the last filter of both hooks goes the qdisc: one that
    /// held only ours is taken for ours.
    pub(super) fn detach(&mut self, hook: Hook<'_>) -> Result<Strays, AttachError> {
        if !self.has_clsact(hook) {
            return Ok(Strays::default());
        }
        let filters = self.filters(hook, hook.direction)?;
        let removed = self.remove_ours(hook, &filters, None)?;
        if removed.detached > 0
            && self.filters(hook, Direction::Ingress)?.is_empty()
            && self.filters(hook, Direction::Egress)?.is_empty()
        {
            let request = Request::change(libc::RTM_DELQDISC, 0, &qdisc_header(hook));
            match self.socket.exchange(request, |_| {}) {
                Ok(()) => {}
                Err(error) if error.errno() == Some(libc::ENOENT) => {}
                Err(error) => return Err(netlink_error("remove the clsact qdisc of", hook)(error)),
            }
            self.qdiscs.remove(&hook.index);
        }
        Ok(removed)
    }

    /// The program of our filter at a hook, if there is one.
    pub(super) fn program_at(&mut self, hook: Hook<'_>) -> Result<Option<u32>, AttachError> {
        if !self.has_clsact(hook) {
            return Ok(None);
        }
        let filters = self.filters(hook, hook.direction)?;
        let ours = filters.iter().find(|filter| filter.is_in_place(hook.direction));
        Ok(ours.map(|filter| filter.program_id))
    }

    fn has_clsact(&self, hook: Hook<'_>) -> bool {
        self.qdiscs.get(&hook.index).is_some_and(|kind| kind == CLSACT)
    }

    /// Makes the clsact qdisc if need be. An `ingress` qdisc would take an egress filter as well,
    /// and run it at ingress.
    fn ensure_qdisc(&mut self, hook: Hook<'_>) -> Result<(), AttachError> {
        if !self.qdiscs.contains_key(&hook.index) {
            let request = Request::change(libc::RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &qdisc_header(hook))
                .attribute(TCA_KIND, b"clsact\0");
            match self.socket.exchange(request, |_| {}) {
                Ok(()) => {
                    self.qdiscs.insert(hook.index, CLSACT.to_owned());
                }
                // Someone else was faster; with what, is seen below.
                Err(error) if error.errno() == Some(libc::EEXIST) => {
                    self.list_qdiscs().map_err(netlink_error("look for the qdisc of", hook))?;
                }
                Err(error) => return Err(netlink_error("add the clsact qdisc for", hook)(error)),
            }
        }
        if self.has_clsact(hook) {
            Ok(())
        } else {
            Err(AttachError::IngressQdisc { hook: hook.to_string(), interface: hook.name.to_owned() })
        }
    }

    fn filters(&mut self, hook: Hook<'_>, direction: Direction) -> Result<Vec<Filter>, AttachError> {
        let mut found = Vec::new();
        loop {
            let request = Request::dump(libc::RTM_GETTFILTER, &header(hook.index, 0, parent(direction), 0));
            let listed = self.socket.exchange(request, |message| found.extend(Filter::read(&message)));
            match listed {
                Ok(()) => return Ok(found),
                Err(NetlinkError::Interrupted) => found.clear(),
                Err(error) => return Err(netlink_error("list the filters at", hook)(error)),
            }
        }
    }

    fn set(&mut self, hook: Hook<'_>, program: &Program, priority: u16, flags: u16) -> Result<(), AttachError> {
        let name = format!("{NAME_PREFIX}{}\0", program.name);
        let header = header(hook.index, HANDLE, parent(hook.direction), priority);
        let request = Request::change(libc::RTM_NEWTFILTER, flags, &header).attribute(TCA_KIND, b"bpf\0").nested(
            TCA_OPTIONS,
            |options| {
                options
                    .attribute(TCA_BPF_FD, &program.descriptor.as_raw_fd().to_ne_bytes())
                    .attribute(TCA_BPF_NAME, name.as_bytes())
                    .attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes())
            },
        );
        self.socket.exchange(request, |_| {}).map_err(netlink_error("set the clsact filter at", hook))
    }

    fn remove(&mut self, hook: Hook<'_>, filter: &Filter) -> Result<(), AttachError> {
        let header = header(hook.index, filter.handle, parent(hook.direction), filter.priority);
        match self.socket.exchange(Request::change(libc::RTM_DELTFILTER, 0, &header), |_| {}) {
            Ok(()) => Ok(()),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(netlink_error("remove a filter from", hook)(error)),
        }
    }

    /// Removes our filters, known by their marks or by the program that they run, except the one
    /// given.
    fn remove_ours(
        &mut self,
        hook: Hook<'_>,
        filters: &[Filter],
        keep: Option<&Filter>,
    ) -> Result<Strays, AttachError> {
        let mut strays = Strays::default();
        for filter in filters.iter().filter(|filter| Some(*filter) != keep) {
            let owner = match filter.program_id {
                _ if filter.is_marked() => Owner::Us,
                0 => Owner::Another,
                program => stray::owner_of(program).map_err(bpf_error("examine the filters at", hook))?,
            };
            match owner {
                Owner::Us => {
                    self.remove(hook, filter)?;
                    strays.detached += 1;
                }
                Owner::Another => {}
                Owner::Unknown => strays.unexamined += 1,
            }
        }
        Ok(strays)
    }
}

fn qdisc_header(hook: Hook<'_>) -> [u8; HEADER] {
    header(hook.index, CLSACT_HANDLE, TC_H_CLSACT, 0)
}

/// The interface and kind of a qdisc, if it sits in clsact's place.
fn qdisc(message: &Message<'_>) -> Option<(u32, String)> {
    let index = number(message.payload.get(4..)?)?;
    let parent = number(message.payload.get(12..)?)?;
    let (_, kind) = attributes(message.payload, HEADER).find(|(kind, _)| *kind == TCA_KIND)?;
    (parent == TC_H_CLSACT).then(|| (index, text(kind)))
}

fn is_free(filters: &[Filter], priority: u16) -> bool {
    filters.iter().all(|filter| filter.priority != priority)
}

fn free_priority(filters: &[Filter], hook: Hook<'_>) -> Result<u16, AttachError> {
    let range = priorities(hook.direction);
    let (from, to) = (*range.start(), *range.end());
    (from + KEPT..=to)
        .chain((from..from + KEPT).rev())
        .find(|priority| is_free(filters, *priority))
        .ok_or_else(|| AttachError::PrioritiesTaken { hook: hook.to_string(), from, to })
}

/// The free priority of ours nearest before `priority`.
fn priority_before(filters: &[Filter], priority: u16, direction: Direction) -> Option<u16> {
    (*priorities(direction).start()..priority).rev().find(|priority| is_free(filters, *priority))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(priority: u16, handle: u32, kind: &str, name: &str) -> Filter {
        Filter { handle, priority, kind: kind.into(), name: name.into(), program_id: 1 }
    }

    #[test]
    fn only_our_own_marks_count() {
        let ours = filter(2, HANDLE, BPF, "dsproxy_pod_ingress_ip");
        assert!(ours.is_in_place(Direction::Ingress));
        assert!(!ours.is_in_place(Direction::Egress), "another hook's priority");
        let elsewhere = filter(2, 1, BPF, "dsproxy_pod_ingress_ip");
        assert!(elsewhere.is_marked() && !elsewhere.is_in_place(Direction::Ingress));
        assert!(!filter(2, HANDLE, BPF, "pod_ingress_ip").is_marked());
        assert!(!filter(2, HANDLE, BPF, "dsproxy_other").is_marked());
        assert!(!filter(2, HANDLE, "u32", "dsproxy_pod_ingress_ip").is_marked());
    }

    #[test]
    fn a_priority_in_use_is_left_to_its_user() {
        let hook = Hook { index: 1, name: "x", direction: Direction::Ingress };
        assert_eq!(free_priority(&[], hook).expect("free"), 5);
        let taken: Vec<_> = (1..=5).map(|priority| filter(priority, 0, "u32", "")).collect();
        assert_eq!(free_priority(&taken, hook).expect("free"), 6);
        let most: Vec<_> = (3..=20).map(|priority| filter(priority, 0, BPF, "")).collect();
        assert_eq!(free_priority(&most, hook).expect("free"), 2, "those kept are taken last");
        assert_eq!(priority_before(&[], 5, Direction::Ingress), Some(4));
        assert_eq!(priority_before(&taken, 5, Direction::Ingress), None);
        let all: Vec<_> = (1..=20).map(|priority| filter(priority, 0, BPF, "")).collect();
        assert!(matches!(free_priority(&all, hook), Err(AttachError::PrioritiesTaken { .. })));
    }
}
