//! Programs outlive the daemon, are taken over by the next one without a gap, and go with `dsproxy cleanup`.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
};

use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{Daemon, DualStack, TcpSession, UdpSession, eventually};

use crate::{
    ask::peer_of_new_socket,
    host::{Host, PORT, SOON, TARGET},
};

/// The hooks, with the ids of their programs and links.
fn hooks(daemon: &Daemon<'_>) -> Vec<(String, u64, u64)> {
    let status = daemon.json(&["status"]).expect("it tells");
    let hooks = status["socketHooks"].as_array().expect("hooks").iter();
    let number = |value: &serde_json::Value| value.as_u64().expect("a number");
    hooks
        .map(|hook| {
            (hook["hook"].as_str().expect("a name").to_owned(), number(&hook["programId"]), number(&hook["linkId"]))
        })
        .collect()
}

#[test]
fn the_next_run_takes_over_without_a_gap() {
    const RUNS: usize = 3;

    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let mut daemon = host.start("host");
    host.await_service(vip);
    let before = hooks(&daemon);
    assert_eq!(before.len(), 8, "{before:?}");

    let clients = host.clients();
    let (stop, asked) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            clients.run(|| {
                let mut kept = IpFamily::ALL
                    .map(|family| UdpSession::open_here(vip.socket(family, PORT), false).expect("a socket"));
                while !stop.load(Ordering::Relaxed) {
                    for (family, kept) in IpFamily::ALL.into_iter().zip(&mut kept) {
                        let session = TcpSession::open_here(vip.socket(family, PORT)).expect("connected at any time");
                        assert_eq!(session.backend(), "local");
                        assert_eq!(kept.ask().expect("answered at any time"), "local");
                        asked.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        });
        for run in 0..RUNS {
            if run % 2 == 0 {
                daemon.kill().expect("SIGKILL ends it");
            } else {
                daemon.terminate().expect("SIGTERM ends it");
            }
            daemon.start_again().unwrap_or_else(|error| panic!("{error}"));
        }
        stop.store(true, Ordering::Relaxed);
        client.join().expect("every question was answered");
    });
    assert!(asked.load(Ordering::Relaxed) > 20, "the client had little to do");
    for ((name, program, link), (same, new_program, same_link)) in before.into_iter().zip(hooks(&daemon)) {
        assert_eq!((&name, link), (&same, same_link), "the link stays");
        assert_ne!(program, new_program, "{name} has a program of this run");
    }
}

#[test]
fn cleanup_and_the_flag_take_the_programs_away() {
    let host = Host::build();
    let vip = DualStack::cluster_ip(1);
    host.serve(vip, &["local"]);
    let mut daemon = host.start("host");
    host.await_service(vip);
    let (target, backend) = (vip.socket(IpFamily::V4, PORT), host.backend("local").socket(IpFamily::V4, TARGET));
    assert_eq!(host.run(|| peer_of_new_socket(target)), backend);
    daemon.terminate().expect("SIGTERM ends it");
    assert_eq!(host.run(|| peer_of_new_socket(target)), backend, "the programs outlive the daemon");

    for _ in 0..2 {
        let output = daemon.command(&["cleanup"]).expect("the command runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(host.run(|| peer_of_new_socket(target)), target, "nothing is led any more");
        assert!(!daemon.bpffs().join("dsproxy").exists(), "nothing stays pinned");
    }

    daemon.start_again().unwrap_or_else(|error| panic!("{error}"));
    let is_led = || match host.run(|| peer_of_new_socket(target)) {
        peer if peer == backend => Ok(()),
        peer => Err(peer),
    };
    eventually("waiting for the Service", SOON, is_led).expect("the Service is back");
    daemon.terminate().expect("SIGTERM ends it");
    drop(daemon);
    let daemon = host.start("off");
    assert_eq!(host.run(|| peer_of_new_socket(target)), target, "--socket-lb off");
    assert_eq!(hooks(&daemon), []);
    assert!(!links(daemon.bpffs()).iter().any(|name| name.starts_with("cgroup-")));
}

/// The names of the pinned links, of whichever layout.
fn links(bpffs: &Path) -> Vec<String> {
    let layouts = std::fs::read_dir(bpffs.join("dsproxy")).expect("pins").filter_map(Result::ok);
    layouts
        .filter_map(|layout| std::fs::read_dir(layout.path().join("links")).ok())
        .flat_map(|links| links.filter_map(Result::ok))
        .map(|link| link.file_name().to_string_lossy().into_owned())
        .collect()
}
