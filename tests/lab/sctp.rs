//! SCTP through a VIP, with real sockets. Addresses are translated and ports are not, so a Service's port is its endpoints'.

use std::env;

use dsproxy_common::{IpFamily, Protocol};
use dsproxy_tests::{
    lab::{DualStack, SctpServer, ServiceManifest, eventually, sctp_exchange, sctp_socket},
    prog::kernel_release,
};

use crate::cluster::{Cluster, SOON};

/// Of Diameter, which is spoken over SCTP.
const PORT: u16 = 3868;

const VIP: DualStack = DualStack::cluster_ip(7);

/// The variable that lists, by commas, what the kernel is known to have: there its absence is a failure.
const HAS: &str = "DSPROXY_KERNEL_HAS";

#[test]
fn associations_are_led_to_endpoints() {
    let cluster = Cluster::build();
    let client = &cluster.client;
    if let Err(error) = client.namespace().run(|| sctp_socket(IpFamily::V4)).expect("the client is there") {
        let release = kernel_release().expect("a kernel that tells its release");
        assert_eq!(error.raw_os_error(), Some(libc::EPROTONOSUPPORT), "kernel {release}: {error}");
        let has = env::var(HAS).unwrap_or_default();
        assert!(has.split(',').all(|feature| feature != "sctp"), "kernel {release} should have SCTP: {error}");
        println!(
            "kernel {release} has no SCTP ({error}): `cargo xtask vm --only lab -- sctp` runs this on one that has"
        );
        return;
    }
    let backends = ["local", "remote"].map(|role| cluster.find(role));
    let _servers = backends.map(|backend| {
        let pod = &backend.pod;
        SctpServer::start(pod.namespace(), pod.addresses(), PORT, &backend.role).expect("the server listens")
    });
    let _daemon = cluster.start_daemon();
    for backend in backends {
        let service = ServiceManifest::new("default", "diameter")
            .dual_stack(VIP)
            .port(Protocol::Sctp, PORT, PORT)
            .backends([backend.pod.addresses()]);
        cluster.write(&service);
        for family in IpFamily::ALL {
            eventually(&format!("{} is to answer over {family}", backend.role), SOON, || {
                let (source, target) = (client.addresses().of(family), VIP.socket(family, PORT));
                // In several packets.
                match sctp_exchange(client.namespace(), source, target, &[7; 8192]) {
                    Ok(name) if name == backend.role => Ok(()),
                    Ok(name) => Err(format!("{name} answered")),
                    Err(error) => Err(error.to_string()),
                }
            })
            .expect("the Service is served");
        }
    }
}
