//! Whether a device can have XDP, and why not.

use std::io;

use dsproxy_common::next_hop::XdpDevice;
use thiserror::Error;

use super::device::Device;
use crate::interfaces::{Interface, LinkLayer};

/// Which devices XDP is used on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpDevices {
    /// Those where it serves without anybody's help.
    Auto,
    /// All whose driver has it.
    Native,
}

/// Why a device does without XDP.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WhyNot {
    /// It has no Ethernet header.
    #[error("its packets have no Ethernet header")]
    NoEthernet,
    /// A bond or the like.
    #[error("its frames come by its ports")]
    Ports,
    /// The driver cannot do it.
    #[error("its driver has no XDP")]
    NoDriver,
    /// There are VLANs on it.
    #[error("it carries VLANs, whose frames XDP cannot tell from others where the device takes their tags out")]
    Vlans,
    /// A virtual machine's device.
    #[error("it is a tun or tap device, whose frames may come with checksums that are still to be made")]
    Tun,
    /// A pair of virtual devices.
    #[error(
        "it is a veth: what is sent on the same machine comes with checksums that are still to be made; with its sender's \
         checksum offload off (ethtool -K DEVICE tx off), --xdp native uses it"
    )]
    Veth,
    /// What is transmitted would be lost.
    #[error("what XDP sends out of it would be lost; the other end of a veth needs GRO (ethtool -K DEVICE gro on)")]
    NoTransmission,
    /// Somebody else's program.
    #[error("it has another XDP program (id {0})")]
    Taken(u32),
    /// The driver does not want to, for all that it could: the error's number.
    #[error("the driver refused: {}; an MTU that is too large for it is the usual reason", io::Error::from_raw_os_error(*.0))]
    Refused(i32),
    /// The host could not be made ready for it.
    #[error("the kernel's own connection table would take what XDP sends on for another's: {0}")]
    Host(String),
    /// Nobody wants it.
    #[error("--xdp off says so")]
    Off,
    /// The kernel does not take the program.
    #[error("the kernel did not take the program, for a reason that the daemon's log has")]
    NoProgram,
    /// Attaching did not work, or looking at what is attached.
    #[error("it could not be attached to, for a reason that the daemon's log has; it is tried again")]
    Failed,
    /// What another version of the daemon has noted.
    #[error("the daemon has a reason that this version does not know (number {0})")]
    Unknown(u32),
}

impl WhyNot {
    /// As it is noted in a device's record: a number, which keeps its meaning, and the rest.
    fn numbers(&self) -> (u32, u32) {
        match *self {
            Self::NoEthernet => (1, 0),
            Self::Ports => (2, 0),
            Self::NoDriver => (3, 0),
            Self::Vlans => (4, 0),
            Self::Tun => (5, 0),
            Self::Veth => (6, 0),
            Self::NoTransmission => (7, 0),
            Self::Taken(program) => (8, program),
            Self::Refused(errno) => (9, errno.cast_unsigned()),
            Self::Host(_) => (10, 0),
            Self::Off => (11, 0),
            Self::NoProgram => (12, 0),
            Self::Failed => (13, 0),
            Self::Unknown(number) => (number, 0),
        }
    }

    /// The record of a device that is left alone for this.
    pub(super) fn record(&self) -> XdpDevice {
        let (why_not, detail) = self.numbers();
        XdpDevice { why_not, detail, ..XdpDevice::default() }
    }

    /// What is noted in a device's record; nothing of one that is served. Of the host the record says no more than that, so it
    /// `is_in_the_way` that tells.
    pub fn of(device: &XdpDevice, is_in_the_way: impl FnOnce() -> Option<String>) -> Option<Self> {
        const BY_NOW: &str = "it is not any more, and the daemon will see that within a minute";
        Some(match device.why_not {
            0 => return None,
            1 => Self::NoEthernet,
            2 => Self::Ports,
            3 => Self::NoDriver,
            4 => Self::Vlans,
            5 => Self::Tun,
            6 => Self::Veth,
            7 => Self::NoTransmission,
            8 => Self::Taken(device.detail),
            9 => Self::Refused(device.detail.cast_signed()),
            10 => Self::Host(is_in_the_way().unwrap_or_else(|| BY_NOW.to_owned())),
            11 => Self::Off,
            12 => Self::NoProgram,
            13 => Self::Failed,
            number => Self::Unknown(number),
        })
    }
}

/// Whether a device can have XDP. `is_served` says that the program that it has is ours.
pub(super) fn fitness(
    interface: &Interface,
    device: &Device,
    which: XdpDevices,
    is_served: bool,
) -> Result<(), WhyNot> {
    let is_without = match device {
        _ if interface.link_layer != LinkLayer::Ethernet => Some(WhyNot::NoEthernet),
        Device { kind, .. } if matches!(kind.as_str(), "bond" | "team") => Some(WhyNot::Ports),
        Device { has_vlans: true, .. } => Some(WhyNot::Vlans),
        _ if !device.runs_programs() => Some(WhyNot::NoDriver),
        Device { program: Some(program), .. } if !is_served => Some(WhyNot::Taken(*program)),
        Device { kind, .. } if kind == VETH && which == XdpDevices::Auto => Some(WhyNot::Veth),
        Device { kind, .. } if kind == TUN && which == XdpDevices::Auto => Some(WhyNot::Tun),
        _ if !transmits(device) => Some(WhyNot::NoTransmission),
        _ => None,
    };
    is_without.map_or(Ok(()), Err)
}

const VETH: &str = "veth";
const TUN: &str = "tun";

/// Whether a frame that a program sends back out of the device it came by leaves it. A veth hands it to its other end, which may not
/// be ready for it.
pub(super) fn transmits(device: &Device) -> bool {
    device.kind != VETH || device.takes_redirected()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        datapath::attach::xdp::device::{BASIC, NDO_XMIT},
        interfaces::Role,
    };

    #[test]
    fn the_first_reason_that_there_is_leaves_a_device_to_tc() {
        use LinkLayer::{Ethernet, None as NoHeader};
        use XdpDevices::{Auto, Native};

        let device = |kind: &str, features| Device { kind: kind.into(), features, ..Device::default() };
        let all = Some(BASIC | NDO_XMIT);
        let taken = || Device { program: Some(7), ..device("", all) };
        let carrier = Device { has_vlans: true, ..device("", all) };
        let cases = [
            (Ethernet, device("", all), [Ok(()), Ok(())]),
            (Ethernet, device("", Some(BASIC)), [Ok(()), Ok(())]),
            // Before Linux 6.3 nobody can say, and attaching tells.
            (Ethernet, device("", None), [Ok(()), Ok(())]),
            (Ethernet, device("", Some(0)), [Err(WhyNot::NoDriver), Err(WhyNot::NoDriver)]),
            (NoHeader, device("", all), [Err(WhyNot::NoEthernet), Err(WhyNot::NoEthernet)]),
            (Ethernet, device("bond", all), [Err(WhyNot::Ports), Err(WhyNot::Ports)]),
            (Ethernet, device("team", all), [Err(WhyNot::Ports), Err(WhyNot::Ports)]),
            (Ethernet, carrier, [Err(WhyNot::Vlans), Err(WhyNot::Vlans)]),
            (Ethernet, taken(), [Err(WhyNot::Taken(7)), Err(WhyNot::Taken(7))]),
            (Ethernet, device(VETH, all), [Err(WhyNot::Veth), Ok(())]),
            (Ethernet, device(VETH, Some(BASIC)), [Err(WhyNot::Veth), Err(WhyNot::NoTransmission)]),
            (Ethernet, device(TUN, all), [Err(WhyNot::Tun), Ok(())]),
        ];
        for (link_layer, device, expected) in cases {
            let interface = Interface {
                index: 2,
                name: "eth0".into(),
                role: Role::NodeDevice,
                link_layer,
                address: vec![2, 0, 0, 0, 0, 1],
                mtu: 1500,
                ip_device: None,
            };
            for (which, expected) in [Auto, Native].into_iter().zip(expected) {
                assert_eq!(fitness(&interface, &device, which, false), expected, "{which:?} {device:?}");
            }
            let served = fitness(&interface, &taken(), Auto, true);
            assert_eq!(served.is_ok(), link_layer == Ethernet, "the program is ours");
        }
    }

    #[test]
    fn a_reason_survives_being_noted() {
        let host = || Some("a setting".to_owned());
        let reasons: Vec<WhyNot> = (1..=13)
            .filter_map(|why_not| WhyNot::of(&XdpDevice { why_not, detail: 22, ..XdpDevice::default() }, host))
            .collect();
        assert_eq!(reasons.len(), 13);
        for (index, reason) in reasons.iter().enumerate() {
            let record = reason.record();
            assert!(!record.is_served() && record.flags == 0, "{reason}");
            assert_eq!(WhyNot::of(&record, host).as_ref(), Some(reason));
            assert!(reasons[..index].iter().all(|other| other != reason), "{reason}");
            assert!(!matches!(reason, WhyNot::Unknown(_)), "{reason}");
        }
        assert!(WhyNot::Refused(22).to_string().contains("Invalid argument"));
        assert_eq!(WhyNot::of(&XdpDevice::default(), host), None, "it is served");
        let newer = XdpDevice { why_not: 99, ..XdpDevice::default() };
        assert_eq!(WhyNot::of(&newer, host), Some(WhyNot::Unknown(99)));
    }
}
