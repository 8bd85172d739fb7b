//! What stands between clients and pods. Another one takes a line in [`VARIANTS`].

use std::{thread, time::Duration};

use dsproxy_common::{IpFamily, count::Reason};
use nix::net::if_::{Interfaces, if_nameindex};

use super::{super::BenchError, stage::Stage};
use crate::{
    lab::{Attach, Bystander, Daemon, DaemonOptions, Manifests, Order, eventually},
    rules::{DesiredState, Shape},
};

/// How long a proxy may take until the last Service is served.
const SERVED_WITHIN: Duration = Duration::from_secs(120);

/// One of the things that are compared.
pub(super) struct Variant {
    /// What it is called in figures.
    pub(super) name: &'static str,
    kind: Kind,
}

enum Kind {
    /// Nothing: clients go straight to a pod.
    Floor,
    /// Programs at every hook where the daemon would have its own, which count and change nothing; clients go straight to a pod.
    Hooks,
    /// Rules.
    Rules(Shape),
    /// The daemon with these arguments beside those that it needs.
    Dsproxy(&'static [&'static str]),
}

/// All of them, the floor first: the others are held against it.
pub(super) const VARIANTS: [Variant; 5] = [
    Variant { name: "straight to the pod", kind: Kind::Floor },
    Variant { name: "straight, with programs that only count", kind: Kind::Hooks },
    Variant { name: "nftables rules", kind: Kind::Rules(Shape::Nftables) },
    Variant { name: "iptables rules", kind: Kind::Rules(Shape::Iptables) },
    Variant { name: "dsproxy", kind: Kind::Dsproxy(&[]) },
];

/// Those that are compared where packets go from one device of the node to another, which is what XDP serves.
pub(super) const FORWARDING_VARIANTS: [Variant; 5] = {
    let [floor, _, nftables, iptables, dsproxy] = VARIANTS;
    [
        floor,
        nftables,
        iptables,
        dsproxy,
        Variant { name: "dsproxy with XDP", kind: Kind::Dsproxy(&["--xdp", "native"]) },
    ]
};

/// A variant at work in a stage.
pub(super) enum Proxy<'stage> {
    Floor,
    Hooks(Vec<Bystander>),
    Rules(Shape),
    Dsproxy { daemon: Box<Daemon<'stage>>, manifests: Manifests },
}

impl Variant {
    /// Whether it has its own program at XDP, where there is room for one.
    pub(super) fn has_xdp(&self) -> bool {
        matches!(self.kind, Kind::Dsproxy(arguments) if !arguments.is_empty())
    }

    /// Whether clients go straight to a pod.
    pub(super) fn is_straight(&self) -> bool {
        matches!(self.kind, Kind::Floor | Kind::Hooks)
    }

    pub(super) fn start<'stage>(&self, stage: &'stage Stage) -> Result<Proxy<'stage>, BenchError> {
        Ok(match self.kind {
            Kind::Floor => Proxy::Floor,
            Kind::Hooks => {
                let node = stage.lab().node(Stage::SIDE).namespace();
                let names = |interfaces: Interfaces| -> Vec<String> {
                    interfaces.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect()
                };
                let names = node.run(|| if_nameindex().map(names))?.map_err(BenchError::Device)?;
                let bystanders = names
                    .into_iter()
                    .filter(|name| name != "lo")
                    .map(|name| Bystander::of_packets(node, &name, Attach::Auto, Order::First));
                Proxy::Hooks(bystanders.collect::<Result<_, _>>()?)
            }
            Kind::Rules(shape) => Proxy::Rules(shape),
            Kind::Dsproxy(own) => {
                let manifests = Manifests::create(stage.lab().directory().join("manifests"))?;
                let cluster_cidr = {
                    let DesiredState { cluster_cidr: (v4, v6), .. } = stage.desired(0);
                    format!("{v4},{v6}")
                };
                let node = stage.node_name();
                let arguments = ["--cluster-cidr", &cluster_cidr, "--hostname-override", node]
                    .into_iter()
                    .chain(own.iter().copied())
                    .map(str::to_owned)
                    .collect();
                let options = DaemonOptions { arguments, ..DaemonOptions::default() };
                let daemon = Box::new(Daemon::start(stage.lab(), &manifests, options)?);
                Proxy::Dsproxy { daemon, manifests }
            }
        })
    }
}

impl Proxy<'_> {
    /// How many times its programs have run, of those that count it.
    pub(super) fn runs(&self) -> Result<Option<u64>, BenchError> {
        let Self::Hooks(bystanders) = self else { return Ok(None) };
        let mut total = 0;
        for bystander in bystanders {
            total += bystander.runs()?.iter().map(|(_, runs)| runs).sum::<u64>();
        }
        Ok(Some(total))
    }

    /// How many packets its XDP has sent on towards backends, where it has any.
    pub(super) fn sent_on(&self, family: IpFamily) -> Result<u64, BenchError> {
        match self {
            Self::Dsproxy { daemon, .. } => sent_on(daemon, family),
            Self::Floor | Self::Hooks(_) | Self::Rules(_) => Ok(0),
        }
    }

    /// Serves `count` Services, in place of those before, and returns when all of them are served.
    pub(super) fn serve(&mut self, stage: &Stage, count: u32) -> Result<(), BenchError> {
        let desired = stage.desired(count);
        match self {
            Self::Floor | Self::Hooks(_) => {}
            Self::Rules(shape) => shape.load(stage.lab().node(Stage::SIDE).namespace(), &desired)?,
            Self::Dsproxy { daemon, manifests } => {
                manifests.write_all("services.yaml", &desired.manifests())?;
                let ports: usize = desired.services.iter().map(|service| service.ports.len()).sum();
                wait_until_served(daemon, IpFamily::ALL.len() * ports)?;
            }
        }
        Ok(())
    }
}

/// Waits until `daemon` serves so many ClusterIPs with their ports.
pub(in crate::bench) fn wait_until_served(daemon: &Daemon<'_>, wanted: usize) -> Result<(), BenchError> {
    Ok(eventually("waiting for dsproxy to serve every Service", SERVED_WITHIN, || {
        // Each look reads all the maps; the daemon has better things to do meanwhile.
        thread::sleep(Duration::from_millis(500));
        let listed = daemon.json(&["services"]).map_err(|error| error.to_string())?;
        let rows = listed.as_array().map(Vec::as_slice).unwrap_or_default();
        match rows.iter().filter(|row| row["kind"] == "ClusterIP").count() {
            found if found == wanted => Ok(()),
            found => Err(format!("{found} ClusterIPs with their ports of {wanted}")),
        }
    })?)
}

/// How many packets XDP has sent on towards backends.
pub(super) fn sent_on(daemon: &Daemon<'_>, family: IpFamily) -> Result<u64, BenchError> {
    let status = daemon.json(&["status"])?;
    let (reason, family) = (Reason::SentToBackend.name(), family.to_string());
    let mut rows = status["packets"].as_array().into_iter().flatten();
    let row = rows.find(|row| row["reason"] == reason && row["family"].as_str() == Some(&family));
    Ok(row.and_then(|row| row["packets"].as_u64()).unwrap_or_default())
}
