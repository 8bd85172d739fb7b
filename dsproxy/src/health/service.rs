//! The answer at the `healthCheckNodePort` of a Service: has this node endpoints of it?
//!
//! Any path and any method is answered, as in kube-proxy (`pkg/proxy/healthcheck/service_health.go`). It does not know where the
//! question came in but for the port.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, State},
    http::{HeaderName, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::sync::watch;

use super::{Health, plan};
use crate::{
    model::{IpFamily, ObjectName},
    reconcile::HealthChecks,
    resolve::HealthCheck,
};

/// How many endpoints there are, for load balancers that spread by that.
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// The port that is asked at, and what is known.
#[derive(Clone)]
pub(super) struct Port {
    pub(super) number: u16,
    pub(super) checks: watch::Receiver<HealthChecks>,
    pub(super) health: Health,
}

pub(super) fn routes(port: Port) -> Router {
    Router::new().fallback(answer).with_state(port)
}

async fn answer(State(port): State<Port>, ConnectInfo(client): ConnectInfo<SocketAddr>) -> Response {
    // The reconciler waits for whoever looks at these.
    let held = {
        let checks = port.checks.borrow();
        plan::holder(&checks, port.number).map(|(service, check)| (service.clone(), endpoints_for(check, client.ip())))
    };
    match held {
        Some((service, endpoints)) => {
            let healthy = port.health.serves_service(&service, Instant::now());
            tell(&service, endpoints, healthy)
        }
        // The Service has just gone, and this connection is about to.
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

/// A client is told of the endpoints of the family that it comes by, if the Service has that.
fn endpoints_for(check: &HealthCheck, client: IpAddr) -> usize {
    let counts = &check.local_endpoints;
    let family = IpFamily::of(client.to_canonical());
    counts.get(&family).or_else(|| counts.values().next()).copied().unwrap_or_default()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body<'checks> {
    service: Name<'checks>,
    local_endpoints: usize,
    service_proxy_healthy: bool,
}

#[derive(Serialize)]
struct Name<'checks> {
    namespace: &'checks str,
    name: &'checks str,
}

fn tell(ObjectName { namespace, name }: &ObjectName, local_endpoints: usize, healthy: bool) -> Response {
    let status = if local_endpoints > 0 && healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [(header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()), (WEIGHT, local_endpoints.to_string())];
    let body = Body { service: Name { namespace, name }, local_endpoints, service_proxy_healthy: healthy };
    (status, headers, Json(body)).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers() {
        for (count, healthy, status) in
            [(0, true, 503), (1, true, 200), (7, true, 200), (7, false, 503), (0, false, 503)]
        {
            let response = tell(&ObjectName::new("shop", "web"), count, healthy);
            assert_eq!(response.status().as_u16(), status, "{count} {healthy}");
            let header = |name: &str| response.headers()[name].to_str().expect("text").to_owned();
            assert_eq!(header("content-type"), "application/json");
            assert_eq!(header("x-content-type-options"), "nosniff");
            assert_eq!(header("x-load-balancing-endpoint-weight"), count.to_string());
            let body = axum::body::to_bytes(response.into_body(), 1024).await.expect("a body");
            let expected = format!(
                r#"{{"service":{{"namespace":"shop","name":"web"}},"localEndpoints":{count},"serviceProxyHealthy":{healthy}}}"#
            );
            assert_eq!(String::from_utf8_lossy(&body), expected);
        }
    }

    #[test]
    fn a_client_is_told_of_its_own_family() {
        let both = [(IpFamily::V4, 1), (IpFamily::V6, 2)];
        for (counts, client, expected) in [
            (&both[..], "192.0.2.1", 1),
            (&both[..], "::ffff:192.0.2.1", 1),
            (&both[..], "2001:db8::1", 2),
            (&both[..1], "2001:db8::1", 1),
            (&both[1..], "192.0.2.1", 2),
            (&both[..0], "192.0.2.1", 0),
        ] {
            let check = HealthCheck { port: 30_000, local_endpoints: counts.iter().copied().collect() };
            assert_eq!(endpoints_for(&check, client.parse().expect("an address")), expected, "{client} of {counts:?}");
        }
    }
}
