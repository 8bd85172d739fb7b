//! What a kube-proxy that ran on this node has left in the kernel: found and named at start, removed on request.
//!
//! Its rules translate the same packets as dsproxy does, to endpoints that may long be gone. `chains` (pure) knows what is
//! kube-proxy's and what is not, `nftables` speaks to the kernel, `legacy` to the programs of iptables-legacy, whose rules
//! the kernel shows to nobody else.

use std::{fmt, io, path::Path};

use thiserror::Error;

use crate::{
    model::IpFamily,
    netlink::{BlockingSocket, NetlinkError, Request},
};

mod chains;
mod legacy;
mod nftables;

/// The device on which the mode `ipvs` has the VIPs.
const IPVS_DEVICE: &str = "kube-ipvs0";

/// Where the kernel lists the virtual servers of ipvs, below two lines of headings and one of names.
const IPVS_SERVERS: &str = "/proc/net/ip_vs";

/// `struct ifinfomsg` of include/uapi/linux/rtnetlink.h, all of it zero.
const LINK_HEADER: [u8; 16] = [0; 16];
const IFLA_IFNAME: u16 = 3;

/// Which of the two worlds of iptables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Backend {
    /// iptables-nft: chains in tables of nftables.
    Nft,
    /// iptables-legacy.
    Legacy,
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nft => "iptables-nft",
            Self::Legacy => "iptables-legacy",
        })
    }
}

/// One thing of kube-proxy's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// The table of the mode `nftables`.
    Table(IpFamily),
    /// Chains of the modes `iptables` and `ipvs`.
    Chains {
        /// Whose.
        backend: Backend,
        /// Of which family.
        family: IpFamily,
        /// In which table.
        table: String,
        /// How many.
        count: usize,
        /// The first of them.
        example: String,
    },
    /// The device of the mode `ipvs`.
    Device,
    /// Virtual servers of the kernel's ipvs, so many, which others may have made as well.
    VirtualServers(usize),
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Table(family) => write!(f, "the nftables table {} kube-proxy", nftables::family_name(*family)),
            Self::Chains { backend, family, table, count, example } => {
                let others = count.saturating_sub(1);
                write!(f, "the {family} chain {example} and {others} more in the table {table} of {backend}")
            }
            Self::Device => write!(f, "the device {IPVS_DEVICE}"),
            Self::VirtualServers(count) => write!(f, "{count} virtual servers of ipvs"),
        }
    }
}

/// Why something could not be looked at or removed.
#[derive(Debug, Error)]
pub enum LeftoverError {
    /// The kernel did not answer or refused.
    #[error("{operation}: {source}; it takes root, or CAP_NET_ADMIN, and the host's network namespace")]
    Netlink {
        /// What was tried.
        operation: String,
        /// What went wrong.
        source: NetlinkError,
    },
    /// There are rules of iptables-legacy and no program to read them with.
    #[error(
        "the {family} tables {} of iptables-legacy are in use and cannot be looked into: {program} is not there; install \
         iptables, or run this where it is",
        tables.join(", ")
    )]
    NoProgram {
        /// The program.
        program: &'static str,
        /// Of which family.
        family: IpFamily,
        /// The tables.
        tables: Vec<String>,
    },
    /// The program of iptables-legacy failed.
    #[error("{program} failed: {reason}")]
    Program {
        /// The program.
        program: &'static str,
        /// What it said.
        reason: String,
    },
    /// The program of iptables-legacy could not be run.
    #[error("run {program}: {source}")]
    Run {
        /// The program.
        program: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// A list of the kernel's could not be read.
    #[error("read {path}: {source}")]
    Read {
        /// The file.
        path: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// Virtual servers are left alone: it cannot be told whose they are.
    #[error("{0} virtual servers of ipvs stay, for they may be somebody else's; `ipvsadm --clear` removes all of them")]
    VirtualServers(usize),
}

/// What was found, or removed, and what could not be.
#[derive(Debug, Default)]
pub struct Survey {
    /// Of kube-proxy's.
    pub leftovers: Vec<Leftover>,
    /// What could not be looked at, or not be removed.
    pub failures: Vec<LeftoverError>,
}

impl Survey {
    fn add(&mut self, found: Result<Vec<Leftover>, LeftoverError>) {
        match found {
            Ok(leftovers) => self.leftovers.extend(leftovers),
            Err(error) => self.failures.push(error),
        }
    }
}

/// Looks for leftovers in this network namespace.
pub fn find() -> Survey {
    let mut survey = Survey::default();
    for family in IpFamily::ALL {
        survey.add(nftables::find(family));
        survey.add(legacy::find(family));
    }
    if has_device() {
        survey.leftovers.push(Leftover::Device);
        survey.add(
            virtual_servers().map(|count| (count > 0).then_some(Leftover::VirtualServers(count)).into_iter().collect()),
        );
    }
    survey
}

/// Removes all of it that can be known to be kube-proxy's, and says what was removed. kubelet's own chains stay.
pub fn remove() -> Survey {
    let mut survey = Survey::default();
    for family in IpFamily::ALL {
        survey.add(nftables::remove(family));
        survey.add(legacy::remove(family));
    }
    if has_device() {
        survey.add(remove_device().map(|()| vec![Leftover::Device]));
        match virtual_servers() {
            Ok(0) => {}
            Ok(count) => survey.failures.push(LeftoverError::VirtualServers(count)),
            Err(error) => survey.failures.push(error),
        }
    }
    survey
}

fn has_device() -> bool {
    nix::net::if_::if_nametoindex(IPVS_DEVICE).is_ok()
}

fn remove_device() -> Result<(), LeftoverError> {
    let mut name = IPVS_DEVICE.as_bytes().to_vec();
    name.push(0);
    let request = Request::change(libc::RTM_DELLINK, 0, &LINK_HEADER).attribute(IFLA_IFNAME, &name);
    BlockingSocket::open()
        .and_then(|mut socket| socket.exchange(request, |_| {}))
        .map_err(|source| LeftoverError::Netlink { operation: format!("remove the device {IPVS_DEVICE}"), source })
}

/// How many there are; a kernel without ipvs has none.
fn virtual_servers() -> Result<usize, LeftoverError> {
    match std::fs::read_to_string(Path::new(IPVS_SERVERS)) {
        Ok(list) => Ok(count_servers(&list)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(source) => Err(LeftoverError::Read { path: IPVS_SERVERS, source }),
    }
}

/// A server begins a line; what it leads to stands below it, indented by an arrow.
fn count_servers(list: &str) -> usize {
    list.lines().filter(|line| ["TCP ", "UDP ", "SCTP ", "FWM "].iter().any(|kind| line.starts_with(kind))).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_counted_and_their_backends_are_not() {
        let list = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  \
                    -> RemoteAddress:Port Forward Weight ActiveConn InActConn\nTCP  0A600001:01BB rr\n  \
                    -> AC1E0001:192B      Masq    1      0          0\nUDP  [fd00::a]:0035 rr\n";
        assert_eq!(count_servers(list), 2);
        assert_eq!(count_servers(""), 0);
    }

    #[test]
    fn leftovers_are_told_in_words() {
        let chains = Leftover::Chains {
            backend: Backend::Nft,
            family: IpFamily::V6,
            table: "nat".into(),
            count: 3,
            example: "KUBE-SERVICES".into(),
        };
        assert_eq!(chains.to_string(), "the IPv6 chain KUBE-SERVICES and 2 more in the table nat of iptables-nft");
        assert_eq!(Leftover::Table(IpFamily::V6).to_string(), "the nftables table ip6 kube-proxy");
    }
}
