//! Knows our own programs by what the kernel remembers of them, and detaches those that sit at a
//! hook without being the one that should: left by a dsproxy that pinned elsewhere, or attached in
//! another way. Nothing here knows which program should be there; the caller says which link is.

use std::{io, os::fd::AsFd};

use dsproxy_common::{IpFamily, layout};
use tracing::debug;

use super::{AttachError, Hook, PROGRAM_NAMES, bpf, bpf_error};

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

/// Whether the program of this id is one of ours; not if it is gone.
pub(super) fn is_our_program(id: u32) -> io::Result<bool> {
    let read = bpf::program_by_id(id).and_then(|program| bpf::program_info(program.as_fd()));
    match read {
        Ok(info) => Ok(is_ours(&info)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Detaches our programs from a tcx hook, except the one that `keep` holds. The result is how many.
pub(super) fn detach(hook: Hook<'_>, keep: Option<u32>) -> Result<usize, AttachError> {
    let entries = match bpf::programs_at(hook.index, hook.direction) {
        Ok(entries) => entries,
        // No tcx, no strays.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return Ok(0),
        Err(error) => return Err(bpf_error("list the programs at", hook)(error)),
    };
    let mut detached = 0;
    for bpf::HookEntry { program_id, link_id } in entries {
        if keep == Some(link_id) {
            continue;
        }
        let failed = bpf_error("examine the programs at", hook);
        if !is_our_program(program_id).map_err(failed)? {
            debug!(%hook, program_id, "a program of someone else");
            continue;
        }
        let result = if link_id == 0 {
            bpf::program_by_id(program_id)
                .and_then(|program| bpf::detach_program(program.as_fd(), hook.index, hook.direction))
        } else {
            bpf::link_by_id(link_id).and_then(|link| bpf::detach_link(link.as_fd()))
        };
        result.map_err(bpf_error("detach a leftover program from", hook))?;
        detached += 1;
    }
    Ok(detached)
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
