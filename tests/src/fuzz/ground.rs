//! Where packets are thrown: a network namespace, whose routing the kernel is asked about those of pods.

use std::{collections::BTreeMap, fs, io, process::Command};

use dsproxy_common::pod_device::PodDevice;
use nix::sched::{CloneFlags, unshare};

use crate::model::{Route, Shortcut};

/// Behind the first two there are pods, and nobody knows what is behind the third.
const DEVICES: [(u32, &str, usize); 3] = [(1002, "near", 1500), (1003, "far", 300), (1004, "other", 1500)];
pub(super) const PODS: [u32; 2] = [1002, 1003];

/// Which device packets leave by: some of all addresses by each.
const ROUTES: [(&str, usize); 6] = [
    ("0.0.0.0/0", 1),
    ("64.0.0.0/2", 0),
    ("128.0.0.0/2", 2),
    ("::/0", 1),
    ("fd00::4000/114", 0),
    ("fd00::8000/114", 2),
];

/// The address that pods reach the node by: that of all packets but those for others.
const ADDRESS: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// Has this thread go on in a namespace of its own.
pub(super) fn enter() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    ip("link set lo up")?;
    for (index, name, mtu) in DEVICES {
        ip(&format!("link add {name} index {index} mtu 1500 type veth peer name {name}-pod"))?;
        ip(&format!("link set {name}-pod up"))?;
        ip(&format!("link set {name} up"))?;
        // IPv6 wants 1280 of a link: of what is shorter each route says it.
        for (network, of) in ROUTES {
            if DEVICES[of].1 == name {
                ip(&format!("route add {network} dev {name} mtu lock {mtu}"))?;
            }
        }
    }
    for setting in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        fs::write(format!("/proc/sys/net/{setting}"), "1")?;
    }
    Ok(())
}

fn ip(arguments: &str) -> io::Result<()> {
    let done = Command::new("ip").args(arguments.split(' ')).output()?;
    let complaint = || io::Error::other(format!("ip {arguments}: {}", String::from_utf8_lossy(&done.stderr)));
    if done.status.success() { Ok(()) } else { Err(complaint()) }
}

/// The devices as the programs are told of them.
pub(super) fn held() -> BTreeMap<u32, PodDevice> {
    let address = [0, 2, 4].map(|at| u16::from_ne_bytes([ADDRESS[at], ADDRESS[at + 1]]));
    PODS.into_iter().map(|index| (index, PodDevice { address, reserved: 0 })).collect()
}

/// All of it as the model is told.
pub(super) fn shortcut() -> Shortcut {
    let route = |(network, of): (&str, usize)| {
        let (device, _, mtu) = DEVICES[of];
        Route { network: network.parse().expect("a network"), device, mtu }
    };
    Shortcut { devices: PODS.to_vec(), address: ADDRESS, routes: ROUTES.map(route).to_vec() }
}
