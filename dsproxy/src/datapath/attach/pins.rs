//! The pins of links on network devices. A link keeps its program attached for as long as its pin exists. The pin's name says which
//! hook it is for; the kernel says whether that is so.

use std::{
    fmt, io,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use super::{AttachError, Direction, bpf, bpf_error};

/// A place of a network device that a link can be for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Place {
    /// A tcx hook.
    Tcx(Direction),
    /// XDP.
    Xdp,
}

impl Place {
    const ALL: [Self; 3] = [Self::Tcx(Direction::Ingress), Self::Tcx(Direction::Egress), Self::Xdp];

    fn kind(self) -> bpf::LinkKind {
        match self {
            Self::Tcx(_) => bpf::LinkKind::Tcx,
            Self::Xdp => bpf::LinkKind::Xdp,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcx(direction) => direction.fmt(f),
            Self::Xdp => f.write_str("xdp"),
        }
    }
}

/// The directories of links that other versions of dsproxy have pinned beside `pins`, each below its own layout's
/// (`v1/links`, `v2/links`). None where `pins` is not of that form, or cannot be looked around in: such links are then
/// strays like any other.
pub(super) fn of_other_layouts(pins: &Path) -> Vec<PathBuf> {
    let is_layout = |directory: &Path| {
        let name = directory.file_name().and_then(|name| name.to_str());
        name.and_then(|name| name.strip_prefix('v')).is_some_and(|version| version.parse::<u32>().is_ok())
    };
    let is_of_layout = |links: &Path| links.parent().is_some_and(is_layout);
    let others = if is_of_layout(pins) { beside(pins) } else { Vec::new() };
    others.into_iter().filter(|links| is_of_layout(links)).collect()
}

/// The directories of links below all layouts beside that of `pins`, those that are being left included.
pub(super) fn beside(pins: &Path) -> Vec<PathBuf> {
    let (Some(links), Some(layout)) = (pins.file_name(), pins.parent()) else { return Vec::new() };
    let entries = layout.parent().and_then(|ours| std::fs::read_dir(ours).ok());
    let all = entries.into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    all.filter(|other| other != layout && other.is_dir()).map(|other| other.join(links)).collect()
}

/// The pin of a link. No dots: bpffs reserves names with one.
pub(super) fn path(pins: &Path, index: u32, place: Place) -> PathBuf {
    pins.join(format!("{index}-{place}"))
}

/// The places that have a pin. Files of other names are not ours to judge.
pub(super) fn list(pins: &Path) -> Result<Vec<(u32, Place)>, AttachError> {
    let failed = |source| AttachError::Pin { operation: "list", path: pins.to_owned(), source };
    let mut found = Vec::new();
    let entries = match std::fs::read_dir(pins) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        Err(error) => return Err(failed(error)),
    };
    for entry in entries {
        let name = entry.map_err(failed)?.file_name();
        found.extend(name.to_str().and_then(place_of));
    }
    found.sort_unstable();
    Ok(found)
}

fn place_of(pin: &str) -> Option<(u32, Place)> {
    let (index, name) = pin.split_once('-')?;
    let place = Place::ALL.into_iter().find(|place| place.to_string() == name)?;
    Some((index.parse().ok()?, place))
}

/// Opens the pinned link of a place, if there is one.
pub(super) fn open(
    pins: &Path,
    index: u32,
    place: Place,
) -> Result<Option<(impl AsFd + use<>, bpf::LinkInfo)>, AttachError> {
    let path = path(pins, index, place);
    let link = match bpf::pinned(&path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(AttachError::Pin { operation: "open the link", path, source }),
    };
    match bpf::device_link_info(link.as_fd(), place.kind()) {
        Ok(Some(info)) => Ok(Some((link, info))),
        Ok(None) => {
            let source = io::Error::new(io::ErrorKind::InvalidData, "not a link of this kind; remove the file");
            Err(AttachError::Pin { operation: "use the link", path, source })
        }
        Err(source) => Err(AttachError::Pin { operation: "read the link", path, source }),
    }
}

/// Pins a link that was just made. Should this fail, the link goes with its descriptor, and nothing stays attached that could not be
/// found again. The result is the link's id.
pub(super) fn pin(link: impl AsFd, pins: &Path, index: u32, place: Place) -> Result<u32, AttachError> {
    let path = path(pins, index, place);
    bpf::pin(link.as_fd(), &path).map_err(|source| AttachError::Pin { operation: "pin the link", path, source })?;
    let info = bpf::device_link_info(link.as_fd(), place.kind()).map_err(bpf_error("read the link of", place))?;
    Ok(info.map_or(0, |info| info.id))
}

/// Detaches the pinned link of a place and removes the pin. False if there was none.
pub(super) fn detach(index: u32, place: Place, pins: &Path) -> Result<bool, AttachError> {
    let Some((link, info)) = open(pins, index, place)? else { return Ok(false) };
    // Removing the last reference would detach as well, but only some time later. An interface of
    // zero says that the device is gone, and with it the attachment.
    if info.interface != 0 {
        bpf::detach_link(link.as_fd()).map_err(bpf_error("detach the link", info.id))?;
    }
    let path = path(pins, index, place);
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
    fn other_layouts_are_those_beside_ours() {
        let ours = tempfile::tempdir().expect("a directory");
        for name in ["v3", "v4", "v12", "vault", "4"] {
            std::fs::create_dir_all(ours.path().join(name).join("links")).expect("made");
        }
        let mut found = of_other_layouts(&ours.path().join("v4/links"));
        found.sort();
        assert_eq!(found, ["v12/links", "v3/links"].map(|path| ours.path().join(path)));
        assert!(of_other_layouts(&ours.path().join("vault/links")).is_empty());
        assert!(of_other_layouts(&ours.path().join("none/v4/links")).is_empty());
        assert!(of_other_layouts(Path::new("/")).is_empty());
    }

    #[test]
    fn pins_name_their_place() {
        for (index, place) in [1, u32::MAX].into_iter().flat_map(|index| Place::ALL.map(|place| (index, place))) {
            let path = path(Path::new("/x"), index, place);
            let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
            assert!(!name.contains('.'));
            assert_eq!(place_of(name), Some((index, place)));
        }
        for name in ["", "7", "7-", "ingress", "xdp", "7-sideways", "x-ingress", "-7-ingress"] {
            assert_eq!(place_of(name), None, "{name}");
        }
    }
}
