//! An object as kube's watcher carries it: turned into the model while it is read.
//!
//! So a page of a list never exists as full objects, and a malformed object is known by its name instead of
//! failing all that stands around it. It knows nothing of requests.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::convert::{self, Converted, FromObject};

/// A type of the model whose Kubernetes type says where the API server serves it.
pub(super) trait Served: FromObject<Object: Resource<DynamicType = ()>> {}

impl<T: FromObject<Object: Resource<DynamicType = ()>>> Served for T {}

/// An object, and of its metadata the version alone.
#[derive(Clone, Debug)]
pub(super) struct Carried<T> {
    metadata: ObjectMeta,
    pub(super) object: Converted<T>,
}

impl<T> Carried<T> {
    /// The version as a number, where versions can be compared at all.
    pub(super) fn version(&self) -> Option<u64> {
        self.metadata.resource_version.as_deref()?.parse().ok()
    }
}

impl<'de, T: FromObject> Deserialize<'de> for Carried<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let resource_version = value.pointer("/metadata/resourceVersion").and_then(Value::as_str).map(str::to_owned);
        let metadata = ObjectMeta { resource_version, ..ObjectMeta::default() };
        Ok(Self { metadata, object: convert::from_json(&value) })
    }
}

impl<T: Served> Resource for Carried<T> {
    type DynamicType = ();
    type Scope = <T::Object as Resource>::Scope;

    fn kind(dynamic: &()) -> Cow<'_, str> {
        T::Object::kind(dynamic)
    }

    fn group(dynamic: &()) -> Cow<'_, str> {
        T::Object::group(dynamic)
    }

    fn version(dynamic: &()) -> Cow<'_, str> {
        T::Object::version(dynamic)
    }

    fn plural(dynamic: &()) -> Cow<'_, str> {
        T::Object::plural(dynamic)
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::Service;

    #[test]
    fn a_malformed_object_harms_no_other_and_keeps_its_name_and_version() {
        let service = |name: &str, port: Value| {
            json!({
                "metadata": {"name": name, "namespace": "ns", "resourceVersion": "7"},
                "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": port}]},
            })
        };
        let page = json!([
            service("a", json!(80)),
            service("b", json!("eighty")),
            {"metadata": {"name": "c", "labels": "none", "resourceVersion": "9"}},
            "not an object",
        ]);
        let page: Vec<Carried<Service>> = serde_json::from_value(page).expect("a page");
        let read = |carried: &Carried<Service>| {
            let ours = matches!(carried.object, Converted::Ours { .. });
            (ours, carried.object.object_name().map(ToString::to_string), carried.version())
        };
        let named = |ours, name: &str, version| (ours, Some(name.to_owned()), Some(version));
        assert_eq!(
            page.iter().map(read).collect::<Vec<_>>(),
            [named(true, "ns/a", 7), named(false, "ns/b", 7), named(false, "default/c", 9), (false, None, None)]
        );
    }
}
