//! What the kernel tells of a device that matters to XDP alone: by route netlink (`IFLA_*`) and by the generic netlink family `netdev`
//! (Documentation/netlink/specs/netdev.yaml, Linux 6.3).

use std::collections::BTreeMap;

use rtnetlink::sys::protocols::NETLINK_GENERIC;

use crate::netlink::{BlockingSocket, Message, NetlinkError, Request, attributes, number, text};

/// A device, as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Device {
    /// Its kind; empty for hardware.
    pub(super) kind: String,
    /// The XDP program that it has.
    pub(super) program: Option<u32>,
    /// Whether there are VLAN devices on it.
    pub(super) has_vlans: bool,
    /// What its driver can do; none where the kernel cannot say (before 6.3).
    pub(super) features: Option<u64>,
}

impl Device {
    /// Whether the driver may run programs, and drop, pass and send back what they say.
    pub(super) fn runs_programs(&self) -> bool {
        self.features.is_none_or(|features| features & BASIC != 0)
    }

    /// Whether the device transmits what programs of other devices redirect to it.
    pub(super) fn takes_redirected(&self) -> bool {
        self.features.is_some_and(|features| features & NDO_XMIT != 0)
    }
}

/// All devices, by index.
pub(super) struct Devices(BTreeMap<u32, Device>);

impl Devices {
    /// Asks the kernel, and again if the links change while it tells of them.
    pub(super) fn read() -> Result<Self, NetlinkError> {
        let mut attempt = 1;
        loop {
            match Self::list() {
                Err(NetlinkError::Interrupted) if attempt < LISTING_ATTEMPTS => attempt += 1,
                outcome => return outcome,
            }
        }
    }

    fn list() -> Result<Self, NetlinkError> {
        let mut devices = BTreeMap::new();
        let mut carriers = Vec::new();
        BlockingSocket::open()?.exchange(Request::dump(libc::RTM_GETLINK, &[0; LINK_HEADER]), |message| {
            if let (libc::RTM_NEWLINK, Some(index)) = (message.kind, message.payload.get(4..).and_then(number)) {
                let (device, below) = link(&message);
                carriers.extend(below.filter(|_| device.kind == VLAN));
                devices.insert(index, device);
            }
        })?;
        for carrier in carriers {
            devices.entry(carrier).and_modify(|device| device.has_vlans = true);
        }
        if let Some(features) = features()? {
            for (index, device) in &mut devices {
                device.features = Some(features.get(index).copied().unwrap_or_default());
            }
        }
        Ok(Self(devices))
    }

    pub(super) fn get(&self, index: u32) -> Option<&Device> {
        self.0.get(&index)
    }
}

/// How often a list is asked for that changes while it is sent.
const LISTING_ATTEMPTS: u32 = 20;

const VLAN: &str = "vlan";
const LINK_HEADER: usize = 16;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP_ATTACHED: u16 = 2;
const IFLA_XDP_PROG_ID: u16 = 4;

/// What a message says of a device, and the index of the one that it stands on, if that is in this network namespace.
fn link(message: &Message<'_>) -> (Device, Option<u32>) {
    let (mut device, mut below, mut is_here) = (Device::default(), None, true);
    for (kind, value) in attributes(message.payload, LINK_HEADER) {
        match kind {
            libc::IFLA_LINK => below = number(value),
            IFLA_LINK_NETNSID => is_here = false,
            libc::IFLA_LINKINFO => {
                let kind = attributes(value, 0).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                device.kind = kind.map(|(_, kind)| text(kind)).unwrap_or_default();
            }
            libc::IFLA_XDP => {
                let of_kind = |wanted| attributes(value, 0).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
                let mode = of_kind(IFLA_XDP_ATTACHED).and_then(|mode| mode.first());
                let is_attached = mode.is_some_and(|mode| *mode != 0);
                device.program = of_kind(IFLA_XDP_PROG_ID).and_then(number).filter(|_| is_attached);
            }
            _ => {}
        }
    }
    (device, below.filter(|_| is_here))
}

/// Bits of what a driver can do (`enum netdev_xdp_act`, include/uapi/linux/netdev.h).
pub(super) const BASIC: u64 = 1 << 0;
pub(super) const NDO_XMIT: u64 = 1 << 2;

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const GENERIC_HEADER: usize = 4;

/// Asks what the drivers of devices can do; none where the kernel cannot say (before 6.3).
fn features() -> Result<Option<BTreeMap<u32, u64>>, NetlinkError> {
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
    Ok(Some(features))
}
