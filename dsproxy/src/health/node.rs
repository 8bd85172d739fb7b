//! `/healthz`: may this node be sent traffic? `/livez`: is there a reason to restart the daemon?
//!
//! A node that is about to go is not to be sent any more, which is no reason to restart anything (KEP-3836).
//! Trouble with the API server is neither: what was last known is served on. It is told in `/healthz` all the same, while there is
//! some, in classes that give away nothing of the cluster.

use std::time::Instant;

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use chrono::{DateTime, Utc};
use serde::Serialize;

use super::Health;
use crate::{
    source::{SourceStatus, WatchStatus},
    sync_times::Question,
};

/// The two questions.
pub fn routes(health: Health) -> Router {
    Router::new()
        .route("/healthz", get(|State(health): State<Health>| async move { answer(&health, Question::Healthz) }))
        .route("/livez", get(|State(health): State<Health>| async move { answer(&health, Question::Livez) }))
        .with_state(health)
}

fn answer(health: &Health, question: Question) -> Response {
    let now = Instant::now();
    let (proxy_healthy, node_eligible) = match question {
        Question::Healthz => (health.serves(now), Some(health.progress.snapshot().node_is_eligible)),
        Question::Livez => (health.is_live(now), None),
    };
    let source = (question == Question::Healthz).then(|| SourceTrouble::of(&health.source)).flatten();
    let body = Body { source, ..Body::new(proxy_healthy, node_eligible, health.progress.updated(), Utc::now()) };
    let status = if body.healthy { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    health.progress.sync_times().answered(question, status.as_u16());
    (status, [(header::X_CONTENT_TYPE_OPTIONS, "nosniff")], Json(body)).into_response()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    last_updated: Option<DateTime<Utc>>,
    current_time: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_eligible: Option<bool>,
    healthy: bool,
    status: Families,
    /// Left out while nothing is the matter, so that it is kube-proxy's answer then.
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<SourceTrouble>,
}

/// What is the matter with the source.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SourceTrouble {
    connected: bool,
    /// What is not as it should be.
    resources: Vec<ResourceTrouble>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ResourceTrouble {
    resource: &'static str,
    trouble: &'static str,
    since: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    held_back: Option<usize>,
}

impl SourceTrouble {
    fn of(status: &SourceStatus) -> Option<Self> {
        let in_trouble = |watch: WatchStatus| {
            let WatchStatus { resource, works: _, trouble, since, held_back, failures: _ } = watch;
            let trouble = trouble?.name();
            Some(ResourceTrouble {
                resource,
                trouble,
                since: since.into(),
                held_back: (held_back > 0).then_some(held_back),
            })
        };
        let resources: Vec<_> = status.watches().into_iter().filter_map(in_trouble).collect();
        let connected = status.connected();
        (!connected || !resources.is_empty()).then_some(Self { connected, resources })
    }
}

/// One task writes the maps of both families, so that what holds for one holds for the other.
#[derive(Serialize)]
struct Families {
    #[serde(rename = "IPv4")]
    v4: FamilyHealth,
    #[serde(rename = "IPv6")]
    v6: FamilyHealth,
}

#[derive(Clone, Serialize)]
#[serde(rename_all = "camelCase")]
struct FamilyHealth {
    last_updated: Option<DateTime<Utc>>,
    healthy: bool,
}

impl Body {
    /// `updated`: when the maps last followed the source. As with kube-proxy, what is healthy is up to date `now`.
    fn new(
        proxy_healthy: bool,
        node_eligible: Option<bool>,
        updated: Option<DateTime<Utc>>,
        now: DateTime<Utc>,
    ) -> Self {
        let healthy = proxy_healthy && node_eligible.unwrap_or(true);
        let last_updated = |healthy| if healthy { Some(now) } else { updated };
        let family = FamilyHealth { last_updated: last_updated(proxy_healthy), healthy: proxy_healthy };
        Self {
            last_updated: last_updated(healthy),
            current_time: now,
            node_eligible,
            healthy,
            status: Families { v4: family.clone(), v6: family },
            source: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use super::*;
    use crate::{
        attachments,
        progress::{Progress, STALE_AFTER, Snapshot},
    };

    #[test]
    fn payloads() {
        let at = |second| DateTime::from_timestamp(second, 0).expect("a time");
        let (updated, now) = (r#""1970-01-01T00:00:01Z""#, r#""1970-01-01T00:00:09Z""#);
        for (proxy_healthy, eligible, last, of_family, word, healthy) in [
            (true, Some(true), now, now, r#","nodeEligible":true"#, true),
            (true, Some(false), updated, now, r#","nodeEligible":false"#, false),
            (false, Some(true), updated, updated, r#","nodeEligible":true"#, false),
            (true, None, now, now, "", true),
            (false, None, updated, updated, "", false),
        ] {
            let body = Body::new(proxy_healthy, eligible, Some(at(1)), at(9));
            let family = format!(r#"{{"lastUpdated":{of_family},"healthy":{proxy_healthy}}}"#);
            assert_eq!(
                serde_json::to_string(&body).expect("JSON"),
                format!(
                    r#"{{"lastUpdated":{last},"currentTime":{now}{word},"healthy":{healthy},"status":{{"IPv4":{family},"IPv6":{family}}}}}"#
                )
            );
        }
    }

    #[test]
    fn a_node_that_goes_and_a_proxy_that_is_stuck_are_told_apart() {
        let progress = Arc::new(Progress::default());
        let source = SourceStatus::new();
        let attached = Arc::new(attachments::Report::default());
        let health = Health::new(Arc::clone(&progress), Arc::clone(&source), Arc::clone(&attached));
        let ask = || [Question::Healthz, Question::Livez].map(|question| answer(&health, question).status().as_u16());
        let publish = |synced, node_is_eligible, stuck| {
            let snapshot = Snapshot { synced, node_is_eligible, stuck, ..Snapshot::default() };
            // Whatever is stuck is so for long.
            let since = Instant::now().checked_sub(STALE_AFTER + Duration::from_secs(1)).expect("a time before");
            progress.publish(snapshot, since, Duration::ZERO);
        };
        assert_eq!(ask(), [503, 200], "nothing was listed");
        for (synced, eligible, stuck, expected) in [
            (true, true, false, [200, 200]),
            (true, false, false, [503, 200]),
            (true, true, false, [200, 200]),
            (true, true, true, [503, 503]),
            (true, false, true, [503, 503]),
        ] {
            publish(synced, eligible, stuck);
            assert_eq!(ask(), expected, "synced {synced}, eligible {eligible}, stuck {stuck}");
        }
        publish(true, true, false);
        attached.take_away();
        assert_eq!(ask(), [503, 200], "a restart would undo what somebody took away");
        // Trouble with the source alone is no reason either; it is told while there is some.
        publish(true, true, false);
        let trouble = |source: &SourceStatus| serde_json::to_value(SourceTrouble::of(source)).expect("JSON");
        assert_eq!(trouble(&source), serde_json::json!({"connected": false, "resources": []}));
        source.set_connected();
        assert_eq!(trouble(&source), serde_json::Value::Null);
        let counted = progress.sync_times().answers();
        let expected = [
            ((Question::Healthz, 200), 2),
            ((Question::Healthz, 503), 5),
            ((Question::Livez, 200), 5),
            ((Question::Livez, 503), 2),
        ];
        assert_eq!(counted, expected.into());
    }
}
