//! What is in the archive.

use std::{fmt::Write as _, io, net::SocketAddr, time::Instant};

use anyhow::{Context as _, bail};
use serde::Serialize;

use super::{endpoint, kernel, network, shorten};
use crate::{
    config::flags::BpffsFlag,
    inspect::{
        Live, View,
        filter::{FlowFilter, RowFilter},
        top,
        views::{backends, first_connections, metrics_address, services, status},
    },
};

/// Connections beyond these are left out: some say as much as all, and a table may have some hundred thousand.
const MOST_CONNECTIONS: usize = 10_000;

/// The files with what each is.
const FILES: [(&str, &str); 19] = [
    ("README.txt", "this list"),
    ("version.txt", "the version of the dsproxy that wrote this, which need not be that of the daemon"),
    ("status.txt", "`dsproxy status`: the daemon, hooks, maps, and what became of packets"),
    ("status.json", "the same, for programs"),
    ("services.json", "`dsproxy services`"),
    ("backends.json", "`dsproxy backends`"),
    ("connections.json", "`dsproxy connections`, 10000 at most"),
    ("top.txt", "`dsproxy top` over one second"),
    ("settings.txt", "what the kernel programs were told"),
    ("daemon/metrics.txt", "/metrics"),
    ("daemon/configz.json", "/configz: the configuration in the form of kube-proxy's file"),
    ("daemon/flagz.txt", "/flagz: every flag with its value"),
    ("kernel/about.txt", "its version, and sysctls that decide what becomes of packets"),
    ("kernel/configuration.txt", "what of its configuration may matter"),
    ("network/interfaces.txt", "by rtnetlink"),
    ("network/addresses.txt", "likewise"),
    ("network/routes.txt", "likewise, of all tables"),
    ("network/rules.txt", "likewise"),
    ("network/neighbours.txt", "likewise"),
];

/// Takes the content of a file, or why there is none.
pub(super) type Sink<'a> = &'a mut dyn FnMut(&str, anyhow::Result<Vec<u8>>) -> io::Result<()>;

/// What there is to know of the archive.
pub(super) fn read_me() -> String {
    let mut text = "What dsproxy and the kernel of one node know, for finding out what is wrong.\n\
                    A file that could not be had is missing; NAME.failed says why. A file is cut off after 8 MiB and says so.\n\
                    No key, token or kubeconfig is in here. Names of Services and interfaces, and addresses, are.\n\n"
        .to_owned();
    for (name, what) in FILES {
        let _ = writeln!(text, "{name:<26}{what}");
    }
    text
}

/// Finds out everything, as far as it is begun before `deadline`; that is put off for as long as `sink` takes.
///
/// # Errors
///
/// Those of `sink`.
pub(super) fn collect(bpffs: &BpffsFlag, deadline: Instant, sink: Sink<'_>) -> io::Result<()> {
    let mut parts = Parts { deadline, sink };
    parts.add("version.txt", || Ok(format!("dsproxy {}\n", env!("CARGO_PKG_VERSION")).into_bytes()))?;
    match Live::open(bpffs) {
        Ok(live) => of_maps(&live, &mut parts)?,
        Err(error) => parts.put("status.txt", Err(error))?,
    }
    parts.add("kernel/about.txt", kernel::about)?;
    parts.add("kernel/configuration.txt", kernel::configuration)?;
    for (kind, outcome) in network::all(parts.deadline) {
        parts.put(&format!("network/{kind}.txt"), outcome)?;
    }
    Ok(())
}

/// Where the parts go.
struct Parts<'a> {
    deadline: Instant,
    sink: Sink<'a>,
}

impl Parts<'_> {
    /// Adds what is found out, unless it is too late to begin with it.
    fn add(&mut self, name: &str, find: impl FnOnce() -> anyhow::Result<Vec<u8>>) -> io::Result<()> {
        let outcome = in_time(self.deadline).and_then(|()| find());
        self.put(name, outcome)
    }

    /// Adds what was found out. The time that takes does not count: who reads an archive from a slow line is to have all of it.
    fn put(&mut self, name: &str, outcome: anyhow::Result<Vec<u8>>) -> io::Result<()> {
        let began = Instant::now();
        (self.sink)(name, outcome)?;
        self.deadline += began.elapsed();
        Ok(())
    }
}

fn in_time(deadline: Instant) -> anyhow::Result<()> {
    if Instant::now() >= deadline {
        bail!("left out, for what came before took too long; another attempt may have it");
    }
    Ok(())
}

fn of_maps(live: &Live, parts: &mut Parts<'_>) -> io::Result<()> {
    match in_time(parts.deadline).and_then(|()| status(live)) {
        Ok(status) => {
            parts.add("status.txt", || Ok(status.table().into_bytes()))?;
            parts.add("status.json", || json(&status))?;
        }
        Err(error) => parts.put("status.txt", Err(error))?,
    }
    parts.add("services.json", || json(&services(live, &FlowFilter::default())?))?;
    parts.add("backends.json", || json(&backends(live, &RowFilter::default())?))?;
    parts.add("connections.json", || json(&first_connections(live, MOST_CONNECTIONS)?))?;
    parts.add("top.txt", || top::for_a_second(live).map(String::into_bytes))?;
    parts.add("settings.txt", || Ok(format!("{:#?}\n", live.maps.settings()?).into_bytes()))?;
    of_daemon(metrics_address(live), parts)
}

fn of_daemon(daemon: anyhow::Result<Option<SocketAddr>>, parts: &mut Parts<'_>) -> io::Result<()> {
    let server = daemon.and_then(|server| server.context("no daemon that runs serves metrics"));
    let server = server.map_err(|error| format!("{error:#}"));
    for (file, path) in
        [("daemon/metrics.txt", "/metrics"), ("daemon/configz.json", "/configz"), ("daemon/flagz.txt", "/flagz")]
    {
        let server = server.clone().map_err(anyhow::Error::msg);
        let deadline = parts.deadline;
        parts.add(file, || endpoint::get(server?, path, deadline))?;
    }
    Ok(())
}

fn json(view: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    shorten::json(view, shorten::LONGEST).context("write JSON")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// What `find` adds, with the deadline in so many seconds.
    fn added(
        seconds: u64,
        find: impl FnOnce(&mut Parts<'_>) -> io::Result<()>,
    ) -> Vec<(String, Result<Vec<u8>, String>)> {
        let mut found = Vec::new();
        let mut sink = |name: &str, outcome: anyhow::Result<Vec<u8>>| {
            found.push((name.to_owned(), outcome.map_err(|error| error.to_string())));
            Ok(())
        };
        let deadline = Instant::now() + Duration::from_secs(seconds);
        find(&mut Parts { deadline, sink: &mut sink }).expect("nothing fails");
        found
    }

    #[test]
    fn without_a_daemon_its_files_say_so_and_the_rest_goes_on() {
        let found = added(60, |parts| of_daemon(Ok(None), parts));
        assert_eq!(found.len(), 3);
        for (name, outcome) in found {
            assert!(FILES.iter().any(|(listed, _)| *listed == name), "{name}");
            assert_eq!(outcome.expect_err("no daemon"), "no daemon that runs serves metrics");
        }
    }

    #[test]
    fn what_is_too_late_is_not_begun() {
        let found = added(0, |parts| parts.add("top.txt", || panic!("it is begun")));
        let [(name, Err(why))] = &found[..] else { panic!("{found:?}") };
        assert!(name == "top.txt" && why.starts_with("left out"), "{found:?}");
        let found = added(60, |parts| parts.add("top.txt", || Ok(b"text".to_vec())));
        assert_eq!(found, [("top.txt".to_owned(), Ok(b"text".to_vec()))]);
    }

    #[test]
    fn a_slow_reader_has_all_of_it() {
        let deadline = Instant::now() + Duration::from_millis(200);
        let mut found = Vec::new();
        let mut sink = |_: &str, outcome: anyhow::Result<Vec<u8>>| {
            std::thread::sleep(Duration::from_millis(150));
            found.push(outcome.is_ok());
            Ok(())
        };
        let mut parts = Parts { deadline, sink: &mut sink };
        for _ in 0..3 {
            parts.add("top.txt", || Ok(Vec::new())).expect("nothing fails");
        }
        assert_eq!(found, [true; 3]);
    }
}
