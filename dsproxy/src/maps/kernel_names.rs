//! Which maps in the kernel hold what.

use dsproxy_common::{
    IpFamily,
    layout::{self, family_maps},
};

use super::MapKind;

impl MapKind {
    /// All of them.
    pub const ALL: [Self; 21] = [
        Self::Services,
        Self::Frontends,
        Self::Filter,
        Self::Slots,
        Self::Backends,
        Self::Connections,
        Self::BriefConnections,
        Self::Masqueraded,
        Self::Affinities,
        Self::Sockets,
        Self::TcpSockets,
        Self::SourceRanges,
        Self::Networks,
        Self::NodeAddresses,
        Self::Fragments,
        Self::Settings,
        Self::Routing,
        Self::XdpDevices,
        Self::Counters,
        Self::Daemon,
        Self::Events,
    ];

    /// The names of the maps of `family` in the kernel; without one, of those that are for both. It may be none.
    pub fn kernel_maps(self, family: Option<IpFamily>) -> &'static [&'static str] {
        match family {
            None => self.of_both(),
            Some(family) => self.of_family(family),
        }
    }

    fn of_both(self) -> &'static [&'static str] {
        match self {
            Self::Services => &[layout::SERVICE_COUNTERS, layout::SERVICE_DROPS, layout::SERVICE_NAMES],
            Self::Settings => &[layout::SETTINGS],
            Self::Routing => &[layout::ROUTING],
            Self::XdpDevices => &[layout::XDP_DEVICES],
            Self::Counters => &[layout::COUNTERS],
            Self::Daemon => &[layout::DAEMON],
            Self::Events => {
                &[layout::EVENT_FILTER, layout::EVENTS, layout::EVENTS_LOST, layout::OBSERVERS, layout::XDP_OBSERVERS]
            }
            _ => &[],
        }
    }

    fn of_family(self, family: IpFamily) -> &'static [&'static str] {
        macro_rules! names {
            ($($field:ident),+) => {{
                const V4: &[&str] = &[$(family_maps(IpFamily::V4).$field),+];
                const V6: &[&str] = &[$(family_maps(IpFamily::V6).$field),+];
                match family {
                    IpFamily::V4 => V4,
                    IpFamily::V6 => V6,
                }
            }};
        }
        match self {
            Self::Frontends => names!(frontends),
            Self::Filter => names!(filter, egress_filter, leaving_filter),
            Self::Slots => names!(slots),
            Self::Backends => names!(backends),
            Self::Connections => names!(forward, egress),
            Self::BriefConnections => names!(forward_brief, egress_brief),
            Self::Masqueraded => names!(snat),
            Self::Affinities => names!(affinity),
            Self::Sockets => names!(sockets),
            Self::TcpSockets => names!(tcp_sockets),
            Self::SourceRanges => names!(ranges),
            Self::Networks => names!(networks),
            Self::NodeAddresses => names!(masquerade),
            Self::Fragments => names!(fragments),
            Self::Services
            | Self::Settings
            | Self::Routing
            | Self::XdpDevices
            | Self::Counters
            | Self::Daemon
            | Self::Events => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_map_of_a_family_is_somebodys() {
        let families = [None, Some(IpFamily::V4), Some(IpFamily::V6)];
        let names: Vec<&str> = MapKind::ALL
            .into_iter()
            .flat_map(|kind| families.into_iter().flat_map(move |family| kind.kernel_maps(family)))
            .copied()
            .collect();
        let once: BTreeSet<&str> = names.iter().copied().collect();
        assert_eq!(once.len(), names.len(), "each is one kind's");
        for name in IpFamily::ALL.into_iter().flat_map(|family| family_maps(family).all()) {
            assert!(once.contains(name), "{name}");
        }
    }
}
