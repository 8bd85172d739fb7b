//! Detaches programs of ours that sit at a hook without being the one that should: left by a dsproxy of another layout, by one
//! that pinned elsewhere, or attached in another way. Nothing here knows which program should be there; the caller says
//! which link is.
//!
//! What another layout has pinned beside us is found by its pin. All else is known by what the kernel remembers of a program,
//! which only a process with `CAP_SYS_ADMIN` may ask by the program's id (`bpf_prog_get_fd_by_id` in kernel/bpf/syscall.c);
//! without it, a program at a hook is taken for somebody else's, and counted as unexamined.

use std::{io, os::fd::AsFd, path::Path};

use dsproxy_common::{IpFamily, layout};
use tracing::debug;

use super::{AttachError, Hook, PROGRAM_NAMES, bpf, bpf_error, pins, pins::Place};

/// Whose a program is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Owner {
    /// One of ours.
    Us,
    /// Somebody else's, or it is gone.
    Another,
    /// We may not ask.
    Unknown,
}

/// What a search for strays came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Strays {
    /// Programs of ours that were detached.
    pub(super) detached: usize,
    /// Programs of which it could not be told whose they are; they were left.
    pub(super) unexamined: usize,
}

impl std::ops::Add for Strays {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { detached: self.detached + other.detached, unexamined: self.unexamined + other.unexamined }
    }
}

/// The kernel keeps this much of a program's or map's name.
const NAME_LENGTH: usize = 15;

/// Whether a program is one of ours: it has one of our names *and* uses one of our maps. A name
/// alone, such as `node_ingress_ip`, others may have as well.
pub(super) fn is_ours(program: &bpf::ProgramInfo) -> bool {
    let cut = |name: &'static str| &name[..name.len().min(NAME_LENGTH)];
    let of_families = IpFamily::ALL.into_iter().flat_map(|family| layout::family_maps(family).all());
    let maps: Vec<&str> = of_families.map(cut).collect();
    PROGRAM_NAMES.into_iter().map(cut).any(|name| name == program.name)
        && program.maps.iter().any(|map| maps.contains(&map.as_str()))
}

/// Whose the program of this id is.
pub(super) fn owner_of(program_id: u32) -> io::Result<Owner> {
    match bpf::program_by_id(program_id).and_then(|program| bpf::program_info(program.as_fd())) {
        Ok(info) if is_ours(&info) => Ok(Owner::Us),
        Ok(_) => Ok(Owner::Another),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Owner::Another),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(Owner::Unknown),
        Err(error) => Err(error),
    }
}

/// Detaches our programs from a tcx hook, except the one that the link `keep` holds.
pub(super) fn detach(hook: Hook<'_>, keep: Option<u32>, pins: &Path) -> Result<Strays, AttachError> {
    let mut strays = Strays::default();
    let entries = match bpf::programs_at(hook.index, hook.direction) {
        Ok(entries) => entries,
        // No tcx, no strays.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(strays),
        Err(error) => return Err(bpf_error("list the programs at", hook)(error)),
    };
    for entry in entries {
        if keep == Some(entry.link_id) {
            continue;
        }
        if detach_by_pin(hook, entry, pins)? {
            strays.detached += 1;
            continue;
        }
        let bpf::HookEntry { program_id, link_id } = entry;
        match owner_of(program_id).map_err(bpf_error("examine the programs at", hook))? {
            Owner::Us => {
                let result = if link_id == 0 {
                    bpf::program_by_id(program_id)
                        .and_then(|program| bpf::detach_program(program.as_fd(), hook.index, hook.direction))
                } else {
                    bpf::link_by_id(link_id).and_then(|link| bpf::detach_link(link.as_fd()))
                };
                result.map_err(bpf_error("detach a leftover program from", hook))?;
                strays.detached += 1;
            }
            Owner::Another => debug!(%hook, program_id, "a program of someone else"),
            Owner::Unknown => {
                debug!(%hook, program_id, "whose program it is may not be asked");
                strays.unexamined += 1;
            }
        }
    }
    Ok(strays)
}

/// Detaches what another layout of ours has pinned, if this is that.
fn detach_by_pin(hook: Hook<'_>, entry: bpf::HookEntry, pins: &Path) -> Result<bool, AttachError> {
    if entry.link_id == 0 {
        return Ok(false);
    }
    let place = Place::Tcx(hook.direction);
    for pins in pins::of_other_layouts(pins) {
        let pinned = pins::open(&pins, hook.index, place)?;
        if pinned.is_some_and(|(_, info)| info.id == entry.link_id) {
            return pins::detach(hook.index, place, &pins);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_alone_makes_no_program_ours() {
        let program = |name: &str, maps: &[&str]| bpf::ProgramInfo {
            id: 1,
            name: name.into(),
            maps: maps.iter().map(ToString::to_string).collect(),
        };
        assert!(is_ours(&program("pod_ingress_eth", &["COUNTERS", "FRONTENDS_V6"])));
        assert!(is_ours(&program("node_egress_ip", &["EGRESS_V4"])));
        assert!(!is_ours(&program("node_ingress_ip", &[])));
        assert!(!is_ours(&program("node_ingress_ip", &["COUNTERS"])));
        assert!(!is_ours(&program("node_ingress_ipv6", &["FRONTENDS_V4"])));
    }
}
