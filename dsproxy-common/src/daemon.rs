//! What the daemon says of itself, for whoever looks at the maps while it runs, and after it has gone. No program reads it.

use crate::record::record;

/// How many bytes of a version are kept.
const VERSION_BYTES: usize = 32;

/// The daemon's word. Times are milliseconds since the machine was started, sleep included (`CLOCK_BOOTTIME`), which nobody sets;
/// zero is never.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DaemonRecord {
    /// When the daemon began.
    pub started: u64,
    /// When it last said this.
    pub said: u64,
    /// When it last finished taking up changes.
    pub synced: u64,
    /// When the maps last held all that the source had listed.
    pub complete: u64,
    /// Since when the oldest change waits that is not in the maps.
    pub waiting_since: u64,
    /// Since when something is the matter with the source.
    pub trouble_since: u64,
    /// How many microseconds the last taking up of changes took.
    pub took: u64,
    /// How often changes were taken up.
    pub passes: u64,
    /// `DaemonFlags`.
    pub flags: u32,
    /// Services of the source.
    pub services: u32,
    /// EndpointSlices of the source.
    pub endpoint_slices: u32,
    /// Service ports in the maps.
    pub service_ports: u32,
    /// Services that are not served as they should be.
    pub services_failed: u32,
    /// Frontends that another Service has.
    pub conflicts: u32,
    /// Endpoints and NodePorts that cannot be served.
    pub left_out: u32,
    /// Interfaces that could not be attached to.
    pub interfaces_failed: u32,
    /// Where metrics are served: an IPv6 address, or an IPv4 address mapped to one.
    pub metrics_address: [u8; 16],
    /// The port there, host byte order; zero: nowhere.
    pub metrics_port: u32,
    /// Zero.
    pub reserved: u32,
    /// The daemon's version.
    pub version: DaemonVersion,
}

/// Bits of [`DaemonRecord::flags`].
pub struct DaemonFlags;

impl DaemonFlags {
    /// The maps have once held all that the source listed.
    pub const SYNCED: u32 = 1 << 0;
    /// The source answers.
    pub const CONNECTED: u32 = 1 << 1;
}

/// A version, as text.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DaemonVersion {
    bytes: [u8; VERSION_BYTES],
}

impl DaemonVersion {
    /// `version`, cut off where there is no more room.
    pub fn new(version: &str) -> Self {
        let mut bytes = [0; VERSION_BYTES];
        for (to, from) in bytes.iter_mut().zip(version.bytes()) {
            *to = from;
        }
        Self { bytes }
    }

    /// The version, or nothing when the bytes are not text.
    pub fn as_str(&self) -> &str {
        let length = self.bytes.iter().position(|byte| *byte == 0).unwrap_or(VERSION_BYTES);
        core::str::from_utf8(&self.bytes[..length]).unwrap_or_default()
    }
}

record! {
    DaemonVersion { bytes }
    DaemonRecord {
        started, said, synced, complete, waiting_since, trouble_since, took, passes, flags, services, endpoint_slices,
        service_ports, services_failed, conflicts, left_out, interfaces_failed, metrics_address, metrics_port, reserved, version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_survives_the_map_and_is_cut_at_the_end() {
        assert_eq!(DaemonVersion::new("1.2.3").as_str(), "1.2.3");
        assert_eq!(DaemonVersion::new(&"9".repeat(99)).as_str().len(), VERSION_BYTES);
        assert_eq!(DaemonVersion { bytes: [0xff; VERSION_BYTES] }.as_str(), "");
    }
}
