//! The links of another layout's programs, once this one's are attached beside them: taken over, where a device has room for one
//! alone, or detached.

use std::{fs, io, path::Path};

use super::{
    AttachError,
    cgroup::{self, SocketHook},
    pins::{self, Place},
};

/// Takes over the XDP links pinned in `from`, whose programs the next sync replaces in place.
pub(in crate::datapath) fn take_xdp(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    let pinned = pins::list(from).map_err(io::Error::other)?;
    for (index, place) in pinned.into_iter().filter(|(_, place)| *place == Place::Xdp) {
        let (old, new) = (pins::path(from, index, place), pins::path(to, index, place));
        if !new.exists() {
            fs::rename(old, new)?;
        }
    }
    Ok(())
}

/// Detaches the programs pinned in `links` that lead sockets to backends: those of this layout do it from now on. Those that tell
/// sockets who has answered stay.
pub(in crate::datapath) fn retire_sockets_that_lead(links: &Path) -> Result<(), AttachError> {
    SocketHook::ALL.into_iter().filter(|hook| hook.leads()).try_for_each(|hook| cgroup::detach(hook, links).map(drop))
}

/// Detaches all programs pinned in `links`; how many those were. What comes first is first to go: nothing new is begun by
/// programs that no longer hear of its answers.
pub(in crate::datapath) fn retire(links: &Path) -> Result<usize, AttachError> {
    let mut detached = 0;
    let (ingress, other): (Vec<_>, Vec<_>) =
        pins::list(links)?.into_iter().partition(|(_, place)| *place == Place::Tcx(super::Direction::Ingress));
    for (index, place) in ingress.into_iter().chain(other) {
        detached += usize::from(pins::detach(index, place, links)?);
    }
    Ok(detached + cgroup::detach_all(links)?)
}
