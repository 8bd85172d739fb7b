//! Reads from the manifests where the demo has to send its traffic.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context as _, bail};
use dsproxy_common::Protocol;
use k8s_openapi::api::core::v1::Service;
use serde::Deserialize as _;

/// One address, port and protocol of a Service.
#[derive(Clone, Debug)]
pub(crate) struct Frontend {
    /// `namespace/name` of the Service.
    pub(crate) service: String,
    pub(crate) protocol: Protocol,
    pub(crate) vip: SocketAddr,
    /// The port its endpoints serve on.
    pub(crate) target_port: u16,
}

/// Every frontend of every Service in `directory`, IPv4 before IPv6 of the same port.
pub(crate) fn read(directory: &Path) -> anyhow::Result<Vec<Frontend>> {
    let mut paths = fs::read_dir(directory)
        .with_context(|| format!("read {}", directory.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect::<Vec<_>>();
    paths.sort();
    let mut frontends = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        for document in serde_yaml::Deserializer::from_str(&text) {
            let object =
                serde_yaml::Value::deserialize(document).with_context(|| format!("{} is not YAML", path.display()))?;
            if object["kind"] == "Service" {
                let service = serde_yaml::from_value(object)
                    .with_context(|| format!("{} holds no valid Service", path.display()))?;
                frontends.extend(frontends_of(&service)?);
            }
        }
    }
    if frontends.is_empty() {
        bail!("no Service in {}", directory.display());
    }
    Ok(frontends)
}

fn frontends_of(service: &Service) -> anyhow::Result<Vec<Frontend>> {
    let name = format!(
        "{}/{}",
        service.metadata.namespace.as_deref().unwrap_or("default"),
        service.metadata.name.as_deref().unwrap_or_default()
    );
    let spec = service.spec.clone().unwrap_or_default();
    let mut frontends = Vec::new();
    for port in spec.ports.unwrap_or_default() {
        let protocol = match port.protocol.as_deref() {
            None | Some("TCP") => Protocol::Tcp,
            Some("UDP") => Protocol::Udp,
            Some(other) => bail!("{name}: the demo sends no {other}"),
        };
        let number = u16::try_from(port.port).with_context(|| format!("{name}: port {}", port.port))?;
        let target_port = match port.target_port {
            Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(target)) => {
                u16::try_from(target).with_context(|| format!("{name}: target port {target}"))?
            }
            _ => number,
        };
        for address in spec.cluster_ips.iter().flatten() {
            let address = address.parse().with_context(|| format!("{name}: ClusterIP {address}"))?;
            let vip = SocketAddr::new(address, number);
            frontends.push(Frontend { service: name.clone(), protocol, vip, target_port });
        }
    }
    Ok(frontends)
}
