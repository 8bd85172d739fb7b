//! The map of the devices between which packets may pass the stack by. Apart from all others: it is not pinned, for it is of the
//! programs that this daemon has loaded.

use std::collections::BTreeMap;

use aya::maps::{HashMap, Map, MapData, MapError as AyaMapError};
use dsproxy_common::{
    layout::{self, capacity},
    pod_device::PodDevice,
};
use thiserror::Error;

use super::kernel::{OpenError, typed};
use crate::interfaces::{Interfaces, IpDevice};

/// The map could not be changed, and packets of the device go through the stack, or still past it.
#[derive(Debug, Error)]
#[error(
    "{operation} the map {} for the device {device}, of which there may be {}: {source}",
    layout::POD_DEVICES,
    capacity::POD_DEVICES
)]
pub struct PodDeviceError {
    operation: &'static str,
    device: u32,
    source: AyaMapError,
}

/// The map, and what is in it.
pub struct PodDevices {
    map: HashMap<MapData, u32, PodDevice>,
    held: BTreeMap<u32, PodDevice>,
}

impl PodDevices {
    /// The map that `take` gives by name, which nobody has written to yet.
    ///
    /// # Errors
    ///
    /// When it is missing or has another layout.
    pub fn open(mut take: impl FnMut(&'static str) -> Option<Map>) -> Result<Self, OpenError> {
        Ok(Self { map: typed(&mut take, layout::POD_DEVICES)?, held: BTreeMap::new() })
    }

    /// Makes the map hold what leads to the pods of `interfaces`, and no other device.
    ///
    /// # Errors
    ///
    /// The first, when some could not be written; everything else is, and calling again tries it again.
    pub fn sync(&mut self, interfaces: &Interfaces) -> Result<(), PodDeviceError> {
        self.hold(&leading_to_pods(interfaces))
    }

    /// The same, of devices by their index.
    ///
    /// # Errors
    ///
    /// As `sync`.
    pub fn hold(&mut self, wanted: &BTreeMap<u32, PodDevice>) -> Result<(), PodDeviceError> {
        let mut outcome = Ok(());
        let gone: Vec<u32> = self.held.keys().filter(|device| !wanted.contains_key(device)).copied().collect();
        for device in gone {
            match self.map.remove(&device) {
                Ok(()) | Err(AyaMapError::KeyNotFound) => drop(self.held.remove(&device)),
                Err(source) => outcome = outcome.and(Err(PodDeviceError { operation: "remove from", device, source })),
            }
        }
        for (&device, record) in wanted {
            if self.held.get(&device) == Some(record) {
                continue;
            }
            match self.map.insert(device, record, 0) {
                Ok(()) => drop(self.held.insert(device, *record)),
                Err(source) => outcome = outcome.and(Err(PodDeviceError { operation: "write to", device, source })),
            }
        }
        outcome
    }
}

/// What is known of the devices that lead to pods, by their index: their interfaces, and the bridges that these are ports of.
fn leading_to_pods(interfaces: &Interfaces) -> BTreeMap<u32, PodDevice> {
    let mut devices = BTreeMap::new();
    for interface in interfaces.values() {
        let Some(IpDevice { index, address }) = &interface.ip_device else { continue };
        let record = PodDevice { address: mac(address), reserved: 0 };
        devices.insert(interface.index, record);
        devices.insert(*index, record);
    }
    devices
}

/// An address as it stands in a frame; zero where devices have none, or another kind.
fn mac(address: &[u8]) -> [u16; 3] {
    match address {
        &[a, b, c, d, e, f] => [[a, b], [c, d], [e, f]].map(u16::from_ne_bytes),
        _ => [0; 3],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interfaces::{Interface, LinkLayer, Role};

    fn interface(index: u32, role: Role, ip_device: Option<IpDevice>) -> (u32, Interface) {
        let address = vec![2, 0, 0, 0, 0, index as u8];
        (
            index,
            Interface {
                index,
                name: String::new(),
                role,
                link_layer: LinkLayer::Ethernet,
                address,
                mtu: 1500,
                ip_device,
            },
        )
    }

    #[test]
    fn interfaces_of_pods_and_their_bridges_lead_to_pods() {
        let device = |index: u32| Some(IpDevice { index, address: vec![2, 0, 0, 0, 0, index as u8] });
        let interfaces = [
            interface(1, Role::NodeDevice, None),
            interface(2, Role::PodInterface, device(2)),
            interface(3, Role::PodInterface, device(9)),
            interface(4, Role::PodInterface, device(9)),
            interface(5, Role::PodInterface, None),
        ];
        let record = |last: u8| PodDevice {
            address: [u16::from_ne_bytes([2, 0]), 0, u16::from_ne_bytes([0, last])],
            reserved: 0,
        };
        let expected = [(2, record(2)), (3, record(9)), (4, record(9)), (9, record(9))];
        assert_eq!(leading_to_pods(&interfaces.into()), expected.into());
    }

    #[test]
    fn what_has_no_mac_address_is_not_asked_for_one() {
        assert_eq!(mac(&[]), [0; 3]);
        assert_eq!(mac(&[192, 0, 2, 1]), [0; 3]);
    }
}
