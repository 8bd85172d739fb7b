//! XDP on node devices: which can have it, and the program kept attached to those, in the device's driver, by one pinned link each.
//!
//! XDP only makes faster what tc does as well, so a device that cannot have it, or has a program of somebody else's, is no
//! failure: it is said once why, and tc serves. `device` knows what the kernel tells of a device.

mod device;

use std::{collections::BTreeMap, os::fd::AsFd, path::Path};

use dsproxy_common::next_hop::{XdpDevice, XdpDeviceFlags};
use serde::Serialize;
use thiserror::Error;
use tracing::info;

use self::device::{Device, Features};
use super::{
    AttachError, AttachKind, Attachment, Direction, Outcome, Program, SyncReport, bpf, bpf_error, pins, pins::Place,
};
use crate::{
    interfaces::{Interface, Interfaces, LinkLayer, Role},
    maps::next_hops::NextHopMaps,
    netlink::NetlinkError,
};

/// Which devices XDP is used on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpDevices {
    /// Those where it serves without anybody's help.
    Auto,
    /// All whose driver has it.
    Native,
}

/// Why a device does without XDP.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhyNot {
    /// It has no Ethernet header.
    #[error("its packets have no Ethernet header")]
    NoEthernet,
    /// A bond or the like.
    #[error("its frames come by its ports")]
    Ports,
    /// The driver cannot do it.
    #[error("its driver has no XDP")]
    NoDriver,
    /// A pair of virtual devices.
    #[error(
        "it is a veth: what is sent on the same machine comes with checksums that are still to be made; with its sender's \
         checksum offload off (ethtool -K DEVICE tx off), --xdp native uses it"
    )]
    Veth,
    /// What is transmitted would be lost.
    #[error("what XDP sends out of it would be lost; the other end of a veth needs GRO (ethtool -K DEVICE gro on)")]
    NoTransmission,
    /// Somebody else's program.
    #[error("it has another XDP program (id {0})")]
    Taken(u32),
    /// The driver does not want to, for all that it could.
    #[error("the driver refused: {0}; an MTU that is too large for it is the usual reason")]
    Refused(String),
}

/// What became of a device.
type Verdict = Result<Attachment, WhyNot>;

/// Keeps the program attached.
pub(super) struct Xdp {
    program: Program,
    which: XdpDevices,
    maps: NextHopMaps,
    verdicts: BTreeMap<u32, Verdict>,
}

impl Xdp {
    pub(super) fn new(program: Program, which: XdpDevices, maps: NextHopMaps) -> Self {
        Self { program, which, maps, verdicts: BTreeMap::new() }
    }

    /// What is attached.
    pub(super) fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.verdicts.values().filter_map(|verdict| verdict.as_ref().ok())
    }

    /// Whether a device does without.
    pub(super) fn is_anybody_without(&self) -> bool {
        self.verdicts.values().any(Result::is_err)
    }

    /// Makes the attachments equal to what these interfaces want. What is pinned for others is not looked at.
    pub(super) fn sync(&mut self, wanted: &Interfaces, pins: &Path, report: &mut SyncReport) {
        let features = match device::features() {
            Ok(features) => features,
            Err(source) => {
                report.failed("", cannot_ask(source));
                return;
            }
        };
        for interface in wanted.values().filter(|interface| interface.role == Role::NodeDevice) {
            match self.serve(interface, features.as_ref(), pins) {
                Ok((verdict, outcome)) => {
                    report.attached += usize::from(outcome != Outcome::Unchanged);
                    self.tell(interface, verdict, outcome);
                }
                Err(error) => {
                    self.verdicts.remove(&interface.index);
                    report.failed(&interface.name, error);
                }
            }
        }
        let is_wanted = |index: &u32| wanted.get(index).is_some_and(|interface| interface.role == Role::NodeDevice);
        self.verdicts.retain(|index, _| is_wanted(index));
        match self.maps.devices() {
            Ok(devices) => {
                for index in devices.into_keys().filter(|index| !self.verdicts.get(index).is_some_and(Result::is_ok)) {
                    if let Err(error) = self.maps.remove_device(index) {
                        report.failed("", AttachError::Map(error));
                    }
                }
            }
            Err(error) => report.failed("", AttachError::Map(error)),
        }
    }

    fn serve(
        &mut self,
        interface: &Interface,
        features: Option<&Features>,
        pins: &Path,
    ) -> Result<(Verdict, Outcome), AttachError> {
        let device = read(interface)?;
        let features = features.map(|features| features.of(interface.index));
        let link = self.adopt(interface, &device, pins)?;
        if let Err(why) = fitness(interface, &device, features, self.which, link.is_some()) {
            let detached = pins::detach(interface.index, Place::Xdp, pins)?;
            return Ok((Err(why), if detached { Outcome::Replaced } else { Outcome::Unchanged }));
        }
        let (link_id, outcome) = match link {
            Some(served) => served,
            None => match bpf::attach_to_driver(self.program.descriptor.as_fd(), interface.index) {
                Ok(link) => (pins::pin(link, pins, interface.index, Place::Xdp)?, Outcome::Attached),
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {
                    return Err(bpf_error("attach with XDP to", &interface.name)(error));
                }
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                    return Ok((Err(WhyNot::NoDriver), Outcome::Unchanged));
                }
                Err(error) => return Ok((Err(WhyNot::Refused(error.to_string())), Outcome::Unchanged)),
            },
        };
        // With the program there may be more that the device can do.
        let features = device::features().map_err(cannot_ask)?.map(|features| features.of(interface.index));
        let mut flags = 0;
        for (is_set, flag) in [
            (transmits(&device, features), XdpDeviceFlags::TRANSMITS),
            (features.is_some_and(device::takes_redirected), XdpDeviceFlags::TAKES_REDIRECTED),
        ] {
            flags |= if is_set { flag } else { 0 };
        }
        let entry = XdpDevice { address: device.address, flags };
        self.maps.set_device(interface.index, entry).map_err(AttachError::Map)?;
        let attachment = Attachment {
            index: interface.index,
            interface: interface.name.clone(),
            role: Some(interface.role),
            direction: Direction::Ingress,
            kind: AttachKind::Xdp,
            program_id: self.program.id,
            link_id: Some(link_id),
        };
        Ok((Ok(attachment), outcome))
    }

    /// Takes over the link that an earlier run has left on the device, with the program of this one.
    fn adopt(
        &self,
        interface: &Interface,
        device: &Device,
        pins: &Path,
    ) -> Result<Option<(u32, Outcome)>, AttachError> {
        let Some((link, info)) = pins::open(pins, interface.index, Place::Xdp)? else { return Ok(None) };
        // The link's own word is not enough: an interface that moves to another namespace takes its link along, and may have
        // the same index there.
        if info.interface != interface.index || device.program != Some(info.program_id) {
            pins::detach(interface.index, Place::Xdp, pins)?;
            return Ok(None);
        }
        if info.program_id == self.program.id {
            return Ok(Some((info.id, Outcome::Unchanged)));
        }
        bpf::replace(link.as_fd(), self.program.descriptor.as_fd())
            .map_err(bpf_error("replace the XDP program of", &interface.name))?;
        Ok(Some((info.id, Outcome::Replaced)))
    }

    /// Notes what became of a device, and says so if that is news.
    fn tell(&mut self, interface: &Interface, verdict: Verdict, outcome: Outcome) {
        let before = self.verdicts.get(&interface.index);
        match &verdict {
            Ok(_) if outcome != Outcome::Unchanged => {
                info!(interface = %interface.name, ?outcome, "attached with XDP");
            }
            Err(why) if before != Some(&Err(why.clone())) => {
                info!(interface = %interface.name, %why, "without XDP; tc serves");
            }
            _ => {}
        }
        self.verdicts.insert(interface.index, verdict);
    }
}

/// Why node devices without XDP are so, as far as the kernel tells.
///
/// # Errors
///
/// When it does not.
pub fn without(interfaces: &Interfaces) -> Result<Vec<(String, WhyNot)>, AttachError> {
    let features = device::features().map_err(cannot_ask)?;
    let mut found = Vec::new();
    for interface in interfaces.values().filter(|interface| interface.role == Role::NodeDevice) {
        let device = match read(interface) {
            Err(error) if error.is_gone() => continue,
            read => read?,
        };
        let features = features.as_ref().map(|features| features.of(interface.index));
        if let Err(why) = fitness(interface, &device, features, XdpDevices::Auto, false) {
            found.push((interface.name.clone(), why));
        }
    }
    Ok(found)
}

fn read(interface: &Interface) -> Result<Device, AttachError> {
    device::read(interface.index).map_err(|source| AttachError::Netlink {
        operation: "ask about the device",
        object: interface.name.clone(),
        source,
    })
}

fn cannot_ask(source: NetlinkError) -> AttachError {
    AttachError::Netlink { operation: "ask what", object: "drivers can do".to_owned(), source }
}

/// Whether a device can have XDP. `is_served` says that the program that it has is ours.
fn fitness(
    interface: &Interface,
    device: &Device,
    features: Option<u64>,
    which: XdpDevices,
    is_served: bool,
) -> Result<(), WhyNot> {
    if interface.link_layer != LinkLayer::Ethernet {
        return Err(WhyNot::NoEthernet);
    }
    if matches!(device.kind.as_str(), "bond" | "team") {
        return Err(WhyNot::Ports);
    }
    if features.is_some_and(|features| !device::runs_programs(features)) {
        return Err(WhyNot::NoDriver);
    }
    if let Some(program) = device.program.filter(|_| !is_served) {
        return Err(WhyNot::Taken(program));
    }
    if device.kind == VETH && which == XdpDevices::Auto {
        return Err(WhyNot::Veth);
    }
    if !transmits(device, features) {
        return Err(WhyNot::NoTransmission);
    }
    Ok(())
}

const VETH: &str = "veth";

/// Whether a frame that a program sends back out of the device it came by leaves it. A veth hands it to its other end, which may not
/// be ready for it.
fn transmits(device: &Device, features: Option<u64>) -> bool {
    device.kind != VETH || features.is_some_and(device::takes_redirected)
}
