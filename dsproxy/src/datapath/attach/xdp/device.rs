//! What the kernel tells of a device that matters to XDP: by route netlink (`IFLA_*`) and by the generic netlink family `netdev`
//! (Documentation/netlink/specs/netdev.yaml, Linux 6.3).

use std::collections::BTreeMap;

use dsproxy_common::next_hop::Mac;
use rtnetlink::sys::protocols::NETLINK_GENERIC;

use crate::netlink::{BlockingSocket, Message, NetlinkError, Request, attributes, number, text};

/// A device, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Device {
    /// Its MAC address, as it stands in a frame.
    pub(super) address: Mac,
    /// Its kind; empty for hardware.
    pub(super) kind: String,
    /// The XDP program that it has.
    pub(super) program: Option<u32>,
}

const LINK_HEADER: usize = 16;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;

/// Asks about one device.
pub(super) fn read(index: u32) -> Result<Device, NetlinkError> {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut device = Device::default();
    let mut socket = BlockingSocket::open()?;
    socket.exchange(Request::change(libc::RTM_GETLINK, 0, &header), |message| {
        if message.kind == libc::RTM_NEWLINK {
            device = of(&message);
        }
    })?;
    Ok(device)
}

fn of(message: &Message<'_>) -> Device {
    let mut device = Device::default();
    for (kind, value) in attributes(message.payload, LINK_HEADER) {
        match kind {
            libc::IFLA_ADDRESS => {
                if let Some([a, b, c, d, e, f]) = value.first_chunk() {
                    device.address = [[*a, *b], [*c, *d], [*e, *f]].map(u16::from_ne_bytes);
                }
            }
            libc::IFLA_LINKINFO => {
                let kind = attributes(value, 0).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                device.kind = kind.map(|(_, kind)| text(kind)).unwrap_or_default();
            }
            libc::IFLA_XDP => {
                let of_kind = |wanted| attributes(value, 0).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
                let is_attached =
                    of_kind(IFLA_XDP_ATTACHED).and_then(|mode| mode.first()).is_some_and(|mode| *mode != 0);
                device.program = of_kind(IFLA_XDP_PROG_ID).and_then(number).filter(|_| is_attached);
            }
            _ => {}
        }
    }
    device
}

/// What each device's driver can do.
pub(super) struct Features(BTreeMap<u32, u64>);

impl Features {
    pub(super) fn of(&self, index: u32) -> u64 {
        self.0.get(&index).copied().unwrap_or_default()
    }
}

/// Bits of what a driver can do (`enum netdev_xdp_act`, include/uapi/linux/netdev.h).
const BASIC: u64 = 1 << 0;
const NDO_XMIT: u64 = 1 << 2;

/// Whether the driver runs programs, and drops, passes and sends back what they say.
pub(super) const fn runs_programs(features: u64) -> bool {
    features & BASIC != 0
}

/// Whether the device transmits what programs of other devices redirect to it.
pub(super) const fn takes_redirected(features: u64) -> bool {
    features & NDO_XMIT != 0
}

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const GENERIC_HEADER: usize = 4;

/// Asks what the drivers can do; none where the kernel cannot say (before 6.3).
pub(super) fn features() -> Result<Option<Features>, NetlinkError> {
    let mut socket = BlockingSocket::open_to(NETLINK_GENERIC)?;
    let mut family = None;
    let request = Request::change(GENL_ID_CTRL, 0, &[CTRL_CMD_GETFAMILY, 1, 0, 0]);
    let asked = socket.exchange(request.attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0"), |message| {
        let mut found = attributes(message.payload, GENERIC_HEADER);
        let id = found.find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID).and_then(|(_, id)| id.first_chunk());
        family = family.or(id.map(|id| u16::from_ne_bytes(*id)));
    });
    match asked {
        Err(error) if error.errno() == Some(libc::ENOENT) => return Ok(None),
        asked => asked?,
    }
    let Some(family) = family else { return Ok(None) };
    let mut features = BTreeMap::new();
    socket.exchange(Request::dump(family, &[NETDEV_CMD_DEV_GET, 1, 0, 0]), |message| {
        let (mut index, mut device) = (None, 0);
        for (kind, value) in attributes(message.payload, GENERIC_HEADER) {
            match kind {
                NETDEV_A_DEV_IFINDEX => index = number(value),
                NETDEV_A_DEV_XDP_FEATURES => {
                    device = value.first_chunk().map_or(0, |features| u64::from_ne_bytes(*features));
                }
                _ => {}
            }
        }
        features.extend(index.map(|index| (index, device)));
    })?;
    Ok(Some(Features(features)))
}
