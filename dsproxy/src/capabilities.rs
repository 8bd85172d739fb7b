//! What the daemon has to be allowed to do, looked at before it begins: half of a start would tell less clearly what is
//! missing, and a node whose interfaces cannot be attached to serves nothing.

use std::{fs, io};

use thiserror::Error;

/// Attaching to interfaces and cgroups.
const NET_ADMIN: Capability = Capability { bit: 12, name: "CAP_NET_ADMIN", implied_by_sys_admin: false };

/// Programs and maps.
const BPF: Capability = Capability { bit: 39, name: "CAP_BPF", implied_by_sys_admin: true };

/// Programs of the kind that the kernel trusts not to leak its addresses: without it the verifier follows the ways that a
/// processor may speculate on as well, and forbids comparing what comes from packets with what does not.
const PERFMON: Capability = Capability { bit: 38, name: "CAP_PERFMON", implied_by_sys_admin: true };

/// All that is needed. `CAP_SYS_ADMIN` makes it possible to tell programs of ours that are pinned nowhere from others'; the
/// daemon does without.
const NEEDED: [Capability; 3] = [NET_ADMIN, BPF, PERFMON];

const SYS_ADMIN_BIT: u32 = 21;

/// A capability (include/uapi/linux/capability.h).
#[derive(Clone, Copy, Debug)]
struct Capability {
    bit: u32,
    name: &'static str,
    /// As it was before the kernel had it, and still is (`bpf_capable`, `perfmon_capable` in include/linux/capability.h).
    implied_by_sys_admin: bool,
}

impl Capability {
    fn is_in(self, effective: u64) -> bool {
        let has = |bit: u32| effective & (1 << bit) != 0;
        has(self.bit) || self.implied_by_sys_admin && has(SYS_ADMIN_BIT)
    }
}

/// Why the daemon cannot do its work.
#[derive(Debug, Error)]
pub enum CapabilityError {
    /// Something is not allowed.
    #[error(
        "this process lacks {}; run it as root, or give the container BPF, NET_ADMIN and PERFMON \
         (securityContext.capabilities.add)",
        .0.join(" and ")
    )]
    Missing(Vec<&'static str>),
    /// It cannot be found out.
    #[error("read the capabilities of this process: {0}; is /proc mounted?")]
    Unknown(io::Error),
}

/// Fails unless this process may do what it takes.
///
/// # Errors
///
/// With the capabilities that are missing.
pub fn check() -> Result<(), CapabilityError> {
    let status = fs::read_to_string("/proc/thread-self/status").map_err(CapabilityError::Unknown)?;
    let effective = effective(&status).ok_or_else(|| CapabilityError::Unknown(io::ErrorKind::InvalidData.into()))?;
    let missing = missing(effective);
    if missing.is_empty() { Ok(()) } else { Err(CapabilityError::Missing(missing)) }
}

fn effective(status: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(value.trim(), 16).ok()
}

fn missing(effective: u64) -> Vec<&'static str> {
    NEEDED.into_iter().filter(|capability| !capability.is_in(effective)).map(|capability| capability.name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t00000000a80425fb\nCapBnd:\t000001ffffffffff\n";
        let effective = effective(status).expect("a mask");
        assert_eq!(missing(effective), ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing(effective | 1 << 12 | 1 << 39), ["CAP_PERFMON"]);
        assert_eq!(missing(1 << 12 | 1 << 38 | 1 << 39), Vec::<&str>::new());
        assert_eq!(missing(1 << 21), ["CAP_NET_ADMIN"], "that of all does not include it");
        assert_eq!(missing(1 << 12 | 1 << 21), Vec::<&str>::new());
        let text = CapabilityError::Missing(missing(0)).to_string();
        assert!(text.contains("lacks CAP_NET_ADMIN and CAP_BPF and CAP_PERFMON; run it as root"), "{text}");
    }

    #[test]
    fn a_status_without_a_mask_is_no_licence() {
        assert_eq!(effective("Name:\tx\n"), None);
        assert_eq!(effective("CapEff:\tall\n"), None);
    }
}
