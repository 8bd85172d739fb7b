//! Which eBPF programs sit on the interfaces of a namespace, asked of the kernel and not of the daemon.

use aya::programs::{SchedClassifier, TcAttachType};
use nix::net::if_::if_nameindex;

use super::{LabError, Namespace, iproute};

/// Something attached to an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attachment {
    /// The interface.
    pub interface: String,
    /// Where it sits: `tcx ingress`, `tcx egress`, `clsact ingress`, `clsact egress`, `clsact` for the bare
    /// qdisc, or `xdp`.
    pub hook: &'static str,
    /// The program's name; empty for a qdisc.
    pub program: String,
}

/// Everything attached to the interfaces of `namespace`, sorted.
pub fn attachments(namespace: &Namespace) -> Result<Vec<Attachment>, LabError> {
    let mut found = namespace.run(tcx)??;
    for interface in namespace.run(interfaces)?? {
        for (hook, program) in iproute::traffic_control(namespace, &interface)? {
            found.push(Attachment { interface: interface.clone(), hook, program });
        }
    }
    found.sort();
    Ok(found)
}

fn tcx() -> Result<Vec<Attachment>, LabError> {
    let mut found = Vec::new();
    for interface in interfaces()? {
        for (hook, kind) in [("tcx ingress", TcAttachType::Ingress), ("tcx egress", TcAttachType::Egress)] {
            let (_, programs) = SchedClassifier::query_tcx(&interface, kind)
                .map_err(|error| LabError::Attachments { interface: interface.clone(), reason: error.to_string() })?;
            found.extend(programs.iter().map(|program| Attachment {
                interface: interface.clone(),
                hook,
                program: program.name_as_str().unwrap_or_default().to_owned(),
            }));
        }
    }
    Ok(found)
}

fn interfaces() -> Result<Vec<String>, LabError> {
    let names = if_nameindex()
        .map_err(|errno| LabError::Attachments { interface: "all interfaces".to_owned(), reason: errno.to_string() })?;
    Ok(names.iter().map(|interface| interface.name().to_string_lossy().into_owned()).collect())
}
