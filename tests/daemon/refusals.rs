//! What the daemon cannot work with: one line says what is wrong and what to do, and nothing was touched.

use std::{fs, process::Command};

use dsproxy_tests::lab::{Lab, Side, attachments};
use nix::mount::{MsFlags, mount};

use crate::process::{Daemon, bpffs};

/// A lab with a directory of manifests and nothing in it.
fn lab_with_manifests() -> (Lab, String) {
    let lab = Lab::new().expect("the lab is built");
    let manifests = lab.directory().join("manifests");
    fs::create_dir(&manifests).expect("make the directory");
    let manifests = manifests.display().to_string();
    (lab, manifests)
}

/// Asserts that a daemon with these arguments gives up with one line that has all of `parts`, and leaves nothing.
fn assert_refused(lab: &Lab, arguments: &[&str], parts: &[&str]) {
    Daemon::new(lab, arguments).refused().assert_one_line_with(parts);
    assert_eq!(attachments(lab.node(Side::A).namespace()).expect("the kernel tells"), [], "{arguments:?}");
    assert!(!bpffs(lab).join("dsproxy").exists(), "{arguments:?}: something was pinned");
}

#[test]
fn sources_that_cannot_be_read_are_named() {
    let (lab, _) = lab_with_manifests();
    let file = |name: &str, content: &[u8]| {
        let path = lab.directory().join(name);
        fs::write(&path, content).expect("write the file");
        path.display().to_string()
    };
    let plain = file("plain", b"");
    let broken = file("broken", b"clusters: [\n  this is: {no\n");
    let empty = file("empty", b"apiVersion: v1\nkind: Config\n");
    let dangling = file(
        "dangling",
        b"apiVersion: v1\nkind: Config\ncurrent-context: gone\nclusters: []\ncontexts: []\nusers: []\n",
    );
    let no_authority = file(
        "no-authority",
        b"apiVersion: v1\nkind: Config\ncurrent-context: c\n\
          clusters: [{name: c, cluster: {server: 'https://192.0.2.1', certificate-authority: /nowhere/ca.crt}}]\n\
          contexts: [{name: c, context: {cluster: c, user: u}}]\nusers: [{name: u, user: {}}]\n",
    );
    assert_refused(&lab, &["--manifests", "/nowhere"], &["--manifests /nowhere", "No such file", "name a readable"]);
    assert_refused(&lab, &["--manifests", &plain], &["--manifests", &plain, "Not a directory", "name a readable"]);
    for path in ["/nowhere/config", &plain, &broken, &empty, &dangling, &no_authority] {
        assert_refused(&lab, &["--kubeconfig", path], &[path, "name a readable kubeconfig with --kubeconfig"]);
    }
    assert_refused(&lab, &[], &["KUBECONFIG", "--kubeconfig", "--manifests"]);
}

#[test]
fn flags_that_make_no_sense_are_named_with_their_values() {
    let (lab, manifests) = lab_with_manifests();
    for (flag, value, parts) in [
        ("--cluster-cidr", "10.244.0.0/16,10.245.0.0/16", &["both IPv4", "one of each family"][..]),
        ("--cluster-cidr", "fd00:1::/64,fd00:2::/64", &["both IPv6", "one of each family"]),
        ("--cluster-cidr", "10.0.0.0/8,10.244.0.0/16", &["overlap"]),
        ("--cluster-cidr", "fd00::/8,fd00:1::/64", &["overlap"]),
        ("--cluster-cidr", "10.244.0.0/33", &["at most 32"]),
        ("--cluster-cidr", "fd00::/129", &["128"]),
        ("--cluster-cidr", "10.244.0.1/16", &["host bits", "10.244.0.0/16"]),
        ("--cluster-cidr", "10.244.0.0/16,fd00::1/64", &["host bits", "fd00::/64"]),
        ("--cluster-cidr", "10.244.0.0", &["a slash and a prefix length"]),
        ("--cluster-cidr", "10.0.0.0/8,fd00::/8,fd01::/16", &["3 CIDRs"]),
        ("--cluster-cidr", "", &["empty"]),
        ("--log-level", "loud", &["debug", "trace"]),
        ("--log-level", "dsproxy=loud", &["debug", "trace"]),
        ("--log-format", "xml", &["json", "text"]),
        ("--attach", "nail", &["tcx", "clsact"]),
        ("--max-services", "0", &["1.."]),
        ("--max-slots", "many", &[]),
        ("--healthz-bind-address", "10256", &["socket address"]),
        ("--metrics-bind-address", "localhost", &["socket address"]),
        ("--node-devices", "eth0,nosuch0", &["nosuch0", "ip link"]),
        ("--pod-interfaces", "veth[", &["veth*"]),
    ] {
        // A bad element of a list is named by itself.
        let named = if flag.starts_with("--node") { "nosuch0" } else { value };
        let parts = [&[flag, named], parts].concat();
        assert_refused(&lab, &["--manifests", &manifests, flag, value], &parts);
    }
    assert_refused(&lab, &["--manifests", &manifests, "--kubeconfig", "x"], &["--manifests", "--kubeconfig", "--help"]);
    assert_refused(&lab, &["--manifests", &manifests, "--nonesuch"], &["--nonesuch", "--help"]);
}

#[test]
fn a_bpffs_that_cannot_be_had_is_named() {
    let (lab, manifests) = lab_with_manifests();
    let refused = |path: &str, parts: &[&str]| {
        let arguments = ["--manifests", &manifests, "--bpffs", path];
        assert_refused(&lab, &arguments, &[&["--bpffs", path], parts].concat());
    };
    let file = lab.directory().join("file");
    fs::write(&file, b"").expect("write the file");
    refused(&file.display().to_string(), &["File exists"]);
    refused(&file.join("below").display().to_string(), &["Not a directory"]);
    // Nobody can make a directory there.
    refused("/proc/dsproxy", &["make the directory"]);

    let read_only = lab.directory().join("read-only");
    fs::create_dir(&read_only).expect("make the directory");
    mount(Some("bpf"), &read_only, Some("bpf"), MsFlags::MS_RDONLY, None::<&str>).expect("mount a bpffs");
    refused(&read_only.display().to_string(), &["Read-only file system", "written to"]);
}

/// Numbers of capabilities (include/uapi/linux/capability.h).
const NET_ADMIN: libc::c_ulong = 12;
const SYS_ADMIN: libc::c_ulong = 21;
const PERFMON: libc::c_ulong = 38;
const BPF: libc::c_ulong = 39;

/// Takes a capability from the command before it runs: what is not in the bounding set is not root's either.
fn without(
    command: &mut Command,
    capabilities: impl IntoIterator<Item = libc::c_ulong> + Clone + Send + Sync + 'static,
) {
    use std::os::unix::process::CommandExt as _;
    let drop_all = move || {
        for capability in capabilities.clone() {
            // SAFETY: takes integers and touches no memory.
            match unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } {
                0 => {}
                _ => return Err(std::io::Error::last_os_error()),
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes system calls alone, and allocates nothing.
    unsafe { command.pre_exec(drop_all) };
}

#[test]
fn missing_capabilities_are_named() {
    let (lab, manifests) = lab_with_manifests();
    let refused = |prepare: fn(&mut Command), parts: &[&str]| {
        let daemon = Daemon::new(&lab, &["--manifests", &manifests]).prepared(prepare);
        daemon.refused().assert_one_line_with(&[&["run it as root", "securityContext"], parts].concat());
        assert!(!bpffs(&lab).exists(), "nothing was touched");
    };
    refused(|command| without(command, [NET_ADMIN]), &["lacks CAP_NET_ADMIN;"]);
    refused(|command| without(command, [SYS_ADMIN, PERFMON]), &["lacks CAP_PERFMON;"]);
    refused(|command| without(command, [SYS_ADMIN, BPF]), &["lacks CAP_BPF;"]);
    refused(|command| without(command, 0..=40), &["lacks CAP_NET_ADMIN and CAP_BPF and CAP_PERFMON;"]);
}
