//! What every API server makes by itself: the Service that leads to it, and its EndpointSlice.
//!
//! It knows nothing of other objects.

use serde_json::{Value, json};

/// The namespace of the server's own objects.
pub const NAMESPACE: &str = "default";

/// The name of each of the server's own objects.
pub const NAME: &str = "kubernetes";

/// The server's own objects. They are of one family, as a server's are; neither the ClusterIP nor the endpoint is anything in a test.
pub fn objects() -> [Value; 2] {
    let metadata = |labels: Value| json!({"namespace": NAMESPACE, "name": NAME, "labels": labels});
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(json!({"component": "apiserver", "provider": "kubernetes"})),
        "spec": {
            "type": "ClusterIP",
            "clusterIP": "10.0.0.1",
            "clusterIPs": ["10.0.0.1"],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": 6443}],
        },
        "status": {"loadBalancer": {}},
    });
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata(json!({"kubernetes.io/service-name": NAME})),
        "addressType": "IPv4",
        "ports": [{"name": "https", "port": 6443, "protocol": "TCP"}],
        "endpoints": [{"addresses": ["192.0.2.250"], "conditions": {"ready": true}}],
    });
    [service, slice]
}
