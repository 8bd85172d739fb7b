//! Nodes, their pods, and how these are wired. It knows addresses and interfaces, not Services.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use dsproxy_common::IpFamily;

use super::{DualStack, LabError, LabName, Namespace, Side, iproute};

/// The name of the bridge that bridged pods of a node are ports of.
const BRIDGE: &str = "br0";

/// The name of a node's NIC: its end of the wire.
const NIC: &str = "eth0";

/// The first host part given to a pod; 1 is the bridge's own.
const FIRST_POD: u8 = 2;

/// How a pod is connected to its node, the two ways CNIs have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// The node routes to the host side of a veth, which carries the link-scope gateway address that every
    /// pod of the node has.
    Routed,
    /// The host side of the veth is a port of a bridge, which carries the gateway address of the pods' subnet.
    Bridged,
}

/// A node: a network namespace that forwards, with a NIC on the wire.
#[derive(Debug)]
pub struct Node {
    namespace: Namespace,
    side: Side,
    addresses: DualStack,
    /// The numbers of its pods, from zero.
    pods: Mutex<BTreeSet<u8>>,
    bridged: Mutex<bool>,
    /// Of its pods' interfaces.
    pod_mtu: u16,
}

/// A pod: a network namespace with one interface, `eth0`.
#[derive(Clone, Debug)]
pub struct Pod {
    namespace: Namespace,
    addresses: DualStack,
    host_interface: String,
    number: u8,
}

impl Side {
    fn number(self) -> u8 {
        match self {
            Self::A => 1,
            Self::B => 2,
        }
    }

    /// The node's name.
    pub fn role(self) -> &'static str {
        match self {
            Self::A => "node-a",
            Self::B => "node-b",
        }
    }

    /// The subnet of this node's pods with `wiring`.
    fn subnet(self, wiring: Wiring) -> u8 {
        match wiring {
            Wiring::Routed => self.number(),
            Wiring::Bridged => 10 + self.number(),
        }
    }
}

impl Node {
    pub(crate) fn create(lab: LabName, side: Side, pod_mtu: u16) -> Result<Self, LabError> {
        let namespace = Namespace::create(lab, side.role())?;
        // Strict reverse-path filtering must be no obstacle to the data path, so every lab has it.
        namespace.set_sysctls(&[
            ("net/ipv4/conf/all/rp_filter", "1"),
            ("net/ipv4/conf/default/rp_filter", "1"),
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
        ])?;
        Ok(Self {
            namespace,
            side,
            addresses: DualStack::node(side.number()),
            pods: Mutex::default(),
            bridged: Mutex::new(false),
            pod_mtu,
        })
    }

    /// The node's namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The node's addresses on the wire.
    pub fn addresses(&self) -> DualStack {
        self.addresses
    }

    /// Which node it is.
    pub fn side(&self) -> Side {
        self.side
    }

    /// What the node's device of an overlay carries, as with flannel the first addresses of the pods' networks.
    pub fn overlay_addresses(&self) -> DualStack {
        DualStack::pod(self.side.subnet(Wiring::Routed), 0)
    }

    /// The node's NIC.
    pub fn interface(&self) -> &'static str {
        NIC
    }

    /// Gives the NIC another link-layer address, and has the kernel tell its neighbours.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set_link_address(&self, address: &str) -> Result<(), LabError> {
        self.namespace.set_sysctls(&[
            (&format!("net/ipv4/conf/{NIC}/arp_notify"), "1"),
            (&format!("net/ipv6/conf/{NIC}/ndisc_notify"), "1"),
        ])?;
        iproute::batch(self.namespace.name(), &[format!("link set {NIC} address {address}")])
    }

    /// The neighbours that the node's kernel knows on the wire, as `ip` prints them.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn neighbours(&self) -> Result<String, LabError> {
        iproute::ip(&["-n", self.namespace.name(), "neigh", "show", "dev", NIC])
    }

    pub(crate) fn add_pod(&self, lab: LabName, wiring: Wiring, role: &str) -> Result<Pod, LabError> {
        let number = self.take_number()?;
        let pod = Pod {
            namespace: Namespace::create(lab, role)?,
            addresses: DualStack::pod(self.side.subnet(wiring), FIRST_POD + number),
            host_interface: format!("pod{}", number + 1),
            number,
        };
        let node = self.namespace.name();
        match wiring {
            Wiring::Routed => connect_routed(node, &pod, self.pod_mtu)?,
            Wiring::Bridged => {
                self.ensure_bridge()?;
                connect_bridged(node, &pod, self.bridge_address(1), self.pod_mtu)?;
            }
        }
        Ok(pod)
    }

    fn take_number(&self) -> Result<u8, LabError> {
        let mut taken = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        let number = (0..=u8::MAX - 1 - FIRST_POD).find(|number| !taken.contains(number));
        let number = number.ok_or_else(|| LabError::NoRoom { node: self.side.role() })?;
        taken.insert(number);
        Ok(number)
    }

    pub(crate) fn remove_pod(&self, pod: &Pod) -> Result<(), LabError> {
        // Whoever still has the namespace open keeps it: the interfaces are taken away by themselves.
        let mut commands = vec![format!("link del {}", pod.host_interface)];
        // The next pod has the same addresses, and on a bridge another link-layer address under them: network plugins announce that.
        commands.extend(IpFamily::ALL.map(|family| format!("neigh flush to {}", pod.addresses.of(family))));
        iproute::batch(self.namespace.name(), &commands)?;
        iproute::ip(&["netns", "del", pod.namespace.name()])?;
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(&pod.number);
        Ok(())
    }

    /// The address with the host part `host` on the network of the bridged pods; the bridge's own is 1.
    pub(crate) fn bridge_address(&self, host: u8) -> DualStack {
        DualStack::pod(self.side.subnet(Wiring::Bridged), host)
    }

    /// Makes the bridge if there is none yet; returns its name.
    pub(crate) fn ensure_bridge(&self) -> Result<&'static str, LabError> {
        let gateway = self.bridge_address(1);
        let mut bridged = self.bridged.lock().unwrap_or_else(PoisonError::into_inner);
        if !*bridged {
            iproute::batch(
                self.namespace.name(),
                &[
                    // Of its own: without one it has that of one of its ports, and another when that goes.
                    format!("link add {BRIDGE} address 02:64:73:00:00:0{} type bridge", self.side.number()),
                    format!("link set {BRIDGE} up"),
                    format!("addr add {}/24 dev {BRIDGE}", gateway.v4),
                    format!("addr add {}/64 dev {BRIDGE} nodad", gateway.v6),
                ],
            )?;
            *bridged = true;
        }
        Ok(BRIDGE)
    }

    /// The commands that make the routes to the pods of `other`, along the wire.
    pub(crate) fn routes_to(&self, other: &Self) -> Vec<String> {
        let via = other.addresses;
        let to = |DualStack { v4, v6 }| {
            [format!("route add {v4}/24 via {}", via.v4), format!("route add {v6}/64 via {}", via.v6)]
        };
        pod_networks(other.side).into_iter().flat_map(to).collect()
    }
}

impl Pod {
    /// The pod's namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// The pod's addresses.
    pub fn addresses(&self) -> DualStack {
        self.addresses
    }

    /// The other end of the pod's `eth0`, on its node.
    pub fn host_interface(&self) -> &str {
        &self.host_interface
    }
}

/// The networks of a node's pods, a /24 and a /64 each.
pub(crate) fn pod_networks(side: Side) -> [DualStack; 2] {
    [Wiring::Routed, Wiring::Bridged].map(|wiring| DualStack::pod(side.subnet(wiring), 0))
}

/// Joins two nodes with a wire and tells each where the other's pods are.
pub(crate) fn join(a: &Node, b: &Node) -> Result<(), LabError> {
    iproute::batch(
        a.namespace.name(),
        &[format!("link add {NIC} type veth peer name {NIC} netns {}", b.namespace.name())],
    )?;
    for (node, other) in [(a, b), (b, a)] {
        let mut commands = vec![
            format!("link set {NIC} up"),
            format!("addr add {}/24 dev {NIC}", node.addresses.v4),
            format!("addr add {}/64 dev {NIC} nodad", node.addresses.v6),
        ];
        commands.extend(node.routes_to(other));
        iproute::batch(node.namespace.name(), &commands)?;
    }
    // As on a real node there is a way to the rest of the world; here it leads to the other node, which
    // has no route to a VIP.
    iproute::batch(
        a.namespace.name(),
        &[format!("route add default via {}", b.addresses.v4), format!("route add default via {}", b.addresses.v6)],
    )
}

/// A host outside the cluster: node A routes between it and everything else.
#[derive(Clone, Debug)]
pub struct Outside {
    namespace: Namespace,
    addresses: DualStack,
    gateway: DualStack,
}

impl Outside {
    /// Its device.
    pub const INTERFACE: &str = "eth0";

    /// Node A's device towards it.
    pub const GATEWAY_INTERFACE: &str = "eth1";

    /// Its namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Its addresses.
    pub fn addresses(&self) -> DualStack {
        self.addresses
    }

    /// Node A's addresses on its network.
    pub fn gateway(&self) -> DualStack {
        self.gateway
    }
}

/// Adds a host outside, on a network of its own behind node A.
pub(crate) fn add_outside(lab: LabName, a: &Node, b: &Node) -> Result<Outside, LabError> {
    const DEVICE: &str = Outside::GATEWAY_INTERFACE;
    const OWN: &str = Outside::INTERFACE;

    let (gateway, network) = (DualStack::outside(1), DualStack::outside(0));
    let outside = Outside { namespace: Namespace::create(lab, "outside")?, addresses: DualStack::outside(9), gateway };
    iproute::batch(
        a.namespace.name(),
        &[
            format!("link add {DEVICE} type veth peer name {OWN} netns {}", outside.namespace.name()),
            format!("link set {DEVICE} up"),
            format!("addr add {}/24 dev {DEVICE}", gateway.v4),
            format!("addr add {}/64 dev {DEVICE} nodad", gateway.v6),
        ],
    )?;
    iproute::batch(
        outside.namespace.name(),
        &[
            format!("link set {OWN} up"),
            format!("addr add {}/24 dev {OWN}", outside.addresses.v4),
            format!("addr add {}/64 dev {OWN} nodad", outside.addresses.v6),
            format!("route add default via {}", gateway.v4),
            format!("route add default via {}", gateway.v6),
        ],
    )?;
    iproute::batch(
        b.namespace.name(),
        &[
            format!("route add {}/24 via {}", network.v4, a.addresses.v4),
            format!("route add {}/64 via {}", network.v6, a.addresses.v6),
        ],
    )?;
    Ok(outside)
}

/// Gives node B a way of its own to the host outside, past node A. What A sends on with the host's address does not come to B the way
/// that leads back to it, so B is not strict about that.
pub(crate) fn add_way_out(outside: &Outside, b: &Node) -> Result<(), LabError> {
    const DEVICE: &str = Outside::GATEWAY_INTERFACE;
    const OWN: &str = "eth1";
    const MAC: &str = "02:00:00:00:09:01";

    let (network, addresses) = (DualStack::outside(0), outside.addresses);
    iproute::batch(
        b.namespace.name(),
        &[
            format!("link add {DEVICE} type veth peer name {OWN} address {MAC} netns {}", outside.namespace.name()),
            format!("link set {DEVICE} up"),
            format!("route replace {}/24 dev {DEVICE}", network.v4),
            format!("route del {}/64", network.v6),
            format!("route add {}/64 dev {DEVICE}", network.v6),
            format!("neigh add {} lladdr {MAC} dev {DEVICE} nud permanent", addresses.v4),
            format!("neigh add {} lladdr {MAC} dev {DEVICE} nud permanent", addresses.v6),
        ],
    )?;
    iproute::batch(outside.namespace.name(), &[format!("link set {OWN} up")])?;
    b.namespace.set_sysctls(&[("net/ipv4/conf/all/rp_filter", "2")])
}

fn connect_routed(node: &str, pod: &Pod, mtu: u16) -> Result<(), LabError> {
    let Pod { namespace, addresses, host_interface, number: _ } = pod;
    add_link(node, pod, mtu)?;
    iproute::batch(
        node,
        &[
            format!("addr add 169.254.1.1/32 dev {host_interface} scope link"),
            format!("addr add fe80::1/128 dev {host_interface} nodad"),
            format!("link set {host_interface} up"),
            format!("route add {}/32 dev {host_interface}", addresses.v4),
            format!("route add {}/128 dev {host_interface}", addresses.v6),
        ],
    )?;
    iproute::batch(
        namespace.name(),
        &[
            "link set eth0 up".to_owned(),
            format!("addr add {}/32 dev eth0", addresses.v4),
            format!("addr add {}/128 dev eth0 nodad", addresses.v6),
            "route add 169.254.1.1 dev eth0 scope link".to_owned(),
            "route add default via 169.254.1.1 dev eth0".to_owned(),
            "route add default via fe80::1 dev eth0".to_owned(),
        ],
    )
}

fn connect_bridged(node: &str, pod: &Pod, gateway: DualStack, mtu: u16) -> Result<(), LabError> {
    let Pod { namespace, addresses, host_interface, number: _ } = pod;
    add_link(node, pod, mtu)?;
    iproute::batch(
        node,
        &[format!("link set {host_interface} master {BRIDGE}"), format!("link set {host_interface} up")],
    )?;
    iproute::batch(
        namespace.name(),
        &[
            "link set eth0 up".to_owned(),
            format!("addr add {}/24 dev eth0", addresses.v4),
            format!("addr add {}/64 dev eth0 nodad", addresses.v6),
            format!("route add default via {}", gateway.v4),
            format!("route add default via {}", gateway.v6),
        ],
    )
}

fn add_link(node: &str, pod: &Pod, mtu: u16) -> Result<(), LabError> {
    let Pod { namespace, addresses: _, host_interface, number: _ } = pod;
    iproute::batch(
        node,
        &[format!("link add {host_interface} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {}", namespace.name())],
    )
}
