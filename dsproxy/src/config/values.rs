//! The values of single knobs, and how they are written. Nothing here knows a flag's name.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
};

use clap::ValueEnum;
use ipnet::IpNet;
use thiserror::Error;

use crate::{datapath::attach::XdpDevices, model::IpFamily};

/// What is wrong with a value. The command line or the file names the place.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ValueError {
    /// Not ports from one to another.
    #[error("{0:?} is no range of ports; write the first and the last, as in 49152-65535")]
    Ports(String),
    /// Not addresses of a node.
    #[error("{0:?} is no address of a node; write an IP address, or one of each family, as in 192.0.2.1,2001:db8::1")]
    NodeIp(String),
    /// Two of one family.
    #[error("{0} and {1} are both {2}; write one address, or one of each family")]
    SameFamily(IpAddr, IpAddr, IpFamily),
    /// Not what says where NodePorts are served.
    #[error(
        "{0:?} is neither a CIDR nor the word primary; write CIDRs, as in 192.0.2.0/24,2001:db8::/64, or primary alone"
    )]
    NodePortAddresses(String),
    /// Not a CIDR.
    #[error("{0:?} is no CIDR; write an address, a slash and a prefix length")]
    Cidr(String),
    /// Not an address to listen at.
    #[error("{0:?} is no socket address; write an IP address and perhaps a port, as in 0.0.0.0:10256 or [::1]:10249")]
    Listen(String),
    /// No word of those that are known.
    #[error("{value:?} is unknown; write one of {}", .known.join(", "))]
    Word {
        /// As written.
        value: String,
        /// What could be.
        known: Vec<&'static str>,
    },
}

/// A range of ports, both ends included; never empty, never with port 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl PortRange {
    /// The ports.
    pub fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl FromStr for PortRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let range = || {
            let (first, last) = text.split_once('-')?;
            let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
            (first > 0 && first <= last).then_some(Self { first, last })
        };
        range().ok_or_else(|| ValueError::Ports(text.to_owned()))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// The addresses of the node, when the Node object is not to say so: at most one of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeIps {
    /// The IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// The IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl NodeIps {
    /// That of a family.
    pub fn of(self, family: IpFamily) -> Option<IpAddr> {
        match family {
            IpFamily::V4 => self.v4.map(IpAddr::V4),
            IpFamily::V6 => self.v6.map(IpAddr::V6),
        }
    }

    pub(super) fn set(&mut self, address: IpAddr) {
        match address {
            IpAddr::V4(address) => self.v4 = Some(address),
            IpAddr::V6(address) => self.v6 = Some(address),
        }
    }
}

impl FromStr for NodeIps {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all = Self::default();
        for part in text.split(',') {
            let address: IpAddr = part.trim().parse().map_err(|_| ValueError::NodeIp(part.to_owned()))?;
            if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
                return Err(ValueError::NodeIp(part.to_owned()));
            }
            let family = IpFamily::of(address);
            if let Some(other) = all.of(family) {
                return Err(ValueError::SameFamily(other, address, family));
            }
            all.set(address);
        }
        Ok(all)
    }
}

impl fmt::Display for NodeIps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&joined(IpFamily::ALL.into_iter().filter_map(|family| self.of(family))))
    }
}

/// The addresses of this node at which NodePorts are served. Loopback addresses are never among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// All addresses of the node.
    #[default]
    All,
    /// The node's primary address of each family.
    Primary,
    /// The addresses in these networks; all of a family that has none.
    Within(Vec<IpNet>),
}

impl NodePortAddresses {
    /// The word for the node's primary addresses.
    const PRIMARY: &str = "primary";

    /// Reads the elements of the list.
    ///
    /// # Errors
    ///
    /// With the element that is neither a CIDR nor the word alone.
    pub fn from_list<S: AsRef<str>>(list: &[S]) -> Result<Self, ValueError> {
        match list {
            [] => Ok(Self::All),
            [only] if only.as_ref().trim() == Self::PRIMARY => Ok(Self::Primary),
            several => {
                let cidr = |text: &S| {
                    let text = text.as_ref().trim();
                    text.parse::<IpNet>().map_err(|_| ValueError::NodePortAddresses(text.to_owned()))
                };
                several.iter().map(cidr).collect::<Result<_, _>>().map(Self::Within)
            }
        }
    }

    /// As the list is written.
    pub fn to_list(&self) -> Vec<String> {
        match self {
            Self::All => Vec::new(),
            Self::Primary => vec![Self::PRIMARY.to_owned()],
            Self::Within(networks) => networks.iter().map(IpNet::to_string).collect(),
        }
    }

    /// Whether NodePorts are served at `address` of this node, whose primary address of that family is `primary`.
    pub fn has(&self, address: IpAddr, primary: Option<IpAddr>) -> bool {
        if address.is_loopback() {
            return false;
        }
        match self {
            Self::All => true,
            Self::Primary => primary == Some(address),
            Self::Within(networks) => {
                let family = IpFamily::of(address);
                let mut of_family = networks.iter().filter(|network| IpFamily::of(network.addr()) == family).peekable();
                of_family.peek().is_none() || of_family.any(|network| network.contains(&address))
            }
        }
    }

    /// Whether they are all addresses of both families, whatever the node has.
    pub fn is_everywhere(&self) -> bool {
        match self {
            Self::All => true,
            Self::Primary => false,
            Self::Within(networks) => IpFamily::ALL.into_iter().all(|family| {
                let mut of_family = networks.iter().filter(|network| IpFamily::of(network.addr()) == family).peekable();
                of_family.peek().is_none() || of_family.any(|network| network.prefix_len() == 0)
            }),
        }
    }

    /// The family for which the list has no network although it has one for the other.
    pub fn family_left_out(&self) -> Option<IpFamily> {
        let Self::Within(networks) = self else { return None };
        let has = |family| networks.iter().any(|network| IpFamily::of(network.addr()) == family);
        IpFamily::ALL.into_iter().find(|family| !has(*family))
    }
}

/// How traffic of this node's pods is told from other traffic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LocalDetection {
    /// By a source in `--cluster-cidr`.
    #[default]
    ClusterCidr,
    /// By a source in the Node object's `podCIDRs`.
    NodeCidr,
    /// By coming from this bridge.
    BridgeInterface(String),
    /// By coming from an interface whose name begins so.
    InterfaceNamePrefix(String),
}

impl LocalDetection {
    /// The ways, as `--detect-local-mode` has them.
    pub const MODES: [&str; 4] = ["ClusterCIDR", "NodeCIDR", "BridgeInterface", "InterfaceNamePrefix"];

    /// Its name among [`Self::MODES`].
    pub fn mode(&self) -> &'static str {
        let [cluster, node, bridge, prefix] = Self::MODES;
        match self {
            Self::ClusterCidr => cluster,
            Self::NodeCidr => node,
            Self::BridgeInterface(_) => bridge,
            Self::InterfaceNamePrefix(_) => prefix,
        }
    }
}

/// Whose sockets are led to endpoints when they connect, instead of their packets later on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SocketLb {
    /// Those of the host's network namespace.
    #[default]
    Host,
    /// Those of pods as well.
    All,
    /// Nobody's.
    Off,
}

/// How answers come back to clients outside from backends on other nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LbMode {
    /// Through this node: its address stands for the client's.
    #[default]
    Snat,
    /// Directly, by direct server return: TCP and UDP.
    Dsr,
    /// TCP directly, all else through this node.
    Hybrid,
}

/// What becomes of established TCP whose backend has gone from its Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum GoneBackend {
    /// It goes on for as long as both ends want it, as with kube-proxy.
    #[default]
    Continue,
    /// It is reset.
    Reset,
}

/// Where packets between other hosts are sent on by the device's driver already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Xdp {
    /// On node devices that do it without anybody's help.
    #[default]
    Auto,
    /// On all node devices whose driver can do it: veths too, whose senders must not leave checksums to the device.
    Native,
    /// Nowhere.
    Off,
}

impl Xdp {
    /// The devices that it is used on, if it is.
    pub const fn devices(self) -> Option<XdpDevices> {
        match self {
            Self::Auto => Some(XdpDevices::Auto),
            Self::Native => Some(XdpDevices::Native),
            Self::Off => None,
        }
    }
}

/// Reads a list of CIDRs; host bits are no mistake here, as in kube-proxy.
///
/// # Errors
///
/// With what is no CIDR.
pub fn cidr(text: &str) -> Result<IpNet, ValueError> {
    let network: IpNet = text.trim().parse().map_err(|_| ValueError::Cidr(text.to_owned()))?;
    Ok(network.trunc())
}

/// Reads an address to listen at; `port` is used where none is written. Nothing means nowhere.
///
/// # Errors
///
/// With what is no such address.
pub fn listen(text: &str, port: u16) -> Result<Option<SocketAddr>, ValueError> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(None);
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let read = text.parse::<SocketAddr>().or_else(|_| bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port)));
    read.map(Some).map_err(|_| ValueError::Listen(text.to_owned()))
}

/// Values with commas between them.
pub(super) fn joined<T: fmt::Display>(values: impl IntoIterator<Item = T>) -> String {
    values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn ranges_of_ports() {
        assert_eq!("30000-32767".parse(), Ok(PortRange { first: 30000, last: 32767 }));
        assert_eq!("7-7".parse::<PortRange>().expect("valid").to_string(), "7-7");
        for text in ["", "7", "8-7", "0-7", "1-65536", "-", "a-b", "1-2-3"] {
            assert_eq!(text.parse::<PortRange>(), Err(ValueError::Ports(text.to_owned())));
        }
    }

    #[test]
    fn node_ips_are_one_of_each_family() {
        let both: NodeIps = "2001:db8::1, 192.0.2.1".parse().expect("valid");
        assert_eq!(both.to_string(), "192.0.2.1,2001:db8::1");
        assert_eq!("192.0.2.1".parse::<NodeIps>().expect("valid").of(IpFamily::V6), None);
        for text in ["192.0.2.1,192.0.2.2", "0.0.0.0", "127.0.0.1", "::1", "ff02::1", "", "192.0.2.1,", "node-a"] {
            text.parse::<NodeIps>().expect_err(text);
        }
    }

    #[test]
    fn lists_of_everything_are_everywhere() {
        for (text, expected) in [
            (&[][..], true),
            (&["0.0.0.0/0", "::/0"], true),
            (&["10.0.0.0/8", "0.0.0.0/0"], true),
            (&["10.0.0.0/8"], false),
            (&["0.0.0.0/0", "fd00::/8"], false),
            (&["primary"], false),
        ] {
            let addresses = NodePortAddresses::from_list(text).expect("valid");
            assert_eq!(addresses.is_everywhere(), expected, "{text:?}");
        }
    }

    #[test]
    fn node_ports_are_served_where_the_list_says() {
        let list = |text: &[&str]| NodePortAddresses::from_list(text).expect("valid");
        let (v4, v6, other) = (ip("192.0.2.1"), ip("2001:db8::1"), ip("10.0.0.1"));
        let all = list(&[]);
        let primary = list(&["primary"]);
        let v4_only = list(&["192.0.2.0/24"]);
        let both = list(&["192.0.2.0/24", "fd00::/8", "10.0.0.1/32"]);
        for (addresses, at, expected) in [
            (&all, v4, true),
            (&all, v6, true),
            (&all, ip("127.0.0.1"), false),
            (&all, ip("::1"), false),
            (&primary, v4, true),
            (&primary, v6, false),
            (&primary, other, false),
            (&v4_only, v4, true),
            (&v4_only, other, false),
            (&v4_only, v6, true),
            (&both, v6, false),
            (&both, other, true),
            (&list(&["127.0.0.0/8"]), ip("127.0.0.1"), false),
        ] {
            assert_eq!(addresses.has(at, Some(v4)), expected, "{addresses:?} {at}");
        }
        assert!(!primary.has(v4, None), "a node without an address has no primary one");
        assert_eq!(
            (v4_only.family_left_out(), both.family_left_out(), all.family_left_out()),
            (Some(IpFamily::V6), None, None)
        );
        for wrong in [&["primary", "10.0.0.0/8"][..], &["10.0.0.1"], &["all"], &[""]] {
            let error = NodePortAddresses::from_list(wrong).expect_err("no list");
            assert!(matches!(error, ValueError::NodePortAddresses(_)), "{error}");
        }
    }

    #[test]
    fn addresses_to_listen_at() {
        for (text, expected) in [
            ("0.0.0.0:1", Some("0.0.0.0:1")),
            ("0.0.0.0", Some("0.0.0.0:7")),
            ("::1", Some("[::1]:7")),
            ("[::]", Some("[::]:7")),
            ("[::]:9", Some("[::]:9")),
            ("", None),
        ] {
            assert_eq!(listen(text, 7), Ok(expected.map(|text| text.parse().expect("an address"))), "{text}");
        }
        for text in ["10256", "localhost", "localhost:1", "1.2.3.4:99999", ":10256"] {
            assert_eq!(listen(text, 7), Err(ValueError::Listen(text.to_owned())));
        }
    }
}
