//! Which endpoints are meant for clients of this node: hints of node and zone.
//!
//! All of the policy is the EndpointSlice controller's, which writes the hints; `spec.trafficDistribution` is not read
//! here. Hints count only where every endpoint has one and one of them names this node or its zone.

use super::NodeView;
use crate::model::Endpoint;

/// How endpoints are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Those for this node.
    SameNode,
    /// Those for this node's zone.
    SameZone,
    /// All are alike.
    Anywhere,
}

impl Mode {
    /// The mode for a service port with these ready endpoints.
    pub(super) fn of<'a>(ready: &(impl Iterator<Item = &'a Endpoint> + Clone), node: &NodeView) -> Self {
        [Self::SameNode, Self::SameZone]
            .into_iter()
            .find(|mode| {
                ready.clone().all(|endpoint| mode.is_hinted(endpoint))
                    && ready.clone().any(|endpoint| mode.admits(endpoint, node))
            })
            .unwrap_or(Self::Anywhere)
    }

    /// Whether an endpoint that is ready is for clients of this node.
    pub(super) fn admits(self, endpoint: &Endpoint, node: &NodeView) -> bool {
        match self {
            Self::SameNode => endpoint.node_hints().contains(&node.name),
            Self::SameZone => node.zone.as_ref().is_some_and(|zone| endpoint.zone_hints().contains(zone)),
            Self::Anywhere => true,
        }
    }

    fn is_hinted(self, endpoint: &Endpoint) -> bool {
        match self {
            Self::SameNode => !endpoint.node_hints().is_empty(),
            Self::SameZone => !endpoint.zone_hints().is_empty(),
            Self::Anywhere => true,
        }
    }
}
