//! What the kernel is, and how it is set.

use std::{fmt::Write as _, fs, io::Read as _, path::PathBuf};

use anyhow::Context as _;
use flate2::read::GzDecoder;
use nix::sys::utsname::uname;

/// What of the kernel's configuration may matter here.
const OPTIONS: [&str; 12] = [
    "BPF",
    "XDP",
    "NET_CLS",
    "NET_SCH_INGRESS",
    "NET_ACT",
    "CGROUPS",
    "SOCK_CGROUP_DATA",
    "NF_CONNTRACK",
    "IPV6",
    "INET_DIAG",
    "DEBUG_INFO_BTF",
    "HZ",
];

/// Sysctls that decide what becomes of packets, below /proc/sys.
const SETTINGS: [&str; 16] = [
    "net/ipv4/ip_forward",
    "net/ipv4/ip_local_port_range",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/conf/all/rp_filter",
    "net/ipv4/conf/default/rp_filter",
    "net/ipv4/conf/all/route_localnet",
    "net/ipv6/conf/all/disable_ipv6",
    "net/ipv6/conf/all/forwarding",
    "net/bridge/bridge-nf-call-iptables",
    "net/bridge/bridge-nf-call-ip6tables",
    "net/netfilter/nf_conntrack_max",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/core/bpf_jit_enable",
    "kernel/unprivileged_bpf_disabled",
    "kernel/osrelease",
];

/// Name, version and machine, and the sysctls.
pub(super) fn about() -> anyhow::Result<Vec<u8>> {
    let name = uname().context("ask for the kernel's name")?;
    let mut text = format!(
        "{} {} {} {}\n\n",
        name.sysname().to_string_lossy(),
        name.release().to_string_lossy(),
        name.version().to_string_lossy(),
        name.machine().to_string_lossy()
    );
    for setting in SETTINGS {
        let value = fs::read_to_string(format!("/proc/sys/{setting}"));
        let value = value.map_or_else(|error| format!("({error})"), |value| value.trim().to_owned());
        let _ = writeln!(text, "{} = {value}", setting.replace('/', "."));
    }
    Ok(text.into_bytes())
}

/// What of its configuration may matter, if it can be read anywhere.
pub(super) fn configuration() -> anyhow::Result<Vec<u8>> {
    let release = uname().context("ask for the kernel's name")?.release().to_string_lossy().into_owned();
    let all = match fs::read("/proc/config.gz") {
        Ok(compressed) => {
            let mut text = String::new();
            GzDecoder::new(&*compressed).read_to_string(&mut text).context("read /proc/config.gz")?;
            text
        }
        Err(_) => {
            let path = PathBuf::from(format!("/boot/config-{release}"));
            fs::read_to_string(&path)
                .with_context(|| format!("read {}; there is no /proc/config.gz", path.display()))?
        }
    };
    Ok(that_may_matter(&all).into_bytes())
}

fn that_may_matter(configuration: &str) -> String {
    let matters = |line: &&str| {
        let option = line.trim_start_matches("# ").strip_prefix("CONFIG_");
        option.is_some_and(|option| OPTIONS.iter().any(|wanted| option.contains(wanted)))
    };
    configuration.lines().filter(matters).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_matter_is_left_out() {
        let text = "# Linux\nCONFIG_BPF_SYSCALL=y\n# CONFIG_XDP_SOCKETS is not set\nCONFIG_SOUND=m\nCONFIG_HZ=250\n";
        assert_eq!(that_may_matter(text), "CONFIG_BPF_SYSCALL=y\n# CONFIG_XDP_SOCKETS is not set\nCONFIG_HZ=250\n");
    }
}
