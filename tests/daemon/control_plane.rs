//! An API server that the daemon on node A can reach, and what the tests do to it.
//!
//! It listens in node A's network namespace: on the loopback address, as a node's own load balancer for its API servers
//! does, so that no Service takes part in reaching it.

use std::net::IpAddr;

use dsproxy_common::IpFamily;
use dsproxy_tests::{
    apiserver::{ApiServer, Resource, Verb},
    lab::{Lab, Manifests, Namespace, ServiceManifest, Side},
};
use serde::Deserialize as _;
use serde_json::Value;
use tempfile::NamedTempFile;
use tokio::runtime::Runtime;

use crate::process::Daemon;

/// The namespace of all objects.
const NAMESPACE: &str = "default";

/// A server with the thread that it works on.
pub(crate) struct ControlPlane {
    // Dropped first, while there is a runtime.
    server: ApiServer,
    runtime: Runtime,
    namespace: Namespace,
    kubeconfig: NamedTempFile,
    manifests: Manifests,
}

impl ControlPlane {
    /// A server that listens in node A on the loopback address of `family`.
    pub(crate) fn start(lab: &Lab, family: IpFamily) -> Self {
        let address: IpAddr = match family {
            IpFamily::V4 => std::net::Ipv4Addr::LOCALHOST.into(),
            IpFamily::V6 => std::net::Ipv6Addr::LOCALHOST.into(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("make a runtime");
        let namespace = lab.node(Side::A).namespace().clone();
        // A socket belongs to the namespace of the thread that makes it.
        let server = namespace.run(|| runtime.block_on(ApiServer::start_on(address))).expect("node A is there");
        let kubeconfig = server.kubeconfig();
        let manifests = Manifests::create(lab.directory().join("applied")).expect("the directory is made");
        Self { server, runtime, namespace, kubeconfig, manifests }
    }

    /// A daemon that is led here, with further flags.
    pub(crate) fn daemon<'lab>(&self, lab: &'lab Lab, flags: &[&str]) -> Daemon<'lab> {
        let kubeconfig = self.kubeconfig.path().display().to_string();
        Daemon::new(lab, &[&["--kubeconfig", &kubeconfig], flags].concat())
    }

    /// The server, for what is not about its being there.
    pub(crate) fn server(&self) -> &ApiServer {
        &self.server
    }

    /// Creates or changes a Service and its slices.
    pub(crate) fn apply(&self, service: &ServiceManifest) {
        for object in self.objects(service) {
            self.server.put(object);
        }
    }

    /// The objects of a Service: itself and its slices.
    pub(crate) fn objects(&self, service: &ServiceManifest) -> Vec<Value> {
        self.manifests.write(service).expect("the manifest is written");
        let mut entries = std::fs::read_dir(self.manifests.directory()).expect("the directory is there");
        let path = entries.next().expect("the manifest is there").expect("an entry").path();
        let yaml = std::fs::read_to_string(path).expect("the manifest is read");
        self.manifests.remove(service).expect("the manifest is removed");
        let documents = serde_yaml::Deserializer::from_str(&yaml);
        documents.map(|document| Value::deserialize(document).expect("the manifest is YAML")).collect()
    }

    /// Deletes a Service and the slices that were applied with it.
    pub(crate) fn delete(&self, name: &str) {
        self.server.delete(Resource::Services, NAMESPACE, name);
        for family in IpFamily::ALL {
            let slice = format!("{name}-{family}").to_lowercase();
            self.server.delete(Resource::EndpointSlices, NAMESPACE, &slice);
        }
    }

    /// The server stops; all connections are reset.
    pub(crate) fn stop(&mut self) {
        let Self { server, runtime, .. } = self;
        runtime.block_on(server.stop());
    }

    /// It is there again, with the same history.
    pub(crate) fn restart(&mut self) {
        let Self { server, runtime, namespace, .. } = self;
        namespace.run(|| runtime.block_on(server.restart())).expect("node A is there");
    }

    /// It is there again as restored from a backup: the same objects, and a history that begins at `version`.
    pub(crate) fn restart_with_other_history(&mut self, version: u64) {
        let Self { server, runtime, namespace, .. } = self;
        namespace.run(|| runtime.block_on(server.restart_with_other_history(version))).expect("node A is there");
    }

    /// Waits until all kinds are watched.
    pub(crate) fn until_watched(&self) {
        self.runtime.block_on(self.server.until_watched());
    }

    /// Waits until a kind is not watched.
    pub(crate) fn until_unwatched(&self, resource: Resource) {
        let unwatched = |server: &ApiServer| server.open_watches(resource) == 0;
        self.runtime.block_on(self.server.until("the end of watches", unwatched));
    }

    /// Waits until an Event tells of the start.
    pub(crate) fn until_told_of_the_start(&self) {
        self.runtime.block_on(self.server.until("the event", |server| !server.events().is_empty()));
    }

    /// Waits until all kinds were listed more often than `before`.
    pub(crate) fn until_listed_again(&self, before: [usize; Resource::ALL.len()]) {
        self.runtime.block_on(self.server.until("another list", |server| {
            Resource::ALL.into_iter().zip(before).all(|(resource, before)| server.count(Verb::List, resource) > before)
        }));
        self.until_watched();
    }

    /// How often each kind was listed.
    pub(crate) fn lists(&self) -> [usize; Resource::ALL.len()] {
        Resource::ALL.map(|resource| self.server.count(Verb::List, resource))
    }
}
