//! XDP on node devices: which can have it, and the program kept attached to those, in the device's driver, by one pinned link each.
//!
//! XDP only makes faster what tc does as well, so a device that cannot have it, or has a program of somebody else's, is no
//! failure: it is said once why, and tc serves. `device` knows what the kernel tells of a device.

mod device;

use std::{collections::BTreeMap, os::fd::AsFd, path::Path};

use dsproxy_common::next_hop::{XdpDevice, XdpDeviceFlags};
use thiserror::Error;
use tracing::info;

use self::device::{Device, Devices};
use super::{
    AttachError, AttachKind, Attachment, Direction, Outcome, Program, SyncReport, bpf, bpf_error, pins, pins::Place,
};
use crate::{
    interfaces::{Interface, Interfaces, LinkLayer, Role},
    maps::{MapError, next_hops::NextHopMaps},
    netlink::NetlinkError,
    routing::Word,
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
#[derive(Clone, Debug, PartialEq, Eq, Error)]
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
    /// There are VLANs on it.
    #[error("it carries VLANs, whose frames XDP cannot tell from others where the device takes their tags out")]
    Vlans,
    /// A virtual machine's device.
    #[error("it is a tun or tap device, whose frames may come with checksums that are still to be made")]
    Tun,
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
    /// The host could not be made ready for it.
    #[error("the kernel's own connection table would take what XDP sends on for another's: {0}")]
    Host(String),
}

/// Makes the host ready for XDP, or says what is in the way. Called whenever devices are looked at of which one could have it.
pub type MakeReady = Box<dyn FnMut() -> Result<(), String> + Send>;

/// What became of a device.
type Verdict = Result<Attachment, WhyNot>;

/// What the programs are told of devices, by index.
type DeviceRecords = BTreeMap<u32, XdpDevice>;

/// Keeps the program attached.
pub(super) struct Xdp {
    program: Program,
    which: XdpDevices,
    maps: NextHopMaps,
    word: Word,
    make_ready: MakeReady,
    verdicts: BTreeMap<u32, Verdict>,
}

impl Xdp {
    pub(super) fn new(
        program: Program,
        which: XdpDevices,
        maps: NextHopMaps,
        word: Word,
        make_ready: MakeReady,
    ) -> Self {
        Self { program, which, maps, word, make_ready, verdicts: BTreeMap::new() }
    }

    /// What is attached.
    pub(super) fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.verdicts.values().filter_map(|verdict| verdict.as_ref().ok())
    }

    /// Makes the attachments equal to what these interfaces want. What is pinned for others is not looked at.
    pub(super) fn sync(&mut self, wanted: &Interfaces, pins: &Path, report: &mut SyncReport) {
        let is_wanted = |index: &u32| wanted.get(index).is_some_and(|interface| interface.role == Role::NodeDevice);
        self.verdicts.retain(|index, _| is_wanted(index));
        let devices = match Devices::read() {
            Ok(devices) => devices,
            Err(source) => {
                report.failed("", cannot_ask(source));
                if let Err(error) = self.leave_unserved() {
                    report.failed("", error);
                }
                return;
            }
        };
        let mut readiness = None;
        for interface in wanted.values().filter(|interface| interface.role == Role::NodeDevice) {
            // One that is gone tells of itself.
            let Some(device) = devices.get(interface.index) else { continue };
            match self.serve(interface, device, pins, &mut readiness) {
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
        if let Err(error) = self.set_devices(wanted) {
            report.failed("", error);
        }
    }

    /// Tells the programs of the devices that are served, and of no other; none may go on by what was noted of them before.
    fn set_devices(&mut self, interfaces: &Interfaces) -> Result<(), AttachError> {
        let known = self.maps.devices().map_err(AttachError::Map)?;
        let mut wanted = BTreeMap::new();
        if self.verdicts.values().any(Result::is_ok) {
            // With a program there may be more that a device can do.
            let devices = Devices::read().map_err(cannot_ask)?;
            let served = self.verdicts.iter().filter(|(_, verdict)| verdict.is_ok());
            let interfaces = served.filter_map(|(index, _)| interfaces.get(index));
            wanted.extend(interfaces.filter_map(|it| Some((it.index, record(it, devices.get(it.index)?)))));
        }
        if known == wanted {
            return Ok(());
        }
        let written = self.write_devices(&known, &wanted);
        // Of what was done before a failure, too.
        self.word.count().map_err(AttachError::Routing)?;
        written.map_err(AttachError::Map)
    }

    fn write_devices(&mut self, known: &DeviceRecords, wanted: &DeviceRecords) -> Result<(), MapError> {
        for index in known.keys().filter(|index| !wanted.contains_key(index)) {
            self.maps.remove_device(*index)?;
        }
        wanted.iter().try_for_each(|(index, device)| self.maps.set_device(*index, *device))
    }

    fn serve(
        &mut self,
        interface: &Interface,
        device: &Device,
        pins: &Path,
        readiness: &mut Option<Result<(), WhyNot>>,
    ) -> Result<(Verdict, Outcome), AttachError> {
        let link = self.adopt(interface, device, pins)?;
        let fitness = fitness(interface, device, self.which, link.is_some());
        let mut is_ready = || readiness.get_or_insert_with(|| (self.make_ready)().map_err(WhyNot::Host)).clone();
        if let Err(why) = fitness.and_then(|()| is_ready()) {
            if link.is_some() {
                self.leave(interface.index)?;
            }
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

    /// Sees to it that no frame goes to a device any more: without its program it may not take any.
    fn leave(&mut self, index: u32) -> Result<(), AttachError> {
        self.maps.remove_device(index).map_err(AttachError::Map)?;
        self.word.count().map_err(AttachError::Routing)
    }

    /// As `leave`, of all devices that are not served.
    fn leave_unserved(&mut self) -> Result<(), AttachError> {
        let known = self.maps.devices().map_err(AttachError::Map)?;
        let is_served = |index: &u32| self.verdicts.get(index).is_some_and(Result::is_ok);
        let unserved: Vec<u32> = known.into_keys().filter(|index| !is_served(index)).collect();
        unserved.into_iter().try_for_each(|index| self.leave(index))
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

/// Why node devices without XDP are so, as far as the kernel tells, and the host, of which `in_the_way` is said to be. There may be two
/// reasons: that a device has to be asked for, and the host.
///
/// # Errors
///
/// When it does not.
pub fn without(interfaces: &Interfaces, in_the_way: Option<&str>) -> Result<Vec<(String, WhyNot)>, AttachError> {
    let devices = Devices::read().map_err(cannot_ask)?;
    let mut without = Vec::new();
    for interface in interfaces.values().filter(|interface| interface.role == Role::NodeDevice) {
        let Some(device) = devices.get(interface.index) else { continue };
        let unfit = |which| fitness(interface, device, which, false).err();
        // Of a device that can have it in no mode the host need not be made ready.
        let host = in_the_way.filter(|_| unfit(XdpDevices::Native).is_none());
        let reasons = unfit(XdpDevices::Auto).into_iter().chain(host.map(|what| WhyNot::Host(what.to_owned())));
        without.extend(reasons.map(|why| (interface.name.clone(), why)));
    }
    Ok(without)
}

/// What the programs are told of a device.
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
    }
}

fn cannot_ask(source: NetlinkError) -> AttachError {
    AttachError::Netlink { operation: "ask about", object: "the devices and their drivers".to_owned(), source }
}

/// Whether a device can have XDP. `is_served` says that the program that it has is ours.
fn fitness(interface: &Interface, device: &Device, which: XdpDevices, is_served: bool) -> Result<(), WhyNot> {
    let is_without = match device {
        _ if interface.link_layer != LinkLayer::Ethernet => Some(WhyNot::NoEthernet),
        Device { kind, .. } if matches!(kind.as_str(), "bond" | "team") => Some(WhyNot::Ports),
        Device { has_vlans: true, .. } => Some(WhyNot::Vlans),
        _ if !device.runs_programs() => Some(WhyNot::NoDriver),
        Device { program: Some(program), .. } if !is_served => Some(WhyNot::Taken(*program)),
        Device { kind, .. } if kind == VETH && which == XdpDevices::Auto => Some(WhyNot::Veth),
        Device { kind, .. } if kind == TUN && which == XdpDevices::Auto => Some(WhyNot::Tun),
        _ if !transmits(device) => Some(WhyNot::NoTransmission),
        _ => None,
    };
    is_without.map_or(Ok(()), Err)
}

const VETH: &str = "veth";
const TUN: &str = "tun";

/// Whether a frame that a program sends back out of the device it came by leaves it. A veth hands it to its other end, which may not
/// be ready for it.
fn transmits(device: &Device) -> bool {
    device.kind != VETH || device.takes_redirected()
}
