//! The bpf(2) commands that attaching takes and aya 0.14 does not offer.
//!
//! aya attaches by interface name, which may belong to another interface by the time it is looked
//! up, and shows neither the interface of a tcx link nor the links of an interface. Here everything
//! goes by interface index and link id. Nothing here knows what the programs do or where pins live.
//!
//! The structures are those of `union bpf_attr` in the kernel's include/uapi/linux/bpf.h.

use std::{
    ffi::{CStr, CString},
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use super::Direction;

mod command {
    pub(super) const OBJ_PIN: libc::c_long = 6;
    pub(super) const OBJ_GET: libc::c_long = 7;
    pub(super) const PROG_DETACH: libc::c_long = 9;
    pub(super) const PROG_GET_FD_BY_ID: libc::c_long = 13;
    pub(super) const MAP_GET_FD_BY_ID: libc::c_long = 14;
    pub(super) const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
    pub(super) const PROG_QUERY: libc::c_long = 16;
    pub(super) const LINK_CREATE: libc::c_long = 28;
    pub(super) const LINK_UPDATE: libc::c_long = 29;
    pub(super) const LINK_GET_FD_BY_ID: libc::c_long = 30;
    pub(super) const LINK_DETACH: libc::c_long = 34;
}

const BPF_XDP: u32 = 37;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_F_BEFORE: u32 = 1 << 3;
const BPF_F_AFTER: u32 = 1 << 4;
const BPF_F_LINK: u32 = 1 << 13;
const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_XDP: u32 = 6;
const BPF_LINK_TYPE_TCX: u32 = 11;

/// In the driver, or not at all (include/uapi/linux/if_link.h).
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// More programs than the kernel allows at one hook (`BPF_MPROG_MAX`).
const PROGRAMS_AT_HOOK: usize = 64;

/// Maps of one program that are looked at; our programs have some fifteen.
const MAPS_OF_PROGRAM: usize = 64;

fn attach_type(direction: Direction) -> u32 {
    match direction {
        Direction::Ingress => BPF_TCX_INGRESS,
        Direction::Egress => BPF_TCX_EGRESS,
    }
}

/// Structures of integers alone, laid out as the kernel's, in which every bit pattern is valid.
///
/// # Safety
///
/// The type is `repr(C)`, holds nothing but integers and has no padding.
pub(in crate::datapath) unsafe trait KernelStruct: Sized {}

/// Runs a command. The result is the kernel's: a descriptor for some commands, zero for others.
pub(in crate::datapath) fn run<T: KernelStruct>(command: libc::c_long, attribute: &mut T) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes at most the given size, which is that of `attribute`.
    // The addresses within it are those of live buffers: each function below fills them in.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attribute, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Runs a command whose result is a descriptor.
pub(in crate::datapath) fn open<T: KernelStruct>(command: libc::c_long, attribute: &mut T) -> io::Result<OwnedFd> {
    let descriptor = run(command, attribute)?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as i32) })
}

pub(in crate::datapath) fn address_of<T: ?Sized>(buffer: &mut T) -> u64 {
    (&raw mut *buffer).cast::<u8>() as u64
}

pub(in crate::datapath) fn raw(descriptor: impl AsFd) -> u32 {
    // A valid descriptor is never negative.
    descriptor.as_fd().as_raw_fd() as u32
}

macro_rules! kernel_struct {
    ($name:ident, $size:literal, { $($field:ident: $type:ty),* $(,)? }) => {
        #[repr(C)]
        #[derive(Default)]
        struct $name { $($field: $type),* }
        // Equal to the sum of the fields: no padding.
        const _: () = assert!(size_of::<$name>() == $size && $size == 0 $(+ size_of::<$type>())*);
        // SAFETY: only integers and arrays of integers, and the assertion above says no padding.
        unsafe impl $crate::datapath::attach::bpf::KernelStruct for $name {}
    };
}

pub(in crate::datapath) use kernel_struct;

kernel_struct!(LinkCreate, 32, {
    program: u32, interface: u32, attach_type: u32, flags: u32,
    relative: u32, unused: u32, expected_revision: u64,
});
kernel_struct!(LinkUpdate, 16, { link: u32, program: u32, flags: u32, old_program: u32 });
kernel_struct!(LinkDetach, 4, { link: u32 });
kernel_struct!(ProgramDetach, 32, {
    interface: u32, program: u32, attach_type: u32, flags: u32,
    replace: u32, relative: u32, expected_revision: u64,
});
kernel_struct!(ById, 12, { id: u32, next: u32, flags: u32 });
kernel_struct!(Pin, 16, { path: u64, object: u32, flags: u32 });
kernel_struct!(GetInfo, 16, { object: u32, length: u32, info: u64 });
kernel_struct!(Query, 64, {
    interface: u32, attach_type: u32, flags: u32, attach_flags: u32,
    program_ids: u64, count: u32, unused: u32, program_flags: u64,
    link_ids: u64, link_flags: u64, revision: u64,
});
kernel_struct!(DeviceLinkInfo, 24, {
    kind: u32, id: u32, program_id: u32, unused: u32, interface: u32, attach_type: u32,
});
kernel_struct!(RawCgroupLinkInfo, 32, {
    kind: u32, id: u32, program_id: u32, unused: u32, cgroup: u64, attach_type: u32, unused_at_end: u32,
});
kernel_struct!(RawProgramInfo, 80, {
    kind: u32, id: u32, tag: [u8; 8], jited_length: u32, xlated_length: u32,
    jited: u64, xlated: u64, load_time: u64, created_by: u32, map_count: u32,
    map_ids: u64, name: [u8; 16],
});
kernel_struct!(RawMapInfo, 40, {
    kind: u32, id: u32, key_size: u32, value_size: u32, max_entries: u32, flags: u32,
    name: [u8; 16],
});

/// What a link to a network device is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkKind {
    /// A tcx hook.
    Tcx,
    /// XDP.
    Xdp,
}

/// A link to a network device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// Its id, never used again.
    pub(super) id: u32,
    /// The program that it runs.
    pub(super) program_id: u32,
    /// The interface that it is attached to; zero once that is gone.
    pub(super) interface: u32,
}

/// A link to a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CgroupLinkInfo {
    /// Its id, never used again.
    pub(super) id: u32,
    /// The program that it runs.
    pub(super) program_id: u32,
    /// The id of the cgroup that it is attached to; zero once that is gone.
    pub(super) cgroup: u64,
    /// The hook.
    pub(super) attach_type: u32,
}

/// A program, as the kernel remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ProgramInfo {
    /// Its id.
    pub(super) id: u32,
    /// Its name, cut to 15 characters.
    pub(super) name: String,
    /// The names of its maps, cut likewise.
    pub(super) maps: Vec<String>,
}

/// One program at a tcx hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HookEntry {
    /// The program.
    pub(super) program_id: u32,
    /// The link that holds it; zero if it was attached without one.
    pub(super) link_id: u32,
}

/// Attaches a program: at ingress before all others, at egress after all others, or else just before the one of the link `before`.
///
/// Ours then is the outermost: the programs of others see packets as the host's stack does.
pub(super) fn attach(
    program: BorrowedFd<'_>,
    interface: u32,
    direction: Direction,
    before: Option<BorrowedFd<'_>>,
) -> io::Result<OwnedFd> {
    let mut attribute = LinkCreate {
        program: raw(program),
        interface,
        attach_type: attach_type(direction),
        flags: match (direction, before) {
            (_, Some(_)) => BPF_F_BEFORE | BPF_F_LINK,
            (Direction::Ingress, None) => BPF_F_BEFORE,
            (Direction::Egress, None) => BPF_F_AFTER,
        },
        relative: before.map_or(0, raw),
        ..LinkCreate::default()
    };
    open(command::LINK_CREATE, &mut attribute)
}

/// Attaches a program to a device's driver.
pub(super) fn attach_to_driver(program: BorrowedFd<'_>, interface: u32) -> io::Result<OwnedFd> {
    let mut attribute = LinkCreate {
        program: raw(program),
        interface,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
        ..LinkCreate::default()
    };
    open(command::LINK_CREATE, &mut attribute)
}

/// Attaches a program to a hook of a cgroup, beside those of others.
pub(super) fn attach_to_cgroup(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attribute =
        LinkCreate { program: raw(program), interface: raw(cgroup), attach_type, ..LinkCreate::default() };
    open(command::LINK_CREATE, &mut attribute)
}

/// Replaces the program of a link, atomically and in its place.
pub(super) fn replace(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attribute = LinkUpdate { link: raw(link), program: raw(program), ..LinkUpdate::default() };
    run(command::LINK_UPDATE, &mut attribute).map(drop)
}

/// Detaches a link at once, whoever else holds it.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    run(command::LINK_DETACH, &mut LinkDetach { link: raw(link) }).map(drop)
}

/// Detaches a program that was attached without a link.
pub(super) fn detach_program(program: BorrowedFd<'_>, interface: u32, direction: Direction) -> io::Result<()> {
    let mut attribute = ProgramDetach {
        interface,
        program: raw(program),
        attach_type: attach_type(direction),
        ..ProgramDetach::default()
    };
    run(command::PROG_DETACH, &mut attribute).map(drop)
}

/// The programs at a hook, in the order in which they run.
pub(super) fn programs_at(interface: u32, direction: Direction) -> io::Result<Vec<HookEntry>> {
    let mut program_ids = [0u32; PROGRAMS_AT_HOOK];
    let mut link_ids = [0u32; PROGRAMS_AT_HOOK];
    let mut attribute = Query {
        interface,
        attach_type: attach_type(direction),
        program_ids: address_of(&mut program_ids),
        count: PROGRAMS_AT_HOOK as u32,
        link_ids: address_of(&mut link_ids),
        ..Query::default()
    };
    run(command::PROG_QUERY, &mut attribute)?;
    let entries = program_ids.into_iter().zip(link_ids).take(attribute.count as usize);
    Ok(entries.map(|(program_id, link_id)| HookEntry { program_id, link_id }).collect())
}

/// Opens a link.
pub(super) fn link_by_id(id: u32) -> io::Result<OwnedFd> {
    open(command::LINK_GET_FD_BY_ID, &mut ById { id, ..ById::default() })
}

/// Opens a program.
pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    open(command::PROG_GET_FD_BY_ID, &mut ById { id, ..ById::default() })
}

/// Pins an object. The path must be free.
pub(in crate::datapath) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = c_path(path)?;
    let mut attribute = Pin { path: path.as_ptr() as u64, object: raw(object), flags: 0 };
    run(command::OBJ_PIN, &mut attribute).map(drop)
}

/// Opens a pinned object.
pub(in crate::datapath) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = c_path(path)?;
    open(command::OBJ_GET, &mut Pin { path: path.as_ptr() as u64, ..Pin::default() })
}

fn c_path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
}

fn info<T: KernelStruct>(object: BorrowedFd<'_>, info: &mut T) -> io::Result<()> {
    let mut attribute = GetInfo { object: raw(object), length: size_of::<T>() as u32, info: address_of(info) };
    run(command::OBJ_GET_INFO_BY_FD, &mut attribute).map(drop)
}

/// What the kernel knows of a link; nothing if it is not one of this kind.
pub(super) fn device_link_info(link: BorrowedFd<'_>, wanted: LinkKind) -> io::Result<Option<LinkInfo>> {
    let mut raw = DeviceLinkInfo::default();
    info(link, &mut raw)?;
    // An XDP link has no attach type.
    let DeviceLinkInfo { kind, id, program_id, interface, unused: _, attach_type: _ } = raw;
    let wanted = match wanted {
        LinkKind::Tcx => BPF_LINK_TYPE_TCX,
        LinkKind::Xdp => BPF_LINK_TYPE_XDP,
    };
    Ok((kind == wanted).then_some(LinkInfo { id, program_id, interface }))
}

/// What the kernel knows of a link; nothing if it is not one to a cgroup.
pub(super) fn cgroup_link_info(link: BorrowedFd<'_>) -> io::Result<Option<CgroupLinkInfo>> {
    let mut raw = RawCgroupLinkInfo::default();
    info(link, &mut raw)?;
    let RawCgroupLinkInfo { kind, id, program_id, unused: _, cgroup, attach_type, unused_at_end: _ } = raw;
    Ok((kind == BPF_LINK_TYPE_CGROUP).then_some(CgroupLinkInfo { id, program_id, cgroup, attach_type }))
}

/// What a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::datapath) struct MapInfo {
    /// Its kind (`enum bpf_map_type`).
    pub(in crate::datapath) kind: u32,
    /// The bytes of a key.
    pub(in crate::datapath) key_size: u32,
    /// The bytes of a value.
    pub(in crate::datapath) value_size: u32,
}

/// What the kernel knows of a map.
pub(in crate::datapath) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    let mut raw = RawMapInfo::default();
    info(map, &mut raw)?;
    let RawMapInfo { kind, id: _, key_size, value_size, max_entries: _, flags: _, name: _ } = raw;
    Ok(MapInfo { kind, key_size, value_size })
}

/// The id of a program. Unlike [`program_info`] it opens nothing by an id, which takes `CAP_SYS_ADMIN`.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    let mut raw = RawProgramInfo::default();
    info(program, &mut raw)?;
    Ok(raw.id)
}

/// What the kernel knows of a program.
pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    let mut map_ids = [0u32; MAPS_OF_PROGRAM];
    let mut raw = RawProgramInfo {
        map_count: MAPS_OF_PROGRAM as u32,
        map_ids: address_of(&mut map_ids),
        ..RawProgramInfo::default()
    };
    info(program, &mut raw)?;
    let maps = map_ids
        .into_iter()
        .take(raw.map_count as usize)
        .map(|id| {
            let map = open(command::MAP_GET_FD_BY_ID, &mut ById { id, ..ById::default() })?;
            let mut raw = RawMapInfo::default();
            info(map.as_fd(), &mut raw)?;
            Ok(name(&raw.name))
        })
        .collect::<io::Result<_>>()?;
    Ok(ProgramInfo { id: raw.id, name: name(&raw.name), maps })
}

fn name(bytes: &[u8]) -> String {
    CStr::from_bytes_until_nul(bytes).map_or_else(|_| bytes, CStr::to_bytes).escape_ascii().to_string()
}
