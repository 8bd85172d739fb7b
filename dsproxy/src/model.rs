//! The objects dsproxy works on, trimmed to what is used and free of Kubernetes types.
//!
//! Sources make them (`source/convert.rs` holds all the leniency about odd input); `resolve` reads
//! them. Nothing here knows of maps or of the API server.

use std::{fmt, net::IpAddr, sync::Arc, time::SystemTime};

pub use dsproxy_common::{IpFamily, Protocol};
use ipnet::IpNet;

/// The name of an object, with its namespace where its kind has namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// The namespace; empty for a kind that has none.
    pub namespace: Arc<str>,
    /// The name within the namespace.
    pub name: Arc<str>,
}

impl ObjectName {
    /// The object `name` in `namespace`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The object `name` of a kind that has no namespaces.
    pub fn of_cluster(name: &str) -> Self {
        Self { namespace: Arc::default(), name: name.into() }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// A Service with at least one ClusterIP. Headless and ExternalName Services never become one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub name: ObjectName,
    /// When it was made: of two that claim one address, the older has it.
    pub created: Option<SystemTime>,
    /// The ClusterIPs, primary family first, at most one of each family.
    pub cluster_ips: Vec<IpAddr>,
    /// The ports, in the order of the object.
    pub ports: Vec<ServicePort>,
    /// Whether it is another proxy's, by its label. Then nothing but its ClusterIPs is known of it, so that packets to them are let
    /// through.
    pub is_anothers: bool,
    /// `spec.externalIPs`, of both families.
    pub external_ips: Vec<IpAddr>,
    /// The addresses at which the load balancer leaves packets as they are (`ipMode: VIP`, or none said), of both
    /// families.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Who may reach the load balancer's addresses; of a family that has none: everybody.
    pub source_ranges: Vec<IpNet>,
    /// Which endpoints the ClusterIP leads to.
    pub internal_traffic_policy: TrafficPolicy,
    /// Which endpoints clients from outside are led to.
    pub external_traffic_policy: TrafficPolicy,
    /// How long a client stays with its endpoint after its last new connection, in seconds: session affinity
    /// `ClientIP`.
    pub affinity: Option<u32>,
    /// Where a load balancer asks whether this node has endpoints. Only type `LoadBalancer` with
    /// `externalTrafficPolicy: Local` has it.
    pub health_check_node_port: Option<u16>,
}

impl Service {
    /// Whether clients outside the cluster reach this port of it.
    pub fn is_reached_from_outside(&self, port: &ServicePort) -> bool {
        port.node_port.is_some() || !self.load_balancer_ips.is_empty() || !self.external_ips.is_empty()
    }
}

/// Which endpoints a Service leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Those of the whole cluster.
    #[default]
    Cluster,
    /// Those on the node where the packet is.
    Local,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The port's name; empty when the Service has a single unnamed port.
    pub name: Arc<str>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port number on the VIP, host byte order.
    pub port: u16,
    /// The port number on the addresses of every node, host byte order.
    pub node_port: Option<u16>,
}

/// An EndpointSlice of one address family. Slices of names (FQDN) never become one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// The Service it belongs to (label `kubernetes.io/service-name`, same namespace).
    pub service: ObjectName,
    /// The slice's `addressType`; every endpoint's address is of this family.
    pub family: IpFamily,
    /// The ports every endpoint of the slice serves.
    pub ports: Vec<SlicePort>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
    /// When what last changed the slice happened, as its controller says.
    pub triggered: Option<SystemTime>,
}

/// A port of an EndpointSlice, matched to a `ServicePort` by name and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name of the Service's port.
    pub name: Arc<str>,
    /// The transport protocol.
    pub protocol: Protocol,
    /// The port number on the endpoint, host byte order.
    pub port: u16,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first of the object's addresses, which is the only one a proxy may use.
    pub address: IpAddr,
    /// Takes new connections. Absent in the object means true.
    pub ready: bool,
    /// Answers, though perhaps terminating. Absent in the object means true.
    pub serving: bool,
    /// Is being shut down. Absent in the object means false.
    pub terminating: bool,
    /// The node that it is on, if it is on one.
    pub node: Option<Arc<str>>,
    /// Whose clients it is meant for; none where nothing is said. Most endpoints have none, and there are very many.
    pub hints: Option<Box<Hints>>,
}

/// Whose clients an endpoint is meant for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hints {
    /// The zones whose clients it is meant for; empty where nothing is said.
    pub zones: Box<[Arc<str>]>,
    /// The nodes whose clients it is meant for; empty where nothing is said.
    pub nodes: Box<[Arc<str>]>,
}

impl Hints {
    /// These hints; none where nothing is said.
    pub fn new(zones: Box<[Arc<str>]>, nodes: Box<[Arc<str>]>) -> Option<Box<Self>> {
        (!zones.is_empty() || !nodes.is_empty()).then(|| Box::new(Self { zones, nodes }))
    }
}

impl Endpoint {
    /// An endpoint at `address` that is ready, on no known node and without hints.
    pub fn new(address: IpAddr) -> Self {
        Self { address, ready: true, serving: true, terminating: false, node: None, hints: None }
    }

    /// The zones whose clients it is meant for; empty where nothing is said.
    pub fn zone_hints(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.zones)
    }

    /// The nodes whose clients it is meant for; empty where nothing is said.
    pub fn node_hints(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.nodes)
    }
}

/// A node of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub name: ObjectName,
    /// Its addresses as the kubelet reports them: the primary one, and one of the other family where it has that.
    pub addresses: Vec<IpAddr>,
    /// The zone that it is in.
    pub zone: Option<Arc<str>>,
    /// The addresses of its pods.
    pub pod_cidrs: Vec<IpNet>,
    /// Whether it is about to go: the object is being deleted, or the cluster autoscaler has marked it.
    pub is_going: bool,
}

/// A range that ClusterIPs are given out from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceCidr {
    /// Its name.
    pub name: ObjectName,
    /// The range of each family.
    pub cidrs: Vec<IpNet>,
}
