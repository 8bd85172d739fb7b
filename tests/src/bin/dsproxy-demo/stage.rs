//! The demo's small cluster: a client and two backends on one node, a third backend on the other.

use std::{
    env,
    fs::File,
    net::TcpStream,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use dsproxy_common::IpFamily;
use dsproxy_tests::lab::{Lab, Pod, Side, Wiring, eventually};

/// The port every backend serves on, as the manifests say.
pub(crate) const PORT: u16 = 8080;

/// How long a backend may take to listen.
const START: Duration = Duration::from_secs(10);

pub(crate) struct Stage {
    pub(crate) client: Pod,
    pub(crate) backends: Vec<Backend>,
}

pub(crate) struct Backend {
    pub(crate) name: &'static str,
    pub(crate) side: Side,
    pub(crate) pod: Pod,
    process: Child,
}

impl Stage {
    /// Adds the pods, in the order that gives them the manifests' addresses, and starts the backends.
    pub(crate) fn set(lab: &Lab) -> anyhow::Result<Self> {
        let client = lab.add_pod(Side::A, Wiring::Routed, "client")?;
        let backends = [("backend-1", Side::A), ("backend-2", Side::A), ("backend-3", Side::B)]
            .into_iter()
            .map(|(name, side)| start_backend(lab, name, side))
            .collect::<anyhow::Result<Vec<_>>>()?;
        for Backend { name, pod, .. } in &backends {
            for family in IpFamily::ALL {
                let address = pod.addresses().socket(family, PORT);
                eventually(&format!("waiting for {name}"), START, || {
                    client
                        .namespace()
                        .run(|| TcpStream::connect_timeout(&address, START).map(drop))?
                        .map_err(anyhow::Error::from)
                })?;
            }
        }
        Ok(Self { client, backends })
    }

    /// The processes run on when this ends.
    pub(crate) fn leave_running(mut self) {
        self.backends.clear();
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for Backend { process, .. } in &mut self.backends {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn start_backend(lab: &Lab, name: &'static str, side: Side) -> anyhow::Result<Backend> {
    let pod = lab.add_pod(side, Wiring::Routed, name)?;
    let mut command = Command::new(env::current_exe().context("find this program")?);
    let log = lab.directory().join(format!("{name}.log"));
    let log = File::create(&log).with_context(|| format!("create {}", log.display()))?;
    command.args(["serve", "--name", name, "--port", &PORT.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    // Nothing of it is tied to the terminal, so that it can outlive the demo.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let process = lab.spawn(pod.namespace(), &mut command)?;
    Ok(Backend { name, side, pod, process })
}
