//! Which chains are kube-proxy's: those that its modes `iptables` and `ipvs` make, of this release and of older ones.
//!
//! Others make chains whose names begin alike: kubelet, and network plugins.

/// The tables that kube-proxy has chains in.
pub(super) const TABLES: [&str; 3] = ["nat", "filter", "mangle"];

/// Chains with these very names (`pkg/proxy/iptables/proxier.go`, `pkg/proxy/ipvs/proxier.go`).
const NAMES: [&str; 16] = [
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-MARK-MASQ",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    "KUBE-LOAD-BALANCER",
    "KUBE-NODE-PORT",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-PORTALS-CONTAINER",
    "KUBE-PORTALS-HOST",
    "KUBE-NODEPORT-NON-LOCAL",
];

/// Chains of a Service or of an endpoint: the prefix, and a hash in 16 letters of Base32.
const PREFIXES: [&str; 6] = ["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-XLB-", "KUBE-SEP-"];

const HASH_LENGTH: usize = 16;

/// Whether the chain is kube-proxy's.
pub(super) fn is_kube_proxys(name: &str) -> bool {
    let is_hash = |hash: &str| {
        hash.len() == HASH_LENGTH && hash.bytes().all(|byte| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte))
    };
    NAMES.contains(&name) || PREFIXES.iter().any(|prefix| name.strip_prefix(prefix).is_some_and(is_hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_and_plugins_chains_are_not_kube_proxys() {
        for ours in
            ["KUBE-SERVICES", "KUBE-SVC-TCOU7JCQXEZGVUNU", "KUBE-SEP-AAAAAAAAAAAAAAAA", "KUBE-EXT-234567ABCDEFGHIJ"]
        {
            assert!(is_kube_proxys(ours), "{ours}");
        }
        for foreign in [
            "KUBE-IPTABLES-HINT",
            "KUBE-KUBELET-CANARY",
            "KUBE-MARK-DROP",
            "KUBE-FIREWALL",
            "KUBE-ROUTER-SERVICES",
            "KUBE-POD-FW-AAAAAAAAAAAAAAAA",
            "KUBE-NWPLCY-AAAAAAAAAAAAAAAA",
            "KUBE-SVC-mine",
            "KUBE-SVC-",
            "KUBE-SVC-AAAAAAAAAAAAAAAA1",
            "MY-KUBE-SERVICES",
            "PREROUTING",
            "cali-PREROUTING",
            "",
        ] {
            assert!(!is_kube_proxys(foreign), "{foreign}");
        }
    }
}
