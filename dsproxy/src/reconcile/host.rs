//! What the maps hold beside Services: what is known of networks, and the addresses that masqueraded packets leave with.

use std::time::Instant;

use tracing::{info, warn};

use super::{Failure, RETRY, Reconciler};
use crate::maps::{MapError, MapStore, Write};

impl<S: MapStore> Reconciler<S> {
    /// Brings networks and addresses up to date; what cannot be written is tried again. To be called after Services were: a ClusterIP
    /// that is known before its ports would refuse what they are about to serve.
    pub(super) fn bring_host_up_to_date(&mut self, now: Instant) {
        let failure = self.write_host(now).err().map(|error| Failure::of(&error));
        match (&failure, &self.host_failure) {
            (Some(Failure { text, .. }), before) if before.as_ref().is_none_or(|before| before.text != *text) => {
                warn!(error = text, "networks or the node's addresses are not in the maps as they should be");
            }
            (None, Some(_)) => info!("networks and the node's addresses are in the maps as they should be again"),
            _ => {}
        }
        if let Some(Failure { full, .. }) = failure {
            // Room there is when something goes, and all of this is done then.
            let again = now + if full { RETRY.1 } else { RETRY.0 };
            self.retry_at = Some(self.retry_at.map_or(again, |at| at.min(again)));
        }
        self.host_failure = failure;
    }

    fn write_host(&mut self, now: Instant) -> Result<(), MapError> {
        let node = self.cluster.node();
        let pod_cidrs = node.object().map_or(&[][..], |object| &object.pod_cidrs);
        self.networks.set_ranges(self.configured.ranges(self.cluster.service_cidrs(), pod_cidrs));
        let addresses = self.masquerade.plan(&node.masquerade_addresses());
        let (_, without_address) = self.write_what_fits(&addresses, now)?;
        let networks = self.networks.plan();
        let (mut refused, mut full) = self.write_what_fits(&networks, now)?;
        if full.is_some() && networks.iter().any(|write| matches!(write, Write::RemoveNetwork { .. })) {
            // There is room by now.
            (refused, full) = self.write_what_fits(&self.networks.plan(), now)?;
        }
        self.networks.settled_but(&refused);
        full.or(without_address).map_or(Ok(()), Err)
    }

    /// Writes all that there is room for. Gives what there was none for, and why not the first of it.
    fn write_what_fits(&mut self, writes: &[Write], now: Instant) -> Result<(Vec<Write>, Option<MapError>), MapError> {
        let (mut refused, mut full) = (Vec::new(), None);
        for write in writes {
            match self.write(std::slice::from_ref(write), now) {
                Err(error @ MapError::Full { map, .. }) => {
                    self.progress.refused(map);
                    refused.push(write.clone());
                    full.get_or_insert(error);
                }
                written => written?,
            }
        }
        Ok((refused, full))
    }
}
