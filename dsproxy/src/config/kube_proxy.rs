//! `KubeProxyConfiguration` of `kubeproxy.config.k8s.io/v1alpha1`: the types, as kube-proxy's own file
//! `staging/src/k8s.io/kube-proxy/config/v1alpha1/types.go` has them.
//!
//! What is not said is absent. kube-proxy's flags are put into the same types (`flags.rs`), so that there is one way to a
//! `Config`. What the fields mean to dsproxy is told in `assemble.rs` and `without_effect.rs`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::duration::GoDuration;

/// `apiVersion` of the file.
pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";

/// `kind` of the file.
pub const KIND: &str = "KubeProxyConfiguration";

/// Declares types whose fields are all optional, under the names that the file has.
macro_rules! sections {
    ($($(#[$of_type:meta])* $name:ident { $($(#[doc = $of_field:literal])+ $field:ident $file_name:literal: $type:ty,)* })*) => {
        $(
            $(#[$of_type])*
            #[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
            pub struct $name {
                $(
                    $(#[doc = $of_field])+
                    #[serde(rename = $file_name, skip_serializing_if = "Option::is_none")]
                    pub $field: Option<$type>,
                )*
            }

            impl $name {
                /// The names of the fields in the file.
                pub const FIELDS: &[&str] = &[$($file_name),*];

                /// What the fields mean, in the same order.
                pub const MEANINGS: &[&str] = &[$(concat!($($of_field),+)),*];
            }
        )*
    };
}

sections! {
    /// The whole file.
    KubeProxyConfiguration {
        /// `kubeproxy.config.k8s.io/v1alpha1`.
        api_version "apiVersion": String,
        /// `KubeProxyConfiguration`.
        kind "kind": String,
        /// Features by name.
        feature_gates "featureGates": BTreeMap<String, bool>,
        /// How the API server is reached.
        client_connection "clientConnection": ClientConnection,
        /// The log, in the form of `k8s.io/component-base`.
        logging "logging": Value,
        /// The name of the Node object.
        hostname_override "hostnameOverride": String,
        /// The node's primary address.
        bind_address "bindAddress": String,
        /// Where `/healthz` and `/livez` are served; empty: nowhere.
        healthz_bind_address "healthzBindAddress": String,
        /// Where `/metrics` is served; empty: nowhere.
        metrics_bind_address "metricsBindAddress": String,
        /// Whether an address that cannot be listened at ends the daemon.
        bind_address_hard_fail "bindAddressHardFail": bool,
        /// Go's profiles.
        enable_profiling "enableProfiling": bool,
        /// Metrics of an earlier release.
        show_hidden_metrics_for_version "showHiddenMetricsForVersion": String,
        /// `iptables`, `ipvs` or `nftables`.
        mode "mode": String,
        /// The mode `iptables`.
        iptables "iptables": IpTables,
        /// The mode `ipvs`.
        ipvs "ipvs": Ipvs,
        /// The mode `nftables`.
        nftables "nftables": NfTables,
        /// Windows.
        winkernel "winkernel": Winkernel,
        /// How pods' traffic is known.
        detect_local_mode "detectLocalMode": String,
        /// What some of these ways need.
        detect_local "detectLocal": DetectLocal,
        /// The addresses of pods: a CIDR, or one of each family.
        cluster_cidr "clusterCIDR": String,
        /// The node addresses at which NodePorts are served.
        node_port_addresses "nodePortAddresses": Vec<String>,
        /// How unlikely the kernel is to end this process for want of memory.
        oom_score_adj "oomScoreAdj": i32,
        /// The kernel's own connection table.
        conntrack "conntrack": Conntrack,
        /// How often everything is listed afresh.
        config_sync_period "configSyncPeriod": GoDuration,
        /// Of a mode long gone.
        port_range "portRange": String,
        /// Windows.
        windows_run_as_service "windowsRunAsService": bool,
    }

    /// How the API server is reached.
    ClientConnection {
        /// The kubeconfig; none: as a pod does.
        kubeconfig "kubeconfig": String,
        /// Media types.
        accept_content_types "acceptContentTypes": String,
        /// A media type.
        content_type "contentType": String,
        /// Requests a second.
        qps "qps": f32,
        /// Requests at once.
        burst "burst": i32,
    }

    /// The mode `iptables`.
    IpTables {
        /// A bit of packets' marks.
        masquerade_bit "masqueradeBit": i32,
        /// Whether everything sent to ClusterIPs is masqueraded.
        masquerade_all "masqueradeAll": bool,
        /// Whether NodePorts are served on 127.0.0.1.
        localhost_node_ports "localhostNodePorts": bool,
        /// The time between two looks at all rules.
        sync_period "syncPeriod": GoDuration,
        /// The shortest time between two changes of rules.
        min_sync_period "minSyncPeriod": GoDuration,
    }

    /// The mode `ipvs`.
    Ipvs {
        /// The time between two looks at all rules.
        sync_period "syncPeriod": GoDuration,
        /// The shortest time between two changes of rules.
        min_sync_period "minSyncPeriod": GoDuration,
        /// How endpoints are chosen.
        scheduler "scheduler": String,
        /// What its cleaning up leaves alone.
        exclude_cidrs "excludeCIDRs": Vec<String>,
        /// Sysctls of ARP.
        strict_arp "strictARP": bool,
        /// Of idle TCP.
        tcp_timeout "tcpTimeout": GoDuration,
        /// Of TCP after a FIN.
        tcp_fin_timeout "tcpFinTimeout": GoDuration,
        /// Of UDP.
        udp_timeout "udpTimeout": GoDuration,
    }

    /// The mode `nftables`.
    NfTables {
        /// A bit of packets' marks.
        masquerade_bit "masqueradeBit": i32,
        /// Whether everything sent to ClusterIPs is masqueraded.
        masquerade_all "masqueradeAll": bool,
        /// The time between two looks at all rules.
        sync_period "syncPeriod": GoDuration,
        /// The shortest time between two changes of rules.
        min_sync_period "minSyncPeriod": GoDuration,
    }

    /// Windows.
    Winkernel {
        /// A network of the Host Networking Service.
        network_name "networkName": String,
        /// An address to masquerade with.
        source_vip "sourceVip": String,
        /// Direct server return.
        enable_dsr "enableDSR": bool,
        /// An endpoint of the Host Networking Service.
        root_hns_endpoint_name "rootHnsEndpointName": String,
        /// Whether the VIP is forwarded for health checks.
        forward_health_check_vip "forwardHealthCheckVip": bool,
    }

    /// What some ways to know pods' traffic need.
    DetectLocal {
        /// The bridge that pods are on.
        bridge_interface "bridgeInterface": String,
        /// What names of pods' interfaces begin with.
        interface_name_prefix "interfaceNamePrefix": String,
    }

    /// The kernel's own connection table.
    Conntrack {
        /// Connections for each CPU; 0: as it is.
        max_per_core "maxPerCore": i32,
        /// Connections at least.
        min "min": i32,
        /// Of established TCP; 0: as it is.
        tcp_established_timeout "tcpEstablishedTimeout": GoDuration,
        /// Of TCP closed by one side; 0: as it is.
        tcp_close_wait_timeout "tcpCloseWaitTimeout": GoDuration,
        /// Whether packets out of the window are accepted.
        tcp_be_liberal "tcpBeLiberal": bool,
        /// Of UDP without an answer; 0: as it is.
        udp_timeout "udpTimeout": GoDuration,
        /// Of UDP with an answer; 0: as it is.
        udp_stream_timeout "udpStreamTimeout": GoDuration,
    }
}

/// The sections of the file, the whole first, with the names of their fields.
pub const SECTIONS: [(&str, &[&str]); 8] = [
    ("", KubeProxyConfiguration::FIELDS),
    ("clientConnection", ClientConnection::FIELDS),
    ("iptables", IpTables::FIELDS),
    ("ipvs", Ipvs::FIELDS),
    ("nftables", NfTables::FIELDS),
    ("winkernel", Winkernel::FIELDS),
    ("detectLocal", DetectLocal::FIELDS),
    ("conntrack", Conntrack::FIELDS),
];

/// What the fields of `SECTIONS` mean.
pub const MEANINGS: [&[&str]; 8] = [
    KubeProxyConfiguration::MEANINGS,
    ClientConnection::MEANINGS,
    IpTables::MEANINGS,
    Ipvs::MEANINGS,
    NfTables::MEANINGS,
    Winkernel::MEANINGS,
    DetectLocal::MEANINGS,
    Conntrack::MEANINGS,
];

/// The fields whose zero is a value, being pointers in kube-proxy. Elsewhere a zero, an empty text or a `false` says
/// nothing, and is how kubeadm writes what was not set.
const ZERO_SAYS_SOMETHING: [&str; 8] = [
    "iptables.masqueradeBit",
    "iptables.localhostNodePorts",
    "nftables.masqueradeBit",
    "oomScoreAdj",
    "conntrack.maxPerCore",
    "conntrack.min",
    "conntrack.tcpEstablishedTimeout",
    "conntrack.tcpCloseWaitTimeout",
];

impl KubeProxyConfiguration {
    /// Without what says nothing.
    ///
    /// # Errors
    ///
    /// When the values cannot be expressed as JSON, which those of a file can.
    pub fn without_zeros(&self) -> Result<Self, serde_json::Error> {
        let mut value = serde_json::to_value(self)?;
        prune(&mut value, "");
        serde_json::from_value(value)
    }

    /// The names of the fields that are said, as in `iptables.masqueradeBit`, with their values.
    ///
    /// # Errors
    ///
    /// As [`Self::without_zeros`].
    pub fn said(&self) -> Result<BTreeMap<String, Value>, serde_json::Error> {
        let mut fields = BTreeMap::new();
        collect(serde_json::to_value(self)?, String::new(), &mut fields);
        Ok(fields)
    }
}

/// Whether a value is the zero of its type in Go, or of a quantity or a duration.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => ["", "0", "0s"].contains(&text.as_str()),
        Value::Array(values) => values.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) => false,
    }
}

fn prune(value: &mut Value, name: &str) {
    let Value::Object(fields) = value else { return };
    fields.retain(|field, value| {
        let name = join(name, field);
        prune(value, &name);
        // A feature that is off is no zero: most are on.
        !is_zero(value) || ZERO_SAYS_SOMETHING.contains(&name.as_str()) || name.starts_with("featureGates.")
    });
}

fn collect(value: Value, name: String, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (field, value) in fields {
                collect(value, join(&name, &field), into);
            }
        }
        value => {
            into.insert(name, value);
        }
    }
}

fn join(outer: &str, field: &str) -> String {
    if outer.is_empty() { field.to_owned() } else { format!("{outer}.{field}") }
}
