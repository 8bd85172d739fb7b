//! The overlay between nodes, laid as flannel lays it: a VXLAN device on either node, and routes to the other's pods
//! through it instead of along the wire.
//!
//! One device carries both families. Neighbours are permanent, as flannel's agent makes them.

use super::{LabError, Node, Side, iproute, node::pod_networks};

/// The VXLAN device's name.
const DEVICE: &str = "vxlan0";

/// The network identifier of the overlay.
const VNI: u32 = 7;

/// The UDP port of RFC 7348 is 4789; Linux's own default is what flannel uses.
const PORT: u16 = 8472;

/// What is left of 1500 bytes after the outer Ethernet, IPv4, UDP and VXLAN headers.
pub(crate) const MTU: u16 = 1450;

/// Lays the overlay between two nodes that are joined.
pub(crate) fn lay(a: &Node, b: &Node) -> Result<(), LabError> {
    for (node, other) in [(a, b), (b, a)] {
        let own = node.overlay_addresses();
        let peer = other.overlay_addresses();
        let peer_mac = mac(other.side());
        let mut commands = vec![
            format!(
                "link add {DEVICE} address {} type vxlan id {VNI} dev {} local {} remote {} dstport {PORT} nolearning",
                mac(node.side()),
                node.interface(),
                node.addresses().v4,
                other.addresses().v4
            ),
            format!("link set {DEVICE} mtu {MTU} up"),
            format!("addr add {}/32 dev {DEVICE}", own.v4),
            format!("addr add {}/128 dev {DEVICE} nodad", own.v6),
            format!("neigh add {} lladdr {peer_mac} dev {DEVICE} nud permanent", peer.v4),
            format!("neigh add {} lladdr {peer_mac} dev {DEVICE} nud permanent", peer.v6),
        ];
        for network in pod_networks(other.side()) {
            commands.push(format!("route replace {}/24 via {} dev {DEVICE} onlink", network.v4, peer.v4));
            commands.push(format!("route del {}/64", network.v6));
            commands.push(format!("route add {}/64 via {} dev {DEVICE} onlink", network.v6, peer.v6));
        }
        iproute::batch(node.namespace().name(), &commands)?;
        // Pods reach a node's own address along the wire, and its answers come by the overlay. No node with an overlay can
        // be strict about that, so systemd's default is what they have.
        node.namespace()
            .set_sysctls(&[("net/ipv4/conf/eth0/rp_filter", "2"), ("net/ipv4/conf/vxlan0/rp_filter", "2")])?;
    }
    Ok(())
}

fn mac(side: Side) -> &'static str {
    match side {
        Side::A => "02:00:00:00:07:01",
        Side::B => "02:00:00:00:07:02",
    }
}
