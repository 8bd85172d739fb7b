//! What is attached in the network namespace, and the removal of all of it. Works from what the
//! kernel and bpffs say alone: no program is loaded, and no daemon need be running.

use std::{collections::BTreeMap, path::Path};

use nix::net::if_::{Interface, if_indextoname, if_nameindex};

use super::{
    AttachError, AttachKind, Attachment, Direction, Failure, Hook, bpf, bpf_error, cgroup, clsact, pins,
    pins::Place,
    stray::{self, Strays},
};
use crate::interfaces::Role;

/// The attachments, by interface. Those that are not node devices are pods' interfaces, or nothing would be attached to them.
pub fn list(pins: &Path, is_node_device: impl Fn(u32) -> bool) -> Result<Vec<Attachment>, AttachError> {
    let mut found = Vec::new();
    let mut add = |index, direction, kind, program_id, link_id| {
        found.push(Attachment {
            index,
            interface: name_of(index),
            role: if is_node_device(index) { Role::NodeDevice } else { Role::PodInterface },
            direction,
            kind,
            program_id,
            link_id,
        });
    };
    for (index, place) in pins::list(pins)? {
        if let Some((_, bpf::LinkInfo { id, program_id, interface })) = pins::open(pins, index, place)?
            && interface == index
        {
            let (direction, kind) = match place {
                Place::Tcx(direction) => (direction, AttachKind::Tcx),
                Place::Xdp => (Direction::Ingress, AttachKind::Xdp),
            };
            add(index, direction, kind, program_id, Some(id));
        }
    }
    let mut session = clsact::Session::open()?;
    for index in session.interfaces() {
        let name = name_of(index);
        for direction in [Direction::Ingress, Direction::Egress] {
            if let Some(program) = session.program_at(Hook { index, name: &name, direction })? {
                add(index, direction, AttachKind::Clsact, program, None);
            }
        }
    }
    found.sort_by_key(|attachment| (attachment.index, attachment.direction, attachment.kind));
    Ok(found)
}

/// What a removal did.
#[derive(Debug, Default)]
pub struct Cleanup {
    /// Attachments and pins that were removed.
    pub detached: usize,
    /// Programs at interfaces that are ours or somebody else's: without `CAP_SYS_ADMIN` it cannot be told. They were left.
    pub unexamined: usize,
    /// What failed; everything else was done all the same.
    pub failures: Vec<Failure>,
}

/// What was found by its pin is known to be ours.
fn known(is_detached: bool) -> Strays {
    Strays { detached: usize::from(is_detached), unexamined: 0 }
}

/// Detaches every program of ours from every interface of the network namespace, and from cgroups.
pub fn detach_all(pins: &Path) -> Cleanup {
    let mut cleanup = Cleanup::default();
    let mut note = |interface: &str, result: Result<Strays, AttachError>| match result {
        Ok(Strays { detached, unexamined }) => {
            cleanup.detached += detached;
            cleanup.unexamined += unexamined;
        }
        Err(error) if error.is_gone() => {}
        Err(error) => cleanup.failures.push(Failure { interface: interface.to_owned(), error }),
    };
    match pins::list(pins) {
        Ok(pinned) => {
            for (index, place) in pinned {
                note(&name_of(index), pins::detach(index, place, pins).map(known));
            }
        }
        Err(error) => note("", Err(error)),
    }
    match all_interfaces().and_then(|interfaces| Ok((interfaces, clsact::Session::open()?))) {
        Ok((interfaces, mut session)) => {
            for (index, name) in interfaces {
                for direction in [Direction::Ingress, Direction::Egress] {
                    let hook = Hook { index, name: &name, direction };
                    note(&name, session.detach(hook));
                    note(&name, stray::detach(hook, None, pins));
                }
            }
        }
        Err(error) => note("", Err(error)),
    }
    for hook in cgroup::SocketHook::ALL {
        note(hook.name(), cgroup::detach(hook, pins).map(known));
    }
    cleanup
}

/// The names of all interfaces, by index.
pub(super) fn all_interfaces() -> Result<BTreeMap<u32, String>, AttachError> {
    let interfaces = if_nameindex().map_err(|errno| bpf_error("list", "the interfaces")(errno.into()))?;
    let named = |interface: &Interface| (interface.index(), interface.name().to_string_lossy().into_owned());
    Ok(interfaces.iter().map(named).collect())
}

/// The name of an interface; empty if it is gone.
pub fn name_of(index: u32) -> String {
    if_indextoname(index).map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
