//! The loaded programs, apart from the object that they came from. Nothing here attaches them.

use std::os::fd::{AsFd, OwnedFd};

use aya::programs::SchedClassifier;

use super::{AttachError, Direction, bpf};
use crate::interfaces::LinkLayer;

/// One loaded program.
#[derive(Debug)]
pub(super) struct Program {
    /// Its name in the object.
    pub(super) name: &'static str,
    /// Keeps it loaded.
    pub(super) descriptor: OwnedFd,
    /// Its id.
    pub(super) id: u32,
}

/// The names of the programs, as in the kernel's object. `stray` knows programs by them as well.
const INGRESS_ETHERNET: &str = "ingress_ethernet";
const EGRESS_ETHERNET: &str = "egress_ethernet";
const INGRESS_IP: &str = "ingress_ip";
const EGRESS_IP: &str = "egress_ip";
pub(super) const PROGRAM_NAMES: [&str; 4] = [INGRESS_ETHERNET, EGRESS_ETHERNET, INGRESS_IP, EGRESS_IP];

/// The loaded programs of an object.
#[derive(Debug)]
pub struct Programs {
    ingress_ethernet: Program,
    egress_ethernet: Program,
    ingress_ip: Program,
    egress_ip: Program,
}

impl Programs {
    /// Takes the programs of an object; they have to be loaded. The object need not be kept: an
    /// attached program holds on to its maps.
    pub fn of(object: &aya::Ebpf) -> Result<Self, AttachError> {
        let take = |name: &'static str| {
            let program = object.program(name).ok_or(AttachError::NoProgram { name })?;
            let failed = |source| AttachError::Program { name, source };
            let classifier: &SchedClassifier = program.try_into().map_err(failed)?;
            let descriptor = classifier.fd().map_err(failed)?.as_fd().try_clone_to_owned();
            let descriptor = descriptor.map_err(|error| failed(error.into()))?;
            let info = bpf::program_info(descriptor.as_fd()).map_err(|error| failed(error.into()))?;
            Ok(Program { name, descriptor, id: info.id })
        };
        Ok(Self {
            ingress_ethernet: take(INGRESS_ETHERNET)?,
            egress_ethernet: take(EGRESS_ETHERNET)?,
            ingress_ip: take(INGRESS_IP)?,
            egress_ip: take(EGRESS_IP)?,
        })
    }

    /// The program for a hook of an interface with this link layer.
    pub(super) fn fitting(&self, link_layer: LinkLayer, direction: Direction) -> &Program {
        match (link_layer, direction) {
            (LinkLayer::Ethernet, Direction::Ingress) => &self.ingress_ethernet,
            (LinkLayer::Ethernet, Direction::Egress) => &self.egress_ethernet,
            (LinkLayer::None, Direction::Ingress) => &self.ingress_ip,
            (LinkLayer::None, Direction::Egress) => &self.egress_ip,
        }
    }
}
