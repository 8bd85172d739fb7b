//! Tells the cluster that the daemon has started, as kube-proxy does: an Event about the Node.
//!
//! Nothing depends on it. A Role that does not allow it is no failure.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tracing::{debug, info};

use crate::app::Backoff;

/// How often the API server is asked to take the Event.
const ATTEMPTS: u32 = 8;

/// Tells that the daemon has started on the node `node`; tries again while the API server is away.
pub async fn tell(client: Client, node: String) {
    let reporter = Reporter { controller: "dsproxy".to_owned(), instance: Some(node.clone()) };
    let recorder = Recorder::new(client, reporter);
    let about = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        // What the kubelet and kube-proxy write, so that `kubectl describe node` shows it.
        uid: Some(node.clone()),
        name: Some(node),
        ..ObjectReference::default()
    };
    let event = Event {
        type_: EventType::Normal,
        reason: "Starting".to_owned(),
        note: None,
        action: "StartKubeProxy".to_owned(),
        secondary: None,
    };
    let mut backoff = Backoff::new();
    for _ in 0..ATTEMPTS {
        match recorder.publish(&event, &about).await {
            Ok(()) => return debug!("the cluster was told of the start"),
            Err(kube::Error::Api(status)) if (400..500).contains(&status.code) => {
                return info!(
                    reason = status.message,
                    "the cluster is not told of the start; allow create on events.events.k8s.io in a ClusterRole"
                );
            }
            Err(error) => debug!(%error, "the cluster is told of the start later"),
        }
        backoff.wait().await;
    }
}
