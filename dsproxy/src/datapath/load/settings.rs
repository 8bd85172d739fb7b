//! What the programs go by, as user space has it, and as they are told.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
    os::fd::AsRawFd as _,
    time::Duration,
};

use dsproxy_common::{flow::FlowState, layout, settings::Settings};

use crate::maps::kernel::network_record;

/// How long connections count without a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// TCP whose client has sent nothing but its SYN.
    pub opening: Duration,
    /// Established TCP.
    pub established: Duration,
    /// TCP of which one side has sent its FIN.
    pub half_closed: Duration,
    /// TCP of which both sides have.
    pub closing: Duration,
    /// TCP after a RST.
    pub reset: Duration,
    /// Everything else.
    pub stateless: Duration,
}

impl Default for Lifetimes {
    /// As the kernel's own connection tracking has them (net/netfilter/nf_conntrack_proto_tcp.c), or kube-proxy sets them
    /// there: established and half closed.
    fn default() -> Self {
        Self {
            opening: Duration::from_secs(120),
            established: Duration::from_secs(24 * 60 * 60),
            half_closed: Duration::from_secs(60 * 60),
            closing: Duration::from_secs(120),
            reset: Duration::from_secs(10),
            stateless: Duration::from_secs(120),
        }
    }
}

/// What the programs go by, beside what they are to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatapathSettings {
    /// How long connections count without a packet.
    pub lifetimes: Lifetimes,
    /// `SettingFlags`.
    pub flags: u32,
    /// The first and the last port that masqueraded packets leave with.
    pub snat_ports: [u16; 2],
    /// Those of them that new connections get.
    pub offered_ports: [u16; 2],
    /// How many refusals a CPU sends in a second.
    pub refusals_per_second: u32,
    /// How many flows each CPU remembers for XDP: a power of two; 1 where XDP is not used.
    pub cached_flows: u32,
}

impl Default for DatapathSettings {
    fn default() -> Self {
        // The dynamic ports (RFC 6335, section 6), beyond those of NodePorts and of Linux's own choice for the most part.
        let snat_ports = [49_152, 65_535];
        Self {
            lifetimes: Lifetimes::default(),
            flags: 0,
            snat_ports,
            offered_ports: snat_ports,
            // As the kernel's own for ICMP (net.ipv4.icmp_msgs_per_sec).
            refusals_per_second: 1000,
            cached_flows: layout::capacity::CACHED_FLOWS,
        }
    }
}

/// What the programs are told. Where ClusterIPs are stays as it was `before`, for that follows the Services.
pub(super) fn settings(
    wanted: &DatapathSettings,
    jiffies_per_second: u32,
    host_namespace: u64,
    before: Option<&Settings>,
) -> Settings {
    let DatapathSettings { lifetimes, flags, snat_ports, offered_ports, refusals_per_second, cached_flows } = *wanted;
    let jiffies = |time: Duration| {
        let jiffies = time.as_secs().saturating_mul(jiffies_per_second.into());
        // Half the range of the clock: beyond that an age could not be told from a younger one. And a second at least (`Age`).
        u32::try_from(jiffies).unwrap_or(u32::MAX).min(u32::MAX / 2).max(jiffies_per_second)
    };
    let Lifetimes { opening, established, half_closed, closing, reset, stateless } = lifetimes;
    let mut settings = Settings {
        jiffies_per_second,
        lifetimes: [0; FlowState::COUNT],
        port_waits: [[0; FlowState::COUNT]; 2],
        flags,
        snat_ports,
        offered_ports,
        refusals_per_second,
        services_v4: before.map_or_else(|| network_record(None), |before| before.services_v4),
        services_v6: before.map_or_else(|| network_record(None), |before| before.services_v6),
        reserved: 0,
        host_namespace,
    };
    for (state, time) in [
        (FlowState::Opening, opening),
        (FlowState::Answered, opening),
        (FlowState::Established, established),
        (FlowState::ClientClosed, half_closed),
        (FlowState::BackendClosed, half_closed),
        (FlowState::Closing, closing),
        (FlowState::Reset, reset),
        (FlowState::Stateless, stateless),
    ] {
        settings.lifetimes[usize::from(state.number())] = jiffies(time);
    }
    settings.with_port_waits(cached_flows > 1)
}

/// The cookie of the network namespace that this process is in (`SO_NETNS_COOKIE`, since Linux 5.14).
pub(super) fn namespace_cookie() -> io::Result<u64> {
    let socket =
        UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).or_else(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    let mut cookie = 0u64;
    let mut length = size_of_val(&cookie) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `cookie`, and how many to `length`; both outlive the call.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use dsproxy_common::settings::SettingFlags;

    use super::*;

    #[test]
    fn settings_are_in_jiffies_and_keep_where_cluster_ips_are() {
        let wanted = DatapathSettings { flags: SettingFlags::MASQUERADE_ALL, ..DatapathSettings::default() };
        let first = settings(&wanted, 250, 7, None);
        assert_eq!(first.lifetimes[usize::from(FlowState::Opening.number())], 120 * 250);
        assert_eq!(first.lifetimes[usize::from(FlowState::Answered.number())], 120 * 250);
        assert_eq!(first.lifetimes[usize::from(FlowState::Reset.number())], 10 * 250);
        assert!(first.lifetimes.iter().all(|jiffies| *jiffies > 0), "{first:?}");
        assert_eq!((first.flags, first.snat_ports, first.host_namespace), (1, [49_152, 65_535], 7));
        assert!(!first.services_v4.has(&Ipv4Addr::new(10, 96, 0, 1).into()), "nobody before there are Services");
        let services = network_record(Some("10.96.0.0/12".parse().expect("network")));
        let second = settings(&wanted, 1000, 7, Some(&Settings { services_v4: services, ..first }));
        assert_eq!((second.jiffies_per_second, second.services_v4), (1000, services));
    }

    #[test]
    fn this_namespace_has_a_cookie() {
        assert_ne!(namespace_cookie().expect("Linux 5.14 or later"), 0);
    }
}
