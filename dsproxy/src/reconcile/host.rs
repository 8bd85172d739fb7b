//! What the maps hold beside Services: what is known of networks, and the addresses that masqueraded packets leave with.

use std::time::Instant;

use tracing::{info, warn};

use super::{RETRY, Reconciler};
use crate::maps::{MapError, MapStore};

impl<S: MapStore> Reconciler<S> {
    /// Brings networks and addresses up to date; what cannot be written is tried again. To be called after Services were: a ClusterIP
    /// that is known before its ports would refuse what they are about to serve.
    pub(super) fn bring_host_up_to_date(&mut self, now: Instant) {
        let failure = self.write_host(now).err().map(|error| error.to_string());
        match (&failure, &self.host_failure) {
            (Some(error), before) if before.as_ref() != Some(error) => {
                warn!(error, "networks or the node's addresses are not in the maps as they should be");
            }
            (None, Some(_)) => info!("networks and the node's addresses are in the maps as they should be again"),
            _ => {}
        }
        if failure.is_some() {
            let again = now + RETRY.0;
            self.retry_at = Some(self.retry_at.map_or(again, |at| at.min(again)));
        }
        self.host_failure = failure;
    }

    fn write_host(&mut self, now: Instant) -> Result<(), MapError> {
        let node = self.cluster.node();
        let pod_cidrs = node.object().map_or(&[][..], |object| &object.pod_cidrs);
        self.networks.set_ranges(self.configured.ranges(self.cluster.service_cidrs(), pod_cidrs));
        let addresses = self.masquerade.plan(&node.masquerade_addresses());
        self.write(&addresses, now)?;
        let networks = self.networks.plan();
        self.write(&networks, now)?;
        self.networks.settled();
        Ok(())
    }
}
