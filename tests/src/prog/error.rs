//! What can go wrong while the programs are loaded, told what to serve, or run.

use std::io;

use aya::{maps::MapError as AyaMapError, programs::ProgramError};
use dsproxy::{
    datapath::load::LoadError,
    diff::PlanError,
    maps::{FrontendAddress, MapError, pod_devices::PodDeviceError},
};
use thiserror::Error;

/// A failure around the programs, as opposed to a packet that met the wrong fate.
#[derive(Debug, Error)]
pub enum ProgError {
    /// Programs or maps did not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// There is no room for a service port.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A map could not be read or written.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The map of pods' devices could not be written.
    #[error(transparent)]
    PodDevice(#[from] PodDeviceError),
    /// The object lacks a program.
    #[error("the object has no program {name}")]
    NoProgram {
        /// Its name.
        name: &'static str,
    },
    /// A program is not in the kernel.
    #[error("use the kernel program {name}: {source}")]
    Program {
        /// Its name.
        name: &'static str,
        /// Why not.
        source: ProgramError,
    },
    /// The kernel did not run a program on a packet.
    #[error("run a kernel program on a packet: {0}; it takes at least 14 bytes, and root")]
    Run(io::Error),
    /// A map of the connection table could not be found among those of a program.
    #[error("find the map {name} among those of the loaded programs")]
    NoMap {
        /// Its name.
        name: &'static str,
    },
    /// The connection table could not be read or written.
    #[error("{operation} the map {name}: {source}")]
    Connections {
        /// What was tried.
        operation: &'static str,
        /// The map.
        name: &'static str,
        /// What the kernel said.
        source: AyaMapError,
    },
    /// A service port that was written is not there.
    #[error("the service port {name} was written, but the maps do not name it")]
    NotServed {
        /// Its name.
        name: String,
    },
    /// There is no such frontend.
    #[error("the maps have no frontend {address}")]
    NoFrontend {
        /// Its address.
        address: FrontendAddress,
    },
    /// The kernel's release has no version in it.
    #[error("the kernel's release {release:?} does not begin with two numbers")]
    NoVersion {
        /// The release.
        release: String,
    },
    /// The kernel's release is not known.
    #[error("ask for the kernel's release: {0}")]
    KernelRelease(nix::Error),
}
