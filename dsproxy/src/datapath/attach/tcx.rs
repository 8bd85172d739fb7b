//! Attaching with tcx: one pinned link for each hook.
//!
//! A link keeps its program attached for as long as its pin exists, and its program can be replaced
//! without its losing its place among the programs of others. The pin's name says which hook it is
//! for; the kernel says whether that is so. Nothing here knows of clsact.

use std::{os::fd::AsFd, path::Path};

use super::{AttachError, Direction, Hook, Outcome, Program, bpf, bpf_error, pins, pins::Place};

/// The loopback device, which every network namespace has.
const LOOPBACK: u32 = 1;

/// Whether the kernel has tcx.
///
/// # Errors
///
/// When it does not say.
pub fn is_known() -> Result<bool, AttachError> {
    let hook = Hook { index: LOOPBACK, name: "lo", direction: Direction::Ingress };
    match programs_at(hook) {
        Ok(_) => Ok(true),
        Err(AttachError::NoTcx { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// The programs at a hook.
fn programs_at(hook: Hook<'_>) -> Result<Vec<bpf::HookEntry>, AttachError> {
    bpf::programs_at(hook.index, hook.direction).map_err(|error| match error.raw_os_error() {
        // The kernel does not know the attach type.
        Some(libc::EINVAL) => AttachError::NoTcx { hook: hook.to_string() },
        _ => bpf_error("list the programs at", hook)(error),
    })
}

/// Sees to it that a hook runs the program. The result is the link's id and what it took.
///
/// Where programs of another layout are pinned beside `pins`, it comes before those.
pub(super) fn attach(hook: Hook<'_>, program: &Program, pins: &Path) -> Result<(u32, Outcome), AttachError> {
    let present = programs_at(hook)?;
    let place = Place::Tcx(hook.direction);
    if let Some((link, info)) = pins::open(pins, hook.index, place)? {
        // The link's own word is not enough: an interface that moves to another namespace takes its
        // links along, and may have the same index there.
        if present.iter().any(|entry| entry.link_id == info.id) {
            if info.program_id == program.id {
                return Ok((info.id, Outcome::Unchanged));
            }
            bpf::replace(link.as_fd(), program.descriptor.as_fd())
                .map_err(bpf_error("replace the program at", hook))?;
            return Ok((info.id, Outcome::Replaced));
        }
        pins::detach(hook.index, place, pins)?;
    }
    let others = first_of_others(hook, pins, &present)?;
    let before = others.as_ref().map(AsFd::as_fd);
    let link = bpf::attach(program.descriptor.as_fd(), hook.index, hook.direction, before)
        .map_err(bpf_error("attach with tcx to", hook))?;
    Ok((pins::pin(link, pins, hook.index, place)?, Outcome::Attached))
}

/// The first link at a hook that another layout has pinned, if it is one of those that are `present`.
fn first_of_others(
    hook: Hook<'_>,
    pins: &Path,
    present: &[bpf::HookEntry],
) -> Result<Option<impl AsFd + use<>>, AttachError> {
    let mut first = None;
    for directory in pins::beside(pins) {
        let Some((link, info)) = pins::open(&directory, hook.index, Place::Tcx(hook.direction))? else { continue };
        let Some(position) = present.iter().position(|entry| entry.link_id == info.id) else { continue };
        if first.as_ref().is_none_or(|(earlier, _)| position < *earlier) {
            first = Some((position, link));
        }
    }
    Ok(first.map(|(_, link)| link))
}
