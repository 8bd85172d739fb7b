//! Which address masqueraded packets leave each device with, as it should stand in the maps and as it does.

use std::{collections::BTreeMap, net::IpAddr};

use dsproxy_common::IpFamily;

use crate::maps::{Contents, Write};

/// Addresses by device and family. Device zero stands for all that have none of their own.
pub type Addresses = BTreeMap<(u32, IpFamily), IpAddr>;

/// What stands in the maps.
#[derive(Debug, Default)]
pub struct Masquerade {
    held: Addresses,
}

impl Masquerade {
    /// What maps with these contents hold.
    pub fn new(contents: &Contents) -> Self {
        let held = contents.masquerade.iter();
        Self { held: held.map(|(device, address)| ((*device, IpFamily::of(*address)), *address)).collect() }
    }

    /// The writes after which the maps hold just `wanted`. What is new comes first: a device that loses its address has that
    /// of all others to fall back on.
    pub fn plan(&self, wanted: &Addresses) -> Vec<Write> {
        let added = wanted.iter().filter(|(of, address)| self.held.get(of) != Some(address));
        let removed = self.held.keys().filter(|of| !wanted.contains_key(of));
        added
            .map(|((device, _), address)| Write::Masquerade { device: *device, address: *address })
            .chain(removed.map(|(device, family)| Write::RemoveMasquerade { family: *family, device: *device }))
            .collect()
    }

    /// Enters a write that the store has taken.
    pub fn applied(&mut self, write: &Write) {
        match write {
            Write::Masquerade { device, address } => {
                self.held.insert((*device, IpFamily::of(*address)), *address);
            }
            Write::RemoveMasquerade { family, device } => {
                self.held.remove(&(*device, *family));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(all: &[(u32, &str)]) -> Addresses {
        let parsed = all.iter().map(|(device, text)| (*device, text.parse::<IpAddr>().expect("an address")));
        parsed.map(|(device, address)| ((device, IpFamily::of(address)), address)).collect()
    }

    #[test]
    fn the_maps_follow_in_both_families_and_are_read_back() {
        let mut masquerade = Masquerade::default();
        for wanted in [
            addresses(&[(0, "192.0.2.1"), (0, "2001:db8::1"), (3, "192.0.2.1")]),
            addresses(&[(0, "192.0.2.2"), (3, "192.0.2.1"), (3, "2001:db8::3")]),
            addresses(&[]),
            addresses(&[(0, "2001:db8::1")]),
        ] {
            for write in masquerade.plan(&wanted) {
                masquerade.applied(&write);
            }
            assert_eq!(masquerade.held, wanted);
            assert_eq!(masquerade.plan(&wanted), []);
            let held = masquerade.held.iter().map(|((device, _), address)| (*device, *address));
            let contents = Contents { masquerade: held.collect(), ..Contents::default() };
            assert_eq!(Masquerade::new(&contents).held, wanted);
        }
    }

    #[test]
    fn what_all_others_have_is_there_before_a_device_loses_its_own() {
        let mut masquerade = Masquerade::default();
        for write in masquerade.plan(&addresses(&[(3, "192.0.2.1")])) {
            masquerade.applied(&write);
        }
        let writes = masquerade.plan(&addresses(&[(0, "192.0.2.1")]));
        let family = IpFamily::V4;
        let address = [192, 0, 2, 1].into();
        assert_eq!(writes, [Write::Masquerade { device: 0, address }, Write::RemoveMasquerade { family, device: 3 }]);
    }
}
