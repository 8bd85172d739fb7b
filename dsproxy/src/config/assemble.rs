//! One [`Config`] from the flags and, perhaps, the file.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use super::{
    Config, ConfigError, ConntrackConfig, LbMode, LocalDetection, LogConfig, LogFormat, NodeIps, NodePortAddresses,
    SourceConfig,
    duration::GoDuration,
    effective::in_terms_of_kube_proxy,
    file::File,
    flags::{OwnFlags, RunFlags, TimeoutFlags},
    kube_proxy::{Conntrack, KubeProxyConfiguration},
    kube_proxy_flags::{HEALTHZ_PORT, KubeProxyFlags, METRICS_PORT},
    places::{FIELDS, FLAGS, Places},
    values::{self, ValueError},
    without_effect::{Form, without_effect},
};
use crate::{cluster_cidr::ClusterCidrs, datapath::load::Lifetimes, model::IpFamily};

/// What was assembled.
#[derive(Clone, Debug, PartialEq)]
pub struct Assembled {
    /// What the daemon goes by.
    pub config: Config,
    /// How it logs.
    pub log: LogConfig,
    /// The same in kube-proxy's terms, with the defaults, as `/configz` shows it.
    pub kube_proxy: KubeProxyConfiguration,
    /// What the user should hear of, a line each.
    pub warnings: Vec<String>,
}

/// Makes the configuration from the flags and, when `--config` names one, the file.
///
/// # Errors
///
/// With the flag or field that makes no sense, its value, and what would.
pub fn assemble(flags: &RunFlags, file: Option<&File>) -> Result<Assembled, ConfigError> {
    let mut warnings = Vec::new();
    let from_flags = flags.kube_proxy.configuration();
    let (said, places, form) = match file {
        Some(File { configuration, unknown, text: _ }) => {
            if !unknown.is_empty() {
                let names: Vec<String> = unknown.iter().map(ToString::to_string).collect();
                warnings.push(format!("the file has fields that are unknown and left out: {}", names.join(", ")));
            }
            let replaced = replaced_flags(&flags.kube_proxy);
            if !replaced.is_empty() {
                warnings.push(format!("--config stands in place of these flags: {}", replaced.join(", ")));
            }
            (configuration.clone(), &FIELDS, Form::File)
        }
        None => (from_flags.clone(), &FLAGS, Form::Flags),
    };
    for (reason, names) in without_effect(&said.said()?, form) {
        warnings.push(format!("without effect, for {reason}: {}", names.join(", ")));
    }
    if file.is_some() {
        let log_flags = KubeProxyConfiguration { logging: from_flags.logging.clone(), ..Default::default() };
        for (reason, names) in without_effect(&log_flags.said()?, Form::Flags) {
            warnings.push(format!("without effect, for {reason}: {}", names.join(", ")));
        }
    }
    let log = log_config(flags, &from_flags, &said);
    let config = config(flags, &said, file.is_some(), places, &mut warnings)?;
    let kube_proxy = in_terms_of_kube_proxy(&said, &config);
    Ok(Assembled { config, log, kube_proxy, warnings })
}

/// kube-proxy's flags that were given, but for those that count beside a file.
fn replaced_flags(flags: &KubeProxyFlags) -> Vec<String> {
    let beside = KubeProxyFlags { hostname_override: None, log: Default::default(), ..flags.clone() };
    let said = KubeProxyConfiguration { api_version: None, kind: None, ..beside.configuration() };
    let mut names: Vec<String> = said.said().unwrap_or_default().into_keys().collect();
    if flags.master.is_some() {
        names.push("--master".to_owned());
    }
    names
}

fn log_config(flags: &RunFlags, from_flags: &KubeProxyConfiguration, said: &KubeProxyConfiguration) -> LogConfig {
    let own = |name: &str| from_flags.logging.as_ref()?.get(name);
    let of_file = |name: &str| said.logging.as_ref()?.get(name);
    let said = |name: &str| own(name).or_else(|| of_file(name));
    let format = flags.log.log_format.unwrap_or_else(|| {
        let is_json = said("format").and_then(|format| format.as_str()) == Some("json");
        if is_json { LogFormat::Json } else { LogFormat::Text }
    });
    let level = flags.log.log_level.clone().unwrap_or_else(|| {
        let level = match said("verbosity").and_then(serde_json::Value::as_u64) {
            None | Some(0..=3) => "info",
            Some(4..=5) => "debug",
            Some(6..) => "trace",
        };
        level.to_owned()
    });
    LogConfig { format, level }
}

fn config(
    flags: &RunFlags,
    said: &KubeProxyConfiguration,
    is_file: bool,
    places: &Places,
    warnings: &mut Vec<String>,
) -> Result<Config, ConfigError> {
    let RunFlags { manifests, config: file, write_config_to: _, init_only: _, cleanup: _, kube_proxy, own, log: _ } =
        flags;
    let OwnFlags {
        node_devices,
        pod_interfaces,
        node_ip,
        attach,
        xdp,
        socket_lb,
        cgroup,
        snat_ports,
        node_port_range,
        reserve_ports,
        pod_shortcut,
        lb_mode,
        accept_direct,
        masquerade_egress,
        non_masquerade_cidrs,
        tcp_gone_backend,
        metrics_services,
        bpffs,
        timeouts,
        sizes,
    } = own.clone();
    let (bind_address, node_ips) = node_addresses(said, node_ip.unwrap_or_default(), places, warnings)?;
    let overlap = snat_ports.first.max(node_port_range.first) <= snat_ports.last.min(node_port_range.last);
    if overlap {
        return Err(ConfigError::PortsOverlap { snat: snat_ports, node_ports: node_port_range });
    }
    let conntrack = said.conntrack.clone().unwrap_or_default();
    let listen = |text: &Option<String>, port, default: SocketAddr, place| match text {
        None => Ok(Some(default)),
        Some(text) => values::listen(text, port).map_err(|source| ConfigError::Value { place, source }),
    };
    let loopback: IpAddr = match bind_address {
        Some(IpAddr::V6(_)) => Ipv6Addr::LOCALHOST.into(),
        _ => Ipv4Addr::LOCALHOST.into(),
    };
    let everywhere = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), HEALTHZ_PORT);
    let hostname = [&kube_proxy.hostname_override, &said.hostname_override];
    let hostname = hostname.into_iter().flatten().map(|name| name.trim().to_lowercase()).find(|name| !name.is_empty());
    let is_nftables = said.mode.as_deref() == Some("nftables");
    let masquerade_all = if is_nftables {
        said.nftables.as_ref().and_then(|section| section.masquerade_all)
    } else {
        said.iptables.as_ref().and_then(|section| section.masquerade_all)
    };
    Ok(Config {
        source: source(manifests.as_ref(), said, kube_proxy.master.as_ref().filter(|_| !is_file), warnings),
        hostname_override: hostname,
        cluster_cidr: cluster_cidr(said, places)?,
        local_detection: local_detection(said, places)?,
        node_port_addresses: NodePortAddresses::from_list(said.node_port_addresses.as_deref().unwrap_or_default())
            .map_err(|source| ConfigError::Value { place: places.node_port_addresses, source })?,
        node_port_range,
        node_ips,
        primary_family: bind_address.or_else(|| first_of(node_ips)).map(IpFamily::of),
        external_ips: feature(said, "AllowServiceExternalIPs").unwrap_or(true),
        masquerade_all: masquerade_all.unwrap_or_default(),
        lb_mode,
        accept_direct: accept_direct.unwrap_or(lb_mode != LbMode::Snat),
        masquerade_egress,
        non_masquerade_cidrs,
        snat_ports,
        reserve_ports,
        pod_shortcut,
        socket_lb,
        cgroup,
        tcp_gone_backend,
        lifetimes: lifetimes(&timeouts, &conntrack),
        node_devices,
        pod_interfaces,
        attach,
        xdp,
        healthz_bind_address: listen(&said.healthz_bind_address, HEALTHZ_PORT, everywhere, places.healthz)?,
        metrics_bind_address: listen(
            &said.metrics_bind_address,
            METRICS_PORT,
            SocketAddr::new(loopback, METRICS_PORT),
            places.metrics,
        )?,
        metrics_services,
        bind_address_hard_fail: said.bind_address_hard_fail.unwrap_or_default(),
        bpffs: bpffs.directory,
        capacities: sizes.capacities(),
        cached_flows: 1 << sizes.max_cached_flows.ilog2(),
        conntrack: conntrack_config(&conntrack, places)?,
        oom_score_adj: number(said.oom_score_adj, -999, (-1000, 1000), places.oom_score_adj)?,
        file: file.clone(),
    })
}

fn source(
    manifests: Option<&PathBuf>,
    said: &KubeProxyConfiguration,
    master: Option<&String>,
    warnings: &mut Vec<String>,
) -> SourceConfig {
    let kubeconfig = said.client_connection.as_ref().and_then(|client| client.kubeconfig.as_ref()).map(PathBuf::from);
    match manifests {
        Some(directory) => {
            if let Some(kubeconfig) = kubeconfig {
                warnings.push(format!("--manifests stands in place of the kubeconfig {}", kubeconfig.display()));
            }
            SourceConfig::Manifests(directory.clone())
        }
        None => SourceConfig::Kubernetes { kubeconfig, master: master.cloned() },
    }
}

/// The address that says the primary family, and the node's addresses. kube-proxy takes `--bind-address` before all
/// others.
fn node_addresses(
    said: &KubeProxyConfiguration,
    mut node_ips: NodeIps,
    places: &Places,
    warnings: &mut Vec<String>,
) -> Result<(Option<IpAddr>, NodeIps), ConfigError> {
    let place = places.bind_address;
    let Some(text) = said.bind_address.as_ref() else { return Ok((None, node_ips)) };
    let address: IpAddr =
        text.trim().parse().map_err(|_| ConfigError::Value { place, source: ValueError::NodeIp(text.clone()) })?;
    if address.is_unspecified() {
        // What kubeadm writes, and kube-proxy has as its default: nothing is said about IPv4.
        return Ok((Some(address).filter(IpAddr::is_ipv6), node_ips));
    }
    if address.is_loopback() {
        warnings.push(format!(
            "{place} {address} says the primary family alone: nobody else could answer to a loopback address"
        ));
    } else {
        let family = IpFamily::of(address);
        if let Some(other) = node_ips.of(family).filter(|other| *other != address) {
            warnings.push(format!("{place} {address} stands in place of --node-ip {other}"));
        }
        node_ips.set(address);
    }
    Ok((Some(address), node_ips))
}

fn first_of(node_ips: NodeIps) -> Option<IpAddr> {
    IpFamily::ALL.into_iter().find_map(|family| node_ips.of(family))
}

fn cluster_cidr(said: &KubeProxyConfiguration, places: &Places) -> Result<Option<ClusterCidrs>, ConfigError> {
    let Some(value) = said.cluster_cidr.clone() else { return Ok(None) };
    let place = places.cluster_cidr;
    ClusterCidrs::parse(&value).map(Some).map_err(|source| ConfigError::ClusterCidr { place, value, source })
}

fn local_detection(said: &KubeProxyConfiguration, places: &Places) -> Result<LocalDetection, ConfigError> {
    let Some(value) = said.detect_local_mode.as_deref() else { return Ok(LocalDetection::default()) };
    let by = said.detect_local.clone().unwrap_or_default();
    let [cluster, node, bridge, prefix] = LocalDetection::MODES;
    let place = places.detection;
    let needs = |name: Option<String>, mode, lacking| name.ok_or(ConfigError::Detection { place, mode, lacking });
    match value {
        value if value == cluster => Ok(LocalDetection::ClusterCidr),
        value if value == node => Ok(LocalDetection::NodeCidr),
        value if value == bridge => {
            needs(by.bridge_interface, bridge, places.bridge).map(LocalDetection::BridgeInterface)
        }
        value if value == prefix => {
            needs(by.interface_name_prefix, prefix, places.prefix).map(LocalDetection::InterfaceNamePrefix)
        }
        value => {
            let source = ValueError::Word { value: value.to_owned(), known: LocalDetection::MODES.to_vec() };
            Err(ConfigError::Value { place, source })
        }
    }
}

fn feature(said: &KubeProxyConfiguration, name: &str) -> Option<bool> {
    said.feature_gates.as_ref()?.get(name).copied()
}

/// dsproxy's own flags come first, then kube-proxy's. Those for UDP of the kernel's table are two, by whether there was an
/// answer; here there is one time for both, the longer.
fn lifetimes(flags: &TimeoutFlags, conntrack: &Conntrack) -> Lifetimes {
    let TimeoutFlags {
        timeout_tcp_opening,
        timeout_tcp_established,
        timeout_tcp_half_closed,
        timeout_tcp_closing,
        timeout_tcp_reset,
        timeout_udp,
    } = flags;
    let default = Lifetimes::default();
    let given = |time: Option<GoDuration>| time.map(|GoDuration(time)| time).filter(|time| !time.is_zero());
    let or = |own: Option<GoDuration>, theirs: Option<GoDuration>, default: Duration| {
        own.map(|GoDuration(time)| time).or_else(|| given(theirs)).unwrap_or(default)
    };
    let answered = given(conntrack.udp_stream_timeout).unwrap_or(default.stateless);
    let udp = given(conntrack.udp_timeout).map_or(answered, |unanswered| unanswered.max(answered));
    Lifetimes {
        opening: or(*timeout_tcp_opening, None, default.opening),
        established: or(*timeout_tcp_established, conntrack.tcp_established_timeout, default.established),
        half_closed: or(*timeout_tcp_half_closed, conntrack.tcp_close_wait_timeout, default.half_closed),
        closing: or(*timeout_tcp_closing, None, default.closing),
        reset: or(*timeout_tcp_reset, None, default.reset),
        stateless: or(*timeout_udp, None, udp),
    }
}

fn conntrack_config(conntrack: &Conntrack, places: &Places) -> Result<ConntrackConfig, ConfigError> {
    let Conntrack {
        max_per_core,
        min,
        tcp_established_timeout,
        tcp_close_wait_timeout,
        tcp_be_liberal,
        udp_timeout,
        udp_stream_timeout,
    } = conntrack;
    let seconds = |time: Option<GoDuration>| time.map(|GoDuration(time)| time.as_secs()).filter(|seconds| *seconds > 0);
    let any = (0, i64::from(i32::MAX));
    Ok(ConntrackConfig {
        max_per_core: number(*max_per_core, 32 * 1024, any, places.max_per_core)?.unsigned_abs(),
        min: number(*min, 128 * 1024, any, places.min)?.unsigned_abs(),
        tcp_established: seconds(tcp_established_timeout.or(Some(GoDuration::from_secs(24 * 60 * 60)))),
        tcp_close_wait: seconds(tcp_close_wait_timeout.or(Some(GoDuration::from_secs(60 * 60)))),
        tcp_be_liberal: tcp_be_liberal.unwrap_or_default(),
        udp: seconds(*udp_timeout),
        udp_stream: seconds(*udp_stream_timeout),
    })
}

fn number(
    value: Option<i32>,
    default: i32,
    (least, most): (i64, i64),
    place: &'static str,
) -> Result<i32, ConfigError> {
    let value = value.unwrap_or(default);
    let number = i64::from(value);
    if number < least || number > most {
        return Err(ConfigError::Number { place, value: number, least, most });
    }
    Ok(value)
}

#[cfg(test)]
mod tests;
