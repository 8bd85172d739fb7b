//! What is accepted as a manifest file, and what a bad document costs the others.

use super::*;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec:
  clusterIP: 10.0.0.1
  ports: [{port: 80}]
";

const SLICE: &str = "
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: NAME
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1]}]
ports: [{port: 8080}]
";

fn service(name: &str) -> String {
    SERVICE.replace("NAME", name)
}

fn slice(name: &str) -> String {
    SLICE.replace("NAME", name)
}

fn yaml(text: &str) -> Contents {
    read(text.as_bytes(), Format::Yaml)
}

/// The names of the objects that are of use, kind by kind.
fn ours(contents: &Contents) -> Vec<String> {
    fn name<T: FromObject>(object: &Converted<T>) -> Option<String> {
        match object {
            Converted::Ours { object, .. } => Some(object.name().to_string()),
            Converted::NotOurs { .. } | Converted::Rejected(_) => None,
        }
    }
    let services = contents.services.iter().filter_map(name);
    let slices = contents.endpoint_slices.iter().filter_map(name);
    let nodes = contents.nodes.iter().filter_map(name);
    services.chain(slices).chain(nodes).chain(contents.service_cidrs.iter().filter_map(name)).collect()
}

#[test]
fn several_documents_stand_in_one_file() {
    let (a, b, c) = (service("a"), slice("b"), service("c"));
    for text in [
        format!("{a}---{b}---{c}"),
        format!("---{a}---\n---\n# nothing\n---{b}--- # next{c}---\n"),
        format!("%YAML 1.2\n---{a}...\n---{b}---{c}"),
        format!("{a}---{b}---{c}").replace('\n', "\r\n"),
        format!("\u{feff}{a}---{b}---{c}"),
    ] {
        let contents = yaml(&text);
        assert!(contents.broken.is_empty(), "{:?} in {text}", contents.broken);
        assert_eq!(ours(&contents), ["default/a", "default/c", "default/b"], "{text}");
    }
}

#[test]
fn dashes_in_a_text_cut_nothing() {
    let text = format!("{}  note: |\n    ---\n    --- more\n", service("a"));
    assert_eq!(ours(&yaml(&text)), ["default/a"]);
}

#[test]
fn nothing_is_no_object_and_no_failure() {
    for text in ["", "\n", "# nothing\n", "---\n---\n", "null\n"] {
        let contents = yaml(text);
        assert!(contents.broken.is_empty() && ours(&contents).is_empty(), "{text:?}");
    }
}

#[test]
fn a_bad_document_harms_no_other() {
    for bad in [
        "\nspec: [\n",
        "\nkind: Service\n\tmetadata: tab\n",
        "\njust text\n",
        "\n- a\n- sequence\n",
        "\nmetadata: {name: kindless}\n",
        "\nkind: Service\nmetadata: {name: versionless}\n",
        "\napiVersion: v2\nkind: Service\nmetadata: {name: a}\n",
        "\napiVersion: v1\nkind: List\nitems: {}\n",
    ] {
        let contents = yaml(&format!("{}---{bad}---{}", service("a"), slice("b")));
        assert_eq!(ours(&contents), ["default/a", "default/b"], "{bad}");
        assert_eq!(contents.broken.len(), 1, "{bad}");
        assert!(contents.broken[0].to_string().starts_with("document 2: "), "{bad}");
    }
}

#[test]
fn half_a_file_is_broken_or_whole() {
    let text = serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"},
        "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
    })
    .to_string();
    for length in 1..text.len() {
        let contents = read(&text.as_bytes()[..length], Format::Json);
        assert_eq!(contents.broken.len(), 1, "{}", &text[..length]);
        assert!(ours(&contents).is_empty());
    }
    assert_eq!(ours(&read(text.as_bytes(), Format::Json)), ["default/a"]);
    assert_eq!(read(&[0xff, 0xfe], Format::Yaml).broken.len(), 1);
}

#[test]
fn lists_hold_objects() {
    let indent = |text: String| text.trim().replace('\n', "\n  ");
    let (a, b) = (indent(service("a")), indent(slice("b")));
    let list = format!("apiVersion: v1\nkind: List\nitems:\n- {a}\n- {b}\n- kindless: item\n");
    let contents = yaml(&list);
    assert_eq!(ours(&contents), ["default/a", "default/b"]);
    assert_eq!(contents.broken.len(), 1);

    // As the API server answers a list: the items say neither apiVersion nor kind.
    let typed = serde_json::json!({
        "apiVersion": "v1", "kind": "ServiceList", "metadata": {"resourceVersion": "1"},
        "items": [{"metadata": {"name": "a"}, "spec": {"clusterIP": "fd00::1"}}],
    });
    assert_eq!(ours(&read(typed.to_string().as_bytes(), Format::Json)), ["default/a"]);
    assert_eq!(ours(&yaml(&typed.to_string())), ["default/a"]);
    for items in ["", "items:\n", "items: []\n"] {
        let contents = yaml(&format!("apiVersion: v1\nkind: List\n{items}"));
        assert!(contents.broken.is_empty() && ours(&contents).is_empty(), "{items}");
    }
}

#[test]
fn lists_within_lists_have_an_end() {
    let mut value = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": []});
    for _ in 0..=DEEPEST_LIST {
        value = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [value]});
    }
    assert_eq!(read(value.to_string().as_bytes(), Format::Json).broken.len(), 1);
}

#[test]
fn nodes_and_service_cidrs_have_no_namespace() {
    for text in [
        "{apiVersion: v1, kind: Node, metadata: {name: a, namespace: b}}",
        "{apiVersion: v1, kind: NodeList, items: [{metadata: {name: a}}]}",
        "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: a}, spec: {cidrs: [10.0.0.0/8]}}",
        "{apiVersion: networking.k8s.io/v1, kind: ServiceCIDRList, items: [{metadata: {name: a}, spec: {}}]}",
    ] {
        let contents = yaml(text);
        assert!(contents.broken.is_empty(), "{:?} in {text}", contents.broken);
        assert_eq!(ours(&contents), ["a"], "{text}");
    }
    let alpha = yaml("{apiVersion: networking.k8s.io/v1alpha1, kind: ServiceCIDR, metadata: {name: a}}");
    assert_eq!(alpha.broken.len(), 1);
}

#[test]
fn other_kinds_are_passed_over() {
    for (api_version, kind) in [
        ("v1", "Endpoints"),
        ("networking.k8s.io/v1", "Ingress"),
        ("node.k8s.io/v1", "Node"),
        ("serving.knative.dev/v1", "Service"),
        ("apps/v1", "Deployment"),
    ] {
        let contents = yaml(&format!("apiVersion: {api_version}\nkind: {kind}\nspec: 1\n"));
        assert!(contents.broken.is_empty() && ours(&contents).is_empty(), "{kind}");
        assert_eq!(contents.services.len() + contents.endpoint_slices.len(), 0);
    }
}

#[test]
fn anchors_and_merge_keys_are_resolved() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: a, annotations: &notes {1: one, yes: two}}
spec: &spec
  clusterIP: 10.0.0.1
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: b}
x-base: &base {clusterIP: 10.0.0.2}
spec:
  <<: *base
  ports: [{port: 80}]
";
    let contents = yaml(text);
    assert!(contents.broken.is_empty(), "{:?}", contents.broken);
    assert_eq!(ours(&contents), ["default/a", "default/b"]);
}

#[test]
fn what_an_api_server_returns_is_accepted() {
    let text = "
apiVersion: v1
kind: Service
metadata:
  creationTimestamp: 2024-05-01T10:00:00Z
  managedFields:
  - {apiVersion: v1, fieldsType: FieldsV1, fieldsV1: {f:spec: {f:ports: {}}}, manager: m, operation: Update, time: 2024-05-01T10:00:00Z}
  name: a
  namespace: shop
  ownerReferences: []
  resourceVersion: '12'
  uid: 0b1c7f0e-1111-2222-3333-444455556666
  x-unknown: true
spec:
  allocateLoadBalancerNodePorts: true
  clusterIP: fd00::1
  clusterIPs: [fd00::1, 10.0.0.1]
  internalTrafficPolicy: Cluster
  ipFamilies: [IPv6, IPv4]
  ipFamilyPolicy: RequireDualStack
  ports: [{name: http, nodePort: 30080, port: 80, protocol: TCP, targetPort: web, appProtocol: http}]
  selector: {app: web}
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}
  type: LoadBalancer
  trafficDistribution: PreferSameNode
  someNewField: {deep: [1, 2]}
status:
  loadBalancer: {ingress: [{ip: 192.0.2.1, ipMode: VIP, ports: [{port: 80, protocol: TCP}]}]}
  conditions: []
";
    let contents = yaml(text);
    assert!(contents.broken.is_empty(), "{:?}", contents.broken);
    assert_eq!(ours(&contents), ["shop/a"]);
}
