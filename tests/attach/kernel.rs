//! Programs by the names of ours; programs of someone else; and what the kernel says is attached, asked in other ways than
//! dsproxy's own.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{SchedClassifier, TcAttachType},
};
use dsproxy::{
    datapath::{
        attach::{AttachMode, Attacher, Direction, Programs},
        bpffs::Bpffs,
        load::PROGRAMS,
    },
    interfaces::{Interface, Interfaces, LinkLayer, Role},
};

/// What stands in for our programs: attaching does not look into them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/dsproxy-stand-in-ebpf"));

/// Loads the object afresh: other program ids each time.
pub(crate) fn load() -> Ebpf {
    let mut object = Ebpf::load(OBJECT).expect("the object");
    for name in PROGRAMS {
        let program = object.program_mut(name).unwrap_or_else(|| panic!("no program stands in for {name}"));
        let program: &mut SchedClassifier = program.try_into().expect("a classifier");
        program.load().unwrap_or_else(|error| panic!("load {name}: {error}"));
    }
    object
}

/// The id of one of our programs.
pub(crate) fn id_of(object: &Ebpf, name: &str) -> u32 {
    let program: &SchedClassifier = object.program(name).expect("there").try_into().expect("a classifier");
    program.info().expect("loaded").id()
}

/// An attacher with programs loaded afresh, and these.
pub(crate) fn attacher(pins: &Path, mode: AttachMode) -> (Attacher, Ebpf) {
    let object = load();
    let programs = Programs::of(&object).expect("loaded programs");
    (Attacher::new(programs, pins, mode).expect("a pin directory"), object)
}

/// The directory of links on a bpffs of the namespace's own.
pub(crate) fn pins() -> PathBuf {
    Bpffs::ensure(Path::new("/mnt/bpf")).expect("a bpffs").links()
}

/// The names in the directory of links.
pub(crate) fn pin_names(pins: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(pins).expect("the directory of links");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

/// Pod interfaces of these indices and names.
pub(crate) fn pod_interfaces(wanted: &[(u32, &str)]) -> Interfaces {
    let interface = |(index, name): &(u32, &str)| Interface {
        index: *index,
        name: (*name).to_owned(),
        role: Role::PodInterface,
        link_layer: LinkLayer::Ethernet,
        address: vec![2, 0, 0, 0, 0, 1],
        mtu: 1500,
        ip_device: None,
    };
    wanted.iter().map(|wanted| (wanted.0, interface(wanted))).collect()
}

/// The programs at a tcx hook, in order: name and id.
pub(crate) fn tcx(interface: &str, direction: Direction) -> Vec<(String, u32)> {
    let (_, programs) = SchedClassifier::query_tcx(interface, attach_type(direction)).expect("query");
    programs.iter().map(|program| (program.name_as_str().expect("a name").to_owned(), program.id())).collect()
}

pub(crate) fn attach_type(direction: Direction) -> TcAttachType {
    match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    }
}

fn bpf(command: libc::c_long, attribute: &[u64]) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as are given; the addresses among them are those of
    // buffers that the callers keep alive.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_ptr(), size_of_val(attribute)) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

fn pair(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

/// Loads a classifier of someone else's that lets every packet on to the next.
pub(crate) fn foreign_program(name: &str) -> OwnedFd {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    // r0 = -1 (TCX_NEXT); exit
    let instructions: [u64; 2] = [0xffff_ffff_0000_00b7, 0x95];
    let license = CString::new("GPL").expect("no NUL");
    let mut bytes = [0u8; 16];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    let [low, high] = [0, 8].map(|at| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight")));
    let attribute = [
        pair(BPF_PROG_TYPE_SCHED_CLS, instructions.len() as u32),
        instructions.as_ptr() as u64,
        license.as_ptr() as u64,
        0,
        0,
        0,
        low,
        high,
    ];
    bpf(BPF_PROG_LOAD, &attribute).expect("load a program")
}

/// Attaches someone else's program by a tcx link, after all others.
pub(crate) fn attach_foreign(program: &OwnedFd, interface: u32, direction: Direction) -> OwnedFd {
    const BPF_LINK_CREATE: libc::c_long = 28;
    let hook = match direction {
        Direction::Ingress => 46,
        Direction::Egress => 47,
    };
    let attribute = [pair(program.as_raw_fd() as u32, interface), pair(hook, 0), 0, 0];
    bpf(BPF_LINK_CREATE, &attribute).expect("attach a program")
}

/// Makes the calling thread see a kernel that does not know tcx: the commands that ask for it fail
/// as they do where the attach type is unknown.
pub(crate) fn without_tcx() {
    const BPF_PROG_QUERY: u32 = 16;
    const BPF_LINK_CREATE: u32 = 28;
    const NUMBER: u32 = 0;
    const FIRST_ARGUMENT: u32 = 16;
    let step = |code: u32, yes, no, k| libc::sock_filter { code: code as u16, jt: yes, jf: no, k };
    let load = |offset| step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let equal = |value, yes, no| step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, value);
    let finish = |value| step(libc::BPF_RET | libc::BPF_K, 0, 0, value);
    let mut filter = [
        load(NUMBER),
        equal(libc::SYS_bpf as u32, 0, 3),
        load(FIRST_ARGUMENT),
        equal(BPF_PROG_QUERY, 2, 0),
        equal(BPF_LINK_CREATE, 1, 0),
        finish(libc::SECCOMP_RET_ALLOW),
        finish(libc::SECCOMP_RET_ERRNO | libc::EINVAL as u32),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: the kernel copies the filter, which lives until the call returns.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    assert_eq!(result, 0, "seccomp: {}", io::Error::last_os_error());
}
