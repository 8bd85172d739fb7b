//! What of the configuration the kernel programs are told.

use dsproxy_common::settings::{NetworkFlags, SettingFlags};

use super::{Config, GoneBackend, LbMode, LocalDetection, SocketLb, Xdp};
use crate::{cluster_cidr::ClusterCidrs, datapath::load::DatapathSettings, networks::ConfiguredNetworks};

impl Config {
    /// The settings of the kernel programs.
    pub fn datapath_settings(&self) -> DatapathSettings {
        let flags = [
            (self.masquerade_all, SettingFlags::MASQUERADE_ALL),
            (self.masquerade_egress, SettingFlags::MASQUERADE_EGRESS),
            (self.tcp_gone_backend == GoneBackend::Reset, SettingFlags::RESET_GONE),
            (self.socket_lb == SocketLb::All, SettingFlags::ALL_SOCKETS),
            (self.lb_mode != LbMode::Snat, SettingFlags::DIRECT_TCP),
            (self.lb_mode == LbMode::Dsr, SettingFlags::DIRECT_UDP),
            (self.accept_direct, SettingFlags::ACCEPT_DIRECT),
            (self.pod_shortcut, SettingFlags::POD_SHORTCUT),
            (self.inside_by_network(), SettingFlags::INSIDE_BY_NETWORK),
        ];
        let snat_ports = [self.snat_ports.first, self.snat_ports.last];
        DatapathSettings {
            lifetimes: self.lifetimes,
            flags: flags.into_iter().filter(|(is_set, _)| *is_set).fold(0, |flags, (_, flag)| flags | flag),
            snat_ports,
            offered_ports: snat_ports,
            cached_flows: if self.xdp == Xdp::Off { 1 } else { self.cached_flows },
            ..DatapathSettings::default()
        }
    }

    /// What is known of networks from the start.
    pub fn networks(&self) -> ConfiguredNetworks {
        let pods = self.cluster_cidr.iter().flat_map(ClusterCidrs::iter);
        // Where pods are known by their node's own range, those of other nodes are none of this node's.
        let of_pods = match self.local_detection {
            LocalDetection::NodeCidr => NetworkFlags::NOT_MASQUERADED,
            _ => NetworkFlags::POD | NetworkFlags::NOT_MASQUERADED,
        };
        let others = self.non_masquerade_cidrs.iter().map(|cidr| (*cidr, NetworkFlags::NOT_MASQUERADED));
        ConfiguredNetworks {
            ranges: pods.map(|cidr| (cidr, of_pods)).chain(others).collect(),
            node_says_pods: self.local_detection == LocalDetection::NodeCidr,
        }
    }

    /// Whether a pod is known by its address, whatever interface its packets come by. Where it is known by its interface
    /// alone, what is attached there tells.
    fn inside_by_network(&self) -> bool {
        match self.local_detection {
            LocalDetection::ClusterCidr => self.cluster_cidr.is_some(),
            LocalDetection::NodeCidr => true,
            LocalDetection::BridgeInterface(_) | LocalDetection::InterfaceNamePrefix(_) => false,
        }
    }
}
