//! Without `CAP_SYS_ADMIN`, by which programs are opened by their id: what is pinned is found all the same, and what is not is
//! left and counted.

use aya::programs::{LinkOrder, SchedClassifier, tc::TcAttachOptions};
use dsproxy::datapath::attach::{AttachMode, Direction, detach_all};

use crate::{kernel::*, namespace::Namespace};

const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

const SYS_ADMIN: u32 = 21;

/// `struct __user_cap_header_struct` and two of `__user_cap_data_struct` (include/uapi/linux/capability.h).
#[repr(C)]
struct Header {
    version: u32,
    process: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Runs `work` on this thread without the capability, which the thread has again afterwards.
fn without_sys_admin<T>(work: impl FnOnce() -> T) -> T {
    const VERSION_3: u32 = 0x2008_0522;
    let header = Header { version: VERSION_3, process: 0 };
    let mut sets = [Data::default(); 2];
    // SAFETY: the kernel reads the header and writes two structures, which is what this version has.
    let read = unsafe { libc::syscall(libc::SYS_capget, &raw const header, sets.as_mut_ptr()) };
    assert_eq!(read, 0, "capget: {}", std::io::Error::last_os_error());
    let set = |sets: &[Data; 2]| {
        // SAFETY: the kernel reads the header and two structures.
        let written = unsafe { libc::syscall(libc::SYS_capset, &raw const header, sets.as_ptr()) };
        assert_eq!(written, 0, "capset: {}", std::io::Error::last_os_error());
    };
    let mut fewer = sets;
    fewer[0].effective &= !(1 << SYS_ADMIN);
    set(&fewer);
    let result = work();
    set(&sets);
    result
}

#[test]
fn links_that_another_layout_has_pinned_are_taken_away_by_their_pins() {
    let (node, pod) = (Namespace::new(), Namespace::new());
    let index = node.veth_to("veth0", &pod);
    node.run(move || {
        let pins = pins();
        let ours = pins.ancestors().nth(2).expect("the directory of all layouts");
        let older = ours.join("v0/links");
        let wanted = pod_interfaces(&[(index, "veth0")]);
        let (mut before, _object) = attacher(&older, AttachMode::Auto);
        assert_eq!(before.sync(&wanted).attached, 2);

        let (mut attacher, object) = attacher(&pins, AttachMode::Auto);
        let report = without_sys_admin(|| attacher.sync(&wanted));
        assert_eq!(
            (report.attached, report.detached, report.unexamined, report.failures.len()),
            (2, 2, 0, 0),
            "{report:?}"
        );
        let new = [("pod_ingress_eth".to_owned(), id_of(&object, "pod_ingress_ethernet"))];
        assert_eq!(tcx("veth0", Direction::Ingress), new);
        assert_eq!(tcx("veth0", Direction::Egress).len(), 1);
        assert!(pin_names(&older).is_empty());
    });
}

#[test]
fn what_cannot_be_told_from_ours_is_left_and_counted() {
    let (node, pod) = (Namespace::new(), Namespace::new());
    let index = node.veth_to("veth0", &pod);
    node.run(move || {
        let mut stray = load();
        let program: &mut SchedClassifier =
            stray.program_mut("pod_egress_ethernet").expect("there").try_into().expect("a classifier");
        let options = TcAttachOptions::TcxOrder(LinkOrder::default());
        program.attach_with_options("veth0", attach_type(Direction::Egress), options).expect("attached");
        let foreign = foreign_program("foreign");
        let links = BOTH.map(|direction| attach_foreign(&foreign, index, direction));

        let pins = pins();
        let wanted = pod_interfaces(&[(index, "veth0")]);
        let (mut attacher, _object) = attacher(&pins, AttachMode::Auto);
        let report = without_sys_admin(|| attacher.sync(&wanted));
        assert_eq!(
            (report.attached, report.detached, report.unexamined, report.failures.len()),
            (2, 0, 3, 0),
            "{report:?}"
        );
        let again = without_sys_admin(|| attacher.sync(&wanted));
        assert_eq!((again.detached, again.unexamined), (0, 0), "said once: {again:?}");

        let cleanup = without_sys_admin(|| detach_all(&pins));
        assert_eq!((cleanup.detached, cleanup.unexamined, cleanup.failures.len()), (2, 3, 0), "{cleanup:?}");
        // With the right to look the stray is known, and only that goes.
        let cleanup = detach_all(&pins);
        assert_eq!((cleanup.detached, cleanup.unexamined, cleanup.failures.len()), (1, 0, 0), "{cleanup:?}");
        for direction in BOTH {
            let names: Vec<_> = tcx("veth0", direction).into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, ["foreign"]);
        }
        drop(links);
    });
}
