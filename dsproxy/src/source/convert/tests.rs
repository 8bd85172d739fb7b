//! Which objects are served, which are none of our business, and which make no sense.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use serde_json::json;

use super::*;
use crate::model::{Endpoint, Hints, IpFamily, ServicePort, SlicePort, TrafficPolicy};

/// A Service named shop/web with this spec.
fn with_spec(spec: Value) -> Value {
    let mut service = json!({"metadata": {"namespace": "shop", "name": "web"}});
    service["spec"] = spec;
    service
}

/// A slice named shop/web-1 of shop/web with these fields added.
fn slice(fields: Value) -> Value {
    let mut slice = json!({
        "metadata": {
            "namespace": "shop",
            "name": "web-1",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "endpoints": [],
    });
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    for (name, value) in fields {
        slice[name] = value;
    }
    slice
}

fn ours<T: FromObject>(value: &Value) -> (T, Vec<Skipped>) {
    match from_json(value) {
        Converted::Ours { object, skipped } => (object, skipped),
        other => panic!("{value} became {other:?}"),
    }
}

fn not_ours<T: FromObject>(value: &Value) -> NotOurs {
    match from_json::<T>(value) {
        Converted::NotOurs { why, .. } => why,
        other => panic!("{value} became {other:?}"),
    }
}

fn rejected<T: FromObject>(value: &Value) -> Rejected {
    match from_json::<T>(value) {
        Converted::Rejected(rejected) => rejected,
        other => panic!("{value} became {other:?}"),
    }
}

fn ips(addresses: &[&str]) -> Vec<IpAddr> {
    addresses.iter().map(|address| address.parse().expect("an address")).collect()
}

#[test]
fn cluster_ips_follow_the_families_in_either_order() {
    let ports = json!([{"port": 80}]);
    for (spec, expected) in [
        (json!({"clusterIP": "10.0.0.1"}), vec!["10.0.0.1"]),
        (json!({"clusterIP": "fd00::1"}), vec!["fd00::1"]),
        (json!({"clusterIPs": ["fd00::1"]}), vec!["fd00::1"]),
        (json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"]}), vec!["10.0.0.1"]),
        (json!({"clusterIPs": ["10.0.0.1", "fd00::1"]}), vec!["10.0.0.1", "fd00::1"]),
        (
            json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv4", "IPv6"]}),
            vec!["10.0.0.1", "fd00::1"],
        ),
        (
            json!({"clusterIP": "fd00::1", "clusterIPs": ["fd00::1", "10.0.0.1"], "ipFamilies": ["IPv6", "IPv4"]}),
            vec!["fd00::1", "10.0.0.1"],
        ),
        // Families are announced before their address is there.
        (
            json!({"clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ipFamilies": ["IPv4", "IPv6"]}),
            vec!["10.0.0.1"],
        ),
        // Written before addresses were read strictly.
        (json!({"clusterIP": "010.000.000.001"}), vec!["10.0.0.1"]),
        (json!({"clusterIP": "::ffff:10.0.0.1"}), vec!["10.0.0.1"]),
        (json!({"clusterIP": "FD00:0::1"}), vec!["fd00::1"]),
        (json!({"clusterIP": "169.254.0.10"}), vec!["169.254.0.10"]),
    ] {
        let mut spec = spec;
        spec["ports"] = ports.clone();
        let (service, skipped) = ours::<Service>(&with_spec(spec.clone()));
        assert_eq!(service.cluster_ips, ips(&expected), "{spec}");
        assert_eq!(service.name, ObjectName::new("shop", "web"));
        assert_eq!(skipped, []);
    }
}

#[test]
fn of_services_of_others_no_more_than_addresses_is_known() {
    for (spec, why) in [
        (json!({}), NotOurs::NoClusterIp),
        (json!({"clusterIP": ""}), NotOurs::NoClusterIp),
        (json!({"clusterIP": "", "clusterIPs": []}), NotOurs::NoClusterIp),
        (json!({"clusterIP": "None"}), NotOurs::Headless),
        (json!({"clusterIPs": ["None"]}), NotOurs::Headless),
        (json!({"clusterIP": "None", "clusterIPs": ["None"]}), NotOurs::Headless),
        (json!({"type": "ExternalName", "externalName": "example.org"}), NotOurs::ExternalName),
        (json!({"type": "ExternalName", "clusterIP": "10.0.0.1"}), NotOurs::ExternalName),
    ] {
        assert_eq!(not_ours::<Service>(&with_spec(spec.clone())), why, "{spec}");
    }
    for value in ["another-proxy", ""] {
        let mut service = with_spec(json!({"clusterIP": "10.0.0.1", "ports": [{"port": 80}]}));
        service["metadata"]["labels"] = json!({"service.kubernetes.io/service-proxy-name": value});
        let (read, skipped) = ours::<Service>(&service);
        let cluster_ips = ips(&["10.0.0.1"]);
        let name = ObjectName::new("shop", "web");
        assert_eq!(read, Service { name, cluster_ips, is_anothers: true, ..Service::default() });
        assert_eq!(skipped, []);
        // What is wrong with it is the other proxy's business.
        service["spec"] = json!({"clusterIP": "nonsense"});
        assert_eq!(not_ours::<Service>(&service), NotOurs::OtherProxy);
    }
    // This label is for slices, and means nothing on a Service.
    let mut service = with_spec(json!({"clusterIP": "10.0.0.1"}));
    service["metadata"]["labels"] = json!({"service.kubernetes.io/headless": ""});
    ours::<Service>(&service);
}

#[test]
fn cluster_ips_that_cannot_be_are_rejected() {
    for (spec, problem) in [
        (json!({"clusterIP": "none"}), "not an IP address"),
        (json!({"clusterIP": "10.0.0"}), "not an IP address"),
        (json!({"clusterIP": "10.0.0.256"}), "not an IP address"),
        (json!({"clusterIP": "10.0.0.+1"}), "not an IP address"),
        (json!({"clusterIP": "10.0.0.1/32"}), "not an IP address"),
        (json!({"clusterIP": "fd00::1%eth0"}), "not an IP address"),
        (json!({"clusterIP": "0.0.0.0"}), "unspecified"),
        (json!({"clusterIP": "::"}), "unspecified"),
        (json!({"clusterIP": "127.0.0.1"}), "loopback"),
        (json!({"clusterIP": "::1"}), "loopback"),
        (json!({"clusterIP": "::ffff:127.0.0.1"}), "loopback"),
        (json!({"clusterIP": "224.0.0.1"}), "multicast"),
        (json!({"clusterIP": "ff02::1"}), "multicast"),
        (json!({"clusterIP": "255.255.255.255"}), "broadcast"),
        (json!({"clusterIP": "10.0.0.1", "ipFamilies": ["IPv6"]}), "not of family IPv6"),
        (json!({"clusterIPs": ["10.0.0.1", "fd00::1"], "ipFamilies": ["IPv6", "IPv4"]}), "not of family IPv6"),
        (json!({"clusterIP": "10.0.0.1", "ipFamilies": ["IPX"]}), "IPX"),
        (json!({"clusterIPs": ["10.0.0.1", "10.0.0.2"]}), "one of each family"),
        (json!({"clusterIPs": ["10.0.0.1", "fd00::1", "10.0.0.2"]}), "one of each family"),
        (json!({"clusterIPs": ["10.0.0.1", ""]}), "not an IP address"),
        (json!({"clusterIP": "10.0.0.2", "clusterIPs": ["10.0.0.1"]}), "not the first"),
    ] {
        let rejected = rejected::<Service>(&with_spec(spec.clone()));
        assert_eq!(rejected.name, Some(ObjectName::new("shop", "web")));
        let text = rejected.to_string();
        assert!(text.starts_with("Service shop/web is left out: "), "{text}");
        assert!(text.contains(problem), "{spec}: {text}");
    }
}

#[test]
fn service_ports_are_read_with_their_defaults() {
    let spec = json!({"clusterIP": "10.0.0.1", "ports": [
        {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 5353},
        {"name": "association", "port": 53, "protocol": "SCTP", "nodePort": 0},
        {"name": "last", "port": 65535, "nodePort": 30000},
    ]});
    let (service, skipped) = ours::<Service>(&with_spec(spec));
    let port = |name: &str, protocol, port| ServicePort { name: name.into(), protocol, port, node_port: None };
    assert_eq!(
        service.ports,
        [
            port("dns", Protocol::Udp, 53),
            port("dns-tcp", Protocol::Tcp, 53),
            port("association", Protocol::Sctp, 53),
            ServicePort { node_port: Some(30_000), ..port("last", Protocol::Tcp, 65535) },
        ]
    );
    assert_eq!(skipped, []);

    let (service, _) = ours::<Service>(&with_spec(json!({"clusterIP": "10.0.0.1", "ports": [{"port": 1}]})));
    assert_eq!(service.ports, [port("", Protocol::Tcp, 1)]);
}

/// A Service whose spec has these fields beside what it cannot do without.
fn with_fields(fields: Value) -> Value {
    let mut spec = json!({"clusterIP": "10.0.0.1", "ports": [{"port": 80}]});
    let Value::Object(fields) = fields else { panic!("fields are an object") };
    for (name, value) in fields {
        spec[name] = value;
    }
    with_spec(spec)
}

#[test]
fn a_service_says_nothing_of_what_it_does_not_have() {
    let (service, skipped) = ours::<Service>(&with_fields(json!({})));
    assert_eq!(
        service,
        Service {
            name: ObjectName::new("shop", "web"),
            cluster_ips: ips(&["10.0.0.1"]),
            ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
            ..Service::default()
        }
    );
    assert_eq!(skipped, []);
    assert!(!service.is_reached_from_outside(&service.ports[0]));
    let mut created = with_fields(json!({}));
    created["metadata"]["creationTimestamp"] = json!("1970-01-01T01:00:00Z");
    let (service, _) = ours::<Service>(&created);
    assert_eq!(service.created, Some(SystemTime::UNIX_EPOCH + Duration::from_secs(3600)));
}

#[test]
fn a_load_balancer_that_keeps_addresses_has_frontends_and_another_has_none() {
    let mut object = with_fields(json!({"type": "LoadBalancer"}));
    object["status"] = json!({"loadBalancer": {"ingress": [
        {"ip": "192.0.2.1"},
        {"ip": "2001:db8::1", "ipMode": "VIP", "ports": [{"port": 80, "protocol": "TCP"}]},
        {"ip": "192.0.2.2", "ipMode": "Proxy"},
        {"hostname": "lb.example.org"},
        {"ip": ""},
        {"ip": "192.0.2.1"},
        {"ip": "127.0.0.1"},
        {"ip": "lb.example.org"},
    ]}});
    let (service, skipped) = ours::<Service>(&object);
    assert_eq!(service.load_balancer_ips, ips(&["192.0.2.1", "2001:db8::1"]));
    assert!(service.is_reached_from_outside(&service.ports[0]));
    let texts: Vec<_> = skipped.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "status.loadBalancer.ingress.ip \"127.0.0.1\" is a loopback address",
            "status.loadBalancer.ingress.ip \"lb.example.org\" is not an IP address",
        ]
    );
}

#[test]
fn external_ips_are_of_both_families() {
    let (service, skipped) = ours::<Service>(&with_fields(json!({"externalIPs": ["2001:db8::1", "192.0.2.1", "::1"]})));
    assert_eq!(service.external_ips, ips(&["2001:db8::1", "192.0.2.1"]));
    assert_eq!(skipped.len(), 1);
}

#[test]
fn source_ranges_of_a_family_that_let_everybody_in_are_none() {
    for (ranges, expected) in [
        (json!([]), vec![]),
        (json!([" 192.0.2.0/24", "2001:db8::/32\t"]), vec!["192.0.2.0/24", "2001:db8::/32"]),
        (json!(["192.0.2.77/24", "192.0.2.0/24"]), vec!["192.0.2.0/24"]),
        (json!(["192.0.2.0/24", "0.0.0.0/0", "2001:db8::/32"]), vec!["2001:db8::/32"]),
        (json!(["::/0", "192.0.2.0/24", "2001:db8::/32"]), vec!["192.0.2.0/24"]),
        (json!(["0.0.0.0/0", "::/0"]), vec![]),
    ] {
        let (service, skipped) = ours::<Service>(&with_fields(json!({"loadBalancerSourceRanges": ranges})));
        let texts: Vec<_> = service.source_ranges.iter().map(ToString::to_string).collect();
        assert_eq!(texts, expected, "{ranges}");
        assert_eq!(skipped, []);
    }
    let (service, skipped) =
        ours::<Service>(&with_fields(json!({"loadBalancerSourceRanges": ["192.0.2.1", "192.0.2.0/33", "10.0.0.0/8"]})));
    assert_eq!((service.source_ranges.len(), skipped.len()), (1, 2));
    let text = rejected::<Service>(&with_fields(json!({"loadBalancerSourceRanges": ["everybody", ""]}))).to_string();
    assert!(text.contains("everybody"), "{text}");
    // An annotation of long ago is not read.
    let mut annotated = with_fields(json!({}));
    annotated["metadata"]["annotations"] =
        json!({"service.beta.kubernetes.io/load-balancer-source-ranges": "192.0.2.0/24"});
    assert_eq!(ours::<Service>(&annotated).0.source_ranges, []);
}

#[test]
fn policies_affinity_and_health_checks_are_read_with_their_defaults() {
    let local = json!({"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local", "type": "LoadBalancer",
        "healthCheckNodePort": 32000, "sessionAffinity": "ClientIP"});
    let (service, skipped) = ours::<Service>(&with_fields(local));
    assert_eq!(service.internal_traffic_policy, TrafficPolicy::Local);
    assert_eq!(service.external_traffic_policy, TrafficPolicy::Local);
    assert_eq!((service.affinity, service.health_check_node_port), (Some(10_800), Some(32_000)));
    assert_eq!(skipped, []);

    for (fields, affinity, skips) in [
        (json!({"sessionAffinity": "None"}), None, 0),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 1}}}),
            Some(1),
            0,
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_400}}}),
            Some(86_400),
            0,
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 86_401}}}),
            Some(10_800),
            1,
        ),
        (
            json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}),
            Some(10_800),
            1,
        ),
        (json!({"sessionAffinity": "None", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 0}}}), None, 0),
        (json!({"sessionAffinity": "Cookie"}), None, 1),
        (json!({"internalTrafficPolicy": "local", "externalTrafficPolicy": "Nowhere"}), None, 2),
        (json!({"ports": [{"port": 80, "nodePort": 65_536}]}), None, 1),
    ] {
        let (service, skipped) = ours::<Service>(&with_fields(fields.clone()));
        assert_eq!((service.affinity, skipped.len()), (affinity, skips), "{fields}: {skipped:?}");
        assert!(skipped.iter().all(Skipped::is_nonsense));
        assert_eq!(service.internal_traffic_policy, TrafficPolicy::Cluster);
    }

    // Of other types and policies nobody asks.
    for fields in [
        json!({"type": "LoadBalancer", "healthCheckNodePort": 32000}),
        json!({"type": "NodePort", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32000}),
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 0}),
    ] {
        let (service, skipped) = ours::<Service>(&with_fields(fields.clone()));
        assert_eq!((service.health_check_node_port, skipped.len()), (None, 0), "{fields}");
    }
    let out_of_range = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": -1});
    assert_eq!(ours::<Service>(&with_fields(out_of_range)).1, [Skipped::HealthCheckNodePort(-1)]);
}

#[test]
fn service_ports_that_cannot_be_are_rejected() {
    for (ports, problem) in [
        (json!([{"port": 0}]), "port 0"),
        (json!([{"port": -1}]), "port -1"),
        (json!([{"port": 65536}]), "port 65536"),
        (json!([{}]), "port 0"),
        (json!([{"port": 80, "protocol": "tcp"}]), "\"tcp\""),
        (json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}]), "80/TCP"),
        (
            json!([{"name": "a", "port": 80, "protocol": "SCTP"}, {"name": "b", "port": 80, "protocol": "SCTP"}]),
            "80/SCTP",
        ),
        (json!([{"name": "a", "port": 80}, {"name": "a", "port": 81}]), "\"a\""),
        (json!([{"name": "a", "port": 80}, {"name": "a", "port": 80, "protocol": "UDP"}]), "\"a\""),
        (json!([{"port": 80}, {"port": 81}]), "\"\""),
        (json!([{"port": "eighty"}]), "shape"),
        (json!([{"port": 4294967376_u64}]), "shape"),
        (json!("80"), "shape"),
    ] {
        let spec = json!({"clusterIP": "10.0.0.1", "ports": ports});
        let text = rejected::<Service>(&with_spec(spec)).to_string();
        assert!(text.contains("shop/web") && text.contains(problem), "{ports}: {text}");
    }
}

#[test]
fn objects_without_what_every_object_has_are_rejected() {
    for (object, problem) in [
        (json!({"spec": {"clusterIP": "10.0.0.1"}}), "metadata.name"),
        (json!({"metadata": {"name": ""}, "spec": {"clusterIP": "10.0.0.1"}}), "metadata.name"),
        (json!({"metadata": {"name": "web"}}), "spec"),
        (json!({"metadata": {"name": "web", "labels": "none"}, "spec": {}}), "shape"),
        (json!("web"), "shape"),
    ] {
        let text = rejected::<Service>(&object).to_string();
        assert!(text.contains(problem), "{object}: {text}");
    }
    let named = rejected::<Service>(&json!({"metadata": {"name": "web", "labels": 1}}));
    assert_eq!(named.name, Some(ObjectName::new("default", "web")));
    let (service, _) = ours::<Service>(&json!({"metadata": {"name": "web"}, "spec": {"clusterIP": "fd00::1"}}));
    assert_eq!(service.name, ObjectName::new("default", "web"));
}

#[test]
fn slices_are_read_with_their_defaults() {
    let (read, skipped) = ours::<EndpointSlice>(&slice(json!({
        "addressType": "IPv6",
        "ports": [
            {"port": 8080},
            {"name": "dns", "port": 53, "protocol": "UDP", "appProtocol": "dns"},
        ],
        "endpoints": [
            {
                "addresses": ["fd00::2", "fd00::99"],
                "nodeName": "n",
                "zone": "z",
                "hints": {"forZones": [{"name": "z"}, {"name": "y"}], "forNodes": [{"name": "n"}]},
            },
            {"addresses": ["fd00::1"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            {"addresses": ["fd00::3"], "conditions": {"ready": null}},
            {"addresses": ["fd00::4"], "conditions": {"serving": false, "ready": false}},
        ],
    })));
    let endpoint = |address: &str, ready, serving, terminating| Endpoint {
        ready,
        serving,
        terminating,
        ..Endpoint::new(address.parse().expect("an address"))
    };
    assert_eq!(
        read,
        EndpointSlice {
            name: ObjectName::new("shop", "web-1"),
            service: ObjectName::new("shop", "web"),
            family: IpFamily::V6,
            ports: vec![
                SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 },
                SlicePort { name: "dns".into(), protocol: Protocol::Udp, port: 53 },
            ],
            endpoints: vec![
                endpoint("fd00::1", false, true, true),
                Endpoint {
                    node: Some("n".into()),
                    hints: Hints::new(["z".into(), "y".into()].into(), ["n".into()].into()),
                    ..endpoint("fd00::2", true, true, false)
                },
                endpoint("fd00::3", true, true, false),
                endpoint("fd00::4", false, false, false),
            ],
            triggered: None,
        }
    );
    assert_eq!(skipped, []);
    for empty in [json!({}), json!({"endpoints": null, "ports": null})] {
        let (read, skipped) = ours::<EndpointSlice>(&slice(empty));
        assert!(read.endpoints.is_empty() && read.ports.is_empty() && skipped.is_empty());
    }
}

#[test]
fn the_time_of_the_last_change_is_read_and_a_bad_one_is_none() {
    let triggered = |text: &str| {
        let mut object = slice(json!({}));
        object["metadata"]["annotations"] = json!({TRIGGER_TIME_ANNOTATION: text});
        ours::<EndpointSlice>(&object).0.triggered
    };
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1500);
    assert_eq!(triggered("1970-01-01T00:00:01.5Z"), Some(at));
    assert_eq!(triggered("yesterday"), None);
}

#[test]
fn nodes_are_read_with_their_first_address_of_each_family() {
    let (node, skipped) = ours::<Node>(&json!({
        "metadata": {"name": "a", "labels": {ZONE_LABEL: "z"}},
        "spec": {"podCIDR": "10.244.0.0/24", "podCIDRs": ["10.244.0.0/24", "fd00:244::/64"]},
        "status": {"addresses": [
            {"type": "Hostname", "address": "a"},
            {"type": "ExternalIP", "address": "198.51.100.1"},
            {"type": "InternalIP", "address": "2001:db8::1"},
            {"type": "InternalIP", "address": "2001:db8::2"},
            {"type": "InternalIP", "address": "a"},
        ]},
    }));
    let cidrs: Vec<_> = node.pod_cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.244.0.0/24", "fd00:244::/64"]);
    assert_eq!(node.name.to_string(), "a");
    assert_eq!(node.addresses, ips(&["2001:db8::1", "198.51.100.1"]));
    assert_eq!((node.zone.as_deref(), node.is_going), (Some("z"), false));
    assert_eq!(skipped.len(), 1);

    let (bare, skipped) = ours::<Node>(&json!({"metadata": {"name": "a", "labels": {ZONE_LABEL: ""}}}));
    assert_eq!(bare, Node { name: ObjectName::of_cluster("a"), ..Node::default() });
    assert_eq!(skipped, []);
    let (old, _) = ours::<Node>(&json!({"metadata": {"name": "a"}, "spec": {"podCIDR": "10.244.0.0/24"}}));
    assert_eq!(old.pod_cidrs.len(), 1);
    assert!(rejected::<Node>(&json!({"spec": {}})).to_string().contains("metadata.name"));
}

#[test]
fn nodes_that_are_about_to_go_are_known_by_taint_and_by_deletion() {
    for (metadata, spec, going) in [
        (json!({"name": "a"}), json!({"taints": [{"key": "other", "effect": "NoSchedule"}]}), false),
        (json!({"name": "a"}), json!({"taints": [{"key": GOING_TAINT, "effect": "NoSchedule"}]}), true),
        (json!({"name": "a", "deletionTimestamp": "2020-01-01T00:00:00Z"}), json!({}), true),
    ] {
        let (node, _) = ours::<Node>(&json!({"metadata": metadata, "spec": spec}));
        assert_eq!(node.is_going, going, "{metadata} {spec}");
    }
}

#[test]
fn service_cidrs_are_read() {
    let (range, skipped) = ours::<ServiceCidr>(&json!({
        "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16", "fd00:96::/112", "all"]},
    }));
    let cidrs: Vec<_> = range.cidrs.iter().map(ToString::to_string).collect();
    assert_eq!(cidrs, ["10.96.0.0/16", "fd00:96::/112"]);
    assert_eq!(skipped.len(), 1);
    assert!(rejected::<ServiceCidr>(&json!({"metadata": {"name": "a"}})).to_string().starts_with("ServiceCIDR a is"));
}

#[test]
fn slices_of_others_are_passed_over() {
    assert_eq!(not_ours::<EndpointSlice>(&slice(json!({"addressType": "FQDN"}))), NotOurs::Fqdn);
    let mut headless = slice(json!({}));
    headless["metadata"]["labels"]["service.kubernetes.io/headless"] = json!("");
    assert_eq!(not_ours::<EndpointSlice>(&headless), NotOurs::HeadlessSlice);
    // This label is for Services, and means nothing on a slice.
    let mut other = slice(json!({}));
    other["metadata"]["labels"]["service.kubernetes.io/service-proxy-name"] = json!("x");
    ours::<EndpointSlice>(&other);
}

#[test]
fn slices_that_cannot_be_are_rejected() {
    for (object, problem) in [
        (slice(json!({"metadata": {"name": "web-1", "namespace": "shop"}})), SERVICE_NAME_LABEL),
        (
            slice(json!({"metadata": {"name": "web-1", "labels": {"kubernetes.io/service-name": ""}}})),
            SERVICE_NAME_LABEL,
        ),
        (slice(json!({"metadata": {"labels": {"kubernetes.io/service-name": "web"}}})), "metadata.name"),
        (slice(json!({"addressType": "IP"})), "\"IP\""),
        (slice(json!({"addressType": null})), "addressType \"\""),
        (slice(json!({"endpoints": [{"addresses": "10.0.0.1"}]})), "shape"),
    ] {
        let text = rejected::<EndpointSlice>(&object).to_string();
        assert!(text.starts_with("EndpointSlice ") && text.contains(problem), "{object}: {text}");
    }
}

#[test]
fn a_bad_part_of_a_slice_is_left_out_and_the_rest_stays() {
    for (addresses, problem) in [
        (json!([]), "no address"),
        (json!(["pod.example"]), "not an IP address"),
        (json!(["fd00::1"]), "not of family IPv4"),
        (json!(["127.0.0.1"]), "loopback"),
        (json!(["0.0.0.0"]), "unspecified"),
        (json!(["224.0.0.1"]), "multicast"),
        (json!(["255.255.255.255"]), "broadcast"),
        (json!(["169.254.1.1"]), "link-local"),
    ] {
        let (read, skipped) = ours::<EndpointSlice>(&slice(json!({"endpoints": [
            {"addresses": addresses},
            {"addresses": ["10.1.0.1"]},
        ]})));
        assert_eq!(read.endpoints.len(), 1, "{addresses}");
        let [skipped] = skipped.as_slice() else { panic!("{addresses}: {skipped:?}") };
        assert!(skipped.is_nonsense() && skipped.to_string().contains(problem), "{skipped}");
    }
    for (port, nonsense, problem) in [
        (json!({"name": "x"}), false, "no number"),
        (json!({"name": "x", "port": 0}), true, "port 0"),
        (json!({"name": "x", "port": 65536}), true, "port 65536"),
        (json!({"name": "x", "port": 9, "protocol": "udp"}), true, "\"udp\""),
        (json!({"name": "a", "port": 9}), true, "another port"),
    ] {
        let ports = json!([{"name": "a", "port": 80}, port, {"name": "a", "port": 80, "protocol": "UDP"}]);
        let (read, skipped) = ours::<EndpointSlice>(&slice(json!({"ports": ports})));
        assert_eq!(read.ports.len(), 2, "{ports}");
        let [skipped] = skipped.as_slice() else { panic!("{ports}: {skipped:?}") };
        assert_eq!(skipped.is_nonsense(), nonsense, "{skipped}");
        assert!(skipped.to_string().contains(problem), "{skipped}");
    }
}

#[test]
fn ipv6_endpoints_are_held_to_the_same() {
    for (address, problem) in [
        ("10.1.0.1", "not of family IPv6"),
        ("::ffff:10.1.0.1", "not of family IPv6"),
        ("::1", "loopback"),
        ("::", "unspecified"),
        ("fe80::1", "link-local"),
        ("ff0e::1", "multicast"),
    ] {
        let (read, skipped) = ours::<EndpointSlice>(&slice(json!({
            "addressType": "IPv6",
            "endpoints": [{"addresses": [address]}],
        })));
        assert_eq!(read.endpoints, [], "{address}");
        assert!(skipped[0].to_string().contains(problem), "{}", skipped[0]);
    }
}
