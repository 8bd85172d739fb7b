//! What is in the archive.

use std::{fmt::Write as _, io, net::SocketAddr};

use anyhow::Context as _;
use serde::Serialize;

use super::{endpoint, kernel, network};
use crate::{
    config::flags::BpffsFlag,
    inspect::{
        Live, View,
        filter::{FlowFilter, RowFilter},
        top,
        views::{backends, connections, metrics_address, services, status},
    },
};

/// Connections beyond these are left out: those of the longest standing clients say as much as all.
const MOST_CONNECTIONS: usize = 10_000;

/// The files with what each is.
const FILES: [(&str, &str); 19] = [
    ("README.txt", "this list"),
    ("version.txt", "the version of the dsproxy that wrote this, which need not be that of the daemon"),
    ("status.txt", "`dsproxy status`: the daemon, hooks, maps, and what became of packets"),
    ("status.json", "the same, for programs"),
    ("services.json", "`dsproxy services`"),
    ("backends.json", "`dsproxy backends`"),
    ("connections.json", "`dsproxy connections`, the first 10000"),
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
                    A file that could not be had is missing; NAME.failed says why. A file is cut off after 8 MiB.\n\
                    No key, token or kubeconfig is in here. Names of Services and interfaces, and addresses, are.\n\n"
        .to_owned();
    for (name, what) in FILES {
        let _ = writeln!(text, "{name:<26}{what}");
    }
    text
}

/// Finds out everything.
///
/// # Errors
///
/// Those of `sink`.
pub(super) fn collect(bpffs: &BpffsFlag, sink: Sink<'_>) -> io::Result<()> {
    sink("version.txt", Ok(format!("dsproxy {}\n", env!("CARGO_PKG_VERSION")).into_bytes()))?;
    match Live::open(bpffs) {
        Ok(live) => of_maps(&live, sink)?,
        Err(error) => sink("status.txt", Err(error))?,
    }
    sink("kernel/about.txt", kernel::about())?;
    sink("kernel/configuration.txt", kernel::configuration())?;
    for (kind, outcome) in network::all() {
        sink(&format!("network/{kind}.txt"), outcome)?;
    }
    Ok(())
}

fn of_maps(live: &Live, sink: Sink<'_>) -> io::Result<()> {
    match status(live) {
        Ok(status) => {
            sink("status.txt", Ok(status.table().into_bytes()))?;
            sink("status.json", json(&status))?;
        }
        Err(error) => sink("status.txt", Err(error))?,
    }
    sink("services.json", services(live, &FlowFilter::default()).and_then(|view| json(&view)))?;
    sink("backends.json", backends(live, &RowFilter::default()).and_then(|view| json(&view)))?;
    let connections = connections(live, &FlowFilter::default()).map(|view| view.first(MOST_CONNECTIONS));
    sink("connections.json", connections.and_then(|view| json(&view)))?;
    sink("top.txt", top::for_a_second(live).map(String::into_bytes))?;
    let settings = live.maps.settings().map(|settings| format!("{settings:#?}\n").into_bytes());
    sink("settings.txt", settings.map_err(Into::into))?;
    of_daemon(metrics_address(live), sink)
}

fn of_daemon(daemon: anyhow::Result<Option<SocketAddr>>, sink: Sink<'_>) -> io::Result<()> {
    let server = daemon.and_then(|server| server.context("no daemon that runs serves metrics"));
    let server = server.map_err(|error| format!("{error:#}"));
    for (file, path) in
        [("daemon/metrics.txt", "/metrics"), ("daemon/configz.json", "/configz"), ("daemon/flagz.txt", "/flagz")]
    {
        let server = server.clone().map_err(anyhow::Error::msg);
        sink(file, server.and_then(|server| endpoint::get(server, path)))?;
    }
    Ok(())
}

fn json(view: &impl Serialize) -> anyhow::Result<Vec<u8>> {
    serde_json::to_vec_pretty(view).context("write JSON")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_daemon_its_files_say_so_and_the_rest_goes_on() {
        let mut found = Vec::new();
        of_daemon(Ok(None), &mut |name, outcome| {
            found.push((name.to_owned(), outcome.map_err(|error| error.to_string())));
            Ok(())
        })
        .expect("nothing fails");
        assert_eq!(found.len(), 3);
        for (name, outcome) in found {
            assert!(FILES.iter().any(|(listed, _)| *listed == name), "{name}");
            assert_eq!(outcome.expect_err("no daemon"), "no daemon that runs serves metrics");
        }
    }
}
