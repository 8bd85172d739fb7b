//! What holds for every Service, whatever its endpoints and this node are.

use std::collections::BTreeMap;

use proptest::{collection::vec, prelude::*, sample::select};

use super::*;
use crate::model::{Endpoint, Hints, SlicePort, TrafficPolicy};

const NODES: [&str; 3] = ["node-a", "node-b", "node-c"];
const ZONES: [&str; 2] = ["y", "z"];

fn names(of: &'static [&'static str]) -> impl Strategy<Value = Box<[Arc<str>]>> {
    // Mostly of all endpoints or of none, for hints count only where all have one.
    vec(select(of), 0..3).prop_map(|names| names.into_iter().map(Arc::from).collect())
}

fn endpoint(family: IpFamily) -> impl Strategy<Value = Endpoint> {
    let node = prop::option::of(select(&NODES[..]).prop_map(Arc::from));
    (0u8..6, any::<[bool; 3]>(), node, names(&ZONES), names(&NODES)).prop_map(
        move |(number, [ready, serving, terminating], node, zones, nodes)| {
            let address = match family {
                IpFamily::V4 => IpAddr::from([10, 1, 0, number]),
                IpFamily::V6 => IpAddr::from([0xfd00, 1, 0, 0, 0, 0, 0, u16::from(number)]),
            };
            Endpoint { ready, serving, terminating, node, hints: Hints::new(zones, nodes), ..Endpoint::new(address) }
        },
    )
}

fn slice(number: usize) -> impl Strategy<Value = EndpointSlice> {
    select(&IpFamily::ALL[..]).prop_flat_map(move |family| {
        vec(endpoint(family), 0..5).prop_map(move |endpoints| EndpointSlice {
            name: ObjectName::new("default", &format!("web-{number}")),
            service: ObjectName::new("default", "web"),
            family,
            ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
            endpoints,
            triggered: None,
        })
    })
}

fn service() -> impl Strategy<Value = Service> {
    let policy = || select(&[TrafficPolicy::Cluster, TrafficPolicy::Local][..]);
    (policy(), policy(), any::<[bool; 3]>()).prop_map(
        |(internal, external, [node_port, external_ips, load_balancer])| {
            let both = |yes: bool, v4: &str, v6: &str| -> Vec<IpAddr> {
                let texts = if yes { vec![v4, v6] } else { Vec::new() };
                texts.into_iter().map(|text| text.parse().expect("an address")).collect()
            };
            Service {
                name: ObjectName::new("default", "web"),
                cluster_ips: both(true, "10.96.0.1", "fd00:96::1"),
                ports: vec![ServicePort {
                    name: "".into(),
                    protocol: Protocol::Tcp,
                    port: 80,
                    node_port: node_port.then_some(30_080),
                }],
                external_ips: both(external_ips, "192.0.2.9", "2001:db8::9"),
                load_balancer_ips: both(load_balancer, "192.0.2.8", "2001:db8::8"),
                internal_traffic_policy: internal,
                external_traffic_policy: external,
                ..Service::default()
            }
        },
    )
}

fn node() -> impl Strategy<Value = NodeView> {
    prop::option::of(select(&ZONES[..])).prop_map(|zone| NodeView {
        name: NODES[0].into(),
        zone: zone.map(Arc::from),
        addresses: Vec::new(),
        node_port_addresses: ["192.0.2.1", "2001:db8::1"].map(|text| text.parse().expect("an address")).into(),
        without_external_ips: false,
    })
}

fn slices() -> impl Strategy<Value = Vec<EndpointSlice>> {
    (slice(0), slice(1), slice(2)).prop_map(|(a, b, c)| vec![a, b, c])
}

proptest! {
    #[test]
    fn the_order_of_slices_does_not_matter(
        service in service(),
        ordered in slices(),
        node in node(),
        turn in 0usize..3,
    ) {
        let expected = resolve(&service, &ordered, &node);
        let mut turned = ordered.clone();
        turned.rotate_left(turn);
        prop_assert_eq!(&resolve(&service, &turned, &node), &expected);
        turned.reverse();
        prop_assert_eq!(&resolve(&service, &turned, &node), &expected);
    }

    #[test]
    fn only_endpoints_that_may_take_connections_do(service in service(), slices in slices(), node in node()) {
        for family in families(&service, &slices, &node) {
            let said = said(&slices, family.family);
            for endpoint in &family.endpoints {
                let said = &said[&endpoint.address];
                let may = |endpoint: &Endpoint| endpoint.ready || (endpoint.serving && endpoint.terminating);
                prop_assert!(!endpoint.is_active() || said.iter().any(|said| may(said)), "{endpoint:?}: {said:?}");
                prop_assert!(endpoint.is_active() || said.iter().any(|said| said.serving), "{endpoint:?}: {said:?}");
                prop_assert!(!endpoint.in_local_list || endpoint.is_local, "{endpoint:?}");
                prop_assert!(!endpoint.is_local || endpoint.is_on_node, "{endpoint:?}");
                prop_assert!(!endpoint.is_on_node || said.iter().any(|said| said.node.is_some()), "{endpoint:?}");
                prop_assert!(endpoint.is_on_node || said.iter().any(|said| said.node.is_none()), "{endpoint:?}");
            }
            let addresses: Vec<_> = family.endpoints.iter().map(|endpoint| (endpoint.address, endpoint.port)).collect();
            prop_assert!(addresses.is_sorted_by(|one, other| one < other), "{addresses:?}");
        }
    }

    #[test]
    fn where_anything_is_ready_something_is_served(service in service(), slices in slices(), node in node()) {
        for family in families(&service, &slices, &node) {
            // Each endpoint once, as the rules see it.
            let port = &service.ports[0];
            let found = endpoints::of_port(port, slices.iter().filter(|slice| slice.family == family.family));
            let ready = found.values().any(|endpoint| endpoint.ready);
            let active: Vec<_> = family.endpoints.iter().filter(|endpoint| endpoint.in_cluster_list).collect();
            prop_assert!(!ready || !active.is_empty());
            let last_resort = found.values().any(|endpoint| endpoint.serving && endpoint.terminating);
            prop_assert_eq!(active.is_empty(), !ready && !last_resort);
            // A list that some frontend names has what is on this node, unless nothing there may serve.
            let names_local = family.frontends.iter().any(|frontend| frontend.outside == Reach::Local);
            let here = found.values().any(|endpoint| {
                endpoints::is_local(endpoint, &node) && (endpoint.ready || (endpoint.serving && endpoint.terminating))
            });
            let local = family.endpoints.iter().any(|endpoint| endpoint.in_local_list);
            prop_assert_eq!(local, names_local && here);
        }
    }

    #[test]
    fn external_ips_that_are_not_served_are_as_good_as_none(
        service in service(), slices in slices(), node in node(),
    ) {
        let none = Service { external_ips: Vec::new(), ..service.clone() };
        let without = NodeView { without_external_ips: true, ..node.clone() };
        prop_assert_eq!(resolve(&service, &slices, &without), resolve(&none, &slices, &node));
    }

    #[test]
    fn clients_inside_are_kept_to_this_node_at_the_cluster_ip_alone(
        service in service(), slices in slices(), node in node(),
    ) {
        for family in families(&service, &slices, &node) {
            let mut seen = BTreeSet::new();
            for frontend in &family.frontends {
                let is_cluster_ip = frontend.kind == FrontendKind::ClusterIp;
                prop_assert!(is_cluster_ip || frontend.inside == Reach::Cluster, "{frontend:?}");
                prop_assert!(!is_cluster_ip || frontend.inside == frontend.outside, "{frontend:?}");
                prop_assert_eq!(frontend.address.family(), family.family);
                prop_assert!(seen.insert(frontend.address), "{:?} is there twice", frontend);
            }
            let outside = family.frontends.iter().any(|frontend| frontend.kind != FrontendKind::ClusterIp);
            prop_assert_eq!(family.distribution == Distribution::Maglev, outside);
        }
    }
}

fn families(service: &Service, slices: &[EndpointSlice], node: &NodeView) -> Vec<ResolvedFamily> {
    resolve(service, slices, node).ports.into_iter().flat_map(|port| port.families).collect()
}

/// All that is said of each address.
fn said(slices: &[EndpointSlice], family: IpFamily) -> BTreeMap<IpAddr, Vec<&Endpoint>> {
    let mut said: BTreeMap<IpAddr, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in slices.iter().filter(|slice| slice.family == family).flat_map(|slice| &slice.endpoints) {
        said.entry(endpoint.address).or_default().push(endpoint);
    }
    said
}
