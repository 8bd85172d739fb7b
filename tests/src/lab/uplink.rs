//! A node whose NIC is a port of its pods' bridge: the bridge has the node's addresses and routes, as on a host of virtual
//! machines, and what is on the wire is on the pods' network too.

use super::{DualStack, LabError, Node, Side, iproute};

/// The addresses that two nodes have on the network of one's bridged pods.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// The bridge's, which are the pods' gateway.
    pub gateway: DualStack,
    /// The other node's, which the pods reach without a gateway.
    pub neighbour: DualStack,
}

/// Makes the NIC of `node`, which is joined with `other`, a port of its bridge. Nothing may have been sent yet: the
/// bridge's hardware address changes with its ports.
pub(crate) fn bridge(node: &Node, other: &Node) -> Result<Segment, LabError> {
    let bridge = node.ensure_bridge()?;
    let segment = Segment { gateway: node.bridge_address(1), neighbour: node.bridge_address(250) };
    let (nic, own, via) = (node.interface(), node.addresses(), other.addresses());
    let mut commands = vec![
        // Takes the routes of both families away, and the IPv6 address.
        format!("link set {nic} down"),
        format!("addr del {}/24 dev {nic}", own.v4),
        format!("link set {nic} master {bridge}"),
        format!("link set {nic} up"),
        format!("addr add {}/24 dev {bridge}", own.v4),
        format!("addr add {}/64 dev {bridge} nodad", own.v6),
    ];
    commands.extend(node.routes_to(other));
    if node.side() == Side::A {
        commands.push(format!("route add default via {}", via.v4));
        commands.push(format!("route add default via {}", via.v6));
    }
    iproute::batch(node.namespace().name(), &commands)?;

    let (pods, nic) = (node.bridge_address(0), other.interface());
    iproute::batch(
        other.namespace().name(),
        &[
            format!("route del {}/24", pods.v4),
            format!("route del {}/64", pods.v6),
            format!("addr add {}/24 dev {nic}", segment.neighbour.v4),
            format!("addr add {}/64 dev {nic} nodad", segment.neighbour.v6),
        ],
    )?;
    Ok(segment)
}
