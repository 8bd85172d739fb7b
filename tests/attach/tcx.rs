//! Attaching with tcx: adoption, order, replacement, disappearance, leftovers. On a kernel without it: what serves in its place.

use std::collections::BTreeMap;

use aya::programs::{LinkOrder, SchedClassifier, tc::TcAttachOptions};
use dsproxy::datapath::attach::{AttachKind, AttachMode, Direction, detach_all, list};

use crate::{clsact::is_without_tcx, kernel::*, namespace::Namespace};

const BOTH: [Direction; 2] = [Direction::Ingress, Direction::Egress];

fn our_name(direction: Direction) -> &'static str {
    match direction {
        // The kernel keeps 15 characters.
        Direction::Ingress => "pod_ingress_eth",
        Direction::Egress => "pod_egress_ethe",
    }
}

#[test]
fn a_restart_adopts_the_links_and_replaces_their_programs() {
    if is_without_tcx() {
        return;
    }
    let (node, pod) = (Namespace::new(), Namespace::new());
    let index = node.veth_to("veth0", &pod);
    node.run(move || {
        let pins = pins();
        let wanted = pod_interfaces(&[(index, "veth0")]);

        let (mut first, object) = attacher(&pins, AttachMode::Auto);
        let report = first.sync(&wanted);
        assert_eq!((report.attached, report.detached, report.failures.len()), (2, 0, 0), "{report:?}");
        let before = first.attachments();
        assert!(before.iter().all(|attachment| attachment.kind == AttachKind::Tcx));
        assert_eq!(pin_names(&pins), [format!("{index}-egress"), format!("{index}-ingress")]);
        assert_eq!(list(&pins, |_| false).expect("list"), before);
        let again = first.sync(&wanted);
        assert_eq!((again.attached, again.detached, again.failures.len()), (0, 0, 0), "{again:?}");

        drop((first, object));
        for direction in BOTH {
            assert_eq!(tcx("veth0", direction).len(), 1, "attached without the daemon");
        }

        let (mut second, object) = attacher(&pins, AttachMode::Auto);
        let report = second.sync(&wanted);
        assert_eq!((report.attached, report.detached, report.failures.len()), (2, 0, 0), "{report:?}");
        for (old, new) in before.iter().zip(second.attachments()) {
            assert_eq!(old.link_id, new.link_id, "the same link");
            assert_ne!(old.program_id, new.program_id, "a new program");
        }
        assert_eq!(
            tcx("veth0", Direction::Ingress),
            [("pod_ingress_eth".to_owned(), id_of(&object, "pod_ingress_ethernet"))]
        );
        assert_eq!(
            tcx("veth0", Direction::Egress),
            [("pod_egress_ethe".to_owned(), id_of(&object, "pod_egress_ethernet"))]
        );
    });
}

#[test]
fn foreign_programs_stay_and_ours_is_the_outermost() {
    if is_without_tcx() {
        return;
    }
    let (node, pod) = (Namespace::new(), Namespace::new());
    let index = node.veth_to("veth0", &pod);
    node.run(move || {
        let pins = pins();
        let wanted = pod_interfaces(&[(index, "veth0")]);
        // One of them has a name of ours, and nothing else of ours.
        let others = [foreign_program("foreign"), foreign_program("node_ingress_ip")];
        let links: Vec<_> = BOTH
            .into_iter()
            .flat_map(|direction| others.iter().map(move |program| attach_foreign(program, index, direction)))
            .collect();

        let names = |direction| tcx("veth0", direction).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        for _restart in 0..2 {
            let (mut attacher, _object) = attacher(&pins, AttachMode::Tcx);
            let report = attacher.sync(&wanted);
            assert!(report.failures.is_empty(), "{report:?}");
            assert_eq!(names(Direction::Ingress), [our_name(Direction::Ingress), "foreign", "node_ingress_ip"]);
            assert_eq!(names(Direction::Egress), ["foreign", "node_ingress_ip", our_name(Direction::Egress)]);
        }

        let cleanup = detach_all(&pins);
        assert_eq!((cleanup.detached, cleanup.failures.len()), (2, 0), "{cleanup:?}");
        for direction in BOTH {
            assert_eq!(names(direction), ["foreign", "node_ingress_ip"]);
        }
        assert!(pin_names(&pins).is_empty());
        drop(links);
    });
}

#[test]
fn pins_go_with_their_interface_and_with_its_role() {
    if is_without_tcx() {
        return;
    }
    let (node, pod) = (Namespace::new(), Namespace::new());
    let [first, second, third] = ["veth1", "veth2", "veth3"].map(|name| node.veth_to(name, &pod));
    let pins = node.run(pins);
    let (mut attacher, _object) = {
        let pins = pins.clone();
        node.run(move || attacher(&pins, AttachMode::Auto))
    };
    let wanted = pod_interfaces(&[(first, "veth1"), (second, "veth2"), (third, "veth3")]);
    let mut attacher = node.run(move || {
        let report = attacher.sync(&wanted);
        assert_eq!((report.attached, report.failures.len()), (6, 0), "{report:?}");
        attacher
    });
    node.ip("link delete veth1");
    node.run(move || {
        // veth1 is still wanted: the news of its end has not come yet. That is nobody's failure.
        let wanted = pod_interfaces(&[(first, "veth1"), (second, "veth2")]);
        let report = attacher.sync(&wanted);
        assert!(report.failures.is_empty(), "{report:?}");
        assert!(tcx("veth3", Direction::Ingress).is_empty(), "no role, no program");
        assert!(tcx("veth3", Direction::Egress).is_empty());
        let report = attacher.sync(&pod_interfaces(&[(second, "veth2")]));
        assert!(report.failures.is_empty(), "{report:?}");
        assert_eq!(pin_names(&pins), [format!("{second}-egress"), format!("{second}-ingress")]);
        assert_eq!(attacher.attachments().len(), 2);
    });
}

#[test]
fn a_link_that_left_with_its_interface_is_not_mistaken_for_ours() {
    if is_without_tcx() {
        return;
    }
    let (node, elsewhere) = (Namespace::new(), Namespace::new());
    let index = node.veth_to("veth0", &elsewhere);
    let pins = node.run(pins);
    let mut parts = {
        let pins = pins.clone();
        node.run(move || {
            let (mut attacher, object) = attacher(&pins, AttachMode::Auto);
            attacher.sync(&pod_interfaces(&[(index, "veth0")]));
            (attacher, object)
        })
    };
    let away = Namespace::new();
    node.give("veth0", &away);
    node.ip(&format!("link add veth0 index {index} type veth peer name other"));
    assert_eq!(away.index_of("veth0"), index, "the same index in both namespaces");
    node.run(move || {
        let report = parts.0.sync(&pod_interfaces(&[(index, "veth0")]));
        assert_eq!((report.attached, report.failures.len()), (2, 0), "{report:?}");
        assert_eq!(tcx("veth0", Direction::Ingress).len(), 1);
    });
    away.run(|| assert!(tcx("veth0", Direction::Ingress).is_empty(), "taken off what went away"));
}

#[test]
fn stray_programs_of_ours_are_reaped_after_the_new_ones_are_in_place() {
    if is_without_tcx() {
        return;
    }
    let (node, pod) = (Namespace::new(), Namespace::new());
    let [index, idle] = ["veth0", "veth1"].map(|name| node.veth_to(name, &pod));
    node.run(move || {
        let mut stray = load();
        for interface in ["veth0", "veth1"] {
            for (name, direction) in
                [("pod_ingress_ethernet", Direction::Ingress), ("pod_egress_ethernet", Direction::Egress)]
            {
                let program: &mut SchedClassifier =
                    stray.program_mut(name).expect("there").try_into().expect("a classifier");
                let options = TcAttachOptions::TcxOrder(LinkOrder::default());
                program.attach_with_options(interface, attach_type(direction), options).expect("attached");
            }
        }
        assert_eq!(tcx("veth0", Direction::Egress).len(), 1);
        let pins = pins();
        let (mut attacher, object) = attacher(&pins, AttachMode::Auto);
        let report = attacher.sync(&pod_interfaces(&[(index, "veth0")]));
        assert_eq!((report.attached, report.detached, report.failures.len()), (2, 4, 0), "{report:?}");
        assert_eq!(
            tcx("veth0", Direction::Ingress),
            [("pod_ingress_eth".to_owned(), id_of(&object, "pod_ingress_ethernet"))]
        );
        assert_eq!(tcx("veth0", Direction::Egress).len(), 1);
        assert!(tcx("veth1", Direction::Ingress).is_empty(), "interface {idle} has no role");
    });
}

#[test]
fn one_interface_that_fails_harms_no_other() {
    if is_without_tcx() {
        return;
    }
    let (node, pod) = (Namespace::new(), Namespace::new());
    let [first, second] = ["veth1", "veth2"].map(|name| node.veth_to(name, &pod));
    node.run(move || {
        let pins = pins();
        let wanted = pod_interfaces(&[(first, "veth1"), (second, "veth2")]);
        let (mut attacher, _object) = attacher(&pins, AttachMode::Auto);
        // A directory where the pin would be.
        let obstacle = pins.join(format!("{first}-ingress"));
        std::fs::create_dir(&obstacle).expect("an obstacle");
        let report = attacher.sync(&wanted);
        assert_eq!(report.attached, 3, "{report:?}");
        let failed: Vec<_> = report.failures.iter().map(|failure| failure.interface.as_str()).collect();
        assert_eq!(failed, ["veth1"], "{report:?}");
        assert!(report.failures[0].error.to_string().contains(&format!("{first}-ingress")));
        assert!(tcx("veth1", Direction::Ingress).is_empty(), "nothing that could not be found again");

        std::fs::remove_dir(&obstacle).expect("the obstacle");
        let report = attacher.sync(&wanted);
        assert_eq!((report.attached, report.failures.len()), (1, 0), "{report:?}");
    });
}

#[test]
fn what_someone_detached_is_attached_again() {
    if is_without_tcx() {
        return;
    }
    let (node, pod) = (Namespace::new(), Namespace::new());
    let index = node.veth_to("veth0", &pod);
    node.run(move || {
        let pins = pins();
        let (mut attacher, _object) = attacher(&pins, AttachMode::Auto);
        let wanted = pod_interfaces(&[(index, "veth0")]);
        attacher.sync(&wanted);
        std::fs::remove_file(pins.join(format!("{index}-egress"))).expect("a pin");
        // The kernel drops the link some time after its last reference.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !tcx("veth0", Direction::Egress).is_empty() {
            assert!(std::time::Instant::now() < deadline, "the link outlived its pin");
            std::thread::yield_now();
        }
        let report = attacher.sync(&wanted);
        assert_eq!((report.attached, report.failures.len()), (1, 0), "{report:?}");
        assert_eq!(tcx("veth0", Direction::Egress).len(), 1);
    });
}

#[test]
fn devices_without_a_link_layer_header_run_the_ip_programs() {
    if is_without_tcx() {
        return;
    }
    let node = Namespace::new();
    node.ip("tuntap add tun0 mode tun");
    let index = node.index_of("tun0");
    node.run(move || {
        let pins = pins();
        let (mut attacher, object) = attacher(&pins, AttachMode::Auto);
        let mut wanted = pod_interfaces(&[(index, "tun0")]);
        for interface in wanted.values_mut() {
            interface.link_layer = dsproxy::interfaces::LinkLayer::None;
        }
        let report = attacher.sync(&wanted);
        assert_eq!((report.attached, report.failures.len()), (2, 0), "{report:?}");
        assert_eq!(tcx("tun0", Direction::Ingress), [("pod_ingress_ip".to_owned(), id_of(&object, "pod_ingress_ip"))]);
        assert_eq!(tcx("tun0", Direction::Egress), [("pod_egress_ip".to_owned(), id_of(&object, "pod_egress_ip"))]);
        assert_eq!(attacher.sync(&BTreeMap::new()).detached, 2);
        assert!(tcx("tun0", Direction::Ingress).is_empty());
    });
}
