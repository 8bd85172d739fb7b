//! The loaded programs, apart from the object that they came from. Nothing here attaches them.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use aya::programs::{ProgramFd, SchedClassifier, Xdp};

use super::{AttachError, Direction, bpf};
use crate::{
    datapath::load::XDP_PROGRAM,
    interfaces::{LinkLayer, Role},
};

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

impl Program {
    fn of(name: &'static str, loaded: &ProgramFd) -> Result<Self, AttachError> {
        let failed = |error: io::Error| AttachError::Program { name, source: error.into() };
        let descriptor = loaded.as_fd().try_clone_to_owned().map_err(failed)?;
        let id = bpf::program_id(descriptor.as_fd()).map_err(failed)?;
        Ok(Self { name, descriptor, id })
    }

    /// The program of an object for XDP; it has to be loaded.
    pub(super) fn of_xdp(object: &aya::Ebpf) -> Result<Self, AttachError> {
        let name = XDP_PROGRAM;
        let failed = |source| AttachError::Program { name, source };
        let program = object.program(name).ok_or(AttachError::NoProgram { name })?;
        let program: &Xdp = program.try_into().map_err(failed)?;
        Self::of(name, program.fd().map_err(failed)?)
    }
}

/// The names of the programs, as in the kernel's object. `stray` knows programs by them as well.
pub(super) use crate::datapath::load::PROGRAMS as PROGRAM_NAMES;

/// The loaded programs of an object.
#[derive(Debug)]
pub struct Programs {
    programs: Vec<Program>,
}

impl Programs {
    /// Takes those programs of an object that are loaded. The object need not be kept: an
    /// attached program holds on to its maps.
    pub fn of(object: &aya::Ebpf) -> Result<Self, AttachError> {
        let take = |name: &'static str| {
            let program = object.program(name).ok_or(AttachError::NoProgram { name })?;
            let failed = |source| AttachError::Program { name, source };
            let classifier: &SchedClassifier = program.try_into().map_err(failed)?;
            classifier.fd().ok().map(|loaded| Program::of(name, loaded)).transpose()
        };
        let loaded = PROGRAM_NAMES.into_iter().filter_map(|name| take(name).transpose());
        Ok(Self { programs: loaded.collect::<Result<_, _>>()? })
    }

    /// The program for a hook of an interface of this kind.
    pub(super) fn fitting(
        &self,
        role: Role,
        link_layer: LinkLayer,
        direction: Direction,
    ) -> Result<&Program, AttachError> {
        let name = match (role, direction, link_layer) {
            (Role::PodInterface, Direction::Ingress, LinkLayer::Ethernet) => "pod_ingress_ethernet",
            (Role::PodInterface, Direction::Egress, LinkLayer::Ethernet) => "pod_egress_ethernet",
            (Role::NodeDevice, Direction::Ingress, LinkLayer::Ethernet) => "node_ingress_ethernet",
            (Role::NodeDevice, Direction::Egress, LinkLayer::Ethernet) => "node_egress_ethernet",
            (Role::PodInterface, Direction::Ingress, LinkLayer::None) => "pod_ingress_ip",
            (Role::PodInterface, Direction::Egress, LinkLayer::None) => "pod_egress_ip",
            (Role::NodeDevice, Direction::Ingress, LinkLayer::None) => "node_ingress_ip",
            (Role::NodeDevice, Direction::Egress, LinkLayer::None) => "node_egress_ip",
        };
        self.programs.iter().find(|program| program.name == name).ok_or(AttachError::NotLoaded { name })
    }
}
