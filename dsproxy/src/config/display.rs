//! The configuration as the flags that would make it, for the log: every knob with its value, ready to be copied.

use std::fmt;

use clap::ValueEnum;

use super::{
    Config, ConntrackConfig, LocalDetection, SourceConfig,
    duration::GoDuration,
    values::{NodeIps, joined},
};
use crate::datapath::load::Lifetimes;

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags: Vec<String> = self.flags().into_iter().map(|(flag, value)| format!("{flag}={value}")).collect();
        f.write_str(&flags.join(" "))
    }
}

impl Config {
    /// The flags that make this configuration, one on a line.
    pub fn lines(&self) -> String {
        self.flags().into_iter().map(|(flag, value)| format!("{flag}={value}\n")).collect()
    }

    /// The flags that make this configuration, without a file.
    fn flags(&self) -> Vec<(&'static str, String)> {
        let Self {
            source,
            hostname_override,
            cluster_cidr,
            local_detection,
            node_port_addresses,
            node_port_range,
            node_ips,
            primary_family: _,
            external_ips,
            masquerade_all,
            lb_mode,
            accept_direct,
            masquerade_egress,
            non_masquerade_cidrs,
            snat_ports,
            reserve_ports,
            pod_shortcut,
            socket_lb,
            cgroup,
            tcp_gone_backend,
            lifetimes,
            node_devices,
            pod_interfaces,
            attach,
            xdp,
            healthz_bind_address,
            metrics_bind_address,
            metrics_services,
            bind_address_hard_fail,
            bpffs,
            capacities,
            cached_flows,
            conntrack,
            oom_score_adj,
            file: _,
        } = self;
        let address = |address: &Option<std::net::SocketAddr>| address.map(|it| it.to_string()).unwrap_or_default();
        let mut flags = vec![
            ("--detect-local-mode", local_detection.mode().to_owned()),
            ("--node-port-range", node_port_range.to_string()),
            ("--feature-gates", format!("AllowServiceExternalIPs={external_ips}")),
            ("--masquerade-all", masquerade_all.to_string()),
            ("--lb-mode", word(lb_mode)),
            ("--accept-direct", accept_direct.to_string()),
            ("--masquerade-egress", masquerade_egress.to_string()),
            ("--snat-ports", snat_ports.to_string()),
            ("--reserve-ports", reserve_ports.to_string()),
            ("--pod-shortcut", pod_shortcut.to_string()),
            ("--socket-lb", word(socket_lb)),
            ("--tcp-gone-backend", word(tcp_gone_backend)),
            ("--attach", word(attach)),
            ("--xdp", word(xdp)),
            ("--healthz-bind-address", address(healthz_bind_address)),
            ("--metrics-bind-address", address(metrics_bind_address)),
            ("--metrics-services", metrics_services.to_string()),
            ("--bind-address-hard-fail", bind_address_hard_fail.to_string()),
            ("--bpffs", bpffs.display().to_string()),
            ("--max-services", capacities.services.to_string()),
            ("--max-frontends", capacities.frontends.to_string()),
            ("--max-backends", capacities.backends.to_string()),
            ("--max-slots", capacities.slots.to_string()),
            ("--max-connections", capacities.connections.to_string()),
            ("--max-brief-connections", capacities.brief_connections.to_string()),
            ("--max-affinities", capacities.affinities.to_string()),
            ("--max-source-ranges", capacities.source_ranges.to_string()),
            ("--max-cached-flows", cached_flows.to_string()),
            ("--oom-score-adj", oom_score_adj.to_string()),
        ];
        match source {
            SourceConfig::Manifests(directory) => flags.push(("--manifests", directory.display().to_string())),
            SourceConfig::Kubernetes { kubeconfig, master } => {
                flags.extend(kubeconfig.iter().map(|file| ("--kubeconfig", file.display().to_string())));
                flags.extend(master.iter().map(|url| ("--master", url.clone())));
            }
        }
        match local_detection {
            LocalDetection::ClusterCidr | LocalDetection::NodeCidr => {}
            LocalDetection::BridgeInterface(name) => flags.push(("--pod-bridge-interface", name.clone())),
            LocalDetection::InterfaceNamePrefix(prefix) => flags.push(("--pod-interface-name-prefix", prefix.clone())),
        }
        let lists = [
            ("--hostname-override", hostname_override.clone().unwrap_or_default()),
            ("--cluster-cidr", cluster_cidr.map(|cidrs| cidrs.to_string()).unwrap_or_default()),
            ("--nodeport-addresses", node_port_addresses.to_list().join(",")),
            ("--node-ip", if *node_ips == NodeIps::default() { String::new() } else { node_ips.to_string() }),
            ("--non-masquerade-cidrs", joined(non_masquerade_cidrs)),
            ("--cgroup", cgroup.as_ref().map(|directory| directory.display().to_string()).unwrap_or_default()),
            ("--node-devices", node_devices.join(",")),
            ("--pod-interfaces", pod_interfaces.join(",")),
        ];
        flags.extend(lists.into_iter().filter(|(_, value)| !value.is_empty()));
        flags.extend(timeouts(lifetimes));
        flags.extend(of_conntrack(conntrack));
        flags
    }
}

fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

fn timeouts(lifetimes: &Lifetimes) -> Vec<(&'static str, String)> {
    let Lifetimes { opening, established, half_closed, closing, reset, stateless } = *lifetimes;
    [
        ("--timeout-tcp-opening", opening),
        ("--timeout-tcp-established", established),
        ("--timeout-tcp-half-closed", half_closed),
        ("--timeout-tcp-closing", closing),
        ("--timeout-tcp-reset", reset),
        ("--timeout-udp", stateless),
    ]
    .map(|(flag, time)| (flag, GoDuration(time).to_string()))
    .into()
}

fn of_conntrack(conntrack: &ConntrackConfig) -> Vec<(&'static str, String)> {
    let ConntrackConfig { max_per_core, min, tcp_established, tcp_close_wait, tcp_be_liberal, udp, udp_stream } =
        conntrack;
    let time = |seconds: &Option<u64>| GoDuration::from_secs(seconds.unwrap_or_default()).to_string();
    vec![
        ("--conntrack-max-per-core", max_per_core.to_string()),
        ("--conntrack-min", min.to_string()),
        ("--conntrack-tcp-timeout-established", time(tcp_established)),
        ("--conntrack-tcp-timeout-close-wait", time(tcp_close_wait)),
        ("--conntrack-tcp-be-liberal", tcp_be_liberal.to_string()),
        ("--conntrack-udp-timeout", time(udp)),
        ("--conntrack-udp-timeout-stream", time(udp_stream)),
    ]
}
