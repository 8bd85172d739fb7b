//! The API server of a soak, on the loopback address of node A, and its outages.

use std::{
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use anyhow::Context as _;
use dsproxy_common::IpFamily;
use tempfile::NamedTempFile;
use tokio::runtime::Runtime;

use super::plan::Outage;
use crate::{
    apiserver::{ApiServer, Fault, Matching, Refusal, Resource},
    lab::{Namespace, ServiceManifest},
};

/// The namespace of all objects.
pub(crate) const NAMESPACE: &str = "soak";

/// The server; objects can be changed while it is away.
pub(crate) struct Plane {
    // Dropped first, while there is a runtime.
    server: Mutex<ApiServer>,
    runtime: Runtime,
    namespace: Namespace,
    kubeconfig: NamedTempFile,
}

impl Plane {
    pub(crate) fn start(node: &Namespace) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.context("make a runtime for the API server")?;
        // A socket belongs to the namespace of the thread that makes it.
        let server = node.run(|| runtime.block_on(ApiServer::start_on(Ipv4Addr::LOCALHOST.into())))?;
        let kubeconfig = server.kubeconfig();
        Ok(Self { server: Mutex::new(server), runtime, namespace: node.clone(), kubeconfig })
    }

    pub(crate) fn kubeconfig(&self) -> &std::path::Path {
        self.kubeconfig.path()
    }

    /// Forgets how everything came to be as it is.
    pub(crate) fn compact(&self) {
        self.server().compact();
    }

    fn server(&self) -> MutexGuard<'_, ApiServer> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates or changes a Service and its slices.
    pub(crate) fn apply(&self, service: &ServiceManifest) -> anyhow::Result<()> {
        self.put_all(service.objects().context("write a Service as JSON")?);
        Ok(())
    }

    /// Creates or changes objects.
    pub(crate) fn put_all(&self, objects: impl IntoIterator<Item = serde_json::Value>) {
        let server = self.server();
        for object in objects {
            server.put(object);
        }
    }

    /// Deletes a Service and its slices.
    pub(crate) fn delete(&self, name: &str) {
        let server = self.server();
        server.delete(Resource::Services, NAMESPACE, name);
        for family in IpFamily::ALL {
            server.delete(Resource::EndpointSlices, NAMESPACE, &format!("{name}-{family}").to_lowercase());
        }
    }

    /// Is of no use for `length`.
    pub(super) fn fail(&self, outage: Outage, length: Duration) -> anyhow::Result<()> {
        self.runtime.block_on(self.server().stop());
        if let Outage::Refuses(status) = outage {
            self.server().faults().always(Matching::default(), Fault::Refuse(Refusal::with(status)));
            self.restart(None)?;
        }
        thread::sleep(length);
        match outage {
            Outage::Gone => self.restart(None),
            Outage::Compacted => {
                self.server().compact();
                self.restart(None)
            }
            Outage::OtherHistory => {
                let version = self.server().version() / 2;
                self.restart(Some(version))
            }
            Outage::Refuses(_) => {
                self.server().faults().clear();
                Ok(())
            }
        }
    }

    fn restart(&self, other_history: Option<u64>) -> anyhow::Result<()> {
        let restart = || {
            let mut server = self.server();
            match other_history {
                Some(version) => self.runtime.block_on(server.restart_with_other_history(version)),
                None => self.runtime.block_on(server.restart()),
            }
        };
        Ok(self.namespace.run(restart)?)
    }
}
