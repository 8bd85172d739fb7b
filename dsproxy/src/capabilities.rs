//! What the daemon has to be allowed to do, looked at before it begins: half of a start would tell less clearly what is
//! missing, and a node whose interfaces cannot be attached to serves nothing.

use std::{fs, io};

use thiserror::Error;

/// Attaching to interfaces.
const NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");

/// Finding programs, maps and links by their id, as it takes to know ours from others'; it includes `CAP_BPF` and
/// `CAP_PERFMON`.
const SYS_ADMIN: (u32, &str) = (21, "CAP_SYS_ADMIN");

/// Why the daemon cannot do its work.
#[derive(Debug, Error)]
pub enum CapabilityError {
    /// Something is not allowed.
    #[error(
        "this process lacks {}; run it as root, or give the container NET_ADMIN and SYS_ADMIN \
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
    let lacks = |(bit, _): &(u32, &str)| effective & (1 << bit) == 0;
    [NET_ADMIN, SYS_ADMIN].into_iter().filter(lacks).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t00000000a80425fb\nCapBnd:\t000001ffffffffff\n";
        let effective = effective(status).expect("a mask");
        assert_eq!(missing(effective), ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
        assert_eq!(missing(effective | 1 << 12), ["CAP_SYS_ADMIN"]);
        assert_eq!(missing(u64::MAX >> 23), Vec::<&str>::new());
        let text = CapabilityError::Missing(missing(0)).to_string();
        assert!(text.contains("lacks CAP_NET_ADMIN and CAP_SYS_ADMIN; run it as root"), "{text}");
    }

    #[test]
    fn a_status_without_a_mask_is_no_licence() {
        assert_eq!(effective("Name:\tx\n"), None);
        assert_eq!(effective("CapEff:\tall\n"), None);
    }
}
