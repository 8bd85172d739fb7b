//! The filter of backends towards which packets are rewritten as they leave, which the programs write to. For connections that were
//! carried over it follows from their entries, whatever layout they are from.

use std::collections::BTreeSet;

use aya::{Pod, maps::IterableMap as _};
use dsproxy_common::{
    Address,
    filter::{self, FilterBit},
    flow::{EgressEntry, EgressKind, FlowKey},
    service::FrontendKey,
};

use super::{FamilyMaps, KernelMaps, kernel};
use crate::{
    datapath::batches,
    maps::{MapError, MapKind},
};

impl KernelMaps {
    /// Marks the backends of all connections whose packets are rewritten towards them. As the programs do, it leaves out what pods send to
    /// those that are no backends.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn mark_leaving(&mut self) -> Result<(), MapError> {
        self.v4.mark_leaving()?;
        self.v6.mark_leaving()
    }
}

impl<A: Address + Pod> FamilyMaps<A> {
    fn mark_leaving(&mut self) -> Result<(), MapError> {
        let mut destinations = BTreeSet::new();
        // What is confirmed meanwhile moves from the one to the other: what is read first must be what it leaves.
        let brief_first =
            [(self.egress_brief.map(), MapKind::BriefConnections), (self.egress.map(), MapKind::Connections)];
        for (map, kind) in brief_first {
            let look = |key: FlowKey<A>, entry: EgressEntry<A>| {
                destinations.extend(towards(&key, EgressKind::from_number(entry.kind)));
            };
            batches::for_each(map, look).map_err(kernel("read", kind))?;
        }
        for (bit, cell) in destinations {
            let word = self.egress_filter.get(&bit.word(), 0).map_err(kernel("read", MapKind::Filter))?;
            if word & bit.mask() != 0 {
                self.leaving_filter.set(cell, 1, 0).map_err(kernel("write", MapKind::Filter))?;
            }
        }
        Ok(())
    }
}

/// Where packets of `key` are rewritten towards, if their entry is of that kind: as the filters of backends and of what leaves towards
/// them have it.
fn towards<A: Address>(key: &FlowKey<A>, kind: EgressKind) -> Option<(FilterBit, u32)> {
    let destination = FrontendKey::new(key.destination, key.destination_port, key.protocol as u8);
    (!kind.is_of_backend()).then(|| (FilterBit::of(&destination), filter::cell(&destination)))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use dsproxy_common::{Addr4, Addr6, Port};

    use super::*;

    fn marked<A: Address>(destination: A, kind: EgressKind) -> Option<u32> {
        let key = FlowKey { destination, destination_port: Port::new(8080), protocol: 6, ..FlowKey::default() };
        towards(&key, kind).map(|(_, cell)| cell)
    }

    #[test]
    fn the_backends_of_what_leaves_towards_them_are_marked_as_the_programs_do() {
        let v4 = Addr4::from(Ipv4Addr::new(10, 244, 1, 7));
        let v6 = Addr6::from(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7));
        let cell_v4 = filter::cell(&FrontendKey::new(v4, Port::new(8080), 6));
        let cell_v6 = filter::cell(&FrontendKey::new(v6, Port::new(8080), 6));
        for kind in [EgressKind::Unsettled, EgressKind::Masquerade, EgressKind::Direct] {
            assert_eq!(marked(v4, kind), Some(cell_v4), "{kind:?}");
            assert_eq!(marked(v6, kind), Some(cell_v6), "{kind:?}");
        }
        for kind in [EgressKind::Reply, EgressKind::DirectReply] {
            assert_eq!(marked(v4, kind), None, "{kind:?}");
        }
    }
}
