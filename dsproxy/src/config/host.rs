//! Which families the host has.

use std::{fs, path::Path};

use crate::model::IpFamily;

/// The families of the host whose `/proc` is `proc`, as kube-proxy finds them: IPv6 can be missing from the kernel or
/// turned off for all devices.
pub fn families(proc: &Path) -> Vec<IpFamily> {
    let off = || fs::read_to_string(proc.join("sys/net/ipv6/conf/all/disable_ipv6"));
    let has_v6 = proc.join("net/if_inet6").exists() && off().is_ok_and(|off| off.trim() == "0");
    IpFamily::ALL.into_iter().filter(|family| *family == IpFamily::V4 || has_v6).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv6_can_be_missing_or_off() {
        let proc = tempfile::tempdir().expect("a directory");
        let write = |path: &str, text: &str| {
            let path = proc.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("made");
            fs::write(path, text).expect("written");
        };
        assert_eq!(families(proc.path()), [IpFamily::V4]);
        write("net/if_inet6", "");
        assert_eq!(families(proc.path()), [IpFamily::V4]);
        write("sys/net/ipv6/conf/all/disable_ipv6", "0\n");
        assert_eq!(families(proc.path()), IpFamily::ALL);
        write("sys/net/ipv6/conf/all/disable_ipv6", "1\n");
        assert_eq!(families(proc.path()), [IpFamily::V4]);
    }
}
