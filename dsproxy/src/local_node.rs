//! This node: what it was told at start, what its Node object says, and what its devices carry.
//!
//! It does not know which Services there are.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use crate::{
    config::{NodeIps, NodePortAddresses},
    interfaces::NodeAddresses,
    model::{IpFamily, Node},
    resolve::NodeView,
};

/// This node.
#[derive(Clone, Debug, Default)]
pub struct LocalNode {
    name: Arc<str>,
    node_ips: NodeIps,
    node_port_addresses: NodePortAddresses,
    without_external_ips: bool,
    /// What its object says, or said last.
    object: Option<Node>,
    /// Whether it had an object that is gone.
    is_gone: bool,
    /// The addresses that devices carry.
    addresses: NodeAddresses,
}

impl LocalNode {
    /// The node of this name. `node_ips` go before what the Node object says.
    pub fn new(name: &str, node_ips: NodeIps, node_port_addresses: NodePortAddresses) -> Self {
        Self { name: name.into(), node_ips, node_port_addresses, ..Self::default() }
    }

    /// The same, but that it leaves `externalIPs` of Services alone unless they are `served`.
    #[must_use]
    pub fn external_ips(self, served: bool) -> Self {
        Self { without_external_ips: !served, ..self }
    }

    /// Its name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The Node object.
    pub fn object(&self) -> Option<&Node> {
        self.object.as_ref()
    }

    /// Its own address of a family: what the user says, or else what the kubelet reports.
    pub fn address(&self, family: IpFamily) -> Option<IpAddr> {
        let reported = self.object.iter().flat_map(|node| &node.addresses).copied();
        self.node_ips.of(family).or_else(|| reported.into_iter().find(|address| IpFamily::of(*address) == family))
    }

    /// Whether load balancers may send to it. Nothing is said against a node without an object, which may not be there yet;
    /// one whose object was there and is not any more has left the cluster.
    pub fn is_eligible(&self) -> bool {
        !self.is_gone && self.object.as_ref().is_none_or(|node| !node.is_going)
    }

    /// As the rules about endpoints see it.
    pub fn view(&self) -> NodeView {
        let node_port_addresses = self.addresses.all.iter().copied();
        NodeView {
            name: Arc::clone(&self.name),
            zone: self.object.as_ref().and_then(|node| node.zone.clone()),
            addresses: IpFamily::ALL.into_iter().filter_map(|family| self.address(family)).collect(),
            node_port_addresses: node_port_addresses
                .filter(|address| self.node_port_addresses.has(*address, self.address(IpFamily::of(*address))))
                .collect(),
            without_external_ips: self.without_external_ips,
        }
    }

    /// The address that masqueraded packets leave with, by the index of the device that they leave by and family. Zero stands
    /// for devices without an address of the family.
    ///
    /// A device that has the node's own address uses that, another one the first of its own.
    pub fn masquerade_addresses(&self) -> BTreeMap<(u32, IpFamily), IpAddr> {
        let mut found = BTreeMap::new();
        for family in IpFamily::ALL {
            let own = self.address(family);
            for (device, addresses) in &self.addresses.of_devices {
                let mut of_family = addresses.iter().copied().filter(|address| IpFamily::of(*address) == family);
                let address = own.filter(|own| addresses.contains(own)).or_else(|| of_family.next());
                found.extend(address.map(|address| ((*device, family), address)));
            }
            let any = found.iter().find(|((_, other), _)| *other == family).map(|(_, address)| *address);
            found.extend(own.or(any).map(|address| ((0, family), address)));
        }
        found
    }

    /// Says whether that is news. What an object said holds after it is gone: the node has the addresses and the zone that it had, and
    /// serves as it did for as long as there are pods on it.
    pub(crate) fn set_object(&mut self, object: Option<Node>) -> bool {
        let is_gone = object.is_none() && self.object.is_some();
        let news = is_gone != self.is_gone || (object.is_some() && object != self.object);
        self.is_gone = is_gone;
        self.object = object.or_else(|| self.object.take());
        news
    }

    /// Says whether that is news.
    pub(crate) fn set_addresses(&mut self, addresses: NodeAddresses) -> bool {
        let news = self.addresses != addresses;
        self.addresses = addresses;
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ObjectName;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn node(node_ips: &str, node_ports: &[&str]) -> LocalNode {
        let node_ips = if node_ips.is_empty() { NodeIps::default() } else { node_ips.parse().expect("node IPs") };
        let mut node = LocalNode::new("a", node_ips, NodePortAddresses::from_list(node_ports).expect("a list"));
        let all = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2", "127.0.0.1"].map(ip).into();
        let second = (7, ["192.0.2.2", "192.0.2.1", "2001:db8::2"].map(ip).into());
        node.set_addresses(NodeAddresses { all, of_devices: [(3, ["10.8.0.1"].map(ip).into()), second].into() });
        node
    }

    fn object() -> Node {
        Node {
            name: ObjectName::of_cluster("a"),
            addresses: vec![ip("192.0.2.1"), ip("2001:db8::1")],
            zone: Some("z".into()),
            ..Node::default()
        }
    }

    fn node_ports(node: &LocalNode) -> Vec<String> {
        node.view().node_port_addresses.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_the_user_says_goes_before_what_the_object_says() {
        let mut node = node("192.0.2.2", &[]);
        assert_eq!(node.view().addresses, [ip("192.0.2.2")]);
        node.set_object(Some(object()));
        assert_eq!(node.view().addresses, [ip("192.0.2.2"), ip("2001:db8::1")]);
        assert_eq!(node.view().zone.as_deref(), Some("z"));
    }

    #[test]
    fn node_ports_are_served_at_the_addresses_that_were_asked_for() {
        for (list, expected) in [
            (&[] as &[&str], vec!["192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"]),
            (&["primary"], vec!["192.0.2.1", "2001:db8::1"]),
            (&["192.0.2.2/32"], vec!["192.0.2.2", "2001:db8::1", "2001:db8::2"]),
            (&["192.0.2.0/31", "127.0.0.0/8", "::/0"], vec!["192.0.2.1", "2001:db8::1", "2001:db8::2"]),
        ] {
            let mut node = node("", list);
            node.set_object(Some(object()));
            assert_eq!(node_ports(&node), expected, "{list:?}");
        }
    }

    #[test]
    fn packets_are_masqueraded_with_an_address_of_the_device_they_leave_by() {
        let texts = |node: &LocalNode| -> Vec<(u32, String)> {
            let addresses = node.masquerade_addresses();
            addresses.iter().map(|((device, _), address)| (*device, address.to_string())).collect()
        };
        let named = |pairs: &[(u32, &str)]| pairs.iter().map(|(at, text)| (*at, text.to_string())).collect::<Vec<_>>();
        let mut node = node("192.0.2.2", &[]);
        let found = [(0, "192.0.2.2"), (0, "2001:db8::2"), (3, "10.8.0.1"), (7, "192.0.2.2"), (7, "2001:db8::2")];
        assert_eq!(texts(&node), named(&found));
        node.set_object(Some(object()));
        assert_eq!(texts(&node)[1], (0, "2001:db8::1".to_owned()), "as the kubelet reports, wherever it is");
    }

    #[test]
    fn a_node_without_an_object_is_eligible_and_one_that_goes_is_not() {
        let mut node = node("", &[]);
        assert!(node.is_eligible());
        assert!(node.set_object(Some(object())) && node.is_eligible());
        assert!(!node.set_object(Some(object())), "no news");
        assert!(node.set_object(Some(Node { is_going: true, ..object() })) && !node.is_eligible());
        assert!(node.set_object(Some(object())) && node.is_eligible(), "it stays after all");
        assert!(node.set_object(None) && !node.is_eligible(), "it is gone");
        assert_eq!(node.view().zone.as_deref(), Some("z"), "and stands where it stood");
        assert_eq!(node.address(IpFamily::V6), Some(ip("2001:db8::1")));
        assert!(!node.set_object(None) && !node.is_eligible(), "still");
        assert!(node.set_object(Some(object())) && node.is_eligible(), "it has registered again");
    }
}
