//! Attaching with tcx: one pinned link for each hook.
//!
//! A link keeps its program attached for as long as its pin exists, and its program can be replaced
//! without its losing its place among the programs of others. The pin's name says which hook it is
//! for; the kernel says whether that is so. Nothing here knows of clsact.

use std::{io, os::fd::AsFd, path::Path, path::PathBuf};

use super::{AttachError, Direction, Hook, Outcome, Program, bpf, bpf_error};

/// The pin of a hook's link. No dots: bpffs reserves names with one.
fn pin_of(pins: &Path, index: u32, direction: Direction) -> PathBuf {
    pins.join(format!("{index}-{direction}"))
}

/// The hooks that have a pin. Files of other names are not ours to judge.
pub(super) fn pins_in(pins: &Path) -> Result<Vec<(u32, Direction)>, AttachError> {
    let failed = |source| AttachError::Pin { operation: "list", path: pins.to_owned(), source };
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(pins) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        found.extend(name.to_str().and_then(hook_of));
    }
    found.sort_unstable();
    Ok(found)
}

fn hook_of(pin: &str) -> Option<(u32, Direction)> {
    let (index, direction) = pin.split_once('-')?;
    let direction = match direction {
        "ingress" => Direction::Ingress,
        "egress" => Direction::Egress,
        _ => return None,
    };
    Some((index.parse().ok()?, direction))
}

/// Opens the pinned link of a hook, if there is one.
pub(super) fn open_pin(
    pins: &Path,
    index: u32,
    direction: Direction,
) -> Result<Option<(impl AsFd, bpf::LinkInfo)>, AttachError> {
    let path = pin_of(pins, index, direction);
    let link = match bpf::pinned(&path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(AttachError::Pin { operation: "open the link", path, source }),
    };
    match bpf::tcx_link_info(link.as_fd()) {
        Ok(Some(info)) => Ok(Some((link, info))),
        Ok(None) => {
            let source = io::Error::new(io::ErrorKind::InvalidData, "not a tcx link; remove the file");
            Err(AttachError::Pin { operation: "use the link", path, source })
        }
        Err(source) => Err(AttachError::Pin { operation: "read the link", path, source }),
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
pub(super) fn attach(hook: Hook<'_>, program: &Program, pins: &Path) -> Result<(u32, Outcome), AttachError> {
    let present = programs_at(hook)?;
    if let Some((link, info)) = open_pin(pins, hook.index, hook.direction)? {
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
        detach(hook.index, hook.direction, pins)?;
    }
    let link = bpf::attach(program.descriptor.as_fd(), hook.index, hook.direction)
        .map_err(bpf_error("attach with tcx to", hook))?;
    let path = pin_of(pins, hook.index, hook.direction);
    // Should this fail, the link goes with its descriptor, and nothing stays attached that could
    // not be found again.
    bpf::pin(link.as_fd(), &path).map_err(|source| AttachError::Pin { operation: "pin the link", path, source })?;
    let info = bpf::tcx_link_info(link.as_fd()).map_err(bpf_error("read the link of", hook))?;
    Ok((info.map_or(0, |info| info.id), Outcome::Attached))
}

/// Detaches the pinned link of a hook and removes the pin. False if there was none.
pub(super) fn detach(index: u32, direction: Direction, pins: &Path) -> Result<bool, AttachError> {
    let Some((link, info)) = open_pin(pins, index, direction)? else { return Ok(false) };
    // Removing the last reference would detach as well, but only some time later. An interface of
    // zero says that the device is gone, and with it the attachment.
    if info.interface != 0 {
        bpf::detach_link(link.as_fd()).map_err(bpf_error("detach the link", info.id))?;
    }
    let path = pin_of(pins, index, direction);
    match std::fs::remove_file(&path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(source) => Err(AttachError::Pin { operation: "remove", path, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_name_their_hook() {
        for (index, direction) in [(1, Direction::Ingress), (u32::MAX, Direction::Egress)] {
            let path = pin_of(Path::new("/x"), index, direction);
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
            assert!(!name.contains('.'));
            assert_eq!(hook_of(name), Some((index, direction)));
        }
        for name in ["", "7", "7-", "ingress", "7-sideways", "x-ingress", "-7-ingress"] {
            assert_eq!(hook_of(name), None, "{name}");
        }
    }
}
