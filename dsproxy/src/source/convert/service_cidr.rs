//! ServiceCIDRs to the model.
//!
//! It does not know which of a range's addresses are given out.

use k8s_openapi::api::networking::v1 as networking;

use super::{Converted, Kind, Reason, Rejected, address, object_name};
use crate::model::ServiceCidr;

pub(super) fn service_cidr(object: &networking::ServiceCIDR) -> Converted<ServiceCidr> {
    let Some(name) = object_name(Kind::ServiceCidr, &object.metadata) else {
        return Converted::Rejected(Rejected { kind: Kind::ServiceCidr, name: None, reason: Reason::NoName });
    };
    let Some(spec) = &object.spec else {
        return Converted::Rejected(Rejected { kind: Kind::ServiceCidr, name: Some(name), reason: Reason::NoSpec });
    };
    let mut skipped = Vec::new();
    let cidrs = address::networks("cidrs", spec.cidrs.as_deref().unwrap_or_default(), &mut skipped);
    Converted::Ours { object: ServiceCidr { name, cidrs }, skipped }
}
