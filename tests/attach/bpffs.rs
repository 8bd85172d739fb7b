//! The BPF file system: mounted where there is none, left where there is one, cleaned up.

use std::{path::Path, time::Duration};

use dsproxy::datapath::{
    attach::{AttachMode, detach_all},
    bpffs::{Bpffs, BpffsError},
};

use crate::{
    kernel::*,
    namespace::{Namespace, command},
};

fn mounts_at(directory: &Path) -> usize {
    let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("mounts");
    mounts.lines().filter(|line| line.contains(&format!(" {} ", directory.display()))).count()
}

/// Removes it. What is in use stays mounted, and a process that another test starts is, until it calls exec(2), a copy of this one
/// with all that it has open.
fn gone(bpffs: &Bpffs, directory: &Path) {
    for _ in 0..200 {
        bpffs.clone().remove().expect("removed");
        if mounts_at(directory) == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("{} stays mounted", directory.display());
}

#[test]
fn what_we_mount_we_unmount() {
    Namespace::new().run(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let deeper = directory.path().join("made/on/demand");
        assert_eq!(Bpffs::existing(&deeper).expect("examined"), None);
        let bpffs = Bpffs::ensure(&deeper).expect("a bpffs");
        assert_eq!(Bpffs::ensure(&deeper).expect("there already"), bpffs);
        assert_eq!(Bpffs::existing(&deeper).expect("examined").as_ref(), Some(&bpffs));
        assert_eq!(mounts_at(&deeper), 1);
        std::fs::create_dir_all(bpffs.links()).expect("a directory on it");
        std::fs::create_dir_all(bpffs.ours().join("v0/maps")).expect("an older layout");
        gone(&bpffs, &deeper);
    });
}

#[test]
fn what_others_use_or_made_stays_mounted() {
    Namespace::new().run(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let shared = Bpffs::ensure(directory.path()).expect("a bpffs");
        let theirs = directory.path().join("theirs");
        std::fs::create_dir(&theirs).expect("a directory on it");
        std::fs::create_dir_all(shared.links()).expect("a directory on it");
        shared.remove().expect("removed");
        assert_eq!(mounts_at(directory.path()), 1);
        assert!(theirs.exists());

        let foreign = tempfile::tempdir().expect("a directory");
        command(&format!("mount -t bpf bpf {}", foreign.path().display()));
        let bpffs = Bpffs::ensure(foreign.path()).expect("a bpffs");
        assert_eq!(mounts_at(foreign.path()), 1, "mounted only where there is none");
        bpffs.remove().expect("removed");
        assert_eq!(mounts_at(foreign.path()), 1);
        command(&format!("umount {} {}", foreign.path().display(), directory.path().display()));
    });
}

#[test]
fn a_file_in_the_way_is_named() {
    Namespace::new().run(|| {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("file");
        std::fs::write(&file, "").expect("a file");
        let error = Bpffs::ensure(&file).expect_err("a file is no directory");
        assert!(matches!(error, BpffsError::Create { .. }), "{error}");
        assert!(error.to_string().contains("file"), "{error}");
    });
}

#[test]
fn a_cleanup_leaves_nothing() {
    let (node, pod) = (Namespace::new(), Namespace::new());
    let index = node.veth_to("veth0", &pod);
    node.run(move || {
        let directory = tempfile::tempdir().expect("a directory");
        let bpffs = Bpffs::ensure(directory.path()).expect("a bpffs");
        let (mut attacher, object) = attacher(&bpffs.links(), AttachMode::Auto);
        attacher.sync(&pod_interfaces(&[(index, "veth0")]));
        drop((attacher, object));
        let cleanup = detach_all(&bpffs.links());
        assert_eq!((cleanup.detached, cleanup.failures.len()), (2, 0), "{cleanup:?}");
        let again = detach_all(&bpffs.links());
        assert_eq!((again.detached, again.failures.len()), (0, 0), "{again:?}");
        gone(&bpffs, directory.path());
        assert!(!directory.path().join("dsproxy").exists());
    });
}
