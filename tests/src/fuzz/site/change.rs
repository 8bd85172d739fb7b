//! What is served is changed, for the programs and the model alike.

use dsproxy::resolve::ResolvedFamily;
use dsproxy_common::IpFamily;

use super::{Change, Site};
use crate::prog::ProgError;

impl Site {
    pub(super) fn change(&mut self, change: Change) -> Result<(), ProgError> {
        let number = match change {
            Change::Routing => {
                let is_used = self.stage().scene.xdp.is_some();
                self.vouch(is_used)?;
                let epoch = self.epoch;
                self.stage().model.change(|node| node.xdp = node.xdp.map(|(_, mtu)| (epoch, mtu)));
                return Ok(());
            }
            Change::Drains(number, ..)
            | Change::Goes(number, ..)
            | Change::Closes(number, ..)
            | Change::Ends(number) => number,
        };
        let Some(before) = self.stage().ports.get(number).cloned() else { return Ok(()) };
        if before.families.iter().all(|family| family.frontends.is_empty() && family.endpoints.is_empty()) {
            // It has ended.
            return Ok(());
        }
        let mut port = before.clone();
        let mut in_family = |wanted: IpFamily, change: &dyn Fn(&mut ResolvedFamily)| {
            port.families.iter_mut().filter(|family| family.family == wanted).for_each(change);
        };
        match change {
            Change::Drains(_, family, index) => in_family(family, &|family| {
                if let Some(endpoint) = family.endpoints.get_mut(index) {
                    (endpoint.in_cluster_list, endpoint.in_local_list) = (false, false);
                }
            }),
            Change::Goes(_, family, index) => in_family(family, &|family| {
                if index < family.endpoints.len() {
                    family.endpoints.remove(index);
                }
            }),
            Change::Closes(_, family, index) => in_family(family, &|family| {
                if index < family.frontends.len() {
                    family.frontends.remove(index);
                }
            }),
            Change::Ends(_) => {
                for family in &mut port.families {
                    family.endpoints.clear();
                    family.frontends.clear();
                }
            }
            Change::Routing => {}
        }
        if let Change::Ends(_) = change {
            self.datapath.withdraw(&before)?;
        } else {
            self.datapath.serve(&port)?;
        }
        self.stage().ports[number].clone_from(&port);
        self.stage().model.change(|node| node.served[number].port = port);
        Ok(())
    }
}
