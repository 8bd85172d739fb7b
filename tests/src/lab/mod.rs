//! A lab of network namespaces: two nodes, their pods, and real sockets in all of them.
//!
//! ```text
//!   pod ──veth── node-a ──wire── node-b ──veth── pod
//!   pod ──veth──┘  │  └──veth── outside (a host that is none of the cluster, where a test wants one)
//!   pod ──veth── bridge
//! ```
//!
//! Both families everywhere. `rp_filter` is strict on both nodes, unless there is an overlay between them, and no
//! namespace has a route towards a VIP other than its default route. Nothing outside the lab's own namespaces is
//! touched, and everything is removed when the [`Lab`] is dropped. The lab knows nothing of maps or of the daemon's inside.

mod address;
mod attachments;
mod bulk;
mod bystander;
mod cgroup;
mod daemon;
mod echo;
mod error;
mod http;
mod iproute;
mod leftovers;
mod listener;
mod load;
mod manifests;
mod name;
mod namespace;
mod node;
mod overlay;
mod runtime;
mod sctp;
mod service;
mod session;
mod uplink;
mod wait;

pub use address::DualStack;
pub use attachments::{Attachment, attachments};
pub use bulk::{Bulk, BulkReport};
pub use bystander::{Bystander, Order};
pub use cgroup::Cgroup;
pub use daemon::{Attach, Daemon, DaemonOptions, daemon_binary, later_daemon_binary};
pub use echo::EchoServer;
pub use error::LabError;
pub use http::{HttpAnswer, http_get};
pub use iproute::{LinkCounters, add_address, like_hardware, link_address, link_counters, set_mtu, tc};
pub use leftovers::{Extent, Leftover, find as find_leftovers, remove as remove_leftovers};
pub use listener::Listener;
pub(crate) use load::exchange_once;
pub use load::{Load, LoadReport, Steady, SteadyReport};
pub use manifests::Manifests;
pub use name::LabName;
pub use namespace::Namespace;
pub use node::{Node, Outside, Pod, Wiring};
pub use runtime::remove_on_signals;
pub use sctp::{SctpServer, sctp_exchange, sctp_socket};
pub use service::{Backend, ServiceManifest};
pub use session::{ExchangeError, TcpSession, UdpSession};
pub use uplink::Segment;
pub use wait::eventually;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::Mutex,
};

/// Two nodes joined by a wire; pods are added with [`Lab::add_pod`]. Dropping it removes all of it.
#[derive(Debug)]
pub struct Lab {
    name: LabName,
    directory: PathBuf,
    nodes: [Node; 2],
    cgroup: Cgroup,
    processes: Mutex<File>,
}

/// Which node of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The node on which the daemon runs, unless a test says otherwise.
    A,
    /// The other node, which knows nothing of Services unless a daemon is started on it as well.
    B,
}

/// How pods' packets get from one node to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wire {
    /// As they are: the nodes route to each other's pods.
    #[default]
    Direct,
    /// In VXLAN, by a device on either node.
    Vxlan,
}

impl Lab {
    /// Builds both nodes and the wire between them, without any pod.
    pub fn new() -> Result<Self, LabError> {
        Self::with(Wire::Direct)
    }

    /// The same, with pods' packets between the nodes as `wire` says.
    pub fn with(wire: Wire) -> Result<Self, LabError> {
        runtime::remove_on_signals();
        let name = LabName::next();
        let directory = name.directory();
        // The directory comes first: from here on whatever is left behind can be traced to its owner.
        let processes = leftovers::record_owner(name)?;
        let build = || -> Result<([Node; 2], Cgroup), LabError> {
            let pod_mtu = match wire {
                Wire::Direct => 1500,
                Wire::Vxlan => overlay::MTU,
            };
            let cgroup = Cgroup::create(name)?;
            let a = Node::create(name, Side::A, pod_mtu)?;
            let b = Node::create(name, Side::B, pod_mtu)?;
            node::join(&a, &b)?;
            if wire == Wire::Vxlan {
                overlay::lay(&a, &b)?;
            }
            Ok(([a, b], cgroup))
        };
        match build() {
            Ok((nodes, cgroup)) => Ok(Self { name, directory, nodes, cgroup, processes: Mutex::new(processes) }),
            Err(error) => {
                for failure in leftovers::remove(&Extent::Lab(name)) {
                    eprintln!("lab {name}: {failure}");
                }
                Err(error)
            }
        }
    }

    /// The name that all of the lab's namespaces start with.
    pub fn name(&self) -> LabName {
        self.name
    }

    /// A directory for the lab's own files, removed with the lab.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The cgroup that the lab's daemons are attached to. Its clients' threads have to enter it to be looked at.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// A node.
    pub fn node(&self, side: Side) -> &Node {
        match side {
            Side::A => &self.nodes[0],
            Side::B => &self.nodes[1],
        }
    }

    /// Adds a pod, also while traffic flows. `role` names its namespace and must be unique in the lab.
    pub fn add_pod(&self, side: Side, wiring: Wiring, role: &str) -> Result<Pod, LabError> {
        self.node(side).add_pod(self.name, wiring, role)
    }

    /// Gives node B a way of its own to the host outside; once.
    pub fn add_way_out(&self, outside: &Outside) -> Result<(), LabError> {
        node::add_way_out(outside, self.node(Side::B))
    }

    /// Takes a pod away, its interfaces and all; its address and the names of its interfaces go to the next that comes. What
    /// runs in it has to have ended.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn remove_pod(&self, side: Side, pod: &Pod) -> Result<(), LabError> {
        self.node(side).remove_pod(pod)
    }

    /// Adds a host outside the cluster; once.
    pub fn add_outside(&self) -> Result<Outside, LabError> {
        let [a, b] = &self.nodes;
        node::add_outside(self.name, a, b)
    }

    /// Makes the NIC of a node a port of its pods' bridge, and the other node a neighbour of these pods; once, and before
    /// anything is sent.
    pub fn bridge_uplink(&self, side: Side) -> Result<Segment, LabError> {
        let [a, b] = &self.nodes;
        match side {
            Side::A => uplink::bridge(a, b),
            Side::B => uplink::bridge(b, a),
        }
    }

    /// Starts `command` in `namespace`; the process ends with the lab at the latest.
    pub fn spawn(&self, namespace: &Namespace, command: &mut Command) -> Result<Child, LabError> {
        let child = namespace.run(|| command.spawn())?.map_err(|source| LabError::Spawn {
            program: command.get_program().to_string_lossy().into_owned(),
            namespace: namespace.name().to_owned(),
            source,
        })?;
        // One that has ended already cannot be left behind, and its caller learns of it by waiting.
        let Ok(line) = leftovers::process_record(child.id()) else { return Ok(child) };
        let mut processes = self.processes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        writeln!(processes, "{line}")
            .and_then(|()| processes.flush())
            .map_err(|source| LabError::file("record a process in", self.name.processes_file(), source))?;
        Ok(child)
    }

    /// Leaves everything standing, also after this process has ended. `cargo xtask demo --remove` removes it.
    pub fn keep(self) -> Result<(), LabError> {
        let path = self.name.kept_file();
        fs::write(&path, b"").map_err(|source| LabError::file("write", path, source))?;
        std::mem::forget(self);
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for failure in leftovers::remove(&Extent::Lab(self.name)) {
            eprintln!("lab {}: {failure}", self.name);
        }
    }
}
