//! The directory of manifests that a daemon watches: objects are put there as files of YAML, and taken away.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{DualStack, LabError, Node, ServiceManifest};

/// A directory of manifests that the daemon watches.
#[derive(Debug)]
pub struct Manifests {
    directory: PathBuf,
}

impl Manifests {
    /// An empty directory for manifests at `directory`.
    pub fn create(directory: impl Into<PathBuf>) -> Result<Self, LabError> {
        let directory = directory.into();
        match fs::create_dir(&directory) {
            Ok(()) => Ok(Self { directory }),
            Err(source) => Err(LabError::file("create", directory, source)),
        }
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes `service`, in place of what stood under its name before.
    pub fn write(&self, service: &ServiceManifest) -> Result<(), LabError> {
        let name = service.file_name();
        let yaml = service.to_yaml().map_err(|source| LabError::Manifest { name: name.clone(), source })?;
        self.write_text(&name, &yaml)
    }

    /// Writes many Services into one file, `name`, in place of all that it held before.
    pub fn write_all(&self, name: &str, services: &[ServiceManifest]) -> Result<(), LabError> {
        let documents: Result<Vec<String>, _> = services.iter().map(ServiceManifest::to_yaml).collect();
        let documents = documents.map_err(|source| LabError::Manifest { name: name.to_owned(), source })?;
        self.write_text(name, &documents.join("---\n"))
    }

    /// Writes the ServiceCIDR that the lab's ClusterIPs are of.
    pub fn write_service_cidr(&self) -> Result<(), LabError> {
        let DualStack { v4, v6 } = DualStack::cluster_ip(0);
        let cidrs = format!("[{v4}/16, '{v6}/112']");
        self.write_text(
            "service-cidr.yaml",
            &format!(
                "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: kubernetes}}\n\
                 spec: {{cidrs: {cidrs}}}\n"
            ),
        )
    }

    /// Writes the Node object of `node`, in `zone`.
    pub fn write_node(&self, node: &Node, zone: &str) -> Result<(), LabError> {
        let name = node.side().role();
        let DualStack { v4, v6 } = node.addresses();
        self.write_text(
            &format!("{name}.yaml"),
            &format!(
                "apiVersion: v1\nkind: Node\n\
                 metadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone}}}}}\nspec: {{}}\n\
                 status: {{addresses: [{{type: InternalIP, address: {v4}}}, {{type: InternalIP, address: '{v6}'}}]}}\n"
            ),
        )
    }

    /// Writes any text as the file `name`. Readers see the old file or the new one, never half of it.
    pub fn write_text(&self, name: &str, text: &str) -> Result<(), LabError> {
        let draft = self.directory.join(format!(".{name}.draft"));
        let path = self.directory.join(name);
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &path))
            .map_err(|source| LabError::file("write", path, source))
    }

    /// Removes a Service and its slices.
    pub fn remove(&self, service: &ServiceManifest) -> Result<(), LabError> {
        let path = self.directory.join(service.file_name());
        fs::remove_file(&path).map_err(|source: io::Error| LabError::file("remove", path, source))
    }
}
