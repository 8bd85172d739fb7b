//! The maps by which XDP is told of node devices and how far the kernel's routing can be relied on. Apart from all
//! others, for other tasks write to them.

use std::collections::BTreeMap;

use aya::maps::{Array, HashMap, Map, MapData};
use dsproxy_common::{
    layout::{self, capacity},
    next_hop::{Routing, XdpDevice},
};

use super::{
    MapError, MapKind,
    kernel::{OpenError, absent_is_fine, full, kernel, typed},
};

/// Both maps.
pub struct NextHopMaps {
    routing: Array<MapData, Routing>,
    devices: HashMap<MapData, u32, XdpDevice>,
}

impl NextHopMaps {
    /// The maps that `take` gives by name.
    ///
    /// # Errors
    ///
    /// When one is missing or has another layout.
    pub fn open(mut take: impl FnMut(&'static str) -> Option<Map>) -> Result<Self, OpenError> {
        Ok(Self { routing: typed(&mut take, layout::ROUTING)?, devices: typed(&mut take, layout::XDP_DEVICES)? })
    }

    /// What XDP was told of the kernel's routing.
    pub fn routing(&self) -> Result<Routing, MapError> {
        self.routing.get(&0, 0).map_err(kernel("read", MapKind::Routing))
    }

    /// Tells XDP `routing`.
    pub fn set_routing(&mut self, routing: Routing) -> Result<(), MapError> {
        self.routing.set(0, routing, 0).map_err(kernel("write", MapKind::Routing))
    }

    /// The node devices, by index.
    pub fn devices(&self) -> Result<BTreeMap<u32, XdpDevice>, MapError> {
        self.devices.iter().collect::<Result<_, _>>().map_err(kernel("read", MapKind::XdpDevices))
    }

    /// Says of the device of this index what XDP may do with it.
    pub fn set_device(&mut self, index: u32, device: XdpDevice) -> Result<(), MapError> {
        let full = full("write", MapKind::XdpDevices, capacity::XDP_DEVICES);
        self.devices.insert(index, device, 0).map_err(full)
    }

    /// Says nothing of the device of this index any more, which XDP then does not use.
    pub fn remove_device(&mut self, index: u32) -> Result<(), MapError> {
        absent_is_fine(self.devices.remove(&index)).map_err(kernel("remove from", MapKind::XdpDevices))
    }
}
