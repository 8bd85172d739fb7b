//! Kernels that lack something. A filter of system calls answers for them, as they would.

use std::{io, os::unix::process::CommandExt as _, process::Command};

use dsproxy_tests::lab::{DualStack, Lab, Side, attachments, eventually};

use crate::{
    cluster::{Cluster, SOON, answers, service, wait_until_answers},
    process::{Daemon, bpffs},
};

/// `BPF_PROG_QUERY` and `BPF_LINK_CREATE`, which tcx is made of.
const TCX_COMMANDS: [u32; 2] = [16, 28];

const fn statement(code: u32, value: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k: value }
}

/// Jumps over `past` statements unless the value is `value`.
const fn unless(value: u32, past: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, jt: 0, jf: past, k: value }
}

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// Where `struct seccomp_data` has the number of the call and the low half of its first argument.
const NUMBER: u32 = 0;
const FIRST_ARGUMENT: u32 = if cfg!(target_endian = "little") { 16 } else { 20 };

const ALLOW: libc::sock_filter = statement(RETURN, libc::SECCOMP_RET_ALLOW);

const fn fail(errno: i32) -> libc::sock_filter {
    statement(RETURN, libc::SECCOMP_RET_ERRNO | errno as u32)
}

/// No bpf(2) at all.
static NO_BPF: [libc::sock_filter; 4] =
    [statement(LOAD, NUMBER), unless(libc::SYS_bpf as u32, 1), fail(libc::ENOSYS), ALLOW];

/// No tcx: a kernel before 6.6 takes its attach types for nonsense.
static NO_TCX: [libc::sock_filter; 8] = [
    statement(LOAD, NUMBER),
    unless(libc::SYS_bpf as u32, 5),
    statement(LOAD, FIRST_ARGUMENT),
    unless(TCX_COMMANDS[0], 1),
    fail(libc::EINVAL),
    unless(TCX_COMMANDS[1], 1),
    fail(libc::EINVAL),
    ALLOW,
];

fn filtered(command: &mut Command, filter: &'static [libc::sock_filter]) {
    let install = move || {
        let length = filter.len() as libc::c_ushort;
        let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut() };
        // SAFETY: the kernel copies the program, which outlives the call, and writes nothing to it.
        let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: between fork and exec it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(install) };
}

#[test]
fn a_kernel_without_bpf_is_told_in_one_line() {
    let lab = Lab::new().expect("the lab is built");
    let manifests = lab.directory().display().to_string();
    let daemon = Daemon::new(&lab, &["--manifests", &manifests]).prepared(|command| filtered(command, &NO_BPF));
    daemon.refused().assert_one_line_with(&["load the kernel programs", "not implemented", "kernel 6.1 or later"]);
}

#[test]
fn a_kernel_without_tcx_is_served_by_clsact() {
    let cluster = Cluster::build();
    let client = cluster.client.namespace();
    let vip = DualStack::cluster_ip(1);
    cluster.write(&service("echo", vip, &[cluster.backend("remote")]));
    let manifests = cluster.manifests.directory().display().to_string();
    let without_tcx = |command: &mut Command| filtered(command, &NO_TCX);
    // The filter refuses every kind of link, those for sockets too, which kernels have had since 5.7.
    let arguments = ["--manifests", &manifests, "--socket-lb", "off"];
    let mut daemon = Daemon::new(&cluster.lab, &arguments).prepared(without_tcx).started();
    wait_until_answers(client, vip, "remote");
    let node = cluster.lab.node(Side::A).namespace();
    let found = attachments(node).expect("the kernel tells");
    assert!(!found.is_empty());
    let kinds = daemon.json("status");
    let kinds: Vec<&str> =
        kinds["hooks"].as_array().expect("hooks").iter().filter_map(|hook| hook["kind"].as_str()).collect();
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind == "clsact"), "{kinds:?}");

    // The kernel is upgraded: the same maps, and tcx in place of clsact.
    daemon.kill();
    let mut upgraded = Daemon::new(&cluster.lab, &["--manifests", &manifests]).started();
    eventually("both ways to answer", SOON, || answers(client, vip, 80, "remote")).expect("the Service is served");
    let kinds = upgraded.json("status");
    let kinds: Vec<&str> =
        kinds["hooks"].as_array().expect("hooks").iter().filter_map(|hook| hook["kind"].as_str()).collect();
    assert!(!kinds.is_empty() && kinds.iter().all(|kind| *kind == "tcx"), "{kinds:?}");
    upgraded.kill();

    // Told to use what is not there, it says so, and what serves now goes on.
    let told = [&arguments[..], &["--attach", "tcx"]].concat();
    let told = Daemon::new(&cluster.lab, &told).prepared(without_tcx);
    told.refused().assert_one_line_with(&["tcx", "6.6", "--attach auto", "--attach clsact"]);
    answers(client, vip, 80, "remote").expect("the data path goes on");
    assert!(bpffs(&cluster.lab).join("dsproxy").exists());
}
