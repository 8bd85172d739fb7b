//! XDP on node devices: which can have it, and the program kept attached to those, in the device's driver, by one pinned link each.
//!
//! XDP only makes faster what tc does as well, so a device that cannot have it, or has a program of somebody else's, is no
//! failure: it is said once why, and noted for `dsproxy status`, and tc serves. `device` knows what the kernel tells of a device,
//! `fitness` which of those can have XDP, `noted` what became of each.

mod device;
mod fitness;
mod noted;

use std::{os::fd::AsFd, path::Path};

pub use self::fitness::{WhyNot, XdpDevices};
use self::{
    device::{Device, Devices},
    fitness::fitness,
    noted::{Noted, Verdict},
};
use super::{
    AttachError, AttachKind, Attachment, Direction, Outcome, Program, SyncReport, bpf, bpf_error, pins, pins::Place,
};
use crate::{
    interfaces::{Interface, Interfaces, Role},
    maps::next_hops::NextHopMaps,
    netlink::NetlinkError,
    routing::Word,
};

/// Makes the host ready for XDP, or says what is in the way. Called whenever devices are looked at of which one could have it.
pub type MakeReady = Box<dyn FnMut() -> Result<(), String> + Send>;

/// What devices are served with.
pub(super) struct Means {
    pub(super) program: Program,
    pub(super) which: XdpDevices,
    pub(super) make_ready: MakeReady,
}

/// Keeps the program attached, or notes why there is none.
pub(super) struct Xdp {
    means: Result<Means, WhyNot>,
    noted: Noted,
}

impl Xdp {
    pub(super) fn new(means: Result<Means, WhyNot>, maps: NextHopMaps, word: Word) -> Self {
        Self { means, noted: Noted::new(maps, word) }
    }

    /// Whether devices that can have it are served.
    pub(super) fn serves(&self) -> bool {
        self.means.is_ok()
    }

    /// What is attached.
    pub(super) fn attachments(&self) -> impl Iterator<Item = &Attachment> {
        self.noted.attachments()
    }

    /// Makes the attachments equal to what these interfaces want. What is pinned for others is not looked at, nor anything
    /// where there is nothing to serve with.
    pub(super) fn sync(&mut self, wanted: &Interfaces, pins: &Path, report: &mut SyncReport) {
        let Self { means, noted } = self;
        noted.keep(wanted);
        let served = match means {
            Ok(means) => means.serve_all(wanted, pins, noted, report),
            Err(why) => {
                for interface in node_devices(wanted) {
                    noted.tell(interface, Err(why.clone()), Outcome::Unchanged);
                }
                Ok(())
            }
        };
        if let Err(error) = served.and_then(|()| noted.set_devices(wanted)) {
            report.failed("", error);
            if let Err(error) = noted.leave_unserved(wanted) {
                report.failed("", error);
            }
        }
    }
}

impl Means {
    fn serve_all(
        &mut self,
        wanted: &Interfaces,
        pins: &Path,
        noted: &mut Noted,
        report: &mut SyncReport,
    ) -> Result<(), AttachError> {
        let devices = Devices::read().map_err(cannot_ask)?;
        let mut readiness = None;
        for interface in node_devices(wanted) {
            // One that is gone tells of itself.
            let Some(device) = devices.get(interface.index) else { continue };
            match self.serve(interface, device, pins, noted, &mut readiness) {
                Ok((verdict, outcome)) => {
                    report.attached += usize::from(outcome != Outcome::Unchanged);
                    noted.tell(interface, verdict, outcome);
                }
                Err(error) => {
                    noted.tell(interface, Err(WhyNot::Failed), Outcome::Unchanged);
                    report.failed(&interface.name, error);
                }
            }
        }
        Ok(())
    }

    fn serve(
        &mut self,
        interface: &Interface,
        device: &Device,
        pins: &Path,
        noted: &mut Noted,
        readiness: &mut Option<Result<(), WhyNot>>,
    ) -> Result<(Verdict, Outcome), AttachError> {
        let link = self.adopt(interface, device, pins)?;
        let fitness = fitness(interface, device, self.which, link.is_some());
        let mut is_ready = || readiness.get_or_insert_with(|| (self.make_ready)().map_err(WhyNot::Host)).clone();
        if let Err(why) = fitness.and_then(|()| is_ready()) {
            if link.is_some() {
                noted.leave(interface.index)?;
            }
            let detached = pins::detach(interface.index, Place::Xdp, pins)?;
            return Ok((Err(why), if detached { Outcome::Replaced } else { Outcome::Unchanged }));
        }
        let (link_id, outcome) = match link {
            Some(served) => served,
            None => match bpf::attach_to_driver(self.program.descriptor.as_fd(), interface.index) {
                Ok(link) => (pins::pin(link, pins, interface.index, Place::Xdp)?, Outcome::Attached),
                Err(error) => match error.raw_os_error() {
                    Some(libc::ENODEV) => return Err(bpf_error("attach with XDP to", &interface.name)(error)),
                    Some(libc::EOPNOTSUPP) => return Ok((Err(WhyNot::NoDriver), Outcome::Unchanged)),
                    errno => return Ok((Err(WhyNot::Refused(errno.unwrap_or_default())), Outcome::Unchanged)),
                },
            },
        };
        let attachment = Attachment {
            index: interface.index,
            interface: interface.name.clone(),
            role: interface.role,
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
}

fn node_devices(interfaces: &Interfaces) -> impl Iterator<Item = &Interface> {
    interfaces.values().filter(|interface| interface.role == Role::NodeDevice)
}

fn cannot_ask(source: NetlinkError) -> AttachError {
    AttachError::Netlink { operation: "ask about", object: "the devices and their drivers".to_owned(), source }
}
