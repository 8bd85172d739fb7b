//! The one place that runs `ip`, `tc` and `ethtool`. It knows their syntax and how to read what they print, not what the
//! lab looks like.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use super::{DualStack, LabError, Namespace};

/// Runs one `ip` command and returns what it printed.
pub(crate) fn ip(arguments: &[&str]) -> Result<String, LabError> {
    print_of("ip", arguments)
}

fn print_of(program: &'static str, arguments: &[&str]) -> Result<String, LabError> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| LabError::NoIpRoute { program, source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(LabError::IpRoute {
        commands: format!("{program} {}", arguments.join(" ")),
        reason: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Runs several `ip` commands inside `namespace` with one process; the first that fails ends it.
pub(crate) fn batch(namespace: &str, commands: &[String]) -> Result<(), LabError> {
    let mut child = Command::new("ip")
        .args(["-n", namespace, "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| LabError::NoIpRoute { program: "ip", source })?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ended early has said why on its standard error, which is read below.
        let _ = stdin.write_all((commands.join("\n") + "\n").as_bytes());
    }
    let output = child.wait_with_output().map_err(|source| LabError::NoIpRoute { program: "ip", source })?;
    if output.status.success() {
        return Ok(());
    }
    Err(LabError::IpRoute {
        commands: format!("ip -n {namespace}: {}", commands.join("; ")),
        reason: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// What an interface has received.
#[derive(Clone, Copy, Debug)]
pub struct LinkCounters {
    /// Bytes received.
    pub bytes: u64,
    /// Packets received, a segmentation-offload packet being one.
    pub packets: u64,
}

/// Reads the receive counters of `interface`.
pub fn link_counters(namespace: &Namespace, interface: &str) -> Result<LinkCounters, LabError> {
    let arguments = ["-n", namespace.name(), "-s", "-j", "link", "show", interface];
    let printed = ip(&arguments)?;
    let value: serde_json::Value = serde_json::from_str(&printed).unwrap_or_default();
    let received = &value[0]["stats64"]["rx"];
    match (received["bytes"].as_u64(), received["packets"].as_u64()) {
        (Some(bytes), Some(packets)) => Ok(LinkCounters { bytes, packets }),
        _ => Err(LabError::IpRoute {
            commands: format!("ip {}", arguments.join(" ")),
            reason: format!("no counters in {printed:?}"),
        }),
    }
}

/// The link-layer address of `interface`.
pub fn link_address(namespace: &Namespace, interface: &str) -> Result<[u8; 6], LabError> {
    let arguments = ["-n", namespace.name(), "-j", "link", "show", interface];
    let printed = ip(&arguments)?;
    let value: serde_json::Value = serde_json::from_str(&printed).unwrap_or_default();
    let octets = value[0]["address"]
        .as_str()
        .and_then(|text| text.split(':').map(|octet| u8::from_str_radix(octet, 16).ok()).collect::<Option<Vec<_>>>());
    octets.and_then(|octets| octets.try_into().ok()).ok_or_else(|| LabError::IpRoute {
        commands: format!("ip {}", arguments.join(" ")),
        reason: format!("no Ethernet address in {printed:?}"),
    })
}

/// Sets the MTU of `interface`.
pub fn set_mtu(namespace: &Namespace, interface: &str, mtu: u16) -> Result<(), LabError> {
    batch(namespace.name(), &[format!("link set {interface} mtu {mtu}")])
}

/// Makes a veth what a NIC is to XDP at its other end: every frame that it sends has its checksum, and frames that come from XDP
/// are taken in.
pub fn like_hardware(namespace: &Namespace, interface: &str) -> Result<(), LabError> {
    let arguments = ["-K", interface, "tx", "off", "gro", "on"];
    namespace.run(|| print_of("ethtool", &arguments).map(drop))?
}

/// Gives `interface` another address of each family, without a network around them.
pub fn add_address(namespace: &Namespace, interface: &str, addresses: DualStack) -> Result<(), LabError> {
    let DualStack { v4, v6 } = addresses;
    batch(
        namespace.name(),
        &[format!("addr add {v4}/32 dev {interface}"), format!("addr add {v6}/128 dev {interface} nodad")],
    )
}

/// Runs one `tc` command inside `namespace` and returns what it printed.
pub fn tc(namespace: &Namespace, arguments: &[&str]) -> Result<String, LabError> {
    print_of("tc", &[&["-n", namespace.name()][..], arguments].concat())
}

/// What traffic control and XDP have on `interface`: the hook and the program's name, which a bare qdisc
/// does not have.
pub(crate) fn traffic_control(namespace: &Namespace, interface: &str) -> Result<Vec<(&'static str, String)>, LabError> {
    let mut found = Vec::new();
    let qdiscs = tc(namespace, &["-j", "qdisc", "show", "dev", interface])?;
    if entries(&qdiscs).any(|qdisc| qdisc["kind"] == "clsact") {
        found.push(("clsact", String::new()));
        for (hook, direction) in [("clsact ingress", "ingress"), ("clsact egress", "egress")] {
            let filters = tc(namespace, &["-j", "filter", "show", "dev", interface, direction])?;
            // A filter is printed twice: its priority alone, and with what it runs.
            found.extend(entries(&filters).filter_map(|filter| {
                let program = filter["options"]["bpf_name"].as_str()?;
                Some((hook, program.to_owned()))
            }));
        }
    }
    let links = ip(&["-n", namespace.name(), "-j", "-d", "link", "show", "dev", interface])?;
    found.extend(entries(&links).filter(|link| !link["xdp"].is_null()).map(|link| ("xdp", link["xdp"].to_string())));
    Ok(found)
}

fn entries(printed: &str) -> impl Iterator<Item = serde_json::Value> {
    match serde_json::from_str(printed) {
        Ok(serde_json::Value::Array(entries)) => entries,
        _ => Vec::new(),
    }
    .into_iter()
}
