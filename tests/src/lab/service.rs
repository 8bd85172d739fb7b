//! A Service and its EndpointSlices, as the API server would hand them out.
//!
//! It knows what Kubernetes objects look like, not what the daemon makes of them.

use std::{collections::BTreeMap, net::IpAddr};

use dsproxy_common::{IpFamily, Protocol};
use k8s_openapi::{
    api::{
        core::v1::{
            ClientIPConfig, LoadBalancerIngress, LoadBalancerStatus, Service, ServicePort, ServiceSpec, ServiceStatus,
            SessionAffinityConfig,
        },
        discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use serde::Serialize as _;

use super::DualStack;

/// A Service with its endpoints, before it is written.
#[derive(Clone, Debug)]
pub struct ServiceManifest {
    namespace: String,
    name: String,
    cluster_ips: Vec<IpAddr>,
    ports: Vec<Port>,
    backends: Vec<Backend>,
    reach: Reach,
}

/// By what else than its ClusterIPs a Service is reached, and by whom.
#[derive(Clone, Debug, Default)]
struct Reach {
    kind: Option<&'static str>,
    ingress: Vec<Ingress>,
    external_ips: Vec<IpAddr>,
    source_ranges: Vec<String>,
    internal_local: bool,
    external_local: bool,
    health_check_node_port: Option<u16>,
    affinity: Option<i32>,
}

/// An address of a load balancer, and who serves it: `VIP`, the nodes; `Proxy`, the load balancer alone.
#[derive(Clone, Copy, Debug)]
struct Ingress {
    address: IpAddr,
    mode: &'static str,
}

/// An endpoint of a Service, in both families.
#[derive(Clone, Copy, Debug)]
pub struct Backend {
    /// Its addresses.
    pub addresses: DualStack,
    /// Takes new connections.
    pub ready: bool,
    /// Answers.
    pub serving: bool,
    /// Is being shut down.
    pub terminating: bool,
    /// The name of its node.
    pub node: Option<&'static str>,
    /// The zones that it is meant for; without one, its slice says nothing of zones for it.
    pub for_zones: &'static [&'static str],
    /// The nodes that it is meant for, likewise.
    pub for_nodes: &'static [&'static str],
}

#[derive(Clone, Debug)]
struct Port {
    name: String,
    protocol: Protocol,
    number: u16,
    target: u16,
    node_port: Option<u16>,
}

impl From<DualStack> for Backend {
    /// An endpoint that is ready.
    fn from(addresses: DualStack) -> Self {
        Self { addresses, ready: true, serving: true, terminating: false, node: None, for_zones: &[], for_nodes: &[] }
    }
}

impl Backend {
    fn hints(&self) -> Option<EndpointHints> {
        let named = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let zones = named(self.for_zones).into_iter().map(|name| ForZone { name }).collect::<Vec<_>>();
        let nodes = named(self.for_nodes).into_iter().map(|name| ForNode { name }).collect::<Vec<_>>();
        (!zones.is_empty() || !nodes.is_empty()).then(|| EndpointHints {
            for_zones: (!zones.is_empty()).then_some(zones),
            for_nodes: (!nodes.is_empty()).then_some(nodes),
        })
    }
}

impl ServiceManifest {
    /// A Service of type ClusterIP without addresses, ports or endpoints.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            cluster_ips: Vec::new(),
            ports: Vec::new(),
            backends: Vec::new(),
            reach: Reach::default(),
        }
    }

    /// Serves the last port on the nodes' own port `number` as well.
    pub fn node_port(mut self, number: u16) -> Self {
        self.reach.kind.get_or_insert("NodePort");
        if let Some(port) = self.ports.last_mut() {
            port.node_port = Some(number);
        }
        self
    }

    /// Makes it a load balancer's, whose addresses these are too.
    pub fn load_balancer(self, addresses: DualStack) -> Self {
        self.ingress(addresses, "VIP")
    }

    /// The same with addresses that the load balancer serves by itself: `ipMode: Proxy`.
    pub fn load_balancer_proxy(self, addresses: DualStack) -> Self {
        self.ingress(addresses, "Proxy")
    }

    fn ingress(mut self, addresses: DualStack, mode: &'static str) -> Self {
        self.reach.kind = Some("LoadBalancer");
        self.reach.ingress.extend(IpFamily::ALL.map(|family| Ingress { address: addresses.of(family), mode }));
        self
    }

    /// Lets only clients in these ranges reach the load balancer's addresses.
    pub fn source_ranges(mut self, ranges: &[&str]) -> Self {
        self.reach.source_ranges = ranges.iter().map(|range| (*range).to_owned()).collect();
        self
    }

    /// Sets `externalIPs`.
    pub fn external_ips(mut self, addresses: DualStack) -> Self {
        self.reach.external_ips = vec![addresses.v4.into(), addresses.v6.into()];
        self
    }

    /// Sets `internalTrafficPolicy: Local`.
    pub fn internal_local(mut self) -> Self {
        self.reach.internal_local = true;
        self
    }

    /// Sets `externalTrafficPolicy: Local`.
    pub fn external_local(mut self) -> Self {
        self.reach.external_local = true;
        self
    }

    /// Sets `healthCheckNodePort`.
    pub fn health_check_node_port(mut self, number: u16) -> Self {
        self.reach.health_check_node_port = Some(number);
        self
    }

    /// Sets `sessionAffinity: ClientIP` with a timeout in seconds.
    pub fn affinity(mut self, seconds: i32) -> Self {
        self.reach.affinity = Some(seconds);
        self
    }

    /// Makes it dual-stack, IPv4 first.
    pub fn dual_stack(self, addresses: DualStack) -> Self {
        self.cluster_ips([addresses.v4.into(), addresses.v6.into()])
    }

    /// Sets the ClusterIPs, one or two of different families; there is a slice for each family named.
    pub fn cluster_ips(mut self, addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        self.cluster_ips = addresses.into_iter().collect();
        self
    }

    /// Adds a port `number` of the VIP that endpoints serve on `target`.
    pub fn port(mut self, protocol: Protocol, number: u16, target: u16) -> Self {
        self.ports.push(Port {
            name: format!("{protocol}-{number}").to_lowercase(),
            protocol,
            number,
            target,
            node_port: None,
        });
        self
    }

    /// Takes away all ports.
    pub fn without_ports(mut self) -> Self {
        self.ports.clear();
        self
    }

    /// Replaces the endpoints.
    pub fn backends<B: Into<Backend>>(mut self, backends: impl IntoIterator<Item = B>) -> Self {
        self.backends = backends.into_iter().map(Into::into).collect();
        self
    }

    /// The name of the file that it is written to.
    pub(super) fn file_name(&self) -> String {
        format!("{}-{}.yaml", self.namespace, self.name)
    }

    /// The Service and its slices, as YAML documents.
    pub(super) fn to_yaml(&self) -> Result<String, serde_yaml::Error> {
        let mut yaml = Vec::new();
        let mut documents = serde_yaml::Serializer::new(&mut yaml);
        self.service().serialize(&mut documents)?;
        for address in &self.cluster_ips {
            self.slice(IpFamily::of(*address)).serialize(&mut documents)?;
        }
        Ok(String::from_utf8_lossy(&yaml).into_owned())
    }

    /// The Service and its slices, as an API server would hand them out.
    ///
    /// # Errors
    ///
    /// When an object cannot be written as JSON.
    pub fn objects(&self) -> Result<Vec<serde_json::Value>, serde_json::Error> {
        let slices = self.cluster_ips.iter().map(|address| serde_json::to_value(self.slice(IpFamily::of(*address))));
        std::iter::once(serde_json::to_value(self.service())).chain(slices).collect()
    }

    fn service(&self) -> Service {
        let reach = &self.reach;
        let policy = |local: bool| if local { "Local" } else { "Cluster" }.to_owned();
        let texts: Vec<String> = self.cluster_ips.iter().map(IpAddr::to_string).collect();
        Service {
            metadata: self.metadata(self.name.clone(), BTreeMap::new()),
            spec: Some(ServiceSpec {
                type_: Some(reach.kind.unwrap_or("ClusterIP").to_owned()),
                external_ips: (!reach.external_ips.is_empty())
                    .then(|| reach.external_ips.iter().map(IpAddr::to_string).collect()),
                load_balancer_source_ranges: (!reach.source_ranges.is_empty()).then(|| reach.source_ranges.clone()),
                internal_traffic_policy: Some(policy(reach.internal_local)),
                external_traffic_policy: reach.kind.map(|_| policy(reach.external_local)),
                health_check_node_port: reach.health_check_node_port.map(Into::into),
                session_affinity: Some(if reach.affinity.is_some() { "ClientIP" } else { "None" }.to_owned()),
                session_affinity_config: reach.affinity.map(|seconds| SessionAffinityConfig {
                    client_ip: Some(ClientIPConfig { timeout_seconds: Some(seconds) }),
                }),
                cluster_ip: texts.first().cloned(),
                cluster_ips: Some(texts),
                ip_families: Some(self.cluster_ips.iter().map(|address| IpFamily::of(*address).to_string()).collect()),
                ip_family_policy: Some(
                    match self.cluster_ips.len() {
                        2 => "RequireDualStack",
                        _ => "SingleStack",
                    }
                    .to_owned(),
                ),
                ports: Some(
                    self.ports
                        .iter()
                        .map(|port| ServicePort {
                            name: Some(port.name.clone()),
                            protocol: Some(port.protocol.to_string()),
                            port: port.number.into(),
                            target_port: Some(IntOrString::Int(port.target.into())),
                            node_port: port.node_port.map(Into::into),
                            ..ServicePort::default()
                        })
                        .collect(),
                ),
                ..ServiceSpec::default()
            }),
            status: Some(ServiceStatus {
                load_balancer: Some(LoadBalancerStatus {
                    ingress: Some(
                        reach
                            .ingress
                            .iter()
                            .map(|ingress| LoadBalancerIngress {
                                ip: Some(ingress.address.to_string()),
                                ip_mode: Some(ingress.mode.to_owned()),
                                ..LoadBalancerIngress::default()
                            })
                            .collect(),
                    ),
                }),
                ..ServiceStatus::default()
            }),
        }
    }

    fn slice(&self, family: IpFamily) -> EndpointSlice {
        EndpointSlice {
            metadata: self.metadata(
                format!("{}-{family}", self.name).to_lowercase(),
                BTreeMap::from([("kubernetes.io/service-name".to_owned(), self.name.clone())]),
            ),
            address_type: family.to_string(),
            endpoints: self
                .backends
                .iter()
                .map(|backend| Endpoint {
                    addresses: vec![backend.addresses.of(family).to_string()],
                    conditions: Some(EndpointConditions {
                        ready: Some(backend.ready),
                        serving: Some(backend.serving),
                        terminating: Some(backend.terminating),
                    }),
                    node_name: backend.node.map(str::to_owned),
                    hints: backend.hints(),
                    ..Endpoint::default()
                })
                .collect(),
            ports: Some(
                self.ports
                    .iter()
                    .map(|port| EndpointPort {
                        name: Some(port.name.clone()),
                        protocol: Some(port.protocol.to_string()),
                        port: Some(port.target.into()),
                        ..EndpointPort::default()
                    })
                    .collect(),
            ),
        }
    }

    fn metadata(&self, name: String, labels: BTreeMap<String, String>) -> ObjectMeta {
        ObjectMeta {
            namespace: Some(self.namespace.clone()),
            name: Some(name),
            labels: Some(labels),
            ..ObjectMeta::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize as _;

    use super::*;

    #[test]
    fn documents_read_back_as_kubernetes_objects() {
        let vip = DualStack::cluster_ip(7);
        let yaml = ServiceManifest::new("default", "echo")
            .dual_stack(vip)
            .port(Protocol::Tcp, 80, 8080)
            .backends([DualStack::pod(1, 2)])
            .to_yaml()
            .expect("plain objects can be written");
        let documents: Vec<serde_yaml::Value> = serde_yaml::Deserializer::from_str(&yaml)
            .map(|document| serde_yaml::Value::deserialize(document).expect("it is YAML"))
            .collect();
        assert_eq!(documents.len(), 3, "{yaml}");
        let service: Service = serde_yaml::from_value(documents[0].clone()).expect("it is a Service");
        let spec = service.spec.expect("it has a spec");
        assert_eq!(spec.cluster_ips, Some(vec![vip.v4.to_string(), vip.v6.to_string()]));
        let slice: EndpointSlice = serde_yaml::from_value(documents[2].clone()).expect("it is an EndpointSlice");
        assert_eq!(slice.address_type, "IPv6");
        assert_eq!(slice.endpoints[0].addresses, ["fd00:10:244:1::2"]);
    }
}
