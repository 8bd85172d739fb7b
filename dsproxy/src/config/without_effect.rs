//! What kube-proxy can be told that means nothing here, each with the reason. Everything else is obeyed.

use std::collections::BTreeMap;

use serde_json::Value;

/// kube-proxy's fields that are obeyed.
const OBEYED: [&str; 26] = [
    "apiVersion",
    "kind",
    "featureGates.AllowServiceExternalIPs",
    "clientConnection.kubeconfig",
    "logging.format",
    "logging.verbosity",
    "hostnameOverride",
    "bindAddress",
    "healthzBindAddress",
    "metricsBindAddress",
    "bindAddressHardFail",
    "iptables.masqueradeAll",
    "nftables.masqueradeAll",
    "detectLocalMode",
    "detectLocal.bridgeInterface",
    "detectLocal.interfaceNamePrefix",
    "clusterCIDR",
    "nodePortAddresses",
    "oomScoreAdj",
    "conntrack.maxPerCore",
    "conntrack.min",
    "conntrack.tcpEstablishedTimeout",
    "conntrack.tcpCloseWaitTimeout",
    "conntrack.tcpBeLiberal",
    "conntrack.udpTimeout",
    "conntrack.udpStreamTimeout",
];

const ONE_DATA_PATH: &str = "there is one data path, in eBPF";
const NO_MARKS: &str = "packets are not marked";
const NO_RULES: &str = "no rules are synchronised: maps are written at every change";
const NO_LOOPBACK: &str = "NodePorts are not served on loopback addresses, as in kube-proxy's nftables mode";
const NO_IPVS: &str = "there is no ipvs";
const TIMEOUTS: &str = "the flags --timeout-tcp-... and --timeout-udp say how long connections count";
const WATCHES: &str = "objects are watched as JSON, with back-off in place of a limit";
const LINES: &str = "the log is written line by line to standard error";
const NOT_GO: &str = "this is not a Go program";
const WINDOWS: &str = "this is not Windows";

/// Fields without effect, or sections of them, with kube-proxy's flag where there is one, and the reason.
const WITHOUT_EFFECT: [(&str, &str, &str); 34] = [
    ("mode", "--proxy-mode", ONE_DATA_PATH),
    ("iptables.masqueradeBit", "--iptables-masquerade-bit", NO_MARKS),
    ("iptables.localhostNodePorts", "--iptables-localhost-nodeports", NO_LOOPBACK),
    ("iptables.syncPeriod", "--iptables-sync-period", NO_RULES),
    ("iptables.minSyncPeriod", "--iptables-min-sync-period", NO_RULES),
    ("nftables.masqueradeBit", "", NO_MARKS),
    ("nftables.syncPeriod", "", NO_RULES),
    ("nftables.minSyncPeriod", "", NO_RULES),
    ("ipvs.syncPeriod", "--ipvs-sync-period", NO_RULES),
    ("ipvs.minSyncPeriod", "--ipvs-min-sync-period", NO_RULES),
    ("ipvs.scheduler", "--ipvs-scheduler", NO_IPVS),
    ("ipvs.excludeCIDRs", "--ipvs-exclude-cidrs", NO_IPVS),
    ("ipvs.strictARP", "--ipvs-strict-arp", NO_IPVS),
    ("ipvs.tcpTimeout", "--ipvs-tcp-timeout", TIMEOUTS),
    ("ipvs.tcpFinTimeout", "--ipvs-tcpfin-timeout", TIMEOUTS),
    ("ipvs.udpTimeout", "--ipvs-udp-timeout", TIMEOUTS),
    ("winkernel", "", WINDOWS),
    ("windowsRunAsService", "", WINDOWS),
    ("clientConnection.acceptContentTypes", "", WATCHES),
    ("clientConnection.contentType", "--kube-api-content-type", WATCHES),
    ("clientConnection.qps", "--kube-api-qps", WATCHES),
    ("clientConnection.burst", "--kube-api-burst", WATCHES),
    ("configSyncPeriod", "--config-sync-period", WATCHES),
    ("enableProfiling", "--profiling", NOT_GO),
    ("showHiddenMetricsForVersion", "--show-hidden-metrics-for-version", "no metrics are hidden"),
    ("portRange", "", "kube-proxy has no use for it either"),
    ("featureGates", "--feature-gates", "there is no such feature to turn on or off"),
    ("logging.vmodule", "--vmodule", "--log-level takes levels for targets"),
    ("logging.flushFrequency", "--log-flush-frequency", LINES),
    ("logging.options.json.infoBufferSize", "--log-json-info-buffer-size", LINES),
    ("logging.options.json.splitStream", "--log-json-split-stream", LINES),
    ("logging.options.text.infoBufferSize", "--log-text-info-buffer-size", LINES),
    ("logging.options.text.splitStream", "--log-text-split-stream", LINES),
    ("logging", "", LINES),
];

/// How something was said, and so how it is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// By flags.
    Flags,
    /// By the file.
    File,
}

/// Which of the fields that were said have no effect, by the reason.
pub(crate) fn without_effect(said: &BTreeMap<String, Value>, form: Form) -> BTreeMap<&'static str, Vec<String>> {
    let mut named: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for field in said.keys().filter(|field| !OBEYED.contains(&field.as_str())) {
        let covers = |of: &str| field.strip_prefix(of).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        let Some((of, flag, reason)) = WITHOUT_EFFECT.iter().find(|(of, ..)| covers(of)) else { continue };
        let name = match (form, *flag) {
            (Form::File, _) | (Form::Flags, "") => field.clone(),
            (Form::Flags, flag) if of == field => flag.to_owned(),
            // An entry of a map.
            (Form::Flags, flag) => format!("{flag} {}", field.trim_start_matches(of).trim_start_matches('.')),
        };
        named.entry(*reason).or_default().push(name);
    }
    named
}

/// Whether the field `name` of the file is obeyed.
///
/// # Errors
///
/// Why not.
pub(crate) fn effect(name: &str) -> Result<(), &'static str> {
    let none = BTreeMap::from([(name.to_owned(), Value::Null)]);
    without_effect(&none, Form::File).into_keys().next().map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{file::File, kube_proxy};

    #[test]
    fn every_field_is_obeyed_or_named_with_a_reason() {
        let file = File::parse(include_str!("everything.yaml")).expect("valid");
        assert_eq!(file.unknown, []);
        let value = serde_json::to_value(&file.configuration).expect("JSON");
        for (section, fields) in kube_proxy::SECTIONS {
            let section = if section.is_empty() { &value } else { &value[section] };
            let missing: Vec<_> = fields.iter().filter(|field| section[**field].is_null()).collect();
            assert!(missing.is_empty(), "the example says nothing of {missing:?}");
        }
        let said = file.configuration.said().expect("JSON");
        let named = without_effect(&said, Form::File);
        let named: Vec<&String> = named.values().flatten().collect();
        for field in said.keys() {
            let count = usize::from(OBEYED.contains(&field.as_str())) + usize::from(named.contains(&field));
            assert_eq!(count, 1, "{field}");
        }
    }

    #[test]
    fn names_are_as_they_were_written() {
        let said = ["ipvs.scheduler", "featureGates.NFTablesProxyMode", "featureGates.AllowServiceExternalIPs", "mode"];
        let said = said.map(|field| (field.to_owned(), Value::from(true))).into();
        let named: Vec<String> = without_effect(&said, Form::Flags).into_values().flatten().collect();
        assert_eq!(named, ["--ipvs-scheduler", "--feature-gates NFTablesProxyMode", "--proxy-mode"]);
        let named: Vec<String> = without_effect(&said, Form::File).into_values().flatten().collect();
        assert_eq!(named, ["ipvs.scheduler", "featureGates.NFTablesProxyMode", "mode"]);
    }
}
