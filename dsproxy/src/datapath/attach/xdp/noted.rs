//! What became of each node device: which are served, told to the programs, and why the others are not, for `dsproxy status` alone.

use std::collections::BTreeMap;

use dsproxy_common::next_hop::{XdpDevice, XdpDeviceFlags};
use tracing::info;

use super::{
    cannot_ask,
    device::{Device, Devices},
    fitness::{WhyNot, transmits},
    node_devices,
};
use crate::{
    datapath::attach::{AttachError, Attachment, Outcome},
    interfaces::{Interface, Interfaces},
    maps::{MapError, next_hops::NextHopMaps},
    routing::Word,
};

/// What became of a device.
pub(super) type Verdict = Result<Attachment, WhyNot>;

/// What is written of devices, by index.
type DeviceRecords = BTreeMap<u32, XdpDevice>;

/// The devices, by index, and where it is written.
pub(super) struct Noted {
    maps: NextHopMaps,
    word: Word,
    verdicts: BTreeMap<u32, Verdict>,
}

impl Noted {
    pub(super) fn new(maps: NextHopMaps, word: Word) -> Self {
        Self { maps, word, verdicts: BTreeMap::new() }
    }

    /// What is attached.
    pub(super) fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.verdicts.values().filter_map(|verdict| verdict.as_ref().ok())
    }

    /// Forgets all but the node devices among these interfaces.
    pub(super) fn keep(&mut self, interfaces: &Interfaces) {
        let wanted: Vec<u32> = node_devices(interfaces).map(|interface| interface.index).collect();
        self.verdicts.retain(|index, _| wanted.contains(index));
    }

    /// Notes what became of a device, and says so if that is news.
    pub(super) fn tell(&mut self, interface: &Interface, verdict: Verdict, outcome: Outcome) {
        let before = self.verdicts.get(&interface.index);
        match &verdict {
            Ok(_) if outcome != Outcome::Unchanged => {
                info!(interface = %interface.name, ?outcome, "attached with XDP");
            }
            // Nobody is told what he said himself, or what the log has.
            Err(WhyNot::Off | WhyNot::NoProgram | WhyNot::Failed) => {}
            Err(why) if before != Some(&Err(why.clone())) => {
                info!(interface = %interface.name, %why, "without XDP; tc serves");
            }
            _ => {}
        }
        self.verdicts.insert(interface.index, verdict);
    }

    /// Writes what became of the devices, and of no other; none may go on by what connections have noted of one before.
    pub(super) fn set_devices(&mut self, interfaces: &Interfaces) -> Result<(), AttachError> {
        let known = self.maps.devices().map_err(AttachError::Map)?;
        let mut wanted = DeviceRecords::new();
        if self.verdicts.values().any(Result::is_ok) {
            // With a program there may be more that a device can do.
            let devices = Devices::read().map_err(cannot_ask)?;
            let served = self.verdicts.iter().filter(|(_, verdict)| verdict.is_ok());
            let interfaces = served.filter_map(|(index, _)| interfaces.get(index));
            wanted.extend(interfaces.filter_map(|it| Some((it.index, record(it, devices.get(it.index)?)))));
        }
        let is_new_to_programs = !served(&known).eq(served(&wanted));
        let left_alone = self.verdicts.iter().filter_map(|(index, verdict)| Some((*index, verdict.as_ref().err()?)));
        wanted.extend(left_alone.map(|(index, why)| (index, why.record())));
        let written = self.write_devices(&known, &wanted);
        if is_new_to_programs {
            // Of what was done before a failure, too.
            self.word.count().map_err(AttachError::Routing)?;
        }
        written.map_err(AttachError::Map)
    }

    fn write_devices(&mut self, known: &DeviceRecords, wanted: &DeviceRecords) -> Result<(), MapError> {
        for index in known.keys().filter(|index| !wanted.contains_key(index)) {
            self.maps.remove_device(*index)?;
        }
        let mut changed: Vec<_> = wanted.iter().filter(|(index, device)| known.get(index) != Some(device)).collect();
        // Should one fail: what may not be used any more counts most, and mere reasons least.
        changed.sort_by_key(|(index, device)| match (known.get(index), device.is_served()) {
            (Some(known), false) if known.is_served() => 0,
            (_, true) => 1,
            (_, false) => 2,
        });
        changed.into_iter().try_for_each(|(index, device)| self.maps.set_device(*index, *device))
    }

    /// Sees to it that no frame goes to a device any more: without its program it may not take any.
    pub(super) fn leave(&mut self, index: u32) -> Result<(), AttachError> {
        self.maps.set_device(index, WhyNot::Failed.record()).map_err(AttachError::Map)?;
        self.word.count().map_err(AttachError::Routing)
    }

    /// As `leave`, of all node devices that are not known to be served, where what became of them cannot be found out.
    pub(super) fn leave_unserved(&mut self, interfaces: &Interfaces) -> Result<(), AttachError> {
        let known = self.maps.devices().map_err(AttachError::Map)?;
        for interface in node_devices(interfaces) {
            self.verdicts.entry(interface.index).or_insert(Err(WhyNot::Failed));
        }
        let is_served = |index: &u32| self.verdicts.get(index).is_some_and(Result::is_ok);
        let unserved: Vec<u32> = served(&known).map(|(index, _)| *index).filter(|index| !is_served(index)).collect();
        unserved.into_iter().try_for_each(|index| self.leave(index))?;
        let unknown = self.verdicts.iter().filter(|(index, _)| !known.contains_key(index));
        for (index, why) in unknown.filter_map(|(index, verdict)| Some((*index, verdict.as_ref().err()?))) {
            self.maps.set_device(index, why.record()).map_err(AttachError::Map)?;
        }
        Ok(())
    }
}

fn served(records: &DeviceRecords) -> impl Iterator<Item = (&u32, &XdpDevice)> {
    records.iter().filter(|(_, device)| device.is_served())
}

/// What the programs are told of a device that is served.
fn record(interface: &Interface, device: &Device) -> XdpDevice {
    let flags =
        [(transmits(device), XdpDeviceFlags::TRANSMITS), (device.takes_redirected(), XdpDeviceFlags::TAKES_REDIRECTED)];
    // None but Ethernet's has six bytes, and no other is served.
    let address = interface
        .address
        .first_chunk()
        .map_or([0; 3], |[a, b, c, d, e, f]| [[*a, *b], [*c, *d], [*e, *f]].map(u16::from_ne_bytes));
    XdpDevice {
        address,
        flags: flags.into_iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, flag)| flags | flag),
        mtu: interface.mtu,
        ..XdpDevice::default()
    }
}
