//! Attaching with clsact: replacement in place, company of others, changes of mode.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use aya::programs::{SchedClassifier, tc::NlOptions, tc::TcAttachOptions, tc::TcHandle};
use dsproxy::{
    datapath::attach::{AttachKind, AttachMode, Direction, detach_all, list},
    interfaces::Interfaces,
};
use serde_json::Value;

use dsproxy_tests::prog::kernel_has_tcx;

use crate::{
    kernel::*,
    namespace::{Namespace, command},
};

/// The bpf filters at a hook: name and program id.
fn filters(interface: &str, direction: Direction) -> Vec<(String, u64)> {
    let text = command(&format!("tc -json filter show dev {interface} {direction}"));
    let listed: Vec<Value> = serde_json::from_str(&text).expect("tc speaks JSON");
    listed
        .iter()
        .filter_map(|filter| {
            let options = filter.get("options")?;
            let name = options.get("bpf_name")?.as_str()?.to_owned();
            Some((name, options.get("prog")?.get("id")?.as_u64()?))
        })
        .collect()
}

fn has_clsact(interface: &str) -> bool {
    command(&format!("tc qdisc show dev {interface}")).contains("clsact")
}

fn sync(pins: &Path, mode: AttachMode, wanted: &Interfaces) -> (usize, usize, aya::Ebpf) {
    let (mut attacher, object) = attacher(pins, mode);
    let report = attacher.sync(wanted);
    assert!(report.failures.is_empty(), "{report:?}");
    (report.attached, report.detached, object)
}

fn node_with_veth() -> (Namespace, Namespace, u32, PathBuf) {
    let (node, pod) = (Namespace::new(), Namespace::new());
    let index = node.veth_to("veth0", &pod);
    let pins = node.run(pins);
    (node, pod, index, pins)
}

#[test]
fn a_restart_replaces_the_one_filter_in_place() {
    let (node, _pod, index, pins) = node_with_veth();
    node.run(move || {
        let wanted = pod_interfaces(&[(index, "veth0")]);
        let mut last = 0;
        for restart in 0..3 {
            let (attached, detached, object) = sync(&pins, AttachMode::Clsact, &wanted);
            assert_eq!((attached, detached), (2, 0));
            let id = u64::from(id_of(&object, "pod_ingress_ethernet"));
            assert_eq!(filters("veth0", Direction::Ingress), [("dsproxy_pod_ingress_ethernet".into(), id)]);
            assert_eq!(filters("veth0", Direction::Egress).len(), 1);
            assert!(id > last, "restart {restart} brings a new program");
            last = id;
            drop(object);
            assert_eq!(filters("veth0", Direction::Ingress).len(), 1, "attached without the daemon");
        }
        let listed = list(&pins, |_| false).expect("list");
        assert_eq!(listed.len(), 2);
        assert!(listed.iter().all(|attachment| attachment.kind == AttachKind::Clsact));
        assert!(pin_names(&pins).is_empty());

        let cleanup = detach_all(&pins);
        assert_eq!((cleanup.detached, cleanup.failures.len()), (2, 0), "{cleanup:?}");
        assert!(!has_clsact("veth0"), "the qdisc held nothing else");
    });
}

#[test]
fn a_sync_without_news_changes_nothing() {
    let (node, _pod, index, pins) = node_with_veth();
    node.run(move || {
        let wanted = pod_interfaces(&[(index, "veth0")]);
        let (mut attacher, _object) = attacher(&pins, AttachMode::Clsact);
        attacher.sync(&wanted);
        let before = filters("veth0", Direction::Egress);
        let report = attacher.sync(&wanted);
        assert_eq!((report.attached, report.detached, report.failures.len()), (0, 0, 0), "{report:?}");
        assert_eq!(filters("veth0", Direction::Egress), before);
        assert_eq!(attacher.sync(&Interfaces::new()).detached, 2);
        assert!(!has_clsact("veth0"));
    });
}

#[test]
fn filters_of_others_stay_and_keep_their_qdisc() {
    let (node, _pod, index, pins) = node_with_veth();
    node.tc("qdisc add dev veth0 clsact");
    // A program in the instructions of the socket filter: let everything on to the next filter.
    let mut bytecode = tempfile::NamedTempFile::new().expect("a file");
    write!(bytecode, "1,6 0 0 {}", u32::MAX).expect("written");
    let program = format!("bpf direct-action bytecode-file {}", bytecode.path().display());
    // One of them at the priority that ours would take first, and with the same handle.
    node.tc(&format!("filter add dev veth0 ingress prio 5 handle 0x6473 protocol all {program}"));
    node.tc(&format!("filter add dev veth0 egress prio 7 protocol all {program}"));
    let before = node.tc("filter show dev veth0 ingress");
    node.run(move || {
        let wanted = pod_interfaces(&[(index, "veth0")]);
        let (attached, ..) = sync(&pins, AttachMode::Clsact, &wanted);
        assert_eq!(attached, 2);
        assert_eq!(filters("veth0", Direction::Ingress).len(), 1);
        let (attached, detached, _) = sync(&pins, AttachMode::Clsact, &wanted);
        assert_eq!((attached, detached), (2, 0));
        assert_eq!(filters("veth0", Direction::Ingress).len(), 1);
        let cleanup = detach_all(&pins);
        assert_eq!((cleanup.detached, cleanup.failures.len()), (2, 0), "{cleanup:?}");
        assert!(has_clsact("veth0"));
    });
    assert_eq!(node.tc("filter show dev veth0 ingress"), before);
    assert!(node.tc("filter show dev veth0 egress").contains("pref 7"));
}

#[test]
fn an_empty_qdisc_that_was_not_ours_stays() {
    let (node, _pod, _index, pins) = node_with_veth();
    node.tc("qdisc add dev veth0 clsact");
    node.run(move || {
        let (_, detached, _) = sync(&pins, AttachMode::Auto, &Interfaces::new());
        assert_eq!(detached, 0);
        assert_eq!(detach_all(&pins).detached, 0);
        assert!(has_clsact("veth0"));
    });
}

#[test]
fn an_ingress_qdisc_is_named_in_the_error() {
    let (node, _pod, index, pins) = node_with_veth();
    node.tc("qdisc add dev veth0 ingress");
    node.run(move || {
        let (mut attacher, _object) = attacher(&pins, AttachMode::Clsact);
        let report = attacher.sync(&pod_interfaces(&[(index, "veth0")]));
        assert_eq!((report.attached, report.failures.len()), (0, 2), "{report:?}");
        assert!(report.failures[0].error.to_string().contains("tc qdisc del dev veth0 ingress"), "{report:?}");
    });
}

#[test]
fn the_mode_can_be_changed_at_restart_both_ways() {
    if is_without_tcx() {
        return;
    }
    let (node, _pod, index, pins) = node_with_veth();
    node.run(move || {
        let wanted = pod_interfaces(&[(index, "veth0")]);
        sync(&pins, AttachMode::Clsact, &wanted);
        for _ in 0..2 {
            let (attached, detached, _object) = sync(&pins, AttachMode::Tcx, &wanted);
            assert_eq!((attached, detached), (2, 2));
            for direction in [Direction::Ingress, Direction::Egress] {
                assert_eq!(tcx("veth0", direction).len(), 1);
                assert!(filters("veth0", direction).is_empty());
            }
            assert!(!has_clsact("veth0"));
            assert_eq!(pin_names(&pins).len(), 2);

            let (attached, detached, _object) = sync(&pins, AttachMode::Clsact, &wanted);
            assert_eq!((attached, detached), (2, 2));
            for direction in [Direction::Ingress, Direction::Egress] {
                assert!(tcx("veth0", direction).is_empty());
                assert_eq!(filters("veth0", direction).len(), 1);
            }
            assert!(pin_names(&pins).is_empty());
        }
    });
}

#[test]
fn a_role_that_ended_while_no_daemon_ran_ends_its_filters() {
    let (node, _pod, index, pins) = node_with_veth();
    node.run(move || {
        sync(&pins, AttachMode::Clsact, &pod_interfaces(&[(index, "veth0")]));
        let (attached, detached, _object) = sync(&pins, AttachMode::Clsact, &Interfaces::new());
        assert_eq!((attached, detached), (0, 2));
        assert!(!has_clsact("veth0"));
    });
}

#[test]
fn stray_filters_of_ours_are_reaped() {
    let (node, _pod, index, pins) = node_with_veth();
    node.tc("qdisc add dev veth0 clsact");
    node.run(move || {
        let mut stray = load();
        for priority in [40, 49_000] {
            let program: &mut SchedClassifier =
                stray.program_mut("pod_ingress_ethernet").expect("there").try_into().expect("a classifier");
            let options = NlOptions { priority, handle: TcHandle::new(0, 1), classid: None };
            let options = TcAttachOptions::Netlink(options);
            program.attach_with_options("veth0", attach_type(Direction::Ingress), options).expect("attached");
        }
        let wanted = pod_interfaces(&[(index, "veth0")]);
        let (_, _, object) = sync(&pins, AttachMode::Clsact, &wanted);
        let id = u64::from(id_of(&object, "pod_ingress_ethernet"));
        assert_eq!(filters("veth0", Direction::Ingress), [("dsproxy_pod_ingress_ethernet".into(), id)]);
        if is_without_tcx() {
            return;
        }
        sync(&pins, AttachMode::Tcx, &wanted);
        assert!(filters("veth0", Direction::Ingress).is_empty());
    });
}

#[test]
fn a_kernel_without_tcx_gets_filters() {
    let (node, _pod, index, pins) = node_with_veth();
    node.run(move || {
        without_tcx();
        serves_by_filters(index, &pins);
    });
}

/// Whether the kernel has no tcx. Then what serves in its place is tested instead, as on a kernel where a filter of system calls
/// says so.
pub(crate) fn is_without_tcx() -> bool {
    if kernel_has_tcx().expect("a kernel that tells its release") {
        return false;
    }
    let (node, _pod, index, pins) = node_with_veth();
    node.run(move || serves_by_filters(index, &pins));
    true
}

/// Attaches to `veth0` on a kernel without tcx.
fn serves_by_filters(index: u32, pins: &Path) {
    let wanted = pod_interfaces(&[(index, "veth0")]);
    let (mut strict, _object) = attacher(pins, AttachMode::Tcx);
    let report = strict.sync(&wanted);
    assert_eq!((report.attached, report.failures.len()), (0, 2), "{report:?}");
    assert!(report.failures[0].error.to_string().contains("--attach auto"), "{report:?}");

    for _restart in 0..2 {
        let (mut attacher, _object) = attacher(pins, AttachMode::Auto);
        let report = attacher.sync(&wanted);
        assert_eq!((report.attached, report.failures.len()), (2, 0), "{report:?}");
        assert!(attacher.attachments().iter().all(|attachment| attachment.kind == AttachKind::Clsact));
        assert_eq!(filters("veth0", Direction::Ingress).len(), 1);
        assert_eq!(filters("veth0", Direction::Egress).len(), 1);
    }
    let cleanup = detach_all(pins);
    assert_eq!((cleanup.detached, cleanup.failures.len()), (2, 0), "{cleanup:?}");
    assert!(!has_clsact("veth0"));
}
