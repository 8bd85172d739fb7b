//! The configuration in kube-proxy's terms, for whoever asks or writes it down.

use std::net::{Ipv4Addr, SocketAddr};

use super::{
    Config, ConntrackConfig,
    duration::GoDuration,
    kube_proxy::{Conntrack, KubeProxyConfiguration},
};

/// What was said, with the defaults of what is obeyed.
pub(super) fn in_terms_of_kube_proxy(said: &KubeProxyConfiguration, config: &Config) -> KubeProxyConfiguration {
    let listen = |address: Option<SocketAddr>| Some(address.map(|address| address.to_string()).unwrap_or_default());
    let count = |count: u32| Some(i32::try_from(count).unwrap_or(i32::MAX));
    let time = |seconds: Option<u64>| Some(GoDuration::from_secs(seconds.unwrap_or_default()));
    let ConntrackConfig { max_per_core, min, tcp_established, tcp_close_wait, tcp_be_liberal, udp, udp_stream } =
        config.conntrack;
    KubeProxyConfiguration {
        hostname_override: config.hostname_override.clone(),
        bind_address: said.bind_address.clone().or(Some(Ipv4Addr::UNSPECIFIED.to_string())),
        healthz_bind_address: listen(config.healthz_bind_address),
        metrics_bind_address: listen(config.metrics_bind_address),
        bind_address_hard_fail: Some(config.bind_address_hard_fail),
        detect_local_mode: Some(config.local_detection.mode().to_owned()),
        oom_score_adj: Some(config.oom_score_adj),
        conntrack: Some(Conntrack {
            max_per_core: count(max_per_core),
            min: count(min),
            tcp_established_timeout: time(tcp_established),
            tcp_close_wait_timeout: time(tcp_close_wait),
            tcp_be_liberal: Some(tcp_be_liberal),
            udp_timeout: time(udp),
            udp_stream_timeout: time(udp_stream),
        }),
        ..said.clone()
    }
}
