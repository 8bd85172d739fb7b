//! Manifests garbled: read or refused, with the document's place, and never more than that.

use super::*;
use crate::garbled;

const SERVICE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {a: b}}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, \"fd00:96::10\"]
  ipFamilies: [IPv4, IPv6]
  externalIPs: [192.0.2.1]
  externalTrafficPolicy: Local
  healthCheckNodePort: 30999
  loadBalancerSourceRanges: [198.51.100.0/24, \"2001:db8::/32\"]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 600}}
  ports:
  - {name: http, port: 80, nodePort: 30080, protocol: TCP, targetPort: 8080}
  - {name: dns, port: 53, protocol: UDP, targetPort: dns}
status: {loadBalancer: {ingress: [{ip: 203.0.113.1, ipMode: VIP}]}}
";

const SLICE: &str = "\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: shop
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
endpoints:
- addresses: [10.1.0.1]
  nodeName: node-a
  zone: a
  conditions: {ready: true, serving: true, terminating: false}
  hints: {forZones: [{name: a}]}
ports: [{name: http, port: 8080, protocol: TCP}]
";

const NODE: &str = "\
apiVersion: v1
kind: Node
metadata: {name: node-a, labels: {topology.kubernetes.io/zone: a}}
spec: {podCIDRs: [10.1.0.0/24, \"fd00:1::/64\"]}
status: {addresses: [{type: InternalIP, address: 172.30.0.1}]}
";

const CIDR: &str = "\
apiVersion: networking.k8s.io/v1
kind: ServiceCIDR
metadata: {name: kubernetes}
spec: {cidrs: [10.96.0.0/16, \"fd00:96::/112\"]}
";

fn all() -> String {
    [SERVICE, SLICE, NODE, CIDR].join("---\n")
}

fn as_json(yaml: &str) -> Value {
    serde_yaml::from_str(yaml).expect("YAML")
}

/// What could not be read says which document that was, and why.
fn judge(contents: &Contents) -> proptest::test_runner::TestCaseResult {
    for broken in &contents.broken {
        let told = broken.to_string();
        proptest::prop_assert!(broken.document >= 1 && told.starts_with("document ") && told.len() > 15, "{told}");
    }
    Ok(())
}

#[test]
fn garbled_yaml_is_read_or_refused() {
    garbled::hands_to(&all(), |bytes| judge(&read(bytes, Format::Yaml)));
}

#[test]
fn garbled_json_is_read_or_refused() {
    let list = serde_json::json!({"apiVersion": "v1", "kind": "List",
        "items": [as_json(SERVICE), as_json(SLICE), as_json(NODE), as_json(CIDR)]});
    garbled::hands_to(&serde_json::to_string_pretty(&list).expect("JSON"), |bytes| judge(&read(bytes, Format::Json)));
}

#[test]
fn garbled_objects_are_converted_or_rejected_by_name() {
    fn converts<T: FromObject>(yaml: &str) {
        garbled::hands_value_to(&as_json(yaml), |value| {
            let name = convert::json_name(T::KIND, value);
            let converted = convert::from_json::<T>(value);
            // Whatever is wrong with it, an object that has a name is known by it.
            proptest::prop_assert_eq!(converted.object_name(), name.as_ref());
            if let Converted::Rejected(rejected) = converted {
                proptest::prop_assert!(!rejected.to_string().is_empty());
            }
            Ok(())
        });
    }
    converts::<Service>(SERVICE);
    converts::<EndpointSlice>(SLICE);
    converts::<Node>(NODE);
    converts::<ServiceCidr>(CIDR);
}

/// References that double what they refer to, and brackets as deep as there is room for.
#[test]
fn what_grows_when_it_is_read_is_refused_in_time() {
    let doubling = (1..40).fold("a0: &a0 [x, x]\n".to_owned(), |text, level| {
        let before = level - 1;
        format!("{text}a{level}: &a{level} [*a{before}, *a{before}]\n")
    });
    for (text, format) in [
        (doubling, Format::Yaml),
        ("[".repeat(100_000), Format::Yaml),
        ("{a: ".repeat(50_000), Format::Yaml),
        ("[".repeat(100_000), Format::Json),
        ("- ".repeat(50_000), Format::Yaml),
    ] {
        let started = std::time::Instant::now();
        let contents = read(text.as_bytes(), format);
        assert!(!contents.broken.is_empty(), "{}", &text[..40]);
        assert!(started.elapsed() < std::time::Duration::from_secs(5), "{} took {:?}", &text[..40], started.elapsed());
    }
}
