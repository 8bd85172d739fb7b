//! Attaching with clsact: one filter for each hook, in direct-action mode.
//!
//! A filter is found again by its handle and name, at one of a few priorities: the first that no
//! one else uses. Sharing a priority, others could remove ours along with theirs; replacing what is
//! there, we would do the same to them. A filter stays when the daemon goes, and its program is
//! replaced in place. Nothing here knows of tcx.

use std::{collections::BTreeSet, ops::RangeInclusive, os::fd::AsRawFd};

use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};

use super::{AttachError, Direction, Hook, Outcome, PROGRAM_NAMES, Program, bpf_error, stray};
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

struct Hooked<'a> {
    socket: BlockingSocket,
    hook: Hook<'a>,
}

impl<'a> Hooked<'a> {
    fn open(hook: Hook<'a>) -> Result<Self, AttachError> {
        let socket = BlockingSocket::open().map_err(netlink_error("reach", hook))?;
        Ok(Self { socket, hook })
    }

    /// What sits in clsact's place: nothing, clsact itself or, at times, `ingress`.
    fn qdisc(&mut self) -> Result<Option<String>, AttachError> {
        let request = Request::change(libc::RTM_GETQDISC, 0, &header(self.hook.index, CLSACT_HANDLE, TC_H_CLSACT, 0));
        let mut kind = None;
        let take = |message: Message<'_>| kind = kind_of(&message);
        match self.socket.exchange(request, take) {
            Ok(()) => Ok(kind),
            // None at all, or the one that stands for none.
            Err(error) if matches!(error.errno(), Some(libc::ENOENT | libc::EINVAL)) => Ok(None),
            Err(error) => Err(netlink_error("look for the qdisc at", self.hook)(error)),
        }
    }

    /// Makes the clsact qdisc if need be. An `ingress` qdisc would take an egress filter as well,
    /// and run it at ingress.
    fn ensure_qdisc(&mut self) -> Result<(), AttachError> {
        let check = |kind: Option<String>, hook: Hook<'_>| match kind.as_deref() {
            Some(CLSACT) => Ok(true),
            Some(_) => Err(AttachError::IngressQdisc { hook: hook.to_string(), interface: hook.name.to_owned() }),
            None => Ok(false),
        };
        if check(self.qdisc()?, self.hook)? {
            return Ok(());
        }
        let request = Request::change(
            libc::RTM_NEWQDISC,
            NLM_F_CREATE | NLM_F_EXCL,
            &header(self.hook.index, CLSACT_HANDLE, TC_H_CLSACT, 0),
        )
        .attribute(TCA_KIND, b"clsact\0");
        match self.socket.exchange(request, |_| {}) {
            Ok(()) => Ok(()),
            // Someone else was faster.
            Err(error) if error.errno() == Some(libc::EEXIST) => check(self.qdisc()?, self.hook).map(drop),
            Err(error) => Err(netlink_error("add the clsact qdisc for", self.hook)(error)),
        }
    }

    fn filters(&mut self, direction: Direction) -> Result<Vec<Filter>, AttachError> {
        let request = || Request::dump(libc::RTM_GETTFILTER, &header(self.hook.index, 0, parent(direction), 0));
        let mut found = Vec::new();
        loop {
            let listed = self.socket.exchange(request(), |message| found.extend(Filter::read(&message)));
            match listed {
                Ok(()) => return Ok(found),
                Err(NetlinkError::Interrupted) => found.clear(),
                Err(error) => return Err(netlink_error("list the filters at", self.hook)(error)),
            }
        }
    }

    fn set(&mut self, program: &Program, priority: u16, flags: u16) -> Result<(), AttachError> {
        let name = format!("{NAME_PREFIX}{}\0", program.name);
        let request = Request::change(
            libc::RTM_NEWTFILTER,
            flags,
            &header(self.hook.index, HANDLE, parent(self.hook.direction), priority),
        )
        .attribute(TCA_KIND, b"bpf\0")
        .nested(TCA_OPTIONS, |options| {
            options
                .attribute(TCA_BPF_FD, &program.descriptor.as_raw_fd().to_ne_bytes())
                .attribute(TCA_BPF_NAME, name.as_bytes())
                .attribute(TCA_BPF_FLAGS, &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes())
        });
        self.socket.exchange(request, |_| {}).map_err(netlink_error("set the clsact filter at", self.hook))
    }

    fn remove(&mut self, filter: &Filter) -> Result<(), AttachError> {
        let request = Request::change(
            libc::RTM_DELTFILTER,
            0,
            &header(self.hook.index, filter.handle, parent(self.hook.direction), filter.priority),
        );
        match self.socket.exchange(request, |_| {}) {
            Ok(()) => Ok(()),
            Err(error) if error.errno() == Some(libc::ENOENT) => Ok(()),
            Err(error) => Err(netlink_error("remove a filter from", self.hook)(error)),
        }
    }

    /// Whether a filter is one of ours, by its marks or by the program that it runs.
    fn is_ours(&self, filter: &Filter) -> Result<bool, AttachError> {
        Ok(filter.is_marked()
            || filter.program_id != 0
                && stray::is_our_program(filter.program_id).map_err(bpf_error("examine the filters at", self.hook))?)
    }

    /// Removes our filters, except the one given. The result is how many.
    fn remove_ours(&mut self, filters: &[Filter], keep: Option<&Filter>) -> Result<usize, AttachError> {
        let mut removed = 0;
        for filter in filters.iter().filter(|filter| Some(*filter) != keep) {
            if self.is_ours(filter)? {
                self.remove(filter)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn kind_of(message: &Message<'_>) -> Option<String> {
    attributes(message.payload, HEADER).find(|(kind, _)| *kind == TCA_KIND).map(|(_, value)| text(value))
}

/// Sees to it that a hook runs the program, and no other of ours.
pub(super) fn attach(hook: Hook<'_>, program: &Program) -> Result<Outcome, AttachError> {
    let mut hooked = Hooked::open(hook)?;
    hooked.ensure_qdisc()?;
    let filters = hooked.filters(hook.direction)?;
    let present = filters.iter().find(|filter| filter.is_in_place(hook.direction));
    let outcome = match present {
        Some(filter) if filter.program_id == program.id => Outcome::Unchanged,
        Some(filter) => {
            // Neither to be created nor to be new: replaced in place.
            hooked.set(program, filter.priority, 0)?;
            Outcome::Replaced
        }
        None => {
            let priority = free_priority(&filters, hook)?;
            hooked.set(program, priority, NLM_F_CREATE | NLM_F_EXCL)?;
            Outcome::Attached
        }
    };
    hooked.remove_ours(&filters, present)?;
    Ok(outcome)
}

fn free_priority(filters: &[Filter], hook: Hook<'_>) -> Result<u16, AttachError> {
    let range = priorities(hook.direction);
    let (from, to) = (*range.start(), *range.end());
    range
        .into_iter()
        .find(|priority| filters.iter().all(|filter| filter.priority != *priority))
        .ok_or_else(|| AttachError::PrioritiesTaken { hook: hook.to_string(), from, to })
}

/// Removes our filters from a hook. With the last filter of either hook goes the qdisc: one that
/// held only ours is taken for ours. The result is how many filters there were.
pub(super) fn detach(hook: Hook<'_>) -> Result<usize, AttachError> {
    let mut hooked = Hooked::open(hook)?;
    if hooked.qdisc()?.as_deref() != Some(CLSACT) {
        return Ok(0);
    }
    let filters = hooked.filters(hook.direction)?;
    let removed = hooked.remove_ours(&filters, None)?;
    if removed > 0 && hooked.filters(Direction::Ingress)?.is_empty() && hooked.filters(Direction::Egress)?.is_empty() {
        let request = Request::change(libc::RTM_DELQDISC, 0, &header(hook.index, CLSACT_HANDLE, TC_H_CLSACT, 0));
        match hooked.socket.exchange(request, |_| {}) {
            Ok(()) => {}
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            Err(error) => return Err(netlink_error("remove the clsact qdisc of", hook)(error)),
        }
    }
    Ok(removed)
}

/// The program of our filter at a hook, if there is one.
pub(super) fn program_at(hook: Hook<'_>) -> Result<Option<u32>, AttachError> {
    let mut hooked = Hooked::open(hook)?;
    if hooked.qdisc()?.as_deref() != Some(CLSACT) {
        return Ok(None);
    }
    let filters = hooked.filters(hook.direction)?;
    Ok(filters.iter().find(|filter| filter.is_in_place(hook.direction)).map(|filter| filter.program_id))
}

/// The interfaces that have a clsact qdisc, whoever made it.
pub(super) fn interfaces_with_clsact() -> Result<BTreeSet<u32>, AttachError> {
    let failed = || netlink_error("list", "the qdiscs of all interfaces");
    let mut socket = BlockingSocket::open().map_err(failed())?;
    let mut found = BTreeSet::new();
    loop {
        let listed = socket.exchange(Request::dump(libc::RTM_GETQDISC, &header(0, 0, 0, 0)), |message| {
            if kind_of(&message).as_deref() == Some(CLSACT) {
                found.extend(message.payload.get(4..).and_then(number));
            }
        });
        match listed {
            Ok(()) => return Ok(found),
            Err(NetlinkError::Interrupted) => {}
            Err(error) => return Err(failed()(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(priority: u16, handle: u32, kind: &str, name: &str) -> Filter {
        Filter { handle, priority, kind: kind.into(), name: name.into(), program_id: 1 }
    }

    #[test]
    fn only_our_own_marks_count() {
        let ours = filter(2, HANDLE, BPF, "dsproxy_ingress_ip");
        assert!(ours.is_in_place(Direction::Ingress));
        assert!(!ours.is_in_place(Direction::Egress), "another hook's priority");
        let elsewhere = filter(2, 1, BPF, "dsproxy_ingress_ip");
        assert!(elsewhere.is_marked() && !elsewhere.is_in_place(Direction::Ingress));
        assert!(!filter(2, HANDLE, BPF, "ingress_ip").is_marked());
        assert!(!filter(2, HANDLE, BPF, "dsproxy_other").is_marked());
        assert!(!filter(2, HANDLE, "u32", "dsproxy_ingress_ip").is_marked());
    }

    #[test]
    fn a_priority_in_use_is_left_to_its_user() {
        let hook = Hook { index: 1, name: "x", direction: Direction::Ingress };
        assert_eq!(free_priority(&[], hook).expect("free"), 2);
        let taken: Vec<_> = (1..=4).map(|priority| filter(priority, 0, "u32", "")).collect();
        assert_eq!(free_priority(&taken, hook).expect("free"), 5);
        let all: Vec<_> = (1..=20).map(|priority| filter(priority, 0, BPF, "")).collect();
        assert!(matches!(free_priority(&all, hook), Err(AttachError::PrioritiesTaken { .. })));
    }
}
